"""Errors of exports; the tree continues `models_cache.errors`.

* ExportError                    a version cannot be written as a graph that others run
  + ExportUnsupported, ExportTooLarge, ExportMismatch, ExportRuntimeMissing
"""

from __future__ import annotations

from models_cache.errors import GraftError, leaf


class ExportError(GraftError):
    """A version cannot be written as a graph that other programs run."""

    code = "export-error"


@leaf
class ExportUnsupported(ExportError):
    """The exporter or the runtime cannot do an operator of the network."""

    code = "export-unsupported"
    sentence = "{architecture} cannot be exported as {format}: {reason}; try format {other}"
    architecture: str
    format: str
    reason: str
    other: str


@leaf
class ExportTooLarge(ExportError):
    """The network does not fit into one file of the format."""

    code = "export-too-large"
    sentence = (
        "{architecture} has {size_bytes} bytes of values, a file of format {format} holds "
        "{limit_bytes}; use format {other}"
    )
    architecture: str
    format: str
    size_bytes: int
    limit_bytes: int
    other: str


@leaf
class ExportMismatch(ExportError):
    """The exported graph does not give the probabilities that are served."""

    code = "export-mismatch"
    sentence = (
        "the {format} graph's probabilities differ from the served ones by {difference:.3g} on "
        "{image} (allowed {tolerance:.3g}); it is not published"
    )
    format: str
    image: str
    difference: float
    tolerance: float


@leaf
class ExportRuntimeMissing(ExportError):
    """The installation lacks what writes or checks the format."""

    code = "export-runtime-missing"
    sentence = "format {format} needs the packages {packages}; pip install 'graft[onnx]'"
    format: str
    packages: str
