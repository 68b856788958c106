"""Validating a body costs little however wrong it is, and every request that the interface allows passes."""

import contextlib
import json
from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from segue.safe_files import _without_repetition
from service.api.batch import MAX_BATCH_EVENTS, MAX_SESSIONS, BatchRequest, InvalidSession
from service.api.json_body import JsonBody, validated
from service.api.rank import MAX_CANDIDATES, RankRequest
from service.api.recommendations import MAX_HYPOTHETICAL_EVENTS, WhatIfRequest
from service.api.releases import SwapRequest
from service.api.sessions import MAX_EVENTS, EventsRequest
from service.api.state import MAX_TRACKS
from service.problems import MAX_COUNTED_ERRORS, MAX_LISTED_ERRORS, _invalid_field
from service.settings import Settings

MAX_REQUEST_BYTES = Settings.model_fields["max_request_bytes"].default
EVENTS = EventsRequest.bytes_limit(MAX_REQUEST_BYTES)
WHAT_IF = WhatIfRequest.bytes_limit(MAX_REQUEST_BYTES)
RANK = RankRequest.bytes_limit(MAX_REQUEST_BYTES)
BATCH = BatchRequest.bytes_limit(MAX_REQUEST_BYTES)
SWAP = SwapRequest.bytes_limit(MAX_REQUEST_BYTES)
FILL = 20_000  # bytes from which values are counted


def events(number: int, text: str) -> list[dict[str, Any]]:
    """Events that use every field at its largest, with ids of `text`."""
    ids = (f"{place:04}{text}"[:256] for place in range(number))
    return [
        {
            "type": "play",
            "track_id": track_id,
            "at": "2026-11-28T20:00:00.123456789+12:00",
            "ms_played": 2**31 - 1,
            "event_id": track_id,
        }
        for track_id in ids
    ]


@pytest.mark.parametrize("text", ["\U0001f600" * 256, '"' * 256, "\\" * 256, '\\"' * 128, ",[{:" * 64, "é" * 256])
@pytest.mark.parametrize(
    ("model", "largest", "number", "more"),
    [
        (EventsRequest, EVENTS, MAX_EVENTS, {}),
        (
            WhatIfRequest,
            WHAT_IF,
            MAX_HYPOTHETICAL_EVENTS,
            {"k": 100, "repeat": "after:1000", "explain": True, "release": "r" * 64},
        ),
    ],
)
def test_the_largest_valid_request_is_accepted(
    model: type[EventsRequest | WhatIfRequest], largest: int, number: int, more: dict[str, Any], text: str
) -> None:
    if more:
        more = {**more, "exclude": [text[:256]] * MAX_TRACKS}
    body = json.dumps({"events": events(number, text), **more}, ensure_ascii=False, indent=1).encode()
    assert FILL < len(body) <= largest
    assert len(validated(model, body).events) == number


