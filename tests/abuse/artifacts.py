"""D04 and I-A08 of the catalogue: models that are brought along, with other bytes than promised."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from models_cache.durable import canonical_json, sha256_of_bytes
from tests.abuse.archives import Canary
from tests.abuse.case import Build, Call, Case, refused
from tests.abuse.zips import named
from tests.images import zip_bytes

_MALFORMED = "artifact-malformed"
_CROP = 8


def _facts(**changed: object) -> dict[str, Any]:
    preprocessing = {
        "resize_px": _CROP, "crop_px": _CROP, "mean": [0.5] * 3, "std": [0.5] * 3,
        "interpolation": "bilinear",
    }  # fmt: skip
    return {
        "format": 2, "task": "classification", "architecture": "squeezenet1_1", "kind": "head",
        "weights": {"name": "X", "sha256": "0" * 64, "file": "x.pth", "has_head": False},
        "preprocessing": preprocessing, "classes": ["a", "b"], "feature_width": 4,
        "metrics": {}, "lineage": {}, "numerics": {}, "calibration": None, **changed,
    }  # fmt: skip


_HEAD: dict[str, NDArray[Any]] = {
    "head.weight": np.zeros((2, 4), np.float32),
    "head.bias": np.zeros(2, np.float32),
}
_GOLDEN: dict[str, NDArray[Any]] = {
    "images": np.zeros((1, _CROP, _CROP, 3), np.uint8),
    "features": np.zeros((1, 4), np.float32),
    "logits": np.zeros((1, 2), np.float32),
}


def _artifact(
    model: bytes | None = None,
    facts: bytes | None = None,
    more: Mapping[str, bytes] | None = None,
    **changed: object,
) -> bytes:
    """Return the archive of a model, complete but for what is given."""
    files: dict[str, bytes] = {
        "model.safetensors": save(_HEAD) if model is None else model,
        "golden.safetensors": save(_GOLDEN),
    }
    listed = {
        name: {"sha256": sha256_of_bytes(data), "size": len(data)} for name, data in files.items()
    }
    described = canonical_json({"files": listed, **_facts(**changed)})
    return zip_bytes({"artifact.json": facts or described, **files, **(more or {})})


def _tensors(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def _import(
    number: str, what: str, build: Build, code: str = _MALFORMED, status: int = 422
) -> Case:
    call = Call("POST", "/v1/models/imported/versions", build)
    return Case(number, what, call, refused(status, code))


_ONE = '{"head.weight":{"dtype":"F32","shape":[2,4],"data_offsets":[0,32]}'
_NOT_FINITE: dict[str, NDArray[Any]] = {**_HEAD, "head.bias": np.array([np.nan, 0], np.float32)}

CASES = (
    _import("D04-2-63", "a header of 2^63 bytes", lambda: _artifact(_tensors(b"{}", length=2**63))),
    _import(
        "D04-100m", "a header of 100 MB", lambda: _artifact(_tensors(b"{}", length=100_000_001))
    ),
    _import(
        "D04-overlap",
        "tensors that overlap",
        lambda: _artifact(
            _tensors(
                (_ONE + ',"head.bias":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}').encode(),
                bytes(32),
            )
        ),
    ),
    _import(
        "D04-hole",
        "a hole between tensors",
        lambda: _artifact(
            _tensors(
                (
                    _ONE + ',"head.bias":{"dtype":"F32","shape":[2],"data_offsets":[40,48]}}'
                ).encode(),
                bytes(48),
            )
        ),
    ),
    _import(
        "D04-negative",
        "a negative offset",
        lambda: _artifact(
            _tensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}', bytes(4))
        ),
    ),
    _import(
        "D04-outside",
        "an offset outside",
        lambda: _artifact(
            _tensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4000]}}', bytes(4))
        ),
    ),
    _import(
        "D04-shape",
        "a shape of 2^62",
        lambda: _artifact(
            _tensors(
                b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}',
                bytes(4),
            )
        ),
    ),
    _import(
        "D04-twice",
        "a key twice",
        lambda: _artifact(_tensors((_ONE + "," + _ONE[1:] + "}").encode(), bytes(32))),
    ),
    _import(
        "D04-type",
        "another type",
        lambda: _artifact(save({k: v.astype(np.float64) for k, v in _HEAD.items()})),
    ),
    _import(
        "D04-size",
        "other shapes",
        lambda: _artifact(
            save(
                {"head.weight": np.zeros((3, 4), np.float32), "head.bias": np.zeros(3, np.float32)}
            )
        ),
    ),
    _import("D04-nan", "NaN for a weight", lambda: _artifact(save(_NOT_FINITE))),
    _import("D04-names", "other tensors", lambda: _artifact(save({"x": np.zeros(3, np.float32)}))),
    _import("D04-empty", "no bytes", lambda: _artifact(b"")),
    _import("D04-brackets", "brackets for a header", lambda: _artifact(_tensors(b"[" * 50_000))),
    _import("IA08-model", "a pickle for weights", lambda: _artifact(pickle.dumps(Canary()))),
    _import(
        "IA08-file",
        "a pickle beside them",
        lambda: _artifact(more={"data.pkl": pickle.dumps(Canary())}),
    ),
    _import("D04-facts", "no description", lambda: zip_bytes({"model.safetensors": save(_HEAD)})),
    _import("D04-json", "a description that is none", lambda: _artifact(facts=b"nonsense")),
    _import("D04-deep", "a deep description", lambda: _artifact(facts=b"[" * 100_000)),
    _import("D04-list", "a list for a description", lambda: _artifact(facts=b"[]")),
    _import(
        "D04-nan-facts",
        "NaN for a figure",
        lambda: _artifact(metrics={"x": 1}, facts=b'{"format": NaN}'),
    ),
    _import("D04-format", "another format", lambda: _artifact(format=999)),
    _import("D04-task", "another task", lambda: _artifact(task="x")),
    _import("D04-classes", "a class twice", lambda: _artifact(classes=["a", "a"])),
    _import("D04-width", "a width of -1", lambda: _artifact(feature_width=-1)),
    _import(
        "D04-hash",
        "other bytes than described",
        lambda: _artifact(more={"golden.safetensors": save(_HEAD)}),
    ),
    _import("D04-parent", "a file outside", lambda: named("../../artifact.json"), "path-traversal"),
    _import("D04-bytes", "no archive", lambda: b"0123456789", "archive-type-unknown", 415),
    _import(
        "D04-backbone",
        "a backbone that is not there",
        lambda: _artifact(),
        "weights-unavailable",
        503,
    ),
)
