"""E and I of the catalogue: JSON bodies, parameters, addresses, names."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping

from tests.abuse.case import OK, Call, Case, Outcome, refused

JSON = {"content-type": "application/json"}
_INVALID = refused(422, "validation-failed")
_MALFORMED = refused(400, "malformed-json")


def _post(
    number: str,
    what: str,
    body: bytes,
    outcome: Outcome,
    path: str = "/v1/jobs",
    headers: Mapping[str, str] = JSON,
) -> Case:
    return Case(number, what, Call("POST", path, lambda: body, headers), outcome)


def _field(number: str, name: str, value: str, outcome: Outcome = _INVALID) -> Case:
    """Return a job request with one field that is wrong; `value` is JSON."""
    body = f'{{"dataset": "{{dataset}}", "{name}": {value}}}'
    return _post(number, f"{name} = {value[:40]}", body.encode(), outcome)


def _parameter(
    number: str, recipe: str, name: str, value: str, outcome: Outcome = _INVALID
) -> Case:
    body = (
        f'{{"dataset": "{{dataset}}", "recipe": "{recipe}", "parameters": {{"{name}": {value}}}}}'
    )
    return _post(number, f"{recipe}.{name} = {value[:40]}", body.encode(), outcome)


def _at(number: str, method: str, path: str, status: int, code: str) -> Case:
    return Case(number, f"{method} {path[:60]}", Call(method, path), refused(status, code))


_NUMBERS = (
    _post("E01-nan", "NaN", b'{"dataset": "ds_1", "seed": NaN}', _MALFORMED),
    _post(
        "E01-infinity",
        "Infinity",
        b'{"dataset": "ds_1", "time_limit_seconds": Infinity}',
        _MALFORMED,
    ),
    _post("E01-minus", "-Infinity", b'{"dataset": "ds_1", "priority": -Infinity}', _MALFORMED),
    _post("E01-1e999", "1e999", b'{"dataset": "ds_1", "time_limit_seconds": 1e999}', _MALFORMED),
    _field("E01-text", "time_limit_seconds", '"nan"'),
    _parameter("E01-parameter", "finetune", "learning_rate", '"nan"'),
    _post("E02-2-63", "2^63", b'{"dataset": "ds_1", "seed": 9223372036854775808}', _MALFORMED),
    _post(
        "E02-10-5000", "10^5000", b'{"dataset": "ds_1", "seed": 1' + b"0" * 5000 + b"}", _MALFORMED
    ),
    _field("E02-int64", "seed", "9223372036854775807"),
    _at("E02-path", "GET", f"/v1/jobs/{'9' * 27}", 404, "job-not-found"),
    _at("E02-version", "GET", f"/v1/models/absent/versions/{2**63}", 422, "validation-failed"),
    _at("E02-limit", "GET", "/v1/jobs?limit=99999999999999999999", 422, "validation-failed"),
)

_TEXTS = (
    _post("E03-surrogate", "half a surrogate pair", b'{"dataset": "\\ud800"}', _MALFORMED),
    _post("E03-nul", "NUL in a text", b'{"dataset": "a\\u0000b"}', _MALFORMED),
    _post(
        "E03-key", "NUL in a key", b'{"dataset": "ds_1", "metadata": {"a\\u0000": "b"}}', _MALFORMED
    ),
    _post("E04-twice", "a key twice", b'{"dataset": "ds_1", "dataset": "ds_2"}', _MALFORMED),
    _post(
        "E04-inner",
        "an inner key twice",
        b'{"dataset": "ds_1", "metadata": {"a": "1", "a": "2"}}',
        _MALFORMED,
    ),
    _post(
        "E04-many",
        "60,000 keys, one of them twice",
        b"{" + b",".join(b'"%d":0' % number for number in range(60_000)) + b',"9":0}',
        _MALFORMED,
    ),
    _field("E04-unknown", "nonsense", "1"),
    _field("E04-true", "seed", "true"),
    _field("E04-string", "seed", '"1"'),
    _post("E04-utf16", "UTF-16", '{"dataset": "ds_1"}'.encode("utf-16"), _MALFORMED),
    _post("E04-latin", "Latin-1", b'{"dataset": "caf\xe9"}', _MALFORMED),
    _post("E04-deep", "100,000 brackets", b"[" * 100_000, _MALFORMED),
    _post("E04-33", "33 levels", b"[" * 34 + b"]" * 34, _MALFORMED),
    _post("E07-cut", "cut off", b'{"dataset": "ds_1"', _MALFORMED),
    _post("E07-tail", "text behind", b"{} nonsense", _MALFORMED),
    _post("E07-empty", "nothing", b"", _MALFORMED),
    _post("E07-list", "a list", b"[]", _INVALID),
    _post("E07-null", "null", b"null", _INVALID),
    _post("E07-nothing", "no field", b"{}", _INVALID),
    _post(
        "E07-gzip",
        "gzip",
        gzip.compress(b'{"dataset": "ds_1"}', mtime=0),
        _MALFORMED,
        headers={**JSON, "content-encoding": "gzip"},
    ),
    _post(
        "E07-plain",
        "text/plain",
        b"{}",
        refused(415, "unsupported-media-type"),
        headers={"content-type": "text/plain"},
    ),
    _post(
        "E07-form",
        "a form",
        b"a=b",
        refused(415, "unsupported-media-type"),
        headers={"content-type": "application/x-www-form-urlencoded"},
    ),
    _post(
        "E07-none",
        "no content type",
        b"{}",
        refused(415, "unsupported-media-type"),
        headers={"content-type": ""},
    ),
    _post(
        "E07-large",
        "2 MB",
        b'{"dataset": "' + b"x" * (2 << 20) + b'"}',
        refused(413, "payload-too-large"),
    ),
    _post(
        "E07-retry",
        "2 MB where nothing is needed",
        b" " * (2 << 20),
        refused(413, "payload-too-large"),
        path="/v1/jobs/{job}/retry",
    ),
)

_FIELDS = (
    _field("E05-seed", "seed", "-1"),
    _field("E05-limit", "time_limit_seconds", "0"),
    _field("E05-month", "time_limit_seconds", "1e300"),
    _field("E05-priority", "priority", "1000000"),
    _field("E05-type", "type", '"rm -rf"'),
    _field("E05-export", "type", '"export"'),
    _field("E05-backbone", "backbone", '"../../x"', refused(422, "backbone-unknown")),
    _field("E05-case", "backbone", '"MobileNet_V2"', refused(422, "backbone-unknown")),
    _field("E05-empty", "backbone", '""'),
    _field("E05-weights", "weights", '"NOPE"', refused(422, "weights-unknown")),
    _field("E05-recipe", "recipe", '"magic"', refused(422, "recipe-invalid")),
    _field("E05-webhook", "webhook", '"http://127.0.0.1/"'),
    _field("E05-block", "block_on", '"sometimes"'),
    _field("E05-promote", "promote", '"yes"'),
    _field("E05-parameters", "parameters", "[]"),
    _field("E05-metadata", "metadata", '{"a": 1}'),
    _field("E05-metadata-long", "metadata", json.dumps({"a": "x" * 600})),
    _field("E05-metadata-many", "metadata", json.dumps({str(i): "x" for i in range(20)})),
    _parameter("E05-rate", "finetune", "learning_rate", "1e6"),
    _parameter("E05-rate-0", "finetune", "learning_rate", "0"),
    _parameter("E05-rate-minus", "finetune", "learning_rate", "-1"),
    _parameter("E05-epochs-0", "finetune", "epochs", "0"),
    _parameter("E05-epochs", "finetune", "epochs", "1000000000"),
    _parameter("E05-batch-0", "finetune", "batch_size", "0"),
    _parameter("E05-batch", "finetune", "batch_size", "2147483648"),
    _parameter("E05-folds", "head", "folds", "0"),
    _parameter("E05-folds-float", "head", "folds", "1e300"),
    _parameter("E05-unknown", "head", "os.system", "1"),
    _parameter("E05-dunder", "head", "__class__", '"x"'),
    _post(
        "E06-absent",
        "no such data set",
        b'{"dataset": "ds_absent"}',
        refused(404, "dataset-not-found"),
    ),
    _post("E06-sql", "SQL", b'{"dataset": "\' OR 1=1 --"}', refused(404, "dataset-not-found")),
    _post(
        "E06-path", "a path", b'{"dataset": "../../etc/passwd"}', refused(404, "dataset-not-found")
    ),
)

_MODEL_NAMES = (
    "../x", "..", " ..", "a/b", ".", "", " ", "x" * 300, "%2e%2e%2f", "%252e", "\\..\\", "UPPER",
    "-x", "a b", "caf\u00e9", "a@b@c",
)  # fmt: skip

_NAMES = tuple(
    _field(f"IA07-{place}", "model", json.dumps(name)) for place, name in enumerate(_MODEL_NAMES)
)

_ADDRESSES = (
    _at("E08-limit-0", "GET", "/v1/jobs?limit=0", 422, "validation-failed"),
    _at("E08-limit-minus", "GET", "/v1/jobs?limit=-1", 422, "validation-failed"),
    _at("E08-limit-large", "GET", "/v1/datasets?limit=1000000000", 422, "validation-failed"),
    _at("E08-limit-float", "GET", "/v1/jobs?limit=1e3", 422, "validation-failed"),
    _at("E08-cursor", "GET", "/v1/jobs?after=job_absent", 404, "job-not-found"),
    _at("E08-cursor-set", "GET", "/v1/datasets?after=ds_absent", 404, "dataset-not-found"),
    _at(
        "E08-cursor-image",
        "GET",
        "/v1/datasets/{dataset}/images?after=absent",
        404,
        "image-not-found",
    ),
    _at("E08-sql", "GET", "/v1/jobs?after=%27%20OR%201=1", 422, "validation-failed"),
    _at("E08-nul", "GET", "/v1/jobs?type=%00", 422, "validation-failed"),
    _at("E08-status", "GET", "/v1/jobs?status=nonsense", 422, "validation-failed"),
    _at(
        "E08-split", "GET", "/v1/datasets/{dataset}/images?split=nonsense", 422, "validation-failed"
    ),
    Case(
        "E08-label",
        "a label with NUL",
        Call("GET", "/v1/datasets/{dataset}/images?label=%00"),
        Outcome(200, OK),
    ),
    _at("E08-seq", "GET", "/v1/jobs/{job}/events?after=-1", 422, "validation-failed"),
    _at(
        "E08-seq-large",
        "GET",
        "/v1/jobs/{job}/events?after=99999999999999999999",
        422,
        "validation-failed",
    ),
    _at("IA07-get", "GET", "/v1/models/UPPER", 422, "validation-failed"),
    _at("IA07-encoded", "GET", "/v1/models/%252e%252e", 422, "validation-failed"),
    _at("IA07-dots", "GET", "/v1/models/%2e%2e", 422, "validation-failed"),
    _at("IA07-slash", "GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404, "not-found"),
    _at("IA07-nul", "GET", "/v1/jobs/%00", 422, "validation-failed"),
    _at("IA07-utf8", "GET", "/v1/jobs/%ff%fe", 422, "validation-failed"),
    _at("IA07-file", "GET", "/v1/jobs/{job}/files/..%2fspec.json", 404, "not-found"),
    _at("IA07-file-dots", "GET", "/v1/jobs/{job}/files/%2e%2e%2fspec.json", 404, "not-found"),
    _at("IA07-file-nul", "GET", "/v1/jobs/{job}/files/%00", 422, "validation-failed"),
    _at("IA07-job", "GET", "/v1/jobs/..%2f..%2fetc%2fpasswd", 404, "not-found"),
    _at("IA07-absent", "GET", "/v1/models/absent", 404, "model-not-found"),
    _at("IA07-version-0", "GET", "/v1/models/absent/versions/0", 422, "validation-failed"),
    _at("IA02-set", "GET", "/v1/datasets/ds_absent", 404, "dataset-not-found"),
    _at("IA02-report", "GET", "/v1/datasets/ds_absent/report", 404, "dataset-not-found"),
    _at("IA02-delete", "DELETE", "/v1/datasets/ds_absent", 404, "dataset-not-found"),
    _at("IA02-image", "GET", "/v1/datasets/{dataset}/images/absent", 404, "image-not-found"),
    _at("IA02-job", "GET", "/v1/jobs/job_absent", 404, "job-not-found"),
    _at("IA02-cancel", "POST", "/v1/jobs/job_absent/cancel", 404, "job-not-found"),
    _at("IA02-events", "GET", "/v1/jobs/job_absent/events?after=-1", 404, "job-not-found"),
    _at("IA02-backbone", "GET", "/v1/backbones/absent", 404, "address-unknown"),
    _at("IA02-recipe", "GET", "/v1/recipes/absent/schema", 404, "address-unknown"),
    _at("FH08-put", "PUT", "/v1/jobs", 405, "method-not-allowed"),
    _at("FH08-trace", "TRACE", "/v1/jobs", 405, "method-not-allowed"),
    _at("FH08-propfind", "PROPFIND", "/v1/jobs", 405, "method-not-allowed"),
    _at("FH08-unknown", "GET", "/v1/nothing", 404, "not-found"),
    _at("FH14-slashes", "GET", "//evil.example/", 404, "not-found"),
    _at("FH14-trailing", "GET", "/v1/jobs/", 404, "not-found"),
)

_UPLOADS = (
    _post(
        "IA06-name",
        "a name with a line break",
        b"",
        _INVALID,
        path="/v1/datasets?name=a%0a%7b%22level%22:1%7d",
    ),
    _post(
        "IA06-escape", "a name with an escape", b"", _INVALID, path="/v1/datasets?name=%1b%5b31m"
    ),
    _post("IA06-nul", "a name with NUL", b"", _INVALID, path="/v1/datasets?name=a%00b"),
    _post("IA06-empty", "no name", b"", _INVALID, path="/v1/datasets?name="),
    _post("IA06-long", "300 characters", b"", _INVALID, path=f"/v1/datasets?name={'x' * 300}"),
    _post(
        "E09-key",
        "a key with blanks",
        b"",
        _INVALID,
        path="/v1/datasets",
        headers={"idempotency-key": "a b"},
    ),
    _post(
        "E09-key-long",
        "a key of 300 characters",
        b"",
        _INVALID,
        path="/v1/datasets",
        headers={"idempotency-key": "k" * 300},
    ),
    _post(
        "E09-mismatch",
        "a used key",
        b"0123456789",
        refused(422, "idempotency-mismatch"),
        path="/v1/datasets?name=keyed",
        headers={"idempotency-key": "the-key"},
    ),
)

CASES = (*_NUMBERS, *_TEXTS, *_FIELDS, *_NAMES, *_ADDRESSES, *_UPLOADS)