class Counting(str):
    """A name that counts how often names are compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counting.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_the_search_for_a_repeated_member_does_not_compare_all_with_all() -> None:
    """It runs on the event loop, for bodies of thousands of members."""
    pairs = [(Counting(f"m{number}"), 0) for number in range(2000)]
    with pytest.raises(ValueError, match="'m1999' twice"):
        _without_repetition([*pairs, (Counting("m1999"), 1)])
    assert 0 < Counting.compared < 4 * len(pairs)


@pytest.mark.parametrize(
    ("model", "body", "found"),
    [
        (EventsRequest, '{"events":[{"type":"play","track_id":"a","type":"skip"}]}', "'type' twice"),
        (EventsRequest, '{"events":[],"events":[{"type":"play","track_id":"a"}]}', "'events' twice"),
        (WhatIfRequest, '{"events":[],"filter":{"markets":"DE","markets":"SE"}}', "'markets' twice"),
        (WhatIfRequest, '{"events":[],"filter":{"not":{"genre":"a","genre":"b"}}}', "'genre' twice"),
        (WhatIfRequest, '{"events":[],"k":5,"k":6}', "'k' twice"),
        (RankRequest, '{"events":[],"candidates":["a"],"candidates":["b"]}', "'candidates' twice"),
        (WhatIfRequest, '{"events":[],"filter":{"\\u006darkets":"DE","markets":"SE"}}', "'markets' twice"),
        (BatchRequest, '{"sessions":[{"session_id":"a","session_id":"b"}]}', "'session_id' twice"),
    ],
)
def test_a_repeated_member_is_an_error(model: type[JsonBody], body: str, found: str) -> None:
    """A parser that takes the last one would serve another market than the one that the client reads."""
    with pytest.raises(RequestValidationError) as caught:
        validated(model, body.encode())
    (error,) = caught.value.errors()
    assert error["type"] == "repeated_member"
    assert error["found"] == f"an object holds {found}"


@pytest.mark.parametrize("text", ["\U0001f600" * 256, '"' * 256, "é" * 256])
def test_the_largest_valid_ranking_and_batch_are_accepted(text: str) -> None:
    more = {"repeat": "after:1000", "release": "r" * 64, "caution": 0.123456789}
    candidates = [f"{place:04}{text}"[:256] for place in range(MAX_CANDIDATES)]
    value = {"events": events(MAX_HYPOTHETICAL_EVENTS, text), "candidates": candidates, **more}
    body = json.dumps(value, ensure_ascii=False, indent=1).encode()
    assert FILL < len(body) <= RANK
    assert len(validated(RankRequest, body).candidates) == MAX_CANDIDATES
    sessions = [{"events": events(MAX_BATCH_EVENTS // MAX_SESSIONS, text)} for _ in range(MAX_SESSIONS)]
    body = json.dumps({"sessions": sessions, "k": 100, **more}, ensure_ascii=False, indent=1).encode()
    assert FILL < len(body) <= BATCH
    assert not any(isinstance(one, InvalidSession) for one in validated(BatchRequest, body).sessions)


def test_a_release_name_fits() -> None:
    body = json.dumps({"name": "r" * 64}, indent=4).encode()
    assert len(body) <= SWAP
    assert validated(SwapRequest, body).name == "r" * 64


def filled(begin: str, piece: str, end: str, size: int) -> bytes:
    """A JSON text of about `size` bytes; `{n}` in `piece` is its number."""
    pieces: list[str] = []
    length = len(begin) + len(end)
    while length < size:
        pieces.append(piece.replace("{n}", f"{len(pieces):x}"))
        length += len(pieces[-1]) + 1
    return (begin + ",".join(pieces[:-1]) + end).encode()


EVENT = '{"type":"play","track_id":"a"'
WRONG = {
    "unknown fields at the top": ('{"events":[],', '"{n}":0', "}"),
    "one name again and again": ('{"events":[],', '"a":0', "}"),
    "empty objects": ('{"events":[', "{}", "]}"),
    "lists": ('{"events":[', "[]", "]}"),
    "numbers": ('{"events":[', "1", "]}"),
    "numbers in an unknown field": ('{"events":[],"x":[', "1", "]}"),
    "texts": ('{"events":[', '""', "]}"),
    "escaped quotes": ('{"events":[', '"\\"",1', "]}"),
    "unknown fields in each event": ('{"events":[', EVENT + "".join(f',"{n:x}":0' for n in range(300)) + "}", "]}"),
    "nested lists": ('{"events":[' + "[" * 100, "[1]", "]}"),
    "excluded numbers": ('{"events":[],"exclude":[', "1", "]}"),
    "no JSON": ("[", "[", ""),
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize(
    ("model", "size"), [(EventsRequest, EVENTS), (WhatIfRequest, WHAT_IF), (RankRequest, RANK), (SwapRequest, EVENTS)]
)
def test_a_body_with_too_many_values_is_not_parsed(
    model: type[JsonBody], size: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(*_: object, **__: object) -> None:
        raise AssertionError("the body was parsed")

    monkeypatch.setattr(model, "model_validate_json", parse)
    with pytest.raises(RequestValidationError) as caught:
        validated(model, filled(*WRONG[kind], size))
    [error] = caught.value.errors()
    field = _invalid_field(error)
    assert field.field == "body"
    assert "bytes of JSON" in field.found
    assert f"At most {model.max_values():,} JSON values" in field.expected


def test_of_very_many_errors_only_the_number_is_told() -> None:
    body = filled('{"events":[],', '"{n}":0', "}", 16_000)
    with pytest.raises(ValidationError) as found:
        EventsRequest.model_validate_json(body, strict=True)
    assert found.value.error_count() > MAX_COUNTED_ERRORS

    with pytest.raises(RequestValidationError) as caught:
        validated(EventsRequest, body)
    [error] = caught.value.errors()
    assert _invalid_field(error).found == f"wrong in {found.value.error_count():,} places"


def test_some_errors_are_named_one_by_one() -> None:
    with pytest.raises(RequestValidationError) as caught:
        validated(EventsRequest, filled('{"events":[],', '"{n}":0', "}", 3000))
    assert len(caught.value.errors()) == MAX_LISTED_ERRORS
    assert caught.value.errors()[1]["loc"] == ("body", "0")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=40,
)


@given(json_values, st.sampled_from([EventsRequest, WhatIfRequest, RankRequest, BatchRequest, SwapRequest]))
def test_whatever_a_body_holds_the_report_is_short(value: object, model: type[JsonBody]) -> None:
    body = json.dumps(value).encode() + b" " * FILL
    with contextlib.suppress(RequestValidationError):
        validated(model, body)
        return
    with pytest.raises(RequestValidationError) as caught:
        validated(model, body)
    assert 1 <= len(caught.value.errors()) <= MAX_LISTED_ERRORS
    for one in caught.value.errors():
        field = _invalid_field(one)
        assert len(field.found) <= 80
        assert len(field.field) <= 300
        assert field.found.isascii()
        assert field.field.isascii()


class Unwritable(str):
    """A text that may only be written in part."""

    def __repr__(self) -> str:
        raise AssertionError("the whole text was written out")


def test_what_was_found_is_shortened_before_it_is_written() -> None:
    values: list[object] = [
        "x" * 10**6,
        b"x" * 10**6,
        "\ud800" * 10**6,
        {"a": "x" * 10**6},
        ["x" * 10**6] * 5,
        list(range(10**5)),
        {n: n for n in range(10**5)},
        10**5000,
        -(10**5000),
        [10**5000],
        {"a": {"b": ["x" * 10**6]}},
        1.5,
        None,
    ]
    for value in values:
        shown = _invalid_field({"type": "x", "loc": ("body", "n" * 10**6), "msg": "m", "input": value})
        assert len(shown.found) <= 80
        assert len(shown.field) <= 300


def test_a_long_text_is_cut_before_it_is_escaped() -> None:
    shown = _invalid_field({"type": "x", "loc": ("body",), "msg": "m", "input": Unwritable("y" * 1000)})
    assert shown.found.endswith("...")
    assert _invalid_field({"type": "x", "loc": ("body",), "msg": "m", "input": [Unwritable("y" * 1000)]}).found
