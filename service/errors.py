"""Errors of the HTTP layer itself; the tree continues `models_cache.errors`.

* RequestError                   the request is not what the call takes
  + JsonMalformed, MediaTypeUnsupported, BodyTooLarge, MultipartMalformed, ValidationFailed,
    NothingHere, AddressUnknown, NotReady, ModelUnavailable, WeightsComing,
    DatabaseUnavailable, JobFileInvalid, IndexMissing, IndexNotReady, UploadNotFound,
    UploadEnded, UploadMismatch, TooManyUploads
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from models_cache.errors import GraftError, leaf


class RequestError(GraftError):
    """The request is not what the call takes."""

    code = "malformed-request"


@leaf
class JsonMalformed(RequestError):
    """The body is not strict JSON."""

    code = "malformed-json"
    sentence = "the body is not acceptable JSON: {reason}"
    reason: str


@leaf
class MediaTypeUnsupported(RequestError):
    """The content type is not one the call takes."""

    code = "unsupported-media-type"
    sentence = "the content type is {given}; send {wanted}"
    given: str
    wanted: str


@leaf
class BodyTooLarge(RequestError):
    """The body is larger than allowed."""

    code = "payload-too-large"
    sentence = "the body is larger than {limit_bytes} bytes"
    limit_bytes: int


@leaf
class MultipartMalformed(RequestError):
    """The multipart body cannot be taken apart."""

    code = "malformed-multipart"
    sentence = "the multipart body cannot be used: {reason}"
    reason: str


@leaf
class ValidationFailed(RequestError):
    """Fields are missing, unknown or out of bounds."""

    code = "validation-failed"
    sentence = "{count} field(s) cannot be accepted"
    count: int
    faults: list[dict[str, str]]

    @classmethod
    def of(cls, errors: Iterable[Mapping[str, Any]]) -> ValidationFailed:
        """Make one of pydantic's list; inputs are never echoed."""
        faults = [
            {
                "pointer": "".join(f"/{part}" for part in error["loc"]),
                "code": str(error["type"]).replace("_", "-"),
                "message": str(error["msg"]),
            }
            for error in errors
        ]
        return cls(len(faults), faults[:50])

    @classmethod
    def one(cls, pointer: str, code: str, message: str) -> ValidationFailed:
        """Make one of a single fault."""
        return cls(1, [{"pointer": pointer, "code": code, "message": message}])


@leaf
class JobFileInvalid(RequestError):
    """A job file cannot be read, or its fields are missing, unknown or out of bounds."""

    code = "job-file-invalid"
    sentence = "{name} cannot be used ({count} fault(s)); nothing was sent\n  {faults}"
    name: str
    count: int
    faults: str


@leaf
class NothingHere(RequestError):
    """No resource of that address."""

    code = "not-found"
    sentence = "there is nothing at this address; GET /docs lists the calls"


@leaf
class AddressUnknown(RequestError):
    """The address names something that does not exist."""

    code = "address-unknown"
    sentence = "{reason}"
    reason: str


@leaf
class DatabaseUnavailable(RequestError):
    """The database is locked for long, or away."""

    code = "database-unavailable"
    sentence = "the database does not answer; try again in a few seconds"


@leaf
class NotReady(RequestError):
    """A part of the service does not run yet."""

    code = "not-ready"
    sentence = "not ready: {waiting_for}"
    waiting_for: str


@leaf
class ModelUnavailable(RequestError):
    """A model exists, but its files or its weights cannot be used at the moment."""

    code = "model-unavailable"
    sentence = "model {name!r} version {version} cannot be served: {reason}"
    name: str
    version: int
    reason: str


@leaf
class WeightsComing(RequestError):
    """A model needs pretrained weights that are being fetched: after an import or a restore."""

    code = "weights-coming"
    sentence = (
        "the pretrained weights of {architecture} are not on disk and are being fetched; call "
        "again in a while, GET /v1/backbones/{architecture} tells how far they are"
    )
    architecture: str


@leaf
class IndexMissing(RequestError):
    """There are no images to search for similar ones."""

    code = "index-missing"
    sentence = (
        "model {name!r} version {version} was imported without a data set; "
        "name one with `?dataset=ds_...`"
    )
    name: str
    version: int


@leaf
class IndexNotReady(RequestError):
    """The images to search are still being looked at."""

    code = "index-not-ready"
    sentence = "{done} of {total} images have been looked at; ask again in some seconds"
    done: int
    total: int


@leaf
class UploadNotFound(RequestError):
    """No upload in parts of that id: it never was, or nothing came for an hour."""

    code = "upload-not-found"
    sentence = "there is no upload {upload_id}; it may have expired, begin again"
    upload_id: str


@leaf
class UploadEnded(RequestError):
    """An upload in parts that was completed or cancelled takes no further call."""

    code = "upload-ended"
    sentence = "upload {upload_id} is {status}; begin a new one"
    upload_id: str
    status: str


@leaf
class UploadMismatch(RequestError):
    """The parts of an upload are not the file that was announced."""

    code = "upload-mismatch"
    sentence = "upload {upload_id} is not the file that was announced: {reason}"
    upload_id: str
    reason: str


@leaf
class TooManyUploads(RequestError):
    """So many bodies arrive at the moment that another one has to wait."""

    code = "too-many-uploads"
    sentence = "{limit} requests are sending their bodies; try again in a few seconds"
    limit: int
