"""H of the catalogue, and D04: predictions, and models that are brought along."""

from __future__ import annotations

import base64
import json
import pickle
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save

from models_cache.durable import canonical_json, sha256_of_bytes
from tests.abuse.archives import Canary
from tests.abuse.case import OK, Build, Call, Case, Outcome, refused
from tests.abuse.zips import named
from tests.images import shape_bytes, zip_bytes

_PREDICT = "/v1/models/{model}/predict"
_JSON = {"content-type": "application/json"}
_IMAGE = {"content-type": "image/jpeg"}
_INVALID = refused(422, "validation-failed")
_B64 = base64.b64encode(shape_bytes("disc", 1)).decode()
_MALFORMED = "artifact-malformed"
_CROP = 8


def _predict(
    number: str,
    what: str,
    body: Build | bytes,
    outcome: Outcome,
    headers: Mapping[str, str] = _JSON,
    path: str = _PREDICT,
) -> Case:
    build = (lambda: body) if isinstance(body, bytes) else body
    return Case(number, what, Call("POST", path, build, headers), outcome, 30.0)


def _inputs(count: int, b64: str = _B64) -> bytes:
    return json.dumps({"inputs": [{"b64": b64}] * count}).encode()


def _query(number: str, query: str) -> Case:
    return _predict(
        number, query, lambda: shape_bytes("disc", 1), _INVALID, _IMAGE, f"{_PREDICT}?{query}"
    )


_PREDICTIONS = (
    _predict("H03-33", "33 images", _inputs(33), _INVALID),
    _predict("H03-32", "32 images", _inputs(32), Outcome(200, OK)),
    _predict("H03-none", "no images", b'{"inputs": []}', _INVALID),
    _predict("H03-mixed", "a bad one among two", json.dumps({"inputs": [{"b64": _B64}, {"b64": "AAAA"}]}).encode(), Outcome(200, OK)),
    _predict("H03-empty", "no bytes", b"", _INVALID, _IMAGE),
    _predict("H03-base64", "no base64", _inputs(1, "%%%"), _INVALID),
    _predict("H03-unicode", "base64 in other letters", _inputs(1, "\u0430" * 8), _INVALID),
    _predict("H03-field", "an unknown field", b'{"inputs": [{"b64": "AAAA", "url": "http://127.0.0.1/"}]}', _INVALID),
    _predict("G-url", "a URL for an image", b'{"inputs": [{"url": "http://169.254.169.254/"}]}', _INVALID),
    _predict("H03-type", "a type that is none", b"x", refused(415, "unsupported-media-type"), {"content-type": "video/mp4"}),
    _predict("H03-65", "65 MiB", lambda: bytes(65 << 20), refused(413, "payload-too-large"), _IMAGE),
    _query("H03-top-0", "top_k=0"),
    _query("H03-top-minus", "top_k=-1"),
    _query("H03-top-large", "top_k=1000000"),
    _query("H03-top-text", "top_k=nan"),
    _query("H03-error-nan", "max_error=nan"),
    _query("H03-error-2", "max_error=2"),
    _query("H03-wait", "timeout_seconds=inf"),
    _predict("H07-absent", "no such model", b"x", refused(404, "model-not-found"), _IMAGE, "/v1/models/absent/predict"),
    _predict("H07-version", "no such version", b"x", refused(404, "version-not-found"), _IMAGE, "/v1/models/{model}@999/predict"),
    _predict("H07-minus", "version -1", b"x", _INVALID, _IMAGE, "/v1/models/{model}@-1/predict"),
    _predict("H10-v2-json", "a tensor without end", b'{"inputs": [{"name": "image", "shape": [1e999]}]}', refused(400, "error"), _JSON, "/v2/models/{model}/infer"),
    _predict("H10-v2-shape", "a shape of 10^18", json.dumps({"inputs": [{"name": "image", "shape": [10**18], "datatype": "BYTES", "data": ["x"]}]}).encode(), refused(400, "error"), _JSON, "/v2/models/{model}/infer"),
    _predict("H10-v2-empty", "nothing", b"", refused(400, "error"), _JSON, "/v2/models/{model}/infer"),
    _predict("H10-v2-binary", "a binary length that lies", b'{"inputs":[]}', refused(400, "error"), {**_JSON, "inference-header-content-length": "99999999999"}, "/v2/models/{model}/infer"),
    _predict("H10-hf", "no image", b"no image", refused(400, "error"), _IMAGE, "/hf/{model}"),
    _predict("H10-embed", "no image", b"no image", refused(422, "unreadable-image"), _IMAGE, "/v1/models/{model}/embed"),
    _predict("H10-similar-k", "k=0", b"x", _INVALID, _IMAGE, "/v1/models/{model}/similar?k=0"),
    _predict("H10-feedback", "an unknown label", lambda: shape_bytes("disc", 1), _INVALID, _IMAGE, "/v1/models/{model}/feedback?label=nonsense"),
    _predict("H02-alias", "a version of text", b'{"version": "1"}', _INVALID, _JSON, "/v1/models/{model}/versions/1/exports"),
    Case("H02-put", "a version that is not there", Call("PUT", "/v1/models/{model}/aliases/stable", lambda: b'{"version": 999}', _JSON), refused(404, "version-not-found")),
    Case("H02-text", "a version in words", Call("PUT", "/v1/models/{model}/aliases/stable", lambda: b'{"version": "1"}', _JSON), _INVALID),
    Case("H02-true", "a version that is true", Call("PUT", "/v1/models/{model}/aliases/stable", lambda: b'{"version": true}', _JSON), _INVALID),
    Case("H02-latest", "an alias of ours", Call("PUT", "/v1/models/{model}/aliases/latest", lambda: b'{"version": 1}', _JSON), refused(422, "alias-reserved")),
    Case("H02-race", "another one was faster", Call("PUT", "/v1/models/{model}/aliases/default", lambda: b'{"version": 1, "if_current": 7}', _JSON), refused(409, "alias-conflict")),
    Case("H02-dots", "an alias of dots", Call("PUT", "/v1/models/{model}/aliases/..", lambda: b'{"version": 1}', _JSON), refused(404, "not-found")),
    Case("H02-in-use", "the version that is served", Call("DELETE", "/v1/models/{model}/versions/1"), refused(409, "version-in-use")),
)  # fmt: skip


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


