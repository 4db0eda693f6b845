"""Errors of pretrained weights and of the catalogue that describes them.

* WeightsError                   pretrained weights cannot be had
  + WeightsUnknown, WeightsUnusable, WeightsUnavailable, WeightsHashMismatch,
    WeightsUnverifiable, WeightsMalformed, WeightsKeysMismatch, BackboneUnknown,
    CatalogueInvalid, BundleInvalid
"""

from __future__ import annotations

from models_cache.errors import GraftError, leaf


class WeightsError(GraftError):
    """Pretrained weights cannot be had."""

    code = "weights-error"


@leaf
class BackboneUnknown(WeightsError):
    """No such architecture in the catalogue."""

    code = "backbone-unknown"
    sentence = "there is no backbone {architecture!r}; close names: {close}"
    architecture: str
    close: str


@leaf
class WeightsUnknown(WeightsError):
    """The architecture has no weights of that name."""

    code = "weights-unknown"
    sentence = "{architecture} has no weights {name!r}; it has: {known}"
    architecture: str
    name: str
    known: str


@leaf
class WeightsUnusable(WeightsError):
    """The weights exist, but pooled features cannot be computed with them."""

    code = "weights-unusable"
    sentence = "{architecture} weights {name} lack values in their last layers; choose other ones"
    architecture: str
    name: str


@leaf
class WeightsUnavailable(WeightsError):
    """No source could deliver the file."""

    code = "weights-unavailable"
    sentence = (
        "{file} could not be had; tried {tried}; put the file into a folder named in "
        "GRAFT_WEIGHTS_SOURCES or run `graft weights download` on a machine with a connection"
    )
    file: str
    tried: str


@leaf
class WeightsHashMismatch(WeightsError):
    """A file's bytes are not the ones that were promised."""

    code = "weights-hash-mismatch"
    sentence = (
        "{file} from {source} has sha256 {actual}, expected {expected}; it was not kept, "
        "check the source or the catalogue"
    )
    file: str
    source: str
    expected: str
    actual: str


@leaf
class WeightsUnverifiable(WeightsError):
    """A file from a folder or mirror has no full hash to be checked against."""

    code = "weights-unverifiable"
    sentence = (
        "{file} from {source} cannot be checked, its full sha256 is not known; name it in a "
        "catalogue file (GRAFT_WEIGHTS_CATALOG): only the official download may teach a hash"
    )
    file: str
    source: str


@leaf
class WeightsMalformed(WeightsError):
    """The file is not a state dictionary of tensors."""

    code = "weights-malformed"
    sentence = "{file} is not a weights file of plain tensors: {reason}; fetch it again"
    file: str
    reason: str


@leaf
class WeightsKeysMismatch(WeightsError):
    """The file's tensors are not the architecture's."""

    code = "weights-keys-mismatch"
    sentence = (
        "{file} does not fit {architecture}: {missing_count} keys missing ({missing}), "
        "{unexpected_count} unexpected ({unexpected}), {misshapen_count} of another shape "
        "({misshapen}); choose weights of this architecture"
    )
    file: str
    architecture: str
    missing_count: int
    missing: str
    unexpected_count: int
    unexpected: str
    misshapen_count: int
    misshapen: str


@leaf
class CatalogueInvalid(WeightsError):
    """A weights catalogue file cannot be used."""

    code = "catalogue-invalid"
    sentence = "the weights catalogue {path} cannot be used: {reason}"
    path: str
    reason: str


@leaf
class BundleInvalid(WeightsError):
    """A weights bundle cannot be imported; the vault is untouched by what is wrong in it."""

    code = "weights-bundle-invalid"
    sentence = "the weights bundle {path} cannot be used: {reason}; export it again"
    path: str
    reason: str
