"""Errors of API keys as things that are made, renewed and revoked.

* ApiKeyError                    a key cannot be used as asked
  + ApiKeyNotFound, ApiKeyEnded
"""

from __future__ import annotations

from models_cache.errors import GraftError, leaf


class ApiKeyError(GraftError):
    """An API key cannot be used as asked."""

    code = "key-error"


@leaf
class ApiKeyNotFound(ApiKeyError):
    """No such key in the project."""

    code = "key-not-found"
    sentence = "there is no API key {key_id}; GET /v1/keys or `graft keys list` lists them"
    key_id: str


@leaf
class ApiKeyEnded(ApiKeyError):
    """A key that was revoked or has expired cannot be renewed."""

    code = "key-ended"
    sentence = "API key {key_id} was revoked or has expired; make a new one"
    key_id: str
