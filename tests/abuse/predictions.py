"""H of the catalogue: predictions and aliases."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping

from tests.abuse.case import OK, Build, Call, Case, Outcome, refused
from tests.images import shape_bytes

_PREDICT = "/v1/models/{model}/predict"
_JSON = {"content-type": "application/json"}
_IMAGE = {"content-type": "image/jpeg"}
_INVALID = refused(422, "validation-failed")
_B64 = base64.b64encode(shape_bytes("disc", 1)).decode()


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


CASES = (
    _predict("H03-33", "33 images", _inputs(33), _INVALID),
    _predict("H03-32", "32 images", _inputs(32), Outcome(200, OK)),
    _predict("H03-none", "no images", b'{"inputs": []}', _INVALID),
    _predict(
        "H03-mixed",
        "a bad one among two",
        json.dumps({"inputs": [{"b64": _B64}, {"b64": "AAAA"}]}).encode(),
        Outcome(200, OK),
    ),
    _predict("H03-empty", "no bytes", b"", _INVALID, _IMAGE),
    _predict("H03-base64", "no base64", _inputs(1, "%%%"), _INVALID),
    _predict("H03-unicode", "base64 in other letters", _inputs(1, "\u0430" * 8), _INVALID),
    _predict(
        "H03-field",
        "an unknown field",
        b'{"inputs": [{"b64": "AAAA", "url": "http://127.0.0.1/"}]}',
        _INVALID,
    ),
    _predict(
        "G-url", "a URL for an image", b'{"inputs": [{"url": "http://169.254.169.254/"}]}', _INVALID
    ),
    _predict(
        "H03-type",
        "a type that is none",
        b"x",
        refused(415, "unsupported-media-type"),
        {"content-type": "video/mp4"},
    ),
    _predict(
        "H03-65", "65 MiB", lambda: bytes(65 << 20), refused(413, "payload-too-large"), _IMAGE
    ),
    _query("H03-top-0", "top_k=0"),
    _query("H03-top-minus", "top_k=-1"),
    _query("H03-top-large", "top_k=1000000"),
    _query("H03-top-text", "top_k=nan"),
    _query("H03-error-nan", "max_error=nan"),
    _query("H03-error-2", "max_error=2"),
    _query("H03-wait", "timeout_seconds=inf"),
    _predict(
        "H07-absent",
        "no such model",
        b"x",
        refused(404, "model-not-found"),
        _IMAGE,
        "/v1/models/absent/predict",
    ),
    _predict(
        "H07-version",
        "no such version",
        b"x",
        refused(404, "version-not-found"),
        _IMAGE,
        "/v1/models/{model}@999/predict",
    ),
    _predict("H07-minus", "version -1", b"x", _INVALID, _IMAGE, "/v1/models/{model}@-1/predict"),
    _predict(
        "H10-v2-json",
        "a tensor without end",
        b'{"inputs": [{"name": "image", "shape": [1e999]}]}',
        refused(400, "error"),
        _JSON,
        "/v2/models/{model}/infer",
    ),
    _predict(
        "H10-v2-shape",
        "a shape of 10^18",
        json.dumps(
            {"inputs": [{"name": "image", "shape": [10**18], "datatype": "BYTES", "data": ["x"]}]}
        ).encode(),
        refused(400, "error"),
        _JSON,
        "/v2/models/{model}/infer",
    ),
    _predict(
        "H10-v2-empty", "nothing", b"", refused(400, "error"), _JSON, "/v2/models/{model}/infer"
    ),
    _predict(
        "H10-v2-binary",
        "a binary length that lies",
        b'{"inputs":[]}',
        refused(400, "error"),
        {**_JSON, "inference-header-content-length": "99999999999"},
        "/v2/models/{model}/infer",
    ),
    _predict("H10-hf", "no image", b"no image", refused(400, "error"), _IMAGE, "/hf/{model}"),
    _predict(
        "H10-embed",
        "no image",
        b"no image",
        refused(422, "unreadable-image"),
        _IMAGE,
        "/v1/models/{model}/embed",
    ),
    _predict("H10-similar-k", "k=0", b"x", _INVALID, _IMAGE, "/v1/models/{model}/similar?k=0"),
    _predict(
        "H10-feedback",
        "an unknown label",
        lambda: shape_bytes("disc", 1),
        _INVALID,
        _IMAGE,
        "/v1/models/{model}/feedback?label=nonsense",
    ),
    _predict(
        "H02-alias",
        "a version of text",
        b'{"version": "1"}',
        _INVALID,
        _JSON,
        "/v1/models/{model}/versions/1/exports",
    ),
    Case(
        "H02-put",
        "a version that is not there",
        Call("PUT", "/v1/models/{model}/aliases/stable", lambda: b'{"version": 999}', _JSON),
        refused(404, "version-not-found"),
    ),
    Case(
        "H02-text",
        "a version in words",
        Call("PUT", "/v1/models/{model}/aliases/stable", lambda: b'{"version": "1"}', _JSON),
        _INVALID,
    ),
    Case(
        "H02-true",
        "a version that is true",
        Call("PUT", "/v1/models/{model}/aliases/stable", lambda: b'{"version": true}', _JSON),
        _INVALID,
    ),
    Case(
        "H02-latest",
        "an alias of ours",
        Call("PUT", "/v1/models/{model}/aliases/latest", lambda: b'{"version": 1}', _JSON),
        refused(422, "alias-reserved"),
    ),
    Case(
        "H02-race",
        "another one was faster",
        Call(
            "PUT",
            "/v1/models/{model}/aliases/default",
            lambda: b'{"version": 1, "if_current": 7}',
            _JSON,
        ),
        refused(409, "alias-conflict"),
    ),
    Case(
        "H02-dots",
        "an alias of dots",
        Call("PUT", "/v1/models/{model}/aliases/%252e%252e", lambda: b'{"version": 1}', _JSON),
        _INVALID,
    ),
    Case(
        "H02-in-use",
        "the version that is served",
        Call("DELETE", "/v1/models/{model}/versions/1"),
        refused(409, "version-in-use"),
    ),
)
