"""Why a request is refused, and how that is said over HTTP."""

from __future__ import annotations

import http

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from ..errors import AnswerError, BundleError, ImageError, RequestError, TvpError

# status -> the type of an error, in OpenAI's words
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refusal(TvpError):
    """A request that is refused.

    Args:
        status: of HTTP.
        message: for the client, in plain words.
        code: for programs.
        retry_after: seconds, where the client may try again.
        closes: whether the connection ends, because nobody knows where its next request begins.
    """

    def __init__(
        self, status: int, message: str, code: str = "", retry_after: int | None = None, closes: bool = False
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after, self.closes = status, code, retry_after, closes


class ClientGoneError(Exception):
    """The client closed its connection; nobody reads an answer."""


def refusal_of(error: BaseException) -> Refusal:
    """Return an error as a refusal. What the client cannot help is told to the operator alone."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ImageError):
        return Refusal(400, str(error), "invalid_image")
    if isinstance(error, RequestError):
        return Refusal(400, str(error), "invalid_request")
    if isinstance(error, AnswerError):
        return Refusal(422, str(error), "incomplete_answer")
    if isinstance(error, HTTPException):
        return of_status(error.status_code)
    if isinstance(error, BundleError):
        return Refusal(422, str(error), "invalid_bundle")
    return Refusal(500, "The server failed at this request. Its log says why.", "server_error")


def told(refusal: Refusal) -> dict[str, object]:
    """Return the body of a refusal, in OpenAI's form."""
    kind = TYPES.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "server_error")
    return {"error": {"message": str(refusal), "type": kind, "param": None, "code": refusal.code or None}}


def reply(refusal: Refusal) -> Response:
    """Return the response of a refusal."""
    headers = {} if refusal.retry_after is None else {"retry-after": str(refusal.retry_after)}
    if refusal.closes:
        headers["connection"] = "close"
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(told(refusal), refusal.status, headers)


def of_status(status: int) -> Refusal:
    """Return the refusal for a status alone, such as that of a path which no endpoint has."""
    if status == 404:
        return Refusal(404, "There is no such endpoint. GET /openapi.json lists them.", "not_found")
    if status == 405:
        return Refusal(405, "This endpoint does not have that method. GET /openapi.json lists them.", "wrong_method")
    return Refusal(status, f"{http.HTTPStatus(status).phrase}.")
