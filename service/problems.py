"""Every error as an RFC 9457 problem document (`application/problem+json`), and their description in OpenAPI."""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from http import HTTPStatus
from typing import Any, ClassVar, Final, get_origin

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from segue.errors import SegueError
from segue.validation_messages import expectation

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
_MAX_VALUE = 80
_MAX_FIELD = 300  # the name of an unknown field comes from the client
_MAX_MEMBERS = 10  # of an object or list shown in full
MAX_LISTED_ERRORS = 100  # listed in one response
MAX_COUNTED_ERRORS = 500  # above it only the number is reported, because each error costs microseconds


class InvalidField(BaseModel):
    """One invalid field of a request."""

    field: str = Field(description="The field: `body.events.0.type`, `query.k`", examples=["body.events.0.type"])
    found: str = Field(description="The value found, shortened", examples=["'plai'"])
    expected: str = Field(description="The value expected", examples=["Input should be 'play' or 'skip'"])


class Problem(BaseModel):
    """An error, as defined in RFC 9457."""

    type: str = Field(
        default="about:blank", description="The kind of problem; `about:blank` means that the status describes it"
    )
    title: str = Field(description="The problem in a few words", examples=["Unknown session"])
    status: int = Field(description="The HTTP status", ge=400, le=599)
    detail: str = Field(description="This occurrence: what was found, what is expected and what to do")
    errors: list[InvalidField] | None = Field(default=None, description="For 422: the first 100 invalid fields")


class NotAcceptable(SegueError):
    """The request does not accept the media type of the response."""

    http_status: ClassVar[int] = 406
    title: ClassVar[str] = "Not acceptable"


class MissingScope(SegueError):
    """The key allows the call, but not with these options."""

    http_status: ClassVar[int] = 403
    title: ClassVar[str] = "Forbidden"

    def __init__(self, text: str, scope: str) -> None:
        super().__init__(text)
        self.scope = scope


