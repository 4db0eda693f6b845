"""Errors about exports that were asked for; those of making one: `models_cache.export_errors`.

* ModelError
  + ExportNotFound, ExportNotReady
"""

from __future__ import annotations

from jobs.errors import ModelError
from models_cache.errors import leaf


@leaf
class ExportNotFound(ModelError):
    """The version has no such export."""

    code = "export-not-found"
    sentence = "version {version} of model {name!r} has no export {export_id}; POST makes one"
    name: str
    version: int
    export_id: str


@leaf
class ExportNotReady(ModelError):
    """An export has no file yet, or will never have one."""

    code = "export-not-ready"
    sentence = "export {export_id} is {state}: there is a file once it has succeeded"
    export_id: str
    state: str
