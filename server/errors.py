"""The only map from exceptions to what clients receive: an HTTP status, and OpenAI's error object or Anthropic's.

Messages of the engine's errors are meant for users and are passed on. For any other exception, the client receives only
the request id.
"""

import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match
from starlette.types import Scope

from engine import ContextLengthExceeded, EngineUnavailable, InvalidRequest, QueueFull

INVALID = "invalid_request_error"
INTERNAL = 500
"""The only status whose cause is logged and not sent to the client."""
CONTEXT_LENGTH = "context_length_exceeded"
NO_THREADS = "thread_unsupported_request"
"""Anthropic's clients that read it go on by sending whole conversations."""
RETRY = {"Retry-After": "1"}
CLOSING = {"Connection": "close"}
"""Makes the client use another connection, instead of retrying or sending the rest of a body over this one."""
NO_RETRY = {"x-should-retry": "false"}
"""Keeps OpenAI's clients from sending the same long request again."""
MAX_QUOTED = 200
"""Characters of a client's own input that an answer may repeat."""

_ANTHROPIC = re.compile(r"/v1/messages(/|$)")
"""The end of paths whose clients expect Anthropic's error object, whatever prefix a proxy has put before it."""
_SHARED = re.compile(r"/v1/models(/|$)")
"""The same of paths that OpenAI's API has too: Anthropic's clients tell themselves apart by `ANTHROPIC_VERSION`."""
ANTHROPIC_VERSION = "anthropic-version"
"""A header that Anthropic's API demands of each request."""
_ANTHROPIC_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Types of errors by status; others are those of bad requests below 500, and `api_error` above."""
TOO_LONG = "prompt is too long"
"""How Anthropic's API begins this message: clients look for it, and then shorten the conversation."""


class ModelNotFound(InvalidRequest):
    """No served model has this id."""

    def __init__(self, model: str) -> None:
        super().__init__(f"The model '{model:.200}' does not exist; GET /v1/models lists those that do.", param="model")


class Stored(InvalidRequest):
    """The request is about a conversation that the server would have to hold, and it holds none."""


class Busy(QueueFull):
    """The queue is full, and likely to have room again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ForeignHost(Exception):
    """The request names a host that this server does not answer for."""

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.host = host


class InvalidApiKey(Exception):
    """The request has no key that this server knows."""


class RequestTimeout(Exception):
    """The request took longer than the server allows."""


class TooManyConnections(Exception):
    """More clients are connected than the server allows."""


class ClientGone(Exception):
    """The client hung up before its answer was complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiError:
    """An error as the client receives it."""

    status: int
    message: str
    type: str = INVALID
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] | None = None
    anthropic_id: str | None = None
    """The request's id, if its client expects Anthropic's error object; None is OpenAI's."""

    @property
    def body(self) -> dict[str, Any]:
        if self.anthropic_id is None:
            return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}
        other = INVALID if self.status < INTERNAL else "api_error"
        error: dict[str, Any] = {"type": _ANTHROPIC_TYPES.get(self.status, other), "message": self._full_message}
        if self.code == NO_THREADS:
            error["details"] = {"error_code": self.code}
        return {"type": "error", "error": error, "request_id": self.anthropic_id}

    @property
    def _full_message(self) -> str:
        """The message with what Anthropic's error object has no field for."""
        named = (
            self.message
            if self.param is None or f"`{self.param}`" in self.message
            else (f"`{self.param}`: {self.message}")
        )
        return f"{TOO_LONG}: {named}" if self.code == CONTEXT_LENGTH else named

    @property
    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, headers=self.headers)


def is_anthropic(scope: Scope) -> bool:
    """Whether the request's client expects answers in the form of Anthropic's API."""
    path = str(scope.get("path", ""))
    if _SHARED.search(path):
        return ANTHROPIC_VERSION in Headers(scope=scope)
    return _ANTHROPIC.search(path) is not None


def api_error(error: Exception, scope: Scope) -> ApiError:
    """The answer to `error` for the client of the request that `scope` describes."""
    told = _told(error, scope)
    return replace(told, anthropic_id=request_id(scope)) if is_anthropic(scope) else told