_DESCRIPTIONS = {
    404: "Not found",
    405: "The path does not support this method; `Allow` lists those it supports",
    406: "The response is a stream of events, which `Accept` excludes",
    409: "Not possible now: another swap is in progress, a swap would end the running A/B test, there is no folder of "
    "releases, `caution` is above 0 and the release has no play head, or the policy has `diversity` and the release "
    "has no encoder",
    413: "The body is too large",
    415: "The body has a `Content-Encoding`, or its `Content-Type` is not JSON",
    422: "The request is invalid; `errors` lists the fields",
    503: "The session store or the model is unavailable, or the service is overloaded; try again after `Retry-After` "
    "seconds",
}


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI responses of a route for these problem statuses."""
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
    """A problem document. Its text is ASCII, so it can quote any text from a client."""
    title = title or HTTPStatus(status).phrase
    problem = Problem(title=title, status=status, detail=detail, errors=list(errors) if errors is not None else None)
    content = json.dumps(problem.model_dump(exclude_none=True), ensure_ascii=True)
    return Response(content, status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def missing_scope_headers(scope: str) -> dict[str, str]:
    """The header that names the missing scope of a key (RFC 6750, section 3)."""
    return {"WWW-Authenticate": f'Bearer realm="segue", error="insufficient_scope", scope="{scope}"'}


def response_to(error: SegueError) -> Response:
    """The problem document for a SegueError."""
    headers = {"Retry-After": str(RETRY_AFTER_S)} if error.http_status == 503 else None
    if isinstance(error, MissingScope):
        headers = missing_scope_headers(error.scope)
    detail = str(error) if error.http_status != 500 else "an internal error occurred: see the log of the service"
    return problem_response(error.http_status, detail, error.title, headers=headers)


def answer_problems(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Make `app` answer every error with a problem document. `routes` are all its routes."""

    async def on_segue_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, SegueError)
        return response_to(error)

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        detail = str(error.detail)
        if error.status_code == 404:
            return _unknown_path(request)
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_allowed(routes, request.scope)) or "GET, HEAD"
            detail = f"{request.method} is not supported by this path: use {headers['Allow']}"
        return problem_response(error.status_code, detail, headers=headers)

    async def on_invalid_request(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return invalid_request_response(error)

    app.add_exception_handler(SegueError, on_segue_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid_request)


_PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Not found - Segue</title>
<main>
<h1>Not found</h1>
<p><code>{path}</code> is not a path of this service.</p>
<p><a href="{root}">Player</a>, <a href="{root}docs">HTTP API</a>, <a href="{root}ops">operations</a></p>
</main>
</html>
"""


def _unknown_path(request: Request) -> Response:
    """A 404: a short page if the client prefers HTML, as a browser's address bar does, else a problem document."""
    headers = {"Vary": "Accept"}
    path = ascii(request.scope["path"])[1:-1]  # from the scope: request.url fails if the query is not UTF-8
    if not prefers_html(", ".join(request.headers.getlist("accept"))):
        detail = f"{path} is not a path of this service: GET /openapi.json lists them"
        return problem_response(404, detail, headers=headers)
    # Relative links, because a proxy may strip a prefix of the path.
    root = "../" * (request.scope["raw_path"].count(b"/") - 1) or "./"
    return HTMLResponse(_PAGE.format(path=html.escape(path), root=root), 404, headers)


def prefers_html(accept: str) -> bool:
    """Return True if an `Accept` header names `text/html` with a higher quality than JSON (RFC 9110, 12.5.1)."""
    qualities: dict[str, float] = {}
    for part in accept.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        given = next((one.removeprefix("q=") for one in parameters if one.startswith("q=")), "1")
        try:
            qualities[name] = float(given)
        except ValueError:
            qualities[name] = 0.0
    json_types = (MEDIA_TYPE, "application/json", "application/*", "*/*")
    as_json = next((qualities[name] for name in json_types if name in qualities), 0.0)
    return qualities.get("text/html", 0.0) > as_json


def parameter_errors(
    given: Iterable[tuple[str, str]], known: AbstractSet[str], lists: AbstractSet[str]
) -> list[dict[str, Any]]:
    """Return an error for each query parameter that a call does not have, or that is repeated and not in `lists`.

    An ignored parameter could be a filter. `given` are names and values.
    """
    errors: list[dict[str, Any]] = []
    seen: set[str] = set()
    for name, value in given:
        if name not in known:
            expected = f"expected one of {', '.join(sorted(known))}" if known else "expected no parameter"
            errors.append({"type": "unknown_parameter", "loc": ("query", name), "msg": expected, "input": value})
        elif name in seen and name not in lists:
            errors.append(
                {"type": "repeated_parameter", "loc": ("query", name), "msg": "expected one value", "input": value}
            )
        seen.add(name)
    return errors


async def only_known_parameters(request: Request) -> None:
    """A dependency of calls that document a 422: raise RequestValidationError for unknown or repeated parameters."""
    route = request.scope["route"]
    if not isinstance(route, APIRoute) or 422 not in route.responses or not request.scope["query_string"]:
        return
    parameters = route.dependant.query_params
    lists = {one.alias for one in parameters if get_origin(one.field_info.annotation) is list}
    errors = parameter_errors(request.query_params.multi_items(), {one.alias for one in parameters}, lists)
    if errors:
        raise RequestValidationError(errors)


def invalid_request_response(error: RequestValidationError) -> Response:
    """The problem document for a request that fails validation."""
    fields = [_invalid_field(found) for found in error.errors()[:MAX_LISTED_ERRORS]]
    first = fields[0]
    detail = f"{first.field} is {first.found}: {first.expected}"
    return problem_response(422, detail, "Invalid input", fields)


def _invalid_field(error: Mapping[str, Any]) -> InvalidField:
    found = error.get("found") or ("missing" if error["type"] == "missing" else _shown(error.get("input")))
    field = ".".join(str(part)[:_MAX_VALUE] for part in error["loc"])
    return InvalidField(field=_shortened(ascii(field)[1:-1], _MAX_FIELD), found=found, expected=_expected(error))


def _expected(error: Mapping[str, Any]) -> str:
    """What was expected. pydantic's message is kept if it says so in plain words."""
    plain = error["type"] in {"missing", "extra_forbidden", "string_pattern_mismatch"}
    return expectation(error) if plain else str(error["msg"])


def _shown(value: object) -> str:
    """A value from a client, in at most 80 characters. Only the part that is shown is formatted."""
    if isinstance(value, str | bytes):
        return _shortened(ascii(value[:_MAX_VALUE]), cut=len(value) > _MAX_VALUE)
    if isinstance(value, dict):
        return f"an object of {len(value):,} members" if len(value) > _MAX_MEMBERS else _small_container(value)
    if isinstance(value, list | tuple):
        return f"a list of {len(value):,} items" if len(value) > _MAX_MEMBERS else _small_container(value)
    if isinstance(value, int) and value.bit_length() > 4 * _MAX_VALUE:  # Python does not format very long ones
        return "a number of more than 80 digits"
    return _shortened(ascii(value))


def _small_container(value: Any) -> str:
    """A small container. Its members are shortened first, because each may have a megabyte."""
    if isinstance(value, dict):
        members = [f"{_shown(str(name))}: {_inner(item)}" for name, item in value.items()]
        return _shortened("{" + ", ".join(members) + "}")
    return _shortened("[" + ", ".join(map(_inner, value)) + "]")


def _inner(value: object) -> str:
    return "..." if isinstance(value, dict | list | tuple) and value else _shown(value)


def _shortened(text: str, max_length: int = _MAX_VALUE, *, cut: bool = False) -> str:
    return text[: max_length - 3] + "..." if cut or len(text) > max_length else text


def _allowed(routes: Sequence[BaseRoute], scope: Scope) -> list[str]:
    """Return the HTTP methods that all routes of a path allow. Starlette lists only those of the first route."""
    methods: set[str] = set()
    for route in routes:
        match, _ = route.matches(scope)
        if match is Match.PARTIAL:
            methods |= getattr(route, "methods", None) or set()
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


def describe_problems(schema: dict[str, Any]) -> None:
    """Correct the media type of problems in an OpenAPI document, in place. FastAPI declares plain JSON."""
    for path in schema["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                content = response.get("content", {})
                if int(status) >= 400 and "application/json" in content:
                    response["content"] = {MEDIA_TYPE: content["application/json"]}
