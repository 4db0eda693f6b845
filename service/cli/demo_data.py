"""Where the demo's photographs and weights come from, in the order that the README gives."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import Progress

from models_cache.egress import Outgoing, exchange
from models_cache.egress_errors import EgressError
from service.cli.configuration import load_settings

#: The photographs of PyTorch's transfer-learning tutorial: 245 ants and bees to learn from.
TUTORIAL_URL = "https://download.pytorch.org/tutorial/hymenoptera_data.zip"
_DOWNLOAD_SECONDS = 1800.0
_MOST_BYTES = 200 << 20  # the archive has 45 MB
_DRAWN_PER_CLASS = 24
_DRAWN_PX = 96


@dataclass(frozen=True)
class DemoPlan:
    """What the demo will do.

    Args:
        archive: Zip of labelled images.
        catalogues: Weights catalogue files.
        backbone: Architecture.
        recipe: `head`, or `scratch` where there are no pretrained weights.
        story: What is told to the user before it starts.
        parameters: Overrides of the recipe.
    """

    archive: Path
    catalogues: tuple[str, ...]
    backbone: str
    recipe: str
    story: str
    parameters: dict[str, Any] = field(default_factory=dict)


def choose_plan(folder: Path, data: str, catalog: str, backbone: str, assets: Path) -> DemoPlan:
    """Return what to do: what was named, else the assets folder, else the network, else drawings.

    Args:
        folder: For what is downloaded or drawn.
        data: An archive, or empty.
        catalog: A weights catalogue file, or empty.
        backbone: The wanted architecture.
        assets: Folder with `data/hymenoptera.zip` and `weights/catalog.json`, if it is there.
    """
    archive, where = _archive(folder, data, assets)
    if archive is None:
        return _drawn(folder)
    catalogues = [catalog] if catalog else []
    if not catalog and (assets / "weights" / "catalog.json").is_file():
        catalogues = [str((assets / "weights" / "catalog.json").absolute())]
    offered = any(backbone in _architectures(Path(path)) for path in catalogues)
    weights = "from a catalogue file" if offered else "official, downloaded once and verified"
    story = f"Photographs: {where}. Pretrained weights of {backbone}: {weights}."
    return DemoPlan(archive, tuple(catalogues), backbone, "head", story)


def _archive(folder: Path, data: str, assets: Path) -> tuple[Path | None, str]:
    if data:
        return Path(data), data
    found = assets / "data" / "hymenoptera.zip"
    if found.is_file():
        return found, f"ants and bees, from {found}"
    path = folder / "hymenoptera_data.zip"
    if _download(TUTORIAL_URL, path):
        return path, "ants and bees, from PyTorch's transfer-learning tutorial"
    return None, ""


def _architectures(catalogue: Path) -> set[str]:
    value = json.loads(catalogue.read_text())
    return {str(entry["architecture"]) for entry in value["weights"]}


def _download(url: str, path: Path) -> bool:
    """Fetch a file with a progress bar; False if there is no way to it."""
    outgoing = Outgoing(url=url, total_seconds=_DOWNLOAD_SECONDS, may_follow=lambda _url: True)
    try:
        with (
            exchange(load_settings().egress, outgoing) as answer,
            Progress(console=Console(stderr=True)) as progress,
            path.open("wb") as file,
        ):
            if answer.status != HTTPStatus.OK:
                return False
            total = int(answer.headers.get("content-length", 0)) or None
            task = progress.add_task(f"download {path.name}", total=total)
            done_bytes = 0
            for chunk in answer.chunks(1 << 20):
                done_bytes += len(chunk)
                if done_bytes > _MOST_BYTES:
                    return False
                file.write(chunk)
                progress.advance(task, len(chunk))
    except EgressError:
        path.unlink(missing_ok=True)
        return False
    return True


def _drawn(folder: Path) -> DemoPlan:
    """Draw warm discs and cold crosses, and train a small network from nothing."""
    random = np.random.default_rng(0)
    path = folder / "drawings.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for label in ("cross", "disc"):
            for index in range(_DRAWN_PER_CLASS):
                archive.writestr(f"{label}/{index:03d}.png", _drawing(random, label))
    story = (
        "No photographs and no pretrained weights can be had here (no assets folder, no network): "
        "the demo draws its images and trains a small network from random weights. "
        "These are NOT pretrained weights; expect little of the accuracy."
    )
    parameters = {"epochs": 12, "batch_size": 8}
    return DemoPlan(path, (), "shufflenet_v2_x0_5", "scratch", story, parameters)


def _drawing(random: np.random.Generator, label: str) -> bytes:
    colours = random.integers(0, 256, (2, 3))
    image = Image.new("RGB", (_DRAWN_PX, _DRAWN_PX), tuple(int(c) for c in colours[0] // 3))
    draw = ImageDraw.Draw(image)
    size = int(random.integers(40, 72))
    left, top = (int(x) for x in random.integers(4, _DRAWN_PX - size - 4, 2))
    box = (left, top, left + size, top + size)
    red, green, blue = (int(c) for c in colours[1])
    ink = (255 - red // 4, green // 2, blue // 4)
    if label == "cross":
        ink = ink[::-1]
    if label == "disc":
        draw.ellipse(box, fill=ink)
    else:
        draw.line(box, fill=ink, width=size // 5)
        draw.line((left, top + size, left + size, top), fill=ink, width=size // 5)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
