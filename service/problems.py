"""Every error as an RFC 9457 problem document (`application/problem+json`), and what OpenAPI says of them."""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from segue.errors import SegueError

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
_LONGEST_FOUND = 80
_LONGEST_FIELD = 300  # the name of an unknown field is the client's own text
_LISTED = 10  # members of an object or a list that is shown
MOST_ERRORS = 100  # named in one answer
MAX_COUNTED_ERRORS = 500  # beyond it only their number is reported: each error that is read out costs microseconds


class InvalidField(BaseModel):
    """One thing that is wrong with a request."""

    field: str = Field(description="Where: `body.events.0.type`, `query.k`", examples=["body.events.0.type"])
    found: str = Field(description="What was there, shortened", examples=["'plai'"])
    expected: str = Field(description="What is expected instead", examples=["Input should be 'play' or 'skip'"])


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str = Field(default="about:blank", description="The kind of problem; about:blank: the status says it all")
    title: str = Field(description="The problem in a few words", examples=["Unknown session"])
    status: int = Field(description="The HTTP status", ge=400, le=599)
    detail: str = Field(description="This occurrence: what was found, what is expected, what to do")
    errors: list[InvalidField] | None = Field(
        default=None, description="For 422: the fields that are wrong, the first 100"
    )


class NotAcceptable(SegueError):
    """The request does not accept what would be answered."""

    http_status: ClassVar[int] = 406
    title: ClassVar[str] = "Not acceptable"


class MissingScope(SegueError):
    """The key may make the call, but not with these options."""

    http_status: ClassVar[int] = 403
    title: ClassVar[str] = "Forbidden"

    def __init__(self, text: str, scope: str) -> None:
        super().__init__(text)
        self.scope = scope


_DESCRIPTIONS = {
    404: "Nothing goes by that name",
    405: "The path knows other methods, named in `Allow`",
    406: "The answer is a stream of events, which `Accept` does not name",
    409: "Another swap is under way, or the service has no folder of releases",
    413: "The body is larger than the service takes",
    415: "The body is not plain JSON, or does not say that it is",
    422: "The request is not as described; `errors` names the fields",
    503: "The session store or the model cannot serve this, or the service is full; try again after `Retry-After` "
    "seconds",
}


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route declares of the problems it may answer."""
    responses: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        responses[status] = {"model": Problem, "description": _DESCRIPTIONS[status]}
        if status == 503:
            seconds = {"description": "Seconds to wait", "schema": {"type": "integer"}}
            responses[status]["headers"] = {"Retry-After": seconds}
    return responses


def problem_response(
    status: int,
    detail: str,
    title: str | None = None,
    errors: Sequence[InvalidField] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem document. Its text is ASCII, so that whatever a client sent can be shown."""
    title = title or HTTPStatus(status).phrase
    problem = Problem(title=title, status=status, detail=detail, errors=list(errors) if errors is not None else None)
    content = json.dumps(problem.model_dump(exclude_none=True), ensure_ascii=True)
    return Response(content, status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def missing_scope_headers(scope: str) -> dict[str, str]:
    """What tells the holder of a key which scope it lacks (RFC 6750, section 3)."""
    return {"WWW-Authenticate": f'Bearer realm="segue", error="insufficient_scope", scope="{scope}"'}


def response_to(error: SegueError) -> Response:
    """The problem document for an error of the project's own tree."""
    headers = {"Retry-After": str(RETRY_AFTER_S)} if error.http_status == 503 else None
    if isinstance(error, MissingScope):
        headers = missing_scope_headers(error.scope)
    detail = str(error) if error.http_status != 500 else "the service failed; its log says why"
    return problem_response(error.http_status, detail, error.title, headers=headers)


def answer_problems(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Have `app` answer every error by a problem document; `routes` are those that it knows."""

    async def on_segue_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, SegueError)
        return response_to(error)

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        detail = str(error.detail)
        if error.status_code == 404:
            # Of the scope: request.url fails on a query that is no UTF-8.
            detail = f"{ascii(request.scope['path'])[1:-1]} is not a path of this service: GET /openapi.json lists them"
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_allowed(routes, request.scope)) or "GET, HEAD"
            detail = f"{request.method} is not for this path: use {headers['Allow']}"
        return problem_response(error.status_code, detail, headers=headers)

    async def on_invalid_request(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return invalid_request_response(error)

    app.add_exception_handler(SegueError, on_segue_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid_request)


def invalid_request_response(error: RequestValidationError) -> Response:
    """The problem document for a request that is not as described."""
    fields = [_invalid_field(found) for found in error.errors()[:MOST_ERRORS]]
    first = fields[0]
    detail = f"{first.field} is {first.found}: {first.expected}"
    return problem_response(422, detail, "Invalid input", fields)


def _invalid_field(error: Mapping[str, Any]) -> InvalidField:
    found = error.get("found") or ("missing" if error["type"] == "missing" else _shown(error.get("input")))
    field = ".".join(str(part)[:_LONGEST_FOUND] for part in error["loc"])
    return InvalidField(field=_shortened(ascii(field)[1:-1], _LONGEST_FIELD), found=found, expected=str(error["msg"]))


def _shown(value: object) -> str:
    """A value that a client sent, in at most 80 characters. Only the part that is shown is written out."""
    if isinstance(value, str | bytes):
        return _shortened(ascii(value[:_LONGEST_FOUND]), cut=len(value) > _LONGEST_FOUND)
    if isinstance(value, dict):
        return f"an object of {len(value):,} members" if len(value) > _LISTED else _of_few(value)
    if isinstance(value, list | tuple):
        return f"a list of {len(value):,} items" if len(value) > _LISTED else _of_few(value)
    if isinstance(value, int) and value.bit_length() > 4 * _LONGEST_FOUND:  # Python refuses to write very long ones
        return "a number of more than 80 digits"
    return _shortened(ascii(value))


def _of_few(value: Any) -> str:
    """A small container. Its members are shortened first, as each of them may be a megabyte."""
    if isinstance(value, dict):
        members = [f"{_shown(str(name))}: {_inner(item)}" for name, item in value.items()]
        return _shortened("{" + ", ".join(members) + "}")
    return _shortened("[" + ", ".join(map(_inner, value)) + "]")


def _inner(value: object) -> str:
    return "..." if isinstance(value, dict | list | tuple) and value else _shown(value)


def _shortened(text: str, longest: int = _LONGEST_FOUND, *, cut: bool = False) -> str:
    return text[: longest - 3] + "..." if cut or len(text) > longest else text


def _allowed(routes: Sequence[BaseRoute], scope: Scope) -> list[str]:
    """The methods that the path knows, over all routes: Starlette itself names only those of the first route."""
    methods: set[str] = set()
    for route in routes:
        match, _ = route.matches(scope)
        if match is Match.PARTIAL:
            methods |= getattr(route, "methods", None) or set()
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


def describe_problems(schema: dict[str, Any]) -> None:
    """Correct the media type of problems in an OpenAPI document, in place: FastAPI calls every body plain JSON."""
    for path in schema["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                content = response.get("content", {})
                if int(status) >= 400 and "application/json" in content:
                    response["content"] = {MEDIA_TYPE: content["application/json"]}
