"""Write the backbone catalogue of the installed torchvision as JSON, for processes without torch.

`python -m models_cache.snapshot` writes `catalogue_torchvision_<major>.<minor>.json` beside this
module. Run it for a new torchvision and commit the file; the tests compare the two.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torchvision
import torchvision.models

from models_cache import backbones, durable
from models_cache.activations import activation_bytes
from models_cache.catalogue import ACTIVATIONS_PX, SNAPSHOT_FORMAT, BackboneInfo, WeightsInfo
from models_cache.preprocessing import Interpolation, Preprocessing

_MEBIBYTE = 1 << 20  # the unit of torchvision's `_file_size`
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.pth$")
_INTERPOLATIONS: dict[str, Interpolation] = {
    "nearest": "nearest",
    "bilinear": "bilinear",
    "bicubic": "bicubic",
}
_LICENSE = "BSD-3-Clause"  # torchvision's own, which covers the weights that it trained
_SWAG_LICENSE = "CC-BY-NC-4.0"  # of the SWAG weights: not for commercial use


def snapshot_path() -> Path:
    """Return where the snapshot of the installed torchvision belongs."""
    major, minor = torchvision.__version__.split(".")[:2]
    return Path(__file__).parent / f"catalogue_torchvision_{major}.{minor}.json"


def snapshot() -> dict[str, Any]:
    """Return the JSON form of every classification builder and its weights."""
    return {
        "format": SNAPSHOT_FORMAT,
        "torchvision": torchvision.__version__.partition("+")[0],
        "backbones": [
            describe(name, activation_bytes(name, ACTIVATIONS_PX)).as_json()
            for name in backbones.architectures()
        ],
    }


def describe(architecture: str, activation_bytes: int) -> BackboneInfo:
    """Return what torchvision says of one architecture; one without any weights is described too.

    Args:
        architecture: A classification builder.
        activation_bytes: What it keeps of an image; finding that out takes longer than the rest.
    """
    try:
        entries = list(torchvision.models.get_model_weights(architecture))
    except (ValueError, TypeError):  # a builder without a weights enumeration
        entries = []
    weights = tuple(_weights_info(architecture, entry) for entry in entries)
    best = torchvision.models.get_model_weights(architecture).DEFAULT.name if entries else None
    return BackboneInfo(
        architecture=architecture,
        family=backbones.family(architecture),
        feature_width=backbones.feature_width(architecture),
        parameters=backbones.parameter_count(architecture),
        activation_bytes=activation_bytes,
        smallest_input_px=backbones.smallest_input_px(architecture),
        fixed_input=backbones.has_fixed_input(architecture),
        default=best,
        weights=weights,
    )


def _weights_info(architecture: str, entry: Any) -> WeightsInfo:  # noqa: ANN401 - a torchvision enum
    meta, file = entry.meta, str(entry.url).rpartition("/")[2]
    swag = "SWAG" in str(meta.get("license", ""))
    prefix = _HASH_IN_NAME.search(file)
    top1, top5 = (_accuracy(meta, metric) for metric in ("acc@1", "acc@5"))
    return WeightsInfo(
        architecture=architecture,
        name=entry.name,
        file=file,
        url=entry.url,
        sha256_prefix=prefix[1] if prefix else None,
        preprocessing=_preprocessing(entry),
        license=_SWAG_LICENSE if swag else _LICENSE,
        source=meta.get("recipe") or "torchvision",
        parameters=meta["num_params"],
        gflops=meta.get("_ops"),
        size_bytes=round(meta["_file_size"] * _MEBIBYTE) if "_file_size" in meta else None,
        accuracy_top1=top1,
        accuracy_top5=top5,
        usable=top1 is not None,  # torchvision gives NaN to a file without a whole network
    )


def _accuracy(meta: dict[str, Any], metric: str) -> float | None:
    percent = float(meta["_metrics"]["ImageNet-1K"][metric])
    return None if math.isnan(percent) else round(percent / 100, 6)


def _preprocessing(entry: Any) -> Preprocessing:  # noqa: ANN401
    preset = entry.transforms()
    mean, std = ([float(x) for x in values] for values in (preset.mean, preset.std))
    return Preprocessing(
        resize_px=preset.resize_size[0],
        crop_px=preset.crop_size[0],
        interpolation=_INTERPOLATIONS[preset.interpolation.value],
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
    )


def main() -> None:
    """Write the snapshot of the installed torchvision."""
    text = json.dumps(snapshot(), indent=1, allow_nan=False) + "\n"
    durable.write_bytes(snapshot_path(), text.encode())
    snapshot_path().chmod(0o644)  # a source file, readable like the others


if __name__ == "__main__":
    main()
