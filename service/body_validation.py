"""Validation of JSON bodies whose cost is bounded, however wrong a body is.

Validation runs on the event loop, so a body that is wrong in a hundred thousand places must not cost more than a valid
one. Two rules bound it. A body with more values than the largest valid request has is refused before it is parsed. Of
many errors only their number is reported.
"""

from typing import Any, Final, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from service.bodies import MAX_EVENTS, MAX_SUPPOSED, MAX_TRACKS, EventsRequest, SwapRequest, WhatIfRequest
from service.problems import MAX_COUNTED_ERRORS, MOST_ERRORS

Body = TypeVar("Body", bound=BaseModel)

_UNCOUNTED_BYTES: Final = 16_384  # a body of this size is validated within a few milliseconds, whatever it holds
# An event has up to five members; a comma, `[` or `{` stands before each value. The rest is for the outer object.
_EVENT_VALUES: Final = 6
_OUTER_VALUES: Final = 20
MAX_VALUES: Final[dict[type[BaseModel], int]] = {
    EventsRequest: MAX_EVENTS * _EVENT_VALUES + _OUTER_VALUES,
    WhatIfRequest: MAX_SUPPOSED * _EVENT_VALUES + MAX_TRACKS + _OUTER_VALUES,
    SwapRequest: _OUTER_VALUES,
}
_REMEDY: Final[dict[type[BaseModel], str]] = {
    EventsRequest: f"send at most {MAX_EVENTS} events at a time",
    WhatIfRequest: f"send at most {MAX_SUPPOSED} events, and {MAX_TRACKS} tracks in exclude",
    SwapRequest: "send the name of a release",
}


def validated(model: type[Body], body: bytes) -> Body:
    """The body as `model`, strictly: nothing is converted. Raises RequestValidationError with at most 100 errors."""
    if len(body) > _UNCOUNTED_BYTES and _values(body, MAX_VALUES[model]) > MAX_VALUES[model]:
        raise _too_much(
            "too_many_values",
            f"{len(body):,} bytes of JSON",
            f"At most {MAX_VALUES[model]:,} JSON values: {_REMEDY[model]}",
        )
    try:
        return model.model_validate_json(body, strict=True)
    except ValidationError as error:
        count = error.error_count()
        if count > MAX_COUNTED_ERRORS:
            raise _too_much(
                "too_many_errors",
                f"wrong in {count:,} places",
                f"A body as openapi.json describes it: {_REMEDY[model]}",
            ) from None
        found = error.errors(include_url=False)[:MOST_ERRORS]
        errors = [{**one, "loc": ("body", *one["loc"])} for one in found]
        raise RequestValidationError(errors) from error


def _too_much(kind: str, found: str, expected: str) -> RequestValidationError:
    summary: dict[str, Any] = {"type": kind, "loc": ("body",), "msg": expected, "found": found}
    return RequestValidationError([summary])


def _values(body: bytes, most: int) -> int:
    """About how many values a JSON text has, exact where it has at most `most`; commas in strings do not count.

    Two passes and a split by quotes: a small part of what it takes to parse the text.
    """
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    quotes = bare.count(b'"')
    if quotes > 4 * most:  # two for each name and two for each text
        return quotes
    outside = b"".join(bare.split(b'"')[::2])
    return outside.count(b",") + outside.count(b"[") + outside.count(b"{")
