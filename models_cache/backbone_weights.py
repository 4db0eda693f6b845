"""From a verified weights file to tensors that fit a backbone, or an error that names the misfit.

`.pth` files are opened with `weights_only=True` and never otherwise: what that refuses is
refused. Nothing is loaded half: keys, shapes and values are checked before the first copy.
"""

from __future__ import annotations

import pickle  # only for the name of the error that torch raises
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models_cache.durable import sha256_of_file
from models_cache.weights_errors import (
    WeightsHashMismatch,
    WeightsKeysMismatch,
    WeightsMalformed,
    WeightsUnavailable,
)

StateDict = dict[str, Tensor]

_NAMED_KEYS = 10  # of each kind in an error
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # GoogLeNet's and Inception's extra classifiers

# Old files, still the official ones, name these layers as torchvision did before.
_LEGACY_NAMES = (
    (re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..+)$"), r"\1\2"),
    (re.compile(r"^(.*\.mlp)\.linear_1\.(weight|bias)$"), r"\1.0.\2"),
    (re.compile(r"^(.*\.mlp)\.linear_2\.(weight|bias)$"), r"\1.3.\2"),
)
_UNREADABLE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    SafetensorError,
    RuntimeError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    ImportError,
    EOFError,
    OverflowError,
)


def verified_weights(folder: Path, weights: dict[str, Any]) -> Path:
    """Return the weights file that a receipt or an artifact names, its bytes checked.

    Raises:
        WeightsUnavailable: It is not in the folder.
        WeightsHashMismatch: It is not what it was.
    """
    file, expected = str(weights["file"]), str(weights["sha256"])
    path = folder / Path(file).name  # an imported artifact may say anything
    if not path.is_file():
        raise WeightsUnavailable(path.name[:80], "the vault, which has no such file")
    actual = sha256_of_file(path)
    if actual != expected:
        raise WeightsHashMismatch(path.name[:80], "the vault", expected, actual)
    return path


def read_state_dict(path: Path) -> StateDict:
    """Read a `.pth` or `.safetensors` file onto the CPU.

    Returns:
        Tensors by name, floating ones as float32.

    Raises:
        WeightsMalformed: It is truncated, holds anything but tensors, or a value is not finite.
    """
    try:
        if path.suffix == ".safetensors":
            loaded: object = load_file(path, device="cpu")
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise WeightsMalformed(path.name, reason) from error
    if not isinstance(loaded, dict) or not loaded:
        raise WeightsMalformed(path.name, "it holds no dictionary of tensors")
    return {_checked_name(path, k): _checked_tensor(path, k, v) for k, v in loaded.items()}


def _checked_name(path: Path, key: object) -> str:
    if not isinstance(key, str):
        raise WeightsMalformed(path.name, f"a key is no name but {key!r}"[:200])
    return key


def _checked_tensor(path: Path, key: object, value: object) -> Tensor:
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
        kind = type(value).__name__
        raise WeightsMalformed(path.name, f"{str(key)[:100]!r} is no plain tensor but {kind}")
    if not value.is_floating_point():
        return value.detach()
    if not bool(torch.isfinite(value).all()):
        raise WeightsMalformed(path.name, f"{str(key)[:100]!r} holds values that are not finite")
    return value.detach().to(torch.float32)


def fit_to(
    backbone: nn.Module, state: StateDict, names: tuple[str, str], head_prefix: str | None
) -> StateDict:
    """Return the tensors of a torchvision file under the names and shapes of a backbone.

    Args:
        backbone: The network without its classifier; may be on the meta device.
        state: The file's tensors.
        names: File and architecture, for errors.
        head_prefix: Start of the classifier's keys, which must be there and are dropped; None if
            the file holds no classifier, and then it must not.

    Raises:
        WeightsKeysMismatch: Keys are missing, unexpected or of another shape.
    """
    wanted = backbone.state_dict()
    found = {_modern_name(k): v for k, v in state.items() if not k.startswith(_AUXILIARY)}
    missing_head = []
    if head_prefix is not None:
        missing_head = [] if f"{head_prefix}weight" in found else [f"{head_prefix}weight"]
        found = {k: v for k, v in found.items() if not k.startswith(head_prefix)}
    for key, value in wanted.items():
        if key.endswith(".num_batches_tracked"):  # files older than torch 0.4.1 have none
            found.setdefault(key, torch.zeros((), dtype=value.dtype))
    missing = [k for k in wanted if k not in found] + missing_head
    unexpected = [k for k in found if k not in wanted]
    misshapen = [
        f"{k} {list(found[k].shape)} instead of {list(value.shape)}"
        for k, value in wanted.items()
        if k in found and found[k].shape != value.shape
    ]
    if missing or unexpected or misshapen:
        raise WeightsKeysMismatch(
            *names,
            *(len(missing), _listed(missing)),
            *(len(unexpected), _listed(unexpected)),
            *(len(misshapen), _listed(misshapen)),
        )
    return found


def _modern_name(key: str) -> str:
    for pattern, replacement in _LEGACY_NAMES:
        key = pattern.sub(replacement, key)
    return key


def _listed(keys: Iterable[str]) -> str:
    keys = list(keys)
    more = f", and {len(keys) - _NAMED_KEYS} more" if len(keys) > _NAMED_KEYS else ""
    return (", ".join(key[:120] for key in keys[:_NAMED_KEYS]) or "none") + more
