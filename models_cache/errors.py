"""The root of all errors and those of bytes, images, artifacts and inference.

* GraftError                     a fact that a caller can act on; everything else is a bug
  x StorageError                 the disk said no
    + InsufficientStorage, BlobMissing, BlobCorrupt
  x ImageError                   one image cannot be used
    + ImageUnreadable, ImageFormatUnsupported, ImageTooLarge, ImageAspectExtreme,
      ImageModeUnsupported, TensorUnusable
  x ArtifactError                a published model cannot be used
    + ArtifactMalformed, ArtifactGoldenMismatch
  x InferenceError               the inference process could not answer
    + InferenceOverloaded, InferenceUnavailable, PredictTimedOut, ModelUnhealthy,
      WireMalformed, PredictTooLarge, InferenceAddressInvalid, DeviceUnavailable

`models_cache.weights_errors` and `jobs.errors` continue the tree. A leaf is a dataclass of its
facts: it survives pickling, can be sent as one JSON line (`to_wire`, `from_wire`) and prints
*what, which, how many, what now*.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, TypeVar, dataclass_transform

_Leaf = TypeVar("_Leaf")


@dataclass_transform(eq_default=False)
def leaf(cls: type[_Leaf]) -> type[_Leaf]:
    """Make an error class out of annotated facts; equality stays identity, as for exceptions."""
    return dataclasses.dataclass(eq=False, repr=False)(cls)


class GraftError(Exception):
    """Root of every error that Graft raises on purpose.

    A leaf is decorated with `leaf`, sets `code` (public, stable, kebab-case) and `sentence`
    (a format string over its facts), and annotates its facts as fields.
    """

    code: ClassVar[str] = "internal-error"
    sentence: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Pass every fact to `Exception`, so that the error survives pickling."""
        facts = dataclasses.fields(self)  # type: ignore[arg-type]  # leaves are dataclasses
        Exception.__init__(self, *(getattr(self, fact.name) for fact in facts))

    def __str__(self) -> str:
        return self.sentence.format(**vars(self)) if self.sentence else super().__str__()

    @property
    def facts(self) -> dict[str, Any]:
        """The facts of this error by name, JSON-ready."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]


def subclasses(root: type[GraftError] = GraftError) -> Iterator[type[GraftError]]:
    """Yield `root` and every class below it that has been imported."""
    yield root
    for child in root.__subclasses__():
        yield from subclasses(child)


def to_wire(error: GraftError) -> dict[str, Any]:
    """Return `{"code", "facts", "message"}`: how an error crosses processes (never as a pickle)."""
    return {"code": error.code, "facts": error.facts, "message": str(error)}


def from_wire(wire: dict[str, Any]) -> GraftError:
    """Rebuild an error from `to_wire`'s form; an unknown code becomes a plain `GraftError`."""
    for cls in subclasses():
        if cls.code == wire.get("code") and "__dataclass_fields__" in vars(cls):
            return cls(**wire["facts"])
    return GraftError(str(wire))


class StorageError(GraftError):
    """The data folder cannot take or give bytes."""

    code = "storage-error"


@leaf
class InsufficientStorage(StorageError):
    """The disk, its inodes or a quota is full."""

    code = "insufficient-storage"
    sentence = "no space left while {doing}; free some space in the data folder and try again"
    doing: str


@leaf
class DiskSpaceLow(StorageError):
    """So little of the disk is free that nothing new is begun."""

    code = "disk-space-low"
    sentence = (
        "{free_bytes} bytes and {free_inodes} files are free on the disk of the data folder, "
        "{coming_bytes} bytes were announced and {low_water_bytes} bytes are kept free for what "
        "runs; free some space and try again"
    )
    free_bytes: int
    free_inodes: int | None
    coming_bytes: int
    low_water_bytes: int


@leaf
class BlobMissing(StorageError):
    """A blob that a row points to is not in the store."""

    code = "blob-missing"
    sentence = "the file with sha256 {sha256} is missing from the data folder; restore a backup"
    sha256: str


@leaf
class BlobCorrupt(StorageError):
    """A blob's bytes are not the ones its name promises."""

    code = "blob-corrupt"
    sentence = "the file with sha256 {sha256} now has sha256 {actual}; restore a backup"
    sha256: str
    actual: str


class ImageError(GraftError):
    """One image cannot be used."""

    code = "image-error"


@leaf
class ImageUnreadable(ImageError):
    """The bytes are no image that can be decoded."""

    code = "unreadable-image"
    sentence = "the image cannot be decoded: {reason}"
    reason: str


