"""The file of tracks of `segue prepare --tracks`: types, what is refused, and attributes from there to a release."""

import asyncio
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pytest

pytest.importorskip("mkdocs", reason="the documents are not part of the wheel")

from docs.site import walk
from segue.errors import BadLog, InputError
from service.releases.added import FILE, AddedTrack, AddedTracksFile
from tests.preloaded import COMMANDS, preloaded
from tests.test_docs_site import words_of
from training.data.dataset import open_dataset
from training.prepare.pipeline import PrepareOptions, prepare
from training.prepare.track_file import read_tracks, with_attributes
from training.warm_start import with_tracks_of

ROOT = Path(__file__).parents[1]
LINES: list[dict[str, Any]] = [
    {"track_id": "a", "title": "One", "genre": "rock", "explicit": True, "markets": ["DE", "US"], "year": 2001},
    {"track_id": "b", "title": None, "genre": None, "explicit": None, "markets": None, "year": None},
    {"track_id": "7", "title": "Three", "genre": "jazz", "explicit": False, "markets": ["US"], "year": 1999},
]
LOG = "user_id,timestamp,track_id,title,skipped\n" + "".join(
    f"u,2024-01-01T0{hour}:00:00Z,{track},Log {track},0\n" for hour, track in enumerate("ab7c")
)


