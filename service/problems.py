"""Domain error to answer: the one place that knows both an error and a status.

Answers are RFC 9457, and on the routes of other protocols in their form: `error_forms`.

Anything that is not a `GraftError` is a bug of ours: the traceback goes to the log, the client
gets a bare 500. Nothing that a client sent is echoed except through an error's own sentence.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from jobs import errors as jobs_errors
from jobs import feedback_errors, key_errors
from jobs.backup import errors as backup_errors
from jobs.datasets import errors as dataset_errors
from jobs.evaluation import errors as evaluation_errors
from jobs.exports import errors as exports_errors
from jobs.keys import without_keys
from jobs.store.database import DATABASE_AWAY, is_full
from models_cache import egress_errors, export_errors, weights_errors
from models_cache import errors as cache_errors
from models_cache.asgi import ClientGone
from models_cache.errors import GraftError
from service import access_errors
from service import errors as request_errors
from service.error_forms import Told, foreign_error

log = logging.getLogger(__name__)

GONE_STATUS = 499  # as nginx calls a client that hung up

#: The nearest ancestor of an error's class decides; 500 means a bug or a broken data folder.
STATUS: dict[type[GraftError], int] = {
    GraftError: 500,
    cache_errors.StorageError: 500,
    cache_errors.InsufficientStorage: 507,
    cache_errors.DiskSpaceLow: 507,
    weights_errors.WeightsError: 422,
    weights_errors.WeightsUnavailable: 503,
    egress_errors.EgressError: 422,
    egress_errors.EgressFailed: 503,
    cache_errors.ImageError: 422,
    cache_errors.ArtifactError: 422,
    export_errors.ExportError: 422,
    cache_errors.InferenceError: 503,
    cache_errors.PredictTimedOut: 504,
    cache_errors.PredictTooLarge: 413,
    cache_errors.WireMalformed: 500,
    jobs_errors.DatasetError: 422,
    jobs_errors.DatasetNotFound: 404,
    jobs_errors.DatasetImageNotFound: 404,
    jobs_errors.DatasetInUse: 409,
    dataset_errors.ArchiveTypeUnknown: 415,
    evaluation_errors.EvaluationError: 422,
    jobs_errors.RecipeError: 422,
    jobs_errors.TrainingError: 422,
    jobs_errors.JobError: 500,
    jobs_errors.JobNotFound: 404,
    jobs_errors.DeliveryNotFound: 404,
    jobs_errors.IllegalTransition: 409,
    jobs_errors.JobNotEnded: 409,
    jobs_errors.RetryExists: 409,
    jobs_errors.ReceiptMissing: 409,
    jobs_errors.ModelError: 422,
    jobs_errors.ModelNotFound: 404,
    jobs_errors.VersionNotFound: 404,
    jobs_errors.AliasConflict: 409,
    exports_errors.ExportNotFound: 404,
    exports_errors.ExportNotReady: 409,
    jobs_errors.VersionInUse: 409,
    backup_errors.BackupError: 409,
    feedback_errors.FeedbackError: 409,
    feedback_errors.FeedbackNotFound: 404,
    jobs_errors.IdempotencyError: 422,
    key_errors.ApiKeyError: 409,
    key_errors.ApiKeyNotFound: 404,
    access_errors.AccessError: 403,
    access_errors.Unauthenticated: 401,
    access_errors.AuditEntryNotFound: 404,
    access_errors.RateLimited: 429,
    access_errors.QuotaExceeded: 429,
    request_errors.RequestError: 400,
    request_errors.ValidationFailed: 422,
    request_errors.IndexMissing: 422,
    request_errors.IndexNotReady: 503,
    request_errors.MediaTypeUnsupported: 415,
    request_errors.BodyTooLarge: 413,
    request_errors.NothingHere: 404,
    request_errors.AddressUnknown: 404,
    request_errors.UploadNotFound: 404,
    request_errors.NotReady: 503,
    request_errors.DatabaseUnavailable: 503,
    request_errors.ModelUnavailable: 503,
    request_errors.WeightsComing: 503,
    request_errors.TooManyUploads: 503,
}

_SAYS_WHEN = (
    cache_errors.InferenceOverloaded,
    access_errors.RateLimited,
    access_errors.QuotaExceeded,
)
#: What every call may answer besides its own answers, for the OpenAPI document.
DOCUMENTED: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "A problem with the request: `docs/errors.md` lists the codes."},
    503: {"description": "A part of the service cannot answer now; `Retry-After` says when."},
    504: {"description": "A prediction was not ready in time."},
    507: {"description": "The disk or a quota is full."},
}
_RETRY_AFTER_SECONDS = {503: "2", 507: "60"}
_CODE_OF_STATUS = {404: "not-found", 405: "method-not-allowed", 413: "payload-too-large"}


def status_of(error: type[GraftError]) -> int:
    """Return the HTTP status of the nearest mapped ancestor of an error class."""
    return next(STATUS[cls] for cls in error.__mro__ if cls in STATUS)


def install(app: FastAPI) -> None:
    """Register the handlers of every error."""
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)


def _ours(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, GraftError)
    status = status_of(type(error))
    if status == 500:
        log.error("broken: %s", error, exc_info=error)
    faults = error.faults if isinstance(error, request_errors.ValidationFailed) else []
    answer = error_answer(request, status, error.code, str(error), faults)
    if isinstance(error, _SAYS_WHEN):
        answer.headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, access_errors.Unauthenticated | access_errors.ScopeTooSmall):
        answer.headers["WWW-Authenticate"] = error.challenge
    return answer


def _validation(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _ours(request, request_errors.ValidationFailed.of(error.errors()))


def _starlette(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _CODE_OF_STATUS.get(error.status_code, "malformed-request")
    answer = error_answer(request, error.status_code, code, str(error.detail), [])
    answer.headers.update(error.headers or {})
    return answer


def _disk(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, OSError)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        log.error("the disk is full: %s", error)
        return _ours(request, cache_errors.InsufficientStorage("storing what was sent"))
    return _bug(request, error)


def _database(request: Request, error: Exception) -> JSONResponse:
    log.error("the database: %s", error)
    if is_full(error):
        return _ours(request, cache_errors.InsufficientStorage("writing to the database"))
    return _ours(request, request_errors.DatabaseUnavailable())


def _bug(request: Request, error: Exception) -> JSONResponse:
    log.error("a bug: %r", error, exc_info=error)
    text = "something broke on our side; the log of the service says what"
    return error_answer(request, 500, "internal-error", text, [])


def _gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=GONE_STATUS)  # for the log: nobody reads it


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Response]] = {
    GraftError: _ours,
    RequestValidationError: _validation,
    HTTPException: _starlette,
    OSError: _disk,
    **dict.fromkeys(DATABASE_AWAY, _database),
    ClientDisconnect: _gone,
    ClientGone: _gone,
    Exception: _bug,
}


def error_answer(
    request: Request, status: int, code: str, detail: str, faults: list[dict[str, str]]
) -> JSONResponse:
    """Return an error in the form that its route promises, whichever layer refuses the request."""
    detail = without_keys(detail)
    faults = [{**fault, "message": without_keys(fault["message"])} for fault in faults]
    headers = {}
    if status in _RETRY_AFTER_SECONDS:
        headers["Retry-After"] = _RETRY_AFTER_SECONDS[status]
    foreign = foreign_error(request.url.path, Told(status, code, detail, faults))
    if foreign is not None:
        return JSONResponse(foreign[1], foreign[0], headers)
    body = {
        "type": f"/problems/{code}",
        "title": code.replace("-", " ").capitalize(),
        "status": status,
        "detail": detail,
        "instance": without_keys(request.url.path)[:200],
        "code": code,
        "errors": faults,
        "request_id": getattr(request.state, "request_id", None),
    }
    return JSONResponse(body, status, headers, media_type="application/problem+json")