@leaf
class ImageFormatUnsupported(ImageError):
    """The bytes are an image of a format that is not decoded here."""

    code = "unsupported-format"
    sentence = "images of format {format} are not accepted; save it as JPEG, PNG or WebP"
    format: str


@leaf
class ImageTooLarge(ImageError):
    """The image has more pixels than are allowed, or a side that is too long."""

    code = "image-too-large"
    sentence = (
        "the image is {width_px}x{height_px}; at most {limit_pixels} pixels and "
        "{limit_side_px} on a side are accepted, shrink it"
    )
    width_px: int
    height_px: int
    limit_pixels: int
    limit_side_px: int


@leaf
class ImageAspectExtreme(ImageError):
    """The image is so long and thin that resizing it would explode."""

    code = "image-aspect"
    sentence = "the image is {width_px}x{height_px}; the longer side may be {limit} times the other"
    width_px: int
    height_px: int
    limit: int


@leaf
class ImageModeUnsupported(ImageError):
    """The pixel format has no meaning as an 8-bit photograph."""

    code = "unsupported-mode"
    sentence = "pixels of mode {mode} (12-bit, float or signed) are refused; save 8 or 16 bits"
    mode: str


@leaf
class TensorUnusable(ImageError):
    """A preprocessed image is no input of the model."""

    code = "unusable-tensor"
    sentence = "the tensor cannot be used: {reason}"
    reason: str


class ArtifactError(GraftError):
    """A published model cannot be used."""

    code = "artifact-error"


@leaf
class ArtifactMalformed(ArtifactError):
    """The files of an artifact are incomplete, inconsistent or of an unknown format."""

    code = "artifact-malformed"
    sentence = "the artifact cannot be used: {reason}"
    reason: str


@leaf
class ArtifactGoldenMismatch(ArtifactError):
    """The loaded model does not reproduce the outputs stored when it was made."""

    code = "artifact-golden-mismatch"
    sentence = (
        "the model's outputs differ from the stored ones by {max_difference:.3g} "
        "(allowed {tolerance:.3g}); it is not served"
    )
    max_difference: float
    tolerance: float


class InferenceError(GraftError):
    """The inference process could not answer."""

    code = "inference-error"


@leaf
class InferenceUnavailable(InferenceError):
    """The inference process cannot be reached."""

    code = "dependency-unavailable"
    sentence = "the inference process does not answer ({reason}); try again in a few seconds"
    reason: str


@leaf
class InferenceOverloaded(InferenceError):
    """The queue of images waiting for a forward pass is full."""

    code = "overloaded"
    sentence = (
        "{queued} predictions are waiting, the limit is {limit} and nobody may hold more than is "
        "left; try again in {retry_after_seconds} s"
    )
    queued: int
    limit: int
    retry_after_seconds: int


@leaf
class PredictTimedOut(InferenceError):
    """A prediction was not ready in time; what had not been computed of it is dropped."""

    code = "predict-timed-out"
    sentence = (
        "no answer within {seconds:g} s, the prediction was dropped; send less at once, or allow "
        "more time (timeout_seconds, GRAFT_PREDICT_TIMEOUT_SECONDS)"
    )
    seconds: float


@leaf
class ModelUnhealthy(InferenceError):
    """The model gave logits that are not finite."""

    code = "model-unhealthy"
    sentence = "model {digest} gave non-finite outputs; it is not served, train it again"
    digest: str


@leaf
class WireMalformed(InferenceError):
    """A message to the inference process is not in its format."""

    code = "wire-malformed"
    sentence = "the message to the inference process cannot be read: {reason}"
    reason: str


@leaf
class PredictTooLarge(InferenceError):
    """The images of one predict request are too many bytes."""

    code = "predict-too-large"
    sentence = "the images of one request may have {limit_bytes} bytes together; send fewer"
    limit_bytes: int


@leaf
class InferenceAddressInvalid(InferenceError):
    """The inference process cannot listen at the address that was configured."""

    code = "inference-address-invalid"
    sentence = "the inference process cannot listen at {address}: {reason}; set GRAFT_INFERENCE_URL"
    address: str
    reason: str


@leaf
class DeviceUnavailable(InferenceError):
    """The device that was asked for is not there, or has no memory left."""

    code = "device-unavailable"
    sentence = "device {device} cannot be used: {reason}; set GRAFT_DEVICE or free its memory"
    device: str
    reason: str