def written(folder: Path, suffix: str) -> Path:
    path = folder / f"tracks{suffix}"
    frame = pl.DataFrame(LINES)
    if suffix == ".parquet":
        frame.write_parquet(path)
    elif suffix == ".jsonl":
        frame.write_ndjson(path)
    else:
        separator = "\t" if suffix == ".tsv" else ";" if folder.name == "semicolons" else ","
        flat = frame.with_columns(pl.col("markets").list.join("|"), pl.col("explicit").cast(pl.String))
        path.write_text(flat.write_csv(separator=separator), encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", ";"])
def test_every_form_gives_the_same_tracks(suffix: str, tmp_path: Path) -> None:
    folder = tmp_path / ("semicolons" if suffix == ";" else "plain")
    folder.mkdir()
    found = read_tracks(written(folder, ".csv" if suffix == ";" else suffix))
    assert found.to_dicts() == LINES
    assert found.schema["markets"] == pl.List(pl.String)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "2.5", ""], [1.0, 2.5, None]),
        (["1", "-2", "30"], [1, -2, 30]),
        (["007", "1", "2"], ["007", "1", "2"]),
        (["Yes", "no", ""], [True, False, None]),
        (["0", "1", "1"], [0, 1, 1]),
        (["2020-01-31", "2021-12-01T10:00:00Z", ""], [date(2020, 1, 31), date(2021, 12, 1), None]),
        (["2020-01-31", "2020-02-31", ""], ["2020-01-31", "2020-02-31", None]),
        (["a|b", "c", "|"], [["a", "b"], ["c"], []]),
        (["true", "x", ""], ["true", "x", None]),
        (["1e400", "1", ""], ["1e400", "1", None]),
        (["12345678901234567000", "12345678901234567001", "1"], ["12345678901234567000", "12345678901234567001", "1"]),
    ],
)
def test_the_values_of_a_text_file_give_the_type(values: list[str], expected: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "tracks.csv"
    path.write_text("track_id,it\n" + "".join(f'{row},"{value}"\n' for row, value in enumerate(values)))
    assert read_tracks(path)["it"].to_list() == expected


def test_a_market_of_norway_alone_is_a_text(tmp_path: Path) -> None:
    file = tmp_path / "tracks.csv"
    file.write_text("track_id,market,live\na,NO,no\nb,NO,no\n")
    found = read_tracks(file)
    assert found["market"].to_list() == ["NO", "NO"]
    assert found["live"].to_list() == [False, False]


def test_ids_stay_texts_and_explicit_is_a_flag(tmp_path: Path) -> None:
    path = tmp_path / "tracks.csv"
    path.write_text("track_id,artist_id,explicit\n1,12,0\n2,13,1\n")
    assert read_tracks(path).to_dicts() == [
        {"track_id": "1", "artist_id": "12", "explicit": False},
        {"track_id": "2", "artist_id": "13", "explicit": True},
    ]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("t.csv", "id,genre\na,rock\n", "has the columns id, genre, expected one named track_id"),
        ("t.csv", "track_id,genre\na,rock\na,pop\n", "two lines for the track 'a' that differ"),
        ("t.csv", "track_id,my genre\na,rock\n", "'my genre' cannot name an attribute"),
        ("t.csv", "track_id,any\na,rock\n", "'any' cannot name an attribute"),
        ("t.csv", "track_id,plays\na,1\n", "'plays' cannot name an attribute"),
        ("t.csv", "track_id,genre\n", "names no track"),
        ("t.csv", "", "cannot be read as a file of tracks"),
        ("t.csv", b"track_id,genre\na,r\xf6ck\n", "cannot be read as a file of tracks"),
        ("t.csv", 'track_id,genre\na,"r\tck"\n', "a control character"),
        ("t.jsonl", '{"track_id": "a", "genre": {"x": 1}}\n', "which cannot be an attribute"),
        ("t.jsonl", '{"track_id": "a", "genre": [["x"]]}\n', "which cannot be an attribute"),
        ("t.jsonl", '{"track_id": "a", "genre": [{"x": 1}]}\n', "which cannot be an attribute"),
        ("t.jsonl", '{"track_id": ["a"], "genre": "x"}\n', "the column track_id is List(String), expected texts"),
        ("t.jsonl", '{"track_id": "a", "artist": {"name": "x"}}\n', "the column artist is Struct"),
        ("t.csv", "track_id,\na,1\n", "t.csv: '' cannot name an attribute"),
        ("t.jsonl", "{", "cannot be read as a file of tracks"),
        ("t.parquet", "no parquet", "cannot be read as a file of tracks"),
        ("t.xlsx", "", "ends in .xlsx, expected .csv"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(name: str, content: str | bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises((BadLog, InputError)) as refused:
        read_tracks(path)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_dataset_has_them_and_the_fingerprint_is_that_of_the_plays(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    options = PrepareOptions(min_session_plays=1, idle_gap_s=10_000)
    tracks = written(tmp_path, ".jsonl")
    report = prepare("events", [tmp_path / "log.csv"], tmp_path / "data", options, tracks=tracks)
    plain = prepare("events", [tmp_path / "log.csv"], tmp_path / "plain", options)
    assert report.dataset.facts.fingerprint == plain.dataset.facts.fingerprint
    assert any("tracks.jsonl names 3 of the 4 tracks" in note for note in report.log.notes)
    frame = open_dataset(tmp_path / "data").catalogue.frame
    assert dict(frame.select("track_id", "title").iter_rows()) == {"a": "One", "b": "Log b", "7": "Three", "c": "Log c"}
    assert dict(frame.select("track_id", "genre").iter_rows()) == {"a": "rock", "b": None, "7": "jazz", "c": None}


def test_added_tracks_complete_an_earlier_file(tmp_path: Path) -> None:
    """The file is one that a service writes."""
    added = AddedTracksFile(tmp_path)
    for track_id, title, attributes in (
        (
            "c",
            "Four",
            {"genre": "1984", "explicit": False, "markets": ["FR"], "year": 2026.5, "released": "2026-11-29"},
        ),
        ("a", None, {"genre": "2020-01-01", "markets": []}),
        ("unplayed", "Five", {"mood": "calm"}),
    ):
        track = AddedTrack.now(title=title, artist=None, attributes=attributes)
        asyncio.run(added.put(track_id, track))
    (tmp_path / "log.csv").write_text(LOG)
    options = PrepareOptions(min_session_plays=1, idle_gap_s=10_000)
    files = [written(tmp_path, ".csv"), tmp_path / FILE]
    report = prepare("events", [tmp_path / "log.csv"], tmp_path / "data", options, tracks=files)
    assert any("added-tracks.json names 2 of the 4 tracks; 1 of its tracks" in note for note in report.log.notes)
    frame = open_dataset(tmp_path / "data").catalogue.frame.sort("track_id")
    assert frame.select("track_id", "title", "genre", "explicit", "year").rows() == [
        ("7", "Three", "jazz", False, 1999.0),
        ("a", "One", "2020-01-01", True, 2001.0),
        ("b", "Log b", None, None, None),
        ("c", "Four", "1984", False, 2026.5),
    ]
    assert frame["markets"].to_list() == [["US"], [], None, ["FR"]]
    assert frame["released"].to_list() == [None, None, None, date(2026, 11, 29)]


@pytest.mark.parametrize(
    "content", ["[]", '{"added": 1}', '{"added": {"a": 1}}', '{"added": {"a": {"title": null}}}', "{"]
)
def test_a_damaged_file_of_added_tracks_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(BadLog, match="cannot be read as a file of tracks"):
        read_tracks(tmp_path / FILE)


def test_no_added_tracks_change_nothing_and_other_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"added": {}}')
    tracks = pl.DataFrame(LINES)
    assert with_attributes(tracks, read_tracks(tmp_path / FILE), tmp_path / FILE).equals(tracks)
    other = pl.DataFrame({"track_id": ["a"], "year": [True]})
    with pytest.raises(BadLog, match="year is a boolean, in an earlier file a number: write both in the same way"):
        with_attributes(tracks, other, tmp_path / "t.csv")


def test_a_file_of_other_ids_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    (tmp_path / "t.csv").write_text("track_id,genre\n a,rock\n")
    with pytest.raises(BadLog, match="names none of the 4 tracks of the log: its first track_id is ' a'"):
        prepare(
            "events",
            [tmp_path / "log.csv"],
            tmp_path / "data",
            PrepareOptions(min_session_plays=1),
            tracks=tmp_path / "t.csv",
        )
    assert not (tmp_path / "data").exists()


def test_types_of_a_parquet_file_are_kept_if_they_can_be(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pl.DataFrame(
        {
            "track_id": [1, 2],
            "barcode": pl.Series([2**63 + 1, 1], dtype=pl.UInt64),
            "gain": [float("inf"), 1.5],
            "at": pl.Series([0, 86_400_000], dtype=pl.Datetime("ms", "UTC")),
            "tags": pl.Series([["a"], ["b"]], dtype=pl.Array(pl.String, 1)),
        }
    ).write_parquet(path)
    assert read_tracks(path).to_dicts() == [
        {"track_id": "1", "barcode": str(2**63 + 1), "gain": None, "at": date(1970, 1, 1), "tags": ["a"]},
        {"track_id": "2", "barcode": "1", "gain": 1.5, "at": date(1970, 1, 2), "tags": ["b"]},
    ]


def test_fine_tuning_keeps_the_attributes_of_the_release(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(LOG)
    options = PrepareOptions(min_session_plays=1, idle_gap_s=10_000)
    data = [
        prepare("events", [tmp_path / "log.csv"], tmp_path / name, options, tracks=tracks).dataset
        for name, tracks in (("with", written(tmp_path, ".jsonl")), ("without", None))
    ]

    class Before:
        catalogue = data[0].catalogue

    frame = with_tracks_of(Before, data[1]).catalogue.frame  # type: ignore[arg-type]
    assert dict(frame.select("track_id", "genre").iter_rows()) == {"a": "rock", "b": None, "7": "jazz", "c": None}
    assert frame.schema["markets"] == pl.List(pl.String)


@pytest.mark.parametrize("first", ["filter-tracks", "policies"])
def test_the_pages_show_what_comes_out(first: str) -> None:
    with walk.shell(preloaded(COMMANDS).program) as shell:
        for name in (first, *(name for name, before in walk.AFTER.items() if before == first)):
            page = (ROOT / "docs" / "how-to" / f"{name}.md").read_text(encoding="utf-8")
            for command, shown in (one for block in walk.blocks(page) for one in block):
                found = words_of(shell.run(command))
                alike = (found & words_of(shown)).total()
                # Rounding differs between CPUs, so a few tracks of a list may.
                assert alike >= 0.6 * max(found.total(), words_of(shown).total()), (name, command)
