"""Times, ids and texts: which forms are taken, and what may act on a terminal."""

import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from segue.catalogue import Catalogue
from segue.cli import main
from segue.cli.terminal import escaped, plain_lines, say, titled
from segue.sessions import TIME_EXPECTED, Event, play
from service.api.recommendations import WhatIfRequest
from service.api.sessions import EventsRequest
from training.prepare.ids import track_ids

MODELS = (EventsRequest, WhatIfRequest)
CSI, NEL, APC, OVERRIDE, ISOLATE = "\x9b", "\x85", "\x9f", "\u202e", "\u2066"
HEBREW = "\u200e\u05e9\u05dc\u05d5\u05dd\u200f"
ACTIVE = ("\x00", "\x1b", "\x7f", "\x80", NEL, CSI, APC, "\u2028", "\u2029")


def event_with(model: type[EventsRequest | WhatIfRequest], **fields: Any) -> Event:
    body = json.dumps({"events": [{"type": "play", "track_id": "a", **fields}]})
    return model.model_validate_json(body, strict=True).events[0]


@pytest.mark.parametrize("model", MODELS)
class TestTimes:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("2026-11-28T20:00:00Z", datetime(2026, 11, 28, 20, tzinfo=UTC)),
            ("2026-11-28T20:00:00.5+01:00", datetime(2026, 11, 28, 19, 0, 0, 500_000, UTC)),
            ("2026-11-28T20:00:00.123456789-00:30", datetime(2026, 11, 28, 20, 30, 0, 123_456, UTC)),
            ("2026-11-28T20:00:00-00:00", datetime(2026, 11, 28, 20, tzinfo=UTC)),
            ("2024-02-29T23:59:59+23:59", datetime(2024, 2, 29, 0, 0, 59, tzinfo=UTC)),
            ("0001-01-01T00:00:00Z", datetime(1, 1, 1, tzinfo=UTC)),
        ],
    )
    def test_of_rfc_3339_are_taken(
        self, model: type[EventsRequest | WhatIfRequest], text: str, expected: datetime
    ) -> None:
        assert event_with(model, at=text).at == expected

    @pytest.mark.parametrize(
        "value",
        [
            *("1700000000", "1700000000.5", "-1", "+1", "1e9", "20261128", "20261128220000", "0", "", " ", "now"),
            *("2026-11-28", "20:00:00Z", "2026-11-28T20:00Z", "2026-11-28T20Z", "2026-11-28T20:00:00"),
            *("2026-11-28_20:00:00Z", "2026-11-28 20:00:00Z", "2026-11-28t20:00:00Z", "2026-11-28T20:00:00z"),
            *("2026-11-28T20:00:00,5Z", "2026-11-28T20:00:00.Z", "2026-11-28T20:00:00.1234567891Z"),
            *("2026-11-28T20:00:00+01", "2026-11-28T20:00:00+0100", "2026-11-28T20:00:00+24:00"),
            *("2026-11-28T20:00:00+01:60", "2026-11-28T20:00:00+01:00:30", "2026-11-28T20:00:00 Z"),
            *("2026-11-28T24:00:00Z", "2026-11-28T20:60:00Z", "2026-11-28T20:00:60Z", "2026-02-29T20:00:00Z"),
            *("2026-13-01T20:00:00Z", "2026-00-01T20:00:00Z", "0000-01-01T00:00:00Z", "12026-01-01T00:00:00Z"),
            *("2026-W48-6T20:00:00Z", "20261128T200000Z", "2026-332T20:00:00Z", "2026-11-28T20:00:00Z\n"),
            *(" 2026-11-28T20:00:00Z", "\uff12026-11-28T20:00:00Z", "2026-11-28T20:00:00Z" * 2),
            *(1700000000, 1.5, True, [], {}),
        ],
    )
    def test_of_another_form_are_refused_in_one_line(
        self, model: type[EventsRequest | WhatIfRequest], value: object
    ) -> None:
        with pytest.raises(ValidationError) as caught:
            event_with(model, at=value)
        [error] = caught.value.errors()
        assert error["loc"] == ("events", 0, "at")
        assert error["msg"] == TIME_EXPECTED

    def test_are_absent_or_null(self, model: type[EventsRequest | WhatIfRequest]) -> None:
        assert event_with(model).at is None
        assert event_with(model, at=None).at is None


def test_events_made_in_python_take_aware_times_alone() -> None:
    at = datetime(2026, 11, 28, 20, tzinfo=UTC)
    assert play("a", at).at == at
    for wrong in (at.replace(tzinfo=None), timedelta(1)):
        with pytest.raises(ValidationError):
            play("a", wrong)  # type: ignore[arg-type]  # the wrong type is the point


