"""An error has the form of the protocol whose address was called."""

from __future__ import annotations

import pytest

from service.error_forms import Told, foreign_error

TOLD = Told(422, "validation-failed", "1 field cannot be accepted", [
    {"pointer": "/method/type", "code": "literal-error", "message": "must be supervised"}
])  # fmt: skip
SENTENCE = "1 field cannot be accepted; /method/type: must be supervised"


@pytest.mark.parametrize("path", ["/v2", "/v2/models/x/infer", "/hf/x"])
def test_inference_protocols_have_one_sentence(path: str) -> None:
    assert foreign_error(path, TOLD) == (400, {"error": SENTENCE})


@pytest.mark.parametrize("path", ["/v1/files", "/v1/uploads/u", "/v1/fine_tuning/jobs/j/cancel"])
def test_openai_has_message_type_param_and_code(path: str) -> None:
    error = {
        "message": SENTENCE,
        "type": "invalid_request_error",
        "param": "method.type",
        "code": "validation-failed",
    }
    assert foreign_error(path, TOLD) == (400, {"error": error})
    broken = foreign_error(path, Told(503, "not-ready", "not ready", []))
    told = {"message": "not ready", "type": "server_error", "param": None, "code": "not-ready"}
    assert broken == (503, {"error": told})


@pytest.mark.parametrize(
    "path", ["/v1/jobs", "/v1/models/v2", "/v20", "/healthz", "/v1/filesystem"]
)
def test_our_own_routes_keep_theirs(path: str) -> None:
    assert foreign_error(path, TOLD) is None
