"""Strict JSON: what a default application answers with a 500 is refused with a reason."""

from __future__ import annotations

import pytest

from service.errors import JsonMalformed
from service.json_body import parse_json


@pytest.mark.parametrize(
    "body",
    [
        b'{"x": NaN}',
        b'{"x": Infinity}',
        b'{"x": -Infinity}',
        b'{"x": 1e999}',
        b'{"x": 9223372036854775808}',
        b'{"x": ' + b"9" * 5000 + b"}",
        b'{"x": "\\ud800"}',
        b'{"\\udc00": 1}',
        b'{"x": "a\\u0000b"}',
        b'{"x": 1, "x": 2}',
        b'{"x": {"y": 1, "y": 1}}',
        b"{",
        b"",
        b"{} trailing",
        b"\xff\xfe{\x00}\x00",
        '{"x": 1}'.encode("utf-16"),
        b"[" * 100_000,
        b"[" * 40 + b"]" * 40,
    ],
    ids=lambda body: ascii(body[:24]),
)
def test_bad_json_is_refused(body: bytes) -> None:
    with pytest.raises(JsonMalformed):
        parse_json(body)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"\xef\xbb\xbf{}", {}),
        (b'{"x": 9223372036854775807}', {"x": 2**63 - 1}),
        ('{"x": "\\ud83d\\udc1d é"}'.encode(), {"x": "🐝 é"}),
        (b'{"x": 1e-300}', {"x": 1e-300}),
    ],
)
def test_good_json_is_read(body: bytes, value: object) -> None:
    assert parse_json(body) == value
