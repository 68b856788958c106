"""The dataset folder: what is written, what is read back, and what is refused."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.errors import BadDataset, InputError
from tests.datasets import write_dataset
from training.data.dataset import CATALOGUE_FILE, FACTS_FILE, RawInteractions, open_dataset, write_listening
from training.data.log_facts import LogFacts, SkipSources
from training.data.sessions_parquet import SESSIONS_FILE

PLAYS = pl.DataFrame(
    {
        "session_id": ["b", "b", "b", "a", "a"],
        "track_id": ["x", "y", "x", "z", "x"],
        "skipped": [False, True, False, True, True],
        "title": [None, "Why", "Ex", "Zed", "Another"],
        "artist": ["X", "Y", "X", None, "X"],
    }
)


def listening(codes: list[int], lengths: list[int], tracks: int = 3) -> RawInteractions:
    return RawInteractions(
        tracks=pl.DataFrame({"track_id": [f"t{number}" for number in range(tracks)]}),
        codes=np.array(codes, dtype=np.int64),
        skipped=np.zeros(len(codes), dtype=np.bool_),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        session_ids=pl.Series([f"s{number}" for number in range(len(lengths))], dtype=pl.String),
    )


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "d", PLAYS, "test", {"seed": 1}, malformed_lines=7)
    # x has three plays; y and z one each, so their ids decide.
    assert dataset.catalogue.track_ids == ["x", "y", "z"]
    assert dataset.sessions.rows.tolist() == [1, 2, 1, 3, 1]
    assert dataset.sessions.rows.dtype == np.int64
    assert dataset.sessions.skipped.tolist() == [False, True, False, True, True]
    assert dataset.sessions.offsets.tolist() == [0, 3, 5]
    assert dataset.session_ids.to_list() == ["b", "a"]
    assert dataset.catalogue.plays.tolist() == [0, 3, 1, 1]
    assert dataset.catalogue.frame["skips"].to_list() == [1, 1, 1]


def test_last_plays_of_unknown_outcome_are_read_back_and_change_no_fingerprint(tmp_path: Path) -> None:
    played = PLAYS.with_columns(skipped=pl.lit(value=False))
    unknown = write_dataset(tmp_path / "unknown", played, "test", last_known=[False, True])
    assert unknown.last_known is not None
    assert unknown.last_known.tolist() == [False, True]
    known = write_dataset(tmp_path / "known", played, "test", last_known=[True, True])
    assert known.last_known is None
    assert (tmp_path / "known" / SESSIONS_FILE).read_bytes() == _bytes_without(tmp_path / "plain", played)
    assert unknown.facts.fingerprint == known.facts.fingerprint


def _bytes_without(path: Path, plays: pl.DataFrame) -> bytes:
    write_dataset(path, plays, "test")
    return (path / SESSIONS_FILE).read_bytes()


def test_a_last_play_of_unknown_outcome_is_not_a_skip(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="its skip flag must be false"):
        write_dataset(tmp_path / "d", PLAYS, "test", last_known=[True, False])


@pytest.mark.parametrize("values", [[None, True], ["yes", "no"]])
def test_a_damaged_column_of_known_outcomes_is_refused(tmp_path: Path, values: list[object]) -> None:
    write_dataset(tmp_path / "d", PLAYS, "test")
    file = tmp_path / "d" / SESSIONS_FILE
    pl.read_parquet(file).with_columns(pl.Series("last_known", values)).write_parquet(file)
    with pytest.raises(BadDataset, match="last_known"):
        open_dataset(tmp_path / "d")


def test_the_facts_of_the_log_are_kept_and_older_datasets_have_none(tmp_path: Path) -> None:
    log = LogFacts(skips_from=SkipSources(flag=3, time=2), unknown_outcomes=1, ignored={"podcasts": 4})
    assert write_dataset(tmp_path / "d", PLAYS, "test", log=log).facts.log == log
    file = tmp_path / "d" / FACTS_FILE
    older = json.loads(file.read_text())
    del older["log"]
    file.write_text(json.dumps(older))
    assert open_dataset(tmp_path / "d").facts.log is None


def test_a_track_is_called_what_it_was_called_first(tmp_path: Path) -> None:
    catalogue = write_dataset(tmp_path / "d", PLAYS, "test").catalogue
    assert catalogue.frame["title"].to_list() == ["Ex", "Why", "Zed"]
    assert catalogue.frame["artist"].to_list() == ["X", "Y", None]


def test_the_facts_count_what_is_there(tmp_path: Path) -> None:
    facts = write_dataset(tmp_path / "d", PLAYS, "test", {"seed": 1}, malformed_lines=7).facts
    assert facts.counts.model_dump() == {"sessions": 2, "plays": 5, "tracks": 3, "skips": 3}
    assert facts.skip_rate == pytest.approx(0.6)
    assert facts.session_lengths == {2: 1, 3: 1}
    assert (facts.source, facts.options, facts.malformed_lines) == ("test", {"seed": 1}, 7)


def test_rows_of_one_session_need_not_stand_together(tmp_path: Path) -> None:
    mixed = write_dataset(tmp_path / "mixed", PLAYS[[0, 3, 1, 4, 2]], "test")
    assert mixed.facts.fingerprint == write_dataset(tmp_path / "d", PLAYS, "test").facts.fingerprint


def test_titles_artists_and_names_of_sessions_leave_the_fingerprint_alone(tmp_path: Path) -> None:
    other = PLAYS.with_columns(title=pl.lit("T"), artist=pl.lit(None, pl.String), session_id=pl.col("session_id") + "'")
    assert write_dataset(tmp_path / "other", other, "test").facts.fingerprint == (
        write_dataset(tmp_path / "d", PLAYS, "test").facts.fingerprint
    )


def test_the_same_plays_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_dataset(tmp_path / name, PLAYS, "test")
    for file in (FACTS_FILE, SESSIONS_FILE, CATALOGUE_FILE):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize(
    "change", [pl.col("skipped").not_(), pl.col("track_id") + "'", pl.lit("one session").alias("session_id")]
)
def test_other_plays_have_another_fingerprint(tmp_path: Path, change: pl.Expr) -> None:
    first = write_dataset(tmp_path / "one", PLAYS, "test").facts.fingerprint
    assert write_dataset(tmp_path / "two", PLAYS.with_columns(change), "test").facts.fingerprint != first


def test_source_and_options_leave_the_fingerprint_alone(tmp_path: Path) -> None:
    first = write_dataset(tmp_path / "one", PLAYS, "test", {"seed": 1}).facts.fingerprint
    assert write_dataset(tmp_path / "two", PLAYS, "other", {"seed": 2}).facts.fingerprint == first


def test_a_session_without_a_known_time_has_no_start(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", PLAYS, "test")
    frame = pl.read_parquet(tmp_path / "d" / SESSIONS_FILE)
    assert frame.schema["started_at"] == pl.Datetime("ms", "UTC")
    assert frame["started_at"].null_count() == 2
    assert frame.schema["rows"] == pl.List(pl.Int32)


def test_tracks_that_are_never_played_stay_in_the_catalogue(tmp_path: Path) -> None:
    dataset = write_listening(tmp_path / "d", listening([2, 2, 1], [3], tracks=5), "test")
    assert dataset.catalogue.track_ids == ["t2", "t1", "t0", "t3", "t4"]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=8), min_size=1, max_size=8))
def test_any_sessions_survive_writing_and_reading(
    tmp_path_factory: pytest.TempPathFactory, sessions: list[list[tuple[int, bool]]]
) -> None:
    rows = [(f"s{n}", f"t{track}", skipped) for n, plays in enumerate(sessions) for track, skipped in plays]
    frame = pl.DataFrame(rows, schema=["session_id", "track_id", "skipped"], orient="row")
    dataset = write_dataset(tmp_path_factory.mktemp("any") / "d", frame, "test")
    flat, offsets = dataset.sessions, dataset.sessions.offsets
    for number, plays in enumerate(sessions):
        which = slice(offsets[number], offsets[number + 1])
        assert [dataset.catalogue.track_id(row) for row in flat.rows[which]] == [f"t{track}" for track, _ in plays]
        assert flat.skipped[which].tolist() == [skipped for _, skipped in plays]


def test_an_existing_dataset_is_replaced_only_when_asked_for(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", PLAYS, "test")
    with pytest.raises(InputError, match="already exists"):
        write_dataset(tmp_path / "d", PLAYS, "test")
    replaced = write_dataset(tmp_path / "d", PLAYS.head(3), "test", overwrite=True)
    assert len(replaced.sessions) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d"]


def test_a_folder_that_is_no_dataset_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"holds no dataset\.json"):
        write_dataset(tmp_path / "d", PLAYS, "test", overwrite=True)
    assert (tmp_path / "d" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (listening([], []), "no play"),
        (listening([0, 1], [2, 0]), "at least one play a session"),
        (listening([0, 3], [2]), "outside the 3 tracks"),
    ],
)
def test_plays_that_make_no_dataset_are_refused(tmp_path: Path, wrong: RawInteractions, message: str) -> None:
    with pytest.raises(BadDataset, match=message):
        write_listening(tmp_path / "d", wrong, "test")
    assert list(tmp_path.iterdir()) == []


def damage_json(folder: Path, **changes: object) -> None:
    facts = json.loads((folder / FACTS_FILE).read_text())
    (folder / FACTS_FILE).write_text(json.dumps({**facts, **changes}))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(BadDataset, match=message) as caught:
        open_dataset(folder)
    assert "\n" not in str(caught.value)


def test_what_is_no_dataset_is_refused_in_one_line(tmp_path: Path) -> None:
    refused(tmp_path / "missing", "is not a dataset")
    refused(tmp_path, "is not a dataset")
    (tmp_path / FACTS_FILE).write_text("{")
    refused(tmp_path, "expected JSON")
    (tmp_path / FACTS_FILE).write_text("[]")
    refused(tmp_path, "format version None")


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", PLAYS, "test")
    damage_json(tmp_path / "d", format_version=2)
    refused(tmp_path / "d", "has format version 2, this Segue reads version 1")


def test_facts_of_the_wrong_kind_are_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", PLAYS, "test")
    damage_json(tmp_path / "d", skip_rate="much")
    refused(tmp_path / "d", "damaged at skip_rate")


@pytest.mark.parametrize("file", [SESSIONS_FILE, CATALOGUE_FILE])
def test_a_missing_or_broken_file_is_refused(tmp_path: Path, file: str) -> None:
    write_dataset(tmp_path / "d", PLAYS, "test")
    whole = (tmp_path / "d" / file).read_bytes()
    (tmp_path / "d" / file).write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "d", "is damaged")
    (tmp_path / "d" / file).unlink()
    refused(tmp_path / "d", "is damaged")


def test_plays_that_were_changed_are_noticed(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", PLAYS, "test")
    file = tmp_path / "d" / SESSIONS_FILE
    pl.read_parquet(file).with_columns(pl.col("skipped").list.eval(pl.element().not_())).write_parquet(file)
    refused(tmp_path / "d", "its fingerprint is")


def test_sessions_with_too_few_skip_flags_are_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path / "d", PLAYS, "test")
    file = tmp_path / "d" / SESSIONS_FILE
    pl.read_parquet(file).with_columns(pl.col("skipped").list.head(1)).write_parquet(file)
    refused(tmp_path / "d", "more or fewer skip flags")
