"""Real photographs as NumPy and HDF5 arrays over HTTP: uploaded, learned from, served."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import h5py
import httpx2
import numpy as np
import pytest
from PIL import Image

from models_cache.decode import center_crop, resize_shorter_side
from service.client import DatasetRejected, Graft
from tests.acceptance.running import RunningService
from tests.arrays import npz_bytes

pytestmark = [pytest.mark.slow, pytest.mark.shared]

_SIDE_PX = 224
_BAR = 0.88  # val accuracy of a squeezenet1_1 head; that of the original files is above 0.90


@pytest.fixture(scope="module")
def arrays(shared: Path) -> dict[str, Any]:
    """Ants and bees as uint8 `[397, 224, 224, 3]`, with labels and splits as texts."""
    images, labels, splits = [], [], []
    with zipfile.ZipFile(shared / "data" / "hymenoptera.zip") as archive:
        for name in archive.namelist():
            if not name.endswith(".jpg"):
                continue
            with Image.open(io.BytesIO(archive.read(name))) as image:
                pixels = np.asarray(image.convert("RGB"))
            resized = resize_shorter_side(pixels, _SIDE_PX, "bilinear")
            images.append(center_crop(resized, _SIDE_PX))
            split, label = name.split("/")[-3:-1]
            splits.append(split.encode())
            labels.append(label.encode())
    return {"images": np.stack(images), "labels": np.array(labels), "splits": np.array(splits)}


@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_a_head_learns_from_arrays(
    graft: Graft, tmp_path: Path, arrays: dict[str, Any], kind: str
) -> None:
    path = tmp_path / "insects.bin"  # the name says nothing
    if kind == "npz":
        path.write_bytes(npz_bytes(**arrays))
    else:
        with h5py.File(path, "w") as file:
            file.create_dataset("images", data=arrays["images"], compression="lzf", chunks=True)
            file["labels"], file["splits"] = arrays["labels"], arrays["splits"]
    dataset = graft.wait_for_dataset(graft.upload(path, name=f"insects-{kind}")["id"])
    assert dataset["classes"] == ["ants", "bees"]
    assert dataset["splits"]["val"]["images"] == 153
    job = graft.submit(dataset["id"], backbone="squeezenet1_1", model=f"insects-{kind}")
    assert graft.wait_for_job(job["id"])["metrics"]["val/accuracy_top1"] >= _BAR
    picture = io.BytesIO()
    Image.fromarray(arrays["images"][0]).save(picture, "PNG")
    [prediction] = graft.predict(f"insects-{kind}", picture.getvalue())["predictions"]
    assert prediction["label"] in ("ants", "bees")
    [shown] = graft.images(dataset["id"], split="val")[:1]
    assert shown["path"].startswith("val/images/")


def test_a_file_that_points_to_this_machine_is_refused(graft: Graft, tmp_path: Path) -> None:
    path = tmp_path / "evil.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("images", (2, 4, 4), "u1", external=[("/etc/hostname", 0, 32)])
        file["labels"] = [0, 1]
    with pytest.raises(DatasetRejected, match="stored in other files"):
        graft.wait_for_dataset(graft.upload(path)["id"])


def test_arrays_are_no_artifact(service: RunningService, tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    with h5py.File(path, "w") as file:
        file["images"] = [1]
    url = f"{service.url}/v1/models/imported/versions"
    answer = httpx2.post(url, content=path.read_bytes())
    assert answer.status_code in (415, 422)