_HEAD = {"head.weight": np.zeros((2, 4), np.float32), "head.bias": np.zeros(2, np.float32)}
_GOLDEN = {
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
    files = {
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
_NOT_FINITE = {**_HEAD, "head.bias": np.array([np.nan, 0], np.float32)}

_MODELS = (
    _import("D04-2-63", "a header of 2^63 bytes", lambda: _artifact(_tensors(b"{}", length=2**63))),
    _import("D04-100m", "a header of 100 MB", lambda: _artifact(_tensors(b"{}", length=100_000_001))),
    _import("D04-overlap", "tensors that overlap", lambda: _artifact(_tensors((_ONE + ',"head.bias":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}').encode(), bytes(32)))),
    _import("D04-hole", "a hole between tensors", lambda: _artifact(_tensors((_ONE + ',"head.bias":{"dtype":"F32","shape":[2],"data_offsets":[40,48]}}').encode(), bytes(48)))),
    _import("D04-negative", "a negative offset", lambda: _artifact(_tensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}', bytes(4)))),
    _import("D04-outside", "an offset outside", lambda: _artifact(_tensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4000]}}', bytes(4)))),
    _import("D04-shape", "a shape of 2^62", lambda: _artifact(_tensors(b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}', bytes(4)))),
    _import("D04-twice", "a key twice", lambda: _artifact(_tensors((_ONE + "," + _ONE[1:] + "}").encode(), bytes(32)))),
    _import("D04-type", "another type", lambda: _artifact(save({k: v.astype(np.float64) for k, v in _HEAD.items()}))),
    _import("D04-size", "other shapes", lambda: _artifact(save({"head.weight": np.zeros((3, 4), np.float32), "head.bias": np.zeros(3, np.float32)}))),
    _import("D04-nan", "NaN for a weight", lambda: _artifact(save(_NOT_FINITE))),
    _import("D04-names", "other tensors", lambda: _artifact(save({"x": np.zeros(3, np.float32)}))),
    _import("D04-empty", "no bytes", lambda: _artifact(b"")),
    _import("D04-brackets", "brackets for a header", lambda: _artifact(_tensors(b"[" * 50_000))),
    _import("IA08-model", "a pickle for weights", lambda: _artifact(pickle.dumps(Canary()))),
    _import("IA08-file", "a pickle beside them", lambda: _artifact(more={"data.pkl": pickle.dumps(Canary())})),
    _import("D04-facts", "no description", lambda: zip_bytes({"model.safetensors": save(_HEAD)})),
    _import("D04-json", "a description that is none", lambda: _artifact(facts=b"nonsense")),
    _import("D04-deep", "a deep description", lambda: _artifact(facts=b"[" * 100_000)),
    _import("D04-list", "a list for a description", lambda: _artifact(facts=b"[]")),
    _import("D04-nan-facts", "NaN for a figure", lambda: _artifact(metrics={"x": 1}, facts=b'{"format": NaN}')),
    _import("D04-format", "another format", lambda: _artifact(format=999)),
    _import("D04-task", "another task", lambda: _artifact(task="x")),
    _import("D04-classes", "a class twice", lambda: _artifact(classes=["a", "a"])),
    _import("D04-width", "a width of -1", lambda: _artifact(feature_width=-1)),
    _import("D04-hash", "other bytes than described", lambda: _artifact(more={"golden.safetensors": save(_HEAD)})),
    _import("D04-parent", "a file outside", lambda: named("../../artifact.json"), "path-traversal"),
    _import("D04-bytes", "no archive", lambda: b"0123456789", "archive-type-unknown", 415),
    _import("D04-backbone", "a backbone that is not there", lambda: _artifact(), "weights-unavailable", 503),
)  # fmt: skip

CASES = (*_PREDICTIONS, *_MODELS)
