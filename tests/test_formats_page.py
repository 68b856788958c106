"""The examples of docs/timestamps-and-formats.md are what `segue prepare` and the HTTP interface accept and refuse."""

import json
import re
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from segue.cli import main
from segue.errors import BadLog
from training.prepare.content import PlainFile
from training.prepare.options import PrepareOptions
from training.prepare.reading import parsed

PAGE = Path(__file__).parents[1] / "docs" / "timestamps-and-formats.md"
if not PAGE.exists():
    pytest.skip("the documents are not part of the wheel", allow_module_level=True)
TEXT = PAGE.read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """The rows of the table with this heading."""
    found = TEXT.partition(f"\n| {heading} |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in found.splitlines()[2:]]


def code(cell: str) -> list[str]:
    return re.findall(r"`([^`]*)`", cell)


def after(heading: str) -> str:
    return TEXT.partition(f"{heading}\n")[2]


ACCEPTED = [(code(one)[0], read) for one, read in rows("`timestamp` | read as (UTC)")]
REFUSED = re.findall(r"^\| `([^`]*)` \|", after("### Refused").partition("\n### ")[0], re.MULTILINE)[1:]
FLAGS = {code(name)[0]: (code(yes), code(no)) for name, yes, no in rows("column | accepted | refused")}
AT = re.findall(r"^\| `([^`]*)` \| (accepted|refused)", after("## Times over HTTP"), re.MULTILINE)


def read(tmp_path: Path, content: "str | pl.DataFrame") -> pl.DataFrame:
    """The lines of a log of kind `events`."""
    file = tmp_path / ("plays.csv" if isinstance(content, str) else "plays.parquet")
    if isinstance(content, str):
        file.write_text(content, encoding="utf-8")
    else:
        content.write_parquet(file)
    plain = PlainFile(file, "text" if isinstance(content, str) else "parquet", file.name)
    lines = parsed("events", plain, PrepareOptions())
    problems = ["", *(f"{problem.column} {problem.reason}" for problem in lines.problems)]
    frame = lines.frame.collect()
    return frame.with_columns(problem=pl.Series([problems[code] for code in frame["problem"]]))


def timed(tmp_path: Path, *values: str) -> pl.DataFrame:
    return read(tmp_path, "user_id,track_id,timestamp\n" + "".join(f'u,t,"{value}"\n' for value in values))


def typed(tmp_path: Path, value: Any, dtype: "pl.DataType | type[pl.DataType]") -> pl.DataFrame:
    columns = {"user_id": ["u"], "track_id": ["t"], "timestamp": pl.Series([value], dtype=dtype)}
    return read(tmp_path, pl.DataFrame(columns))


def relative(tmp_path: Path, value: int) -> list[int]:
    """A time that only orders the plays of a session, so that it need not be plausible."""
    return read(tmp_path, f"session_id,track_id,timestamp,skipped\ns,t,{value},0\n")["at"].to_list()


def milliseconds(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


class TestTimesInALog:
    def test_the_page_has_examples(self) -> None:
        assert (len(ACCEPTED), len(REFUSED), len(AT)) == (23, 12, 8)

    @pytest.mark.parametrize(("text", "expected"), ACCEPTED)
    def test_accepted_forms_are_read_as_the_page_says(self, tmp_path: Path, text: str, expected: str) -> None:
        [line] = timed(tmp_path, text).iter_rows(named=True)
        assert (line["at"], line["problem"]) == (milliseconds(expected), "")

    @pytest.mark.parametrize("text", REFUSED)
    def test_refused_forms_make_a_line_malformed(self, tmp_path: Path, text: str) -> None:
        [line] = timed(tmp_path, text).iter_rows(named=True)
        assert line["problem"].startswith("timestamp ")

    @pytest.mark.parametrize("power", [11, 14, 17])
    @pytest.mark.parametrize("sign", [1, -1])
    def test_the_size_of_a_number_gives_its_unit(self, tmp_path: Path, power: int, sign: int) -> None:
        factors = {11: (1000.0, 1.0), 14: (1.0, 1e-3), 17: (1e-3, 1e-6)}[power]
        [below], [above] = (relative(tmp_path, sign * value) for value in (9 * 10 ** (power - 1), 10**power))
        assert below == sign * round(9 * 10 ** (power - 1) * factors[0])
        assert above == sign * round(10**power * factors[1])

    @pytest.mark.parametrize("text", ["20261128", "2026-11-28"])
    def test_a_date_is_told_from_an_epoch(self, tmp_path: Path, text: str) -> None:
        assert timed(tmp_path, text)["problem"].to_list() == ["timestamp is a date without a time of day"]

    @pytest.mark.parametrize(
        ("value", "dtype"),
        [
            *((datetime(2026, 11, 28, 20, tzinfo=UTC), pl.Datetime(unit, "Europe/Berlin")) for unit in ("ms", "us")),
            *((datetime(2026, 11, 28, 20), pl.Datetime(unit)) for unit in ("ms", "us", "ns")),  # noqa: DTZ001
            *((1795896000, pl.Int64), (1795896000000.0, pl.Float64), ("2026-11-28T20:00:00Z", pl.String)),
        ],
    )
    def test_types_of_parquet_are_accepted(self, tmp_path: Path, value: Any, dtype: Any) -> None:
        assert typed(tmp_path, value, dtype)["at"].to_list() == [milliseconds("2026-11-28T20:00:00")]

    def test_a_date_of_parquet_has_no_time_of_day(self, tmp_path: Path) -> None:
        found = typed(tmp_path, date(2026, 11, 28), pl.Date)
        assert found["problem"].to_list() == ["timestamp is a date without a time of day"]

    @pytest.mark.parametrize(("value", "dtype"), [(True, pl.Boolean), (time(20), pl.Time), ("x", pl.Categorical)])
    def test_other_types_of_parquet_are_an_error(self, tmp_path: Path, value: Any, dtype: Any) -> None:
        with pytest.raises(BadLog, match="expected a date-time, text or a number") as caught:
            typed(tmp_path, value, dtype)
        if dtype == pl.Boolean:
            assert str(caught.value) in TEXT


def test_times_of_lfm1k_have_one_form(tmp_path: Path) -> None:
    file = tmp_path / "log.tsv"
    times = ("2009-05-04T23:08:57Z", "2009-05-04T23:08:57+00:00", "2009-05-04 23:08:57", "1241478537")
    file.write_text("".join(f"u\t{at}\t\tArtist\tm\tTitle\n" for at in times), encoding="utf-8")
    lines = parsed("lfm1k", PlainFile(file, "text", "log.tsv"), PrepareOptions())
    assert [code == 0 for code in lines.frame.collect()["problem"]] == [True, False, False, False]
    assert times[0] in TEXT


def test_a_time_is_optional_where_positions_are_given_and_then_still_readable(tmp_path: Path) -> None:
    header = "session_id,position,track_id,skipped,timestamp\n"
    assert read(tmp_path, f"{header}s,0,t,0,\ns,1,t,0,yesterday\n")["problem"].to_list() == ["", "timestamp is no time"]


@pytest.mark.parametrize("column", ["position", "skipped"])
def test_positions_and_flags_are_accepted_and_refused_as_the_page_says(tmp_path: Path, column: str) -> None:
    accepted, refused = FLAGS[column]
    assert len(accepted) >= 3
    assert len(refused) >= 2
    for text, problem in [
        *((text, "") for text in accepted),
        *((text, f"unreadable {column}") for text in refused),
    ]:
        line = {"position": "0", "skipped": "0", column: text}
        found = read(tmp_path, f"session_id,track_id,position,skipped\ns,t,{line['position']},{line['skipped']}\n")
        assert bool(found["problem"][0]) == bool(problem), text


class TestTheExample:
    LOG, REPORT, NOTE = re.findall(r"```(?:csv|text)\n(.*?)```", TEXT, re.DOTALL)[:3]
    COMMAND = re.findall(r"^    segue (.*)$", TEXT, re.MULTILINE)[0].split()

    def test_it_prints_what_the_page_shows(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("plays.csv").write_text(self.LOG, encoding="utf-8")
        assert main(self.COMMAND) == 0
        printed = capsys.readouterr()
        assert printed.out == self.REPORT
        assert self.NOTE in printed.err

    @pytest.mark.parametrize(("seconds", "skips"), [("14", 0), ("15", 1), ("200", 2)])
    def test_a_play_is_skipped_if_the_next_one_starts_within_the_time(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        seconds: str,
        skips: int,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("plays.csv").write_text(self.LOG, encoding="utf-8")
        assert main([*self.COMMAND, "--skip-within", seconds]) == 0
        assert f"skips\t{skips}\n" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "result"), AT)
def test_at_is_accepted_and_refused_as_the_page_says(text: str, result: str) -> None:
    pytest.importorskip("fastapi")
    from service.api.sessions import EventsRequest

    body = json.dumps({"events": [{"type": "play", "track_id": "t", "at": json.loads(text)}]})
    if result == "accepted":
        assert EventsRequest.model_validate_json(body, strict=True).events[0].at is not None
        return
    with pytest.raises(ValidationError) as caught:
        EventsRequest.model_validate_json(body, strict=True)
    assert [error["loc"] for error in caught.value.errors()] == [("events", 0, "at")]
