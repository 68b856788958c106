"""The catalogue, in memory and mapped: TrackId <-> Row, JSON and search."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segue.catalogue import FIRST_TRACK_ROW, MAPPED_FILES, PAD_ROW, Catalogue
from segue.errors import InputError, UnknownTrack
from tests.catalogues import catalogue_of

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)

Form: TypeAlias = Callable[[Catalogue], Catalogue]


def mapped(catalogue: Catalogue, folder: Path) -> Catalogue:
    catalogue.write_mapped(folder)
    return Catalogue.map(folder)


@pytest.fixture(params=["memory", "mapped"])
def form(request: pytest.FixtureRequest, tmp_path: Path) -> Form:
    """Turns a catalogue in memory into the form under test."""
    return (lambda catalogue: mapped(catalogue, tmp_path)) if request.param == "mapped" else lambda catalogue: catalogue


class TestBothForms:
    def test_unknown_tracks_are_padding_in_windows_and_an_error_where_one_is_asked_for(self, form: Form) -> None:
        catalogue = form(catalogue_of(["a", "c"]))
        assert catalogue.rows(["", "b", "d", "\ud800", "c"]).tolist() == [PAD_ROW] * 4 + [2]
        assert "b" not in catalogue
        assert "a" in catalogue
        with pytest.raises(UnknownTrack, match="'b' is not in the catalogue of 2 tracks"):
            catalogue.row("b")

    @pytest.mark.parametrize("row", [PAD_ROW, -1, 3])
    def test_a_reserved_or_missing_row_names_no_track(self, form: Form, row: int) -> None:
        with pytest.raises(IndexError):
            form(catalogue_of(["a", "b"])).track_id(row)

    def test_values_that_look_like_absent_fields_are_kept(self, form: Form) -> None:
        frame = pl.DataFrame(
            {"track_id": ['a,"title":null', "b,", 'c","artist":null'], "title": ['x,"artist":null', None, ","]}
        )
        catalogue = form(Catalogue.from_frame(frame))
        assert [json.loads(b"{%b}" % catalogue.json(row)) for row in (1, 2, 3)] == [
            {"track_id": 'a,"title":null', "title": 'x,"artist":null'},
            {"track_id": "b,"},
            {"track_id": 'c","artist":null', "title": ","},
        ]


@given(st.dictionaries(TEXT, st.tuples(st.none() | TEXT, st.none() | TEXT, st.integers(0, 9)), max_size=12))
def test_both_forms_answer_alike(
    tmp_path_factory: pytest.TempPathFactory, tracks: dict[str, tuple[str | None, str | None, int]]
) -> None:
    facts = [(track_id, *rest) for track_id, rest in tracks.items()]
    schema = {"track_id": pl.String, "title": pl.String, "artist": pl.String, "plays": pl.Int64}
    memory = Catalogue.from_frame(pl.DataFrame(facts, schema=schema, orient="row"))
    for catalogue in (memory, mapped(memory, tmp_path_factory.mktemp("mapped"))):
        assert len(catalogue) == len(tracks)
        assert catalogue.num_rows == len(tracks) + FIRST_TRACK_ROW
        assert catalogue.rows([*tracks, "no such track"]).tolist() == [*range(1, len(tracks) + 1), PAD_ROW]
        for row, (track_id, title, artist, _) in enumerate(facts, start=FIRST_TRACK_ROW):
            assert catalogue.row(track_id) == row
            assert catalogue.track_id(row) == track_id
            known = {"track_id": track_id, "title": title, "artist": artist}
            assert json.loads(b"{%b}" % catalogue.json(row)) == {
                name: value for name, value in known.items() if value is not None
            }
        plays = [0, *(count for *_, count in tracks.values())]
        assert catalogue.plays.tolist() == plays
        assert catalogue.by_plays.tolist() == sorted(range(1, len(plays)), key=lambda row: (-plays[row], row))


class TestSearch:
    tracks = pl.DataFrame(
        {
            "track_id": ["t1", "t2", "t3", "100%_x"],
            "plays": [1, 9, 5, 0],
            "title": ["Blue Harbour", "Blue Lanterns", "Red Harbour", None],
            "artist": ["Ada", "Bo", "Ada", None],
        }
    )

    @pytest.fixture
    def find(self, form: Form) -> Callable[..., list[str]]:
        catalogue = form(Catalogue.from_frame(self.tracks))
        return lambda query, limit=10: [catalogue.track_id(row) for row in catalogue.search(query, limit)]

    def test_every_word_must_be_found_in_title_artist_or_id(self, find: Callable[..., list[str]]) -> None:
        assert find("harbour ADA") == ["t3", "t1"]
        assert find("blue") == ["t2", "t1"]
        assert find("t2") == ["t2"]
        assert find("blue red") == []

    def test_no_word_finds_the_most_played(self, find: Callable[..., list[str]]) -> None:
        assert find("", 2) == ["t2", "t3"]

    def test_signs_mean_themselves(self, find: Callable[..., list[str]]) -> None:
        assert find("100%_x") == ["100%_x"]
        assert find(".*") == []


class TestInMemory:
    @pytest.mark.parametrize("ids", [["a", "a"], ["a", None]])
    def test_repeated_and_missing_ids_are_refused(self, ids: list[str | None]) -> None:
        with pytest.raises(InputError, match="every track once"):
            Catalogue.from_frame(pl.DataFrame({"track_id": ids}))

    def test_it_is_read_as_it_was_written(self, tmp_path: Path) -> None:
        tracks = pl.DataFrame({"track_id": ["z", "a"], "plays": [5, 7], "skips": [1, 2], "title": ["Zoë", None]})
        Catalogue.from_frame(tracks).write_parquet(tmp_path / "catalogue.parquet")
        read = Catalogue.read_parquet(tmp_path / "catalogue.parquet")
        assert read.track_ids == ["z", "a"]
        assert read.plays.tolist() == [0, 5, 7]
        assert read.frame.select("skips", "title", "artist").rows() == [(1, "Zoë", None), (2, None, None)]

    def test_counts_are_replaced_by_row(self) -> None:
        counted = catalogue_of(["a", "b"]).with_counts(np.array([9, 1, 2]), np.array([9, 0, 1]))
        assert counted.plays.tolist() == [0, 1, 2]
        assert counted.frame["skips"].to_list() == [0, 1]


class TestMapped:
    def test_what_only_memory_has_is_a_type_error(self, tmp_path: Path) -> None:
        catalogue = mapped(catalogue_of(["a"]), tmp_path)
        for name in ("frame", "track_ids"):
            with pytest.raises(TypeError, match="mapped catalogue"):
                getattr(catalogue, name)

    def test_plays_stay_in_their_file(self, tmp_path: Path) -> None:
        catalogue = mapped(catalogue_of(["a"]), tmp_path)
        assert catalogue.plays.dtype == np.float32
        assert {file.name for file in tmp_path.iterdir()} == set(MAPPED_FILES)
