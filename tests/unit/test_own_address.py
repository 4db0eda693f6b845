"""The address at which a process asks the api of its own machine."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from service.own_address import own_url


@pytest.mark.parametrize(
    ("listened_on", "asked"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("localhost", "localhost"),
        ("0.0.0.0", "127.0.0.1"),  # noqa: S104
        ("::", "::1"),
        ("::1", "::1"),
    ],
)
def test_an_address_that_is_listened_on_can_be_asked_at(listened_on: str, asked: str) -> None:
    parts = urlsplit(own_url(listened_on, 8000))
    assert (parts.hostname, parts.port) == (asked, 8000)
