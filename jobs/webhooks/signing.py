"""Signatures as Standard Webhooks 1.0 defines them: HMAC-SHA256 over id, time and body.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets

PREFIX = "whsec_"
#: Bytes of a secret, as the specification bounds them.
LEAST_BYTES, MOST_BYTES = 24, 64
_MADE_BYTES = 32


def new_secret() -> str:
    """Return a random secret as it is given to a receiver."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_MADE_BYTES)).decode()


def key_of(secret: str) -> bytes:
    """Return the bytes that a secret stands for.

    Raises:
        ValueError: It is not `whsec_` and 24 to 64 bytes in base64.
    """
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(PREFIX) or not LEAST_BYTES <= len(key) <= MOST_BYTES:
        raise ValueError(f"not {PREFIX} and {LEAST_BYTES} to {MOST_BYTES} bytes in base64")
    return key


def signed_headers(secret: str, message_id: str, unix_seconds: int, body: bytes) -> dict[str, str]:
    """Return the three headers of a message.

    Args:
        secret: Of the receiver.
        message_id: The same at every attempt.
        unix_seconds: Of this attempt.
        body: As it is sent.
    """
    signed = b".".join((message_id.encode(), str(unix_seconds).encode(), body))
    digest = hmac.digest(key_of(secret), signed, "sha256")
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(unix_seconds),
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }
