"""A model goes from one service to another, where the weights of its backbone are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.client import Graft, GraftProblem
from tests import images
from tests.acceptance.running import running
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.shared]

PHOTOGRAPH = images.shape_bytes("disc", 5)


@pytest.fixture(scope="module")
def archive(graft: Graft, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("moved")
    made = images.write_zip(folder / "shapes.zip", images.class_folders(per_class=10))
    dataset = graft.wait_for_dataset(graft.upload(made, name="shapes")["id"])
    job = graft.submit(dataset["id"], backbone="squeezenet1_1", recipe="head", model="moved")
    graft.wait_for_job(job["id"])
    return graft.download_archive("moved", 1, folder / "moved.zip")


def test_weights_that_a_model_misses_are_fetched(
    graft: Graft, archive: Path, tmp_path: Path, shared: Path
) -> None:
    with (
        running(tmp_path / "data", catalogue=shared / "weights" / "catalog.json") as service,
        service.client() as other,
    ):
        with pytest.raises(GraftProblem) as caught:
            other.import_archive("moved", archive)
        assert (caught.value.status, caught.value.code) == (503, "weights-coming")
        until(lambda: _has_weights(other), 60.0)
        other.import_archive("moved", archive)
        expected = graft.predict("moved", PHOTOGRAPH)["predictions"]
        assert other.predict("moved", PHOTOGRAPH)["predictions"] == expected
        [path] = (service.data_folder / "weights").glob("squeezenet1_1-*.pth")
        path.unlink()
    with (
        running(tmp_path / "data", catalogue=shared / "weights" / "catalog.json") as service,
        service.client() as other,
    ):
        with pytest.raises(GraftProblem) as caught:
            other.predict("moved", PHOTOGRAPH)
        assert (caught.value.status, caught.value.code) == (503, "weights-coming")
        until(lambda: _has_weights(other), 60.0)
        assert other.predict("moved", PHOTOGRAPH)["predictions"] == expected


def test_weights_that_no_catalogue_knows_are_named(archive: Path, tmp_path: Path) -> None:
    with running(tmp_path / "data") as service, service.client() as other:
        with pytest.raises(
            GraftProblem, match=r"squeezenet1_1-\w+\.pth could not be had"
        ) as caught:
            other.import_archive("moved", archive)
        assert caught.value.code == "weights-unavailable"
        assert "squeezenet1_1-" in str(caught.value)


def test_weights_that_cannot_be_fetched_are_not_promised_again(
    archive: Path, tmp_path: Path, shared: Path
) -> None:
    catalogue = tmp_path / "catalog.json"
    catalogue.write_bytes((shared / "weights" / "catalog.json").read_bytes())  # and no file
    with running(tmp_path / "data", catalogue=catalogue) as service, service.client() as other:

        def refusal() -> str:
            with pytest.raises(GraftProblem) as caught:
                other.import_archive("moved", archive)
            return caught.value.code

        assert refusal() == "weights-coming"
        until(lambda: _download_status(other) == "failed", 60.0)
        assert [refusal(), refusal()] == ["weights-unavailable"] * 2


def _download_status(graft: Graft) -> str | None:
    [backbone] = [b for b in graft.backbones() if b["id"] == "squeezenet1_1"]
    tried = [weights["download"] for weights in backbone["weights"] if weights["download"]]
    return tried[0]["status"] if tried else None


def _has_weights(graft: Graft) -> bool:
    return [found["id"] for found in graft.backbones(downloaded=True)] == ["squeezenet1_1"]
