"""A candidate that answers beside the served version: over HTTP, with every request sampled."""

from __future__ import annotations

import base64
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from service.client import Graft, GraftProblem, Json
from tests.acceptance.running import RunningService, running

pytestmark = [pytest.mark.slow, pytest.mark.shared]

MODEL = "insects"
_PATIENCE_SECONDS = 60.0
_WRITTEN_SECONDS = 3.0  # longer than counts wait to be written


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Iterator[RunningService]:
    """A service whose candidates are asked everything."""
    folder = tmp_path_factory.mktemp("service") / "data"
    everything = {"GRAFT_SHADOW_FRACTION": "1"}
    catalogue = shared / "weights" / "catalog.json"
    with running(folder, catalogue=catalogue, environment=everything) as started:
        yield started


@pytest.fixture(scope="module")
def photographs(shared: Path) -> list[bytes]:
    with zipfile.ZipFile(shared / "data" / "hymenoptera.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.startswith("val/") and n.endswith(".jpg"))
        return [archive.read(name) for name in names[::20]]


@pytest.fixture(scope="module")
def two_versions(graft: Graft, shared: Path) -> None:
    archive = shared / "data" / "hymenoptera.zip"
    dataset = graft.wait_for_dataset(graft.upload(archive, name="insects")["id"])
    for backbone, promote in (("squeezenet1_1", True), ("mobilenet_v2", False)):
        job = graft.submit(dataset["id"], backbone=backbone, model=MODEL, promote=promote)
        graft.wait_for_job(job["id"])


def _compared(graft: Graft, images: int) -> Json:
    """Return what is known of the shadow once so many images have been compared."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        known = graft.shadow(MODEL)
        if sum(pair["compared"] for pair in known["comparisons"]) >= images:
            return known
        time.sleep(0.2)
    raise TimeoutError(f"{images} images were not compared: {known}")


def test_the_candidate_is_asked_behind_the_answer_and_compared(
    graft: Graft, two_versions: None, photographs: list[bytes]
) -> None:
    nothing = graft.shadow(MODEL)
    assert (nothing["version"], nothing["share"], nothing["comparisons"]) == (None, 1.0, [])
    graft.predict(MODEL, *photographs)  # without a candidate nobody else is asked
    time.sleep(_WRITTEN_SECONDS)  # the candidate is looked for behind the answer
    assert graft.shadow(MODEL)["comparisons"] == []
    graft.set_alias(MODEL, "shadow", 2)
    served = graft.predict(MODEL, *photographs)
    assert served["model"]["version"] == 1
    (pair,) = _compared(graft, len(photographs))["comparisons"]
    assert (pair["version"], pair["shadow"], pair["failed"]) == (1, 2, 0)

    candidate = graft.predict(f"{MODEL}@shadow", *photographs)  # named itself, it has no shadow
    same = [
        one["label"] == other["label"]
        for one, other in zip(served["predictions"], candidate["predictions"], strict=True)
    ]
    time.sleep(_WRITTEN_SECONDS)
    (pair,) = graft.shadow(MODEL)["comparisons"]
    assert pair["compared"] == len(photographs)
    assert pair["agreed"] == sum(same)
    assert pair["agreement"] == pytest.approx(sum(same) / len(same))
    assert 0 < pair["mean_difference"] <= pair["largest_difference"] <= 1


def test_other_protocols_are_compared_too(
    service: RunningService, graft: Graft, two_versions: None, photographs: list[bytes]
) -> None:
    before = sum(pair["compared"] for pair in graft.shadow(MODEL)["comparisons"])
    text = base64.b64encode(photographs[0]).decode()
    image = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [text]}
    with httpx2.Client(base_url=service.url, timeout=60, trust_env=False) as http:
        http.post(f"/hf/{MODEL}", content=photographs[0]).raise_for_status()
        http.post(f"/v2/models/{MODEL}/infer", json={"inputs": [image]}).raise_for_status()
    _compared(graft, before + 2)


def test_promotion_turns_the_pair_around_and_a_removed_alias_ends_it(
    graft: Graft, two_versions: None, photographs: list[bytes]
) -> None:
    graft.set_alias(MODEL, "shadow", 1)
    graft.set_alias(MODEL, "default", 2, if_current=1)
    before = sum(pair["compared"] for pair in graft.shadow(MODEL)["comparisons"])
    graft.predict(MODEL, photographs[0])
    known = _compared(graft, before + 1)
    turned = [pair for pair in known["comparisons"] if pair["version"] == 2]
    assert [(pair["shadow"], pair["compared"]) for pair in turned] == [(1, 1)]
    graft.remove_alias(MODEL, "shadow")
    assert graft.shadow(MODEL)["version"] is None
    for alias, code in (("shadow", "version-not-found"), ("default", "alias-reserved")):
        with pytest.raises(GraftProblem) as refused:
            graft.remove_alias(MODEL, alias)
        assert refused.value.code == code