@pytest.mark.parametrize("field", ["ms_played"])
@pytest.mark.parametrize("value", ["1", "1.0", True, 1.5, "1e3", [1]])
def test_numbers_are_not_converted_from_anything_else(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        event_with(EventsRequest, **{field: value})
    with pytest.raises(ValidationError):
        WhatIfRequest.model_validate_json(json.dumps({"events": [], "k": value}), strict=True)


@pytest.mark.parametrize("value", ["true", "yes", 1, 0, 1.0, None])
def test_truth_is_not_converted_from_anything_else(value: object) -> None:
    with pytest.raises(ValidationError):
        WhatIfRequest.model_validate_json(json.dumps({"events": [], "explain": value}), strict=True)


@pytest.mark.parametrize("character", ACTIVE)
@pytest.mark.parametrize("form", ["{}", "a{}b", "a{}", "{}b"])
def test_control_characters_are_in_no_id(character: str, form: str) -> None:
    text = form.format(character)
    for fields in ({"track_id": text}, {"event_id": text}):
        for model in MODELS:
            with pytest.raises(ValidationError):
                event_with(model, **fields)
    with pytest.raises(ValidationError):
        WhatIfRequest.model_validate_json(json.dumps({"events": [], "exclude": [text]}), strict=True)
    [prepared] = track_ids(pl.Series([text]))
    assert character not in prepared
    assert play(prepared)


@pytest.mark.parametrize("text", ["日本 é 😀", HEBREW, "a\u00a0b", "a\u202eb", "\u00a0", "a/b", "100%"])
def test_other_text_is_an_id(text: str) -> None:
    assert event_with(EventsRequest, track_id=text, event_id=text).track_id == text


class TestTerminals:
    HOSTILE = f"a{CSI}31m{NEL}{APC}\x1b[2J\r\x07{OVERRIDE}{ISOLATE}\u2028z"

    def test_get_escapes_for_what_would_act_on_them(self) -> None:
        assert escaped(self.HOSTILE) == r"a\x9b31m\x85\x9f\x1b[2J\x0d\x07\u202e\u2066\u2028z"
        for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x061C, 0xD800):
            assert escaped(chr(code)) == f"\\u{code:04x}"

    @pytest.mark.parametrize("text", ["", "plain", "日本 é 😀", HEBREW, "a\tb", "a\nb", "\\x9b", "[b]"])
    def test_get_other_text_as_it_is(self, text: str) -> None:
        assert escaped(text) == text

    @pytest.mark.parametrize("terminal", [True, False])
    @pytest.mark.parametrize("place", ["title", "caption", "caption text", "cell", "text", "assembled"])
    def test_are_not_acted_on_by_any_part_of_a_table(self, terminal: bool, place: str) -> None:
        cells: dict[str, str | Text] = {
            "cell": self.HOSTILE,
            "text": Text(self.HOSTILE, style="bold"),
            "assembled": Text.assemble(("x", "red"), (self.HOSTILE, "dim")),
        }
        captions: dict[str, str | Text] = {"caption": self.HOSTILE, "caption text": Text(self.HOSTILE)}
        table = titled(self.HOSTILE if place == "title" else "t", captions.get(place))
        table.add_column("name")
        table.add_row(cells.get(place, "plain"))
        stream = io.StringIO()
        Console(file=stream, force_terminal=terminal, width=200, color_system=None).print(table)
        for shown in (stream.getvalue(), "\n".join(plain_lines(table))):
            assert "z" in shown
            assert not set(shown) & set(f"{CSI}{NEL}{APC}{OVERRIDE}{ISOLATE}\x1b\x07\u2028")

    def test_get_no_such_text_from_lines_about_the_work(self, capsys: pytest.CaptureFixture[str]) -> None:
        say(self.HOSTILE)
        assert main(["recommend", f"nowhere{self.HOSTILE}"]) != 0
        told = capsys.readouterr().err
        assert "nowhere" in told
        assert not set(told) & set(f"{CSI}{NEL}{APC}{OVERRIDE}{ISOLATE}\x1b\x07\u2028")


def test_a_catalogue_that_holds_such_titles_still_opens(tmp_path: Any) -> None:
    """Releases that were written before keep their tracks; only requests cannot name ids with control characters."""
    frame = pl.DataFrame({"track_id": [f"a{CSI}b", "c"], "title": [f"t{NEL}", f"u{OVERRIDE}"], "artist": ["x", "y"]})
    Catalogue.from_frame(frame).write_parquet(tmp_path / "catalogue.parquet")
    assert Catalogue.read_parquet(tmp_path / "catalogue.parquet").num_rows == 3