def _told(error: Exception, scope: Scope) -> ApiError:
    match error:
        case ModelNotFound():
            return ApiError(status=404, message=str(error), param=error.param, code="model_not_found")
        case ContextLengthExceeded():
            return ApiError(status=400, message=str(error), param=error.param, code=CONTEXT_LENGTH)
        case Stored():
            return ApiError(status=400, message=str(error), param=error.param, code=NO_THREADS)
        case InvalidRequest():
            return ApiError(status=400, message=str(error), param=error.param)
        case QueueFull():
            kind, code = "rate_limit_error", "rate_limit_exceeded"
            headers = {"Retry-After": str(error.retry_after)} if isinstance(error, Busy) else RETRY
            return ApiError(status=429, message=str(error), type=kind, code=code, headers=headers)
        case EngineUnavailable():
            kind, headers = "service_unavailable_error", {**RETRY, **CLOSING}  # another server may answer
            return ApiError(status=503, message=str(error), type=kind, headers=headers)
        case TooManyConnections():
            message = "Too many clients are connected; try again later."
            return ApiError(status=503, message=message, type="service_unavailable_error", headers=RETRY)
        case ForeignHost():
            message = (
                f"This server does not answer for the host {_quoted(error.host)}; its `allowed_hosts` may name it."
            )
            return ApiError(status=403, message=message, type="permission_error", code="unknown_host")
        case InvalidApiKey():
            return ApiError(
                status=401,
                message="A known API key is needed, as `Authorization: Bearer KEY` or `x-api-key: KEY`.",
                type="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        case RequestTimeout():
            message = "The request took longer than this server's time limit."
            return ApiError(status=504, message=message, type="server_error", code="request_timeout", headers=NO_RETRY)
        case RequestValidationError():
            return _invalid(error.errors()[0])
        case HTTPException():
            return _http(error, scope)
        case ClientGone():
            return ApiError(status=499, message="The client closed the connection.")
        case _:
            message = f"The server failed while answering; its log has the cause under {request_id(scope)}."
            return ApiError(status=INTERNAL, message=message, type="server_error", code="internal_error")


def request_id(scope: Scope) -> str:
    """The id that `RequestIds` gave this request; empty of one that it has not seen."""
    return str(scope.get("state", {}).get("request_id", ""))


def _http(error: HTTPException, scope: Scope) -> ApiError:
    """Errors of routing and of reading the body: HTTPExceptions of the framework or of this server."""
    message, headers = str(error.detail), error.headers
    if error.status_code in (404, 405):
        message = f"{message}: {scope['method']} {scope['path'][:MAX_QUOTED]}"
    if error.status_code == 405:
        headers = {"Allow": ", ".join(_allowed_methods(scope))}
    return ApiError(status=error.status_code, message=message, headers=headers)


def _allowed_methods(scope: Scope) -> Iterator[str]:
    """The methods of all routes with this path. The framework reports only those of the first route."""
    for method, names in {"GET": ("GET", "HEAD"), "POST": ("POST",)}.items():
        asked = {**scope, "method": method}
        if any(route.matches(asked)[0] is Match.FULL for route in scope["app"].router.routes):
            yield from names


def _invalid(error: Mapping[str, Any]) -> ApiError:
    """Describes the first invalid field: its dotted path, what is wrong, and a short quote of what was sent."""
    path = ".".join(str(part) for part in error["loc"] if part not in ("body", "[key]"))[:MAX_QUOTED]
    match error["type"]:
        case "json_invalid":
            message = f"The body is not valid JSON: {error['ctx']['error']} at character {path}."
            return ApiError(status=400, message=message)
        case "missing" | "model_attributes_type" | "model_type" | "dict_type" if not path:
            return ApiError(status=400, message="The body must be a JSON object.")
        case "missing":
            return ApiError(status=400, message=f"You must provide `{path}`.", param=path)
        case _:
            field = f"`{path}`: " if path else ""
            message = f"{field}{error['msg']}; got {_quoted(error['input'])}."
            return ApiError(status=400, message=message, param=path or None)


def _quoted(value: object) -> str:
    """The value's repr, cut to `MAX_QUOTED` characters without walking through all of the value."""
    quote = reprlib.Repr()
    quote.maxstring = quote.maxother = MAX_QUOTED
    return quote.repr(value)[:MAX_QUOTED]


HANDLED: Sequence[type[Exception]] = (
    InvalidRequest,
    QueueFull,
    EngineUnavailable,
    RequestValidationError,
    HTTPException,
    ClientGone,
)
"""Exceptions that an exception handler answers. Others reach `RequestIds`, which logs and answers them."""
