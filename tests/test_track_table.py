"""The catalogue as mapped files: ids, rows, JSON and search."""

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segue.catalogue import PAD_ROW, Catalogue
from segue.errors import UnknownTrack
from segue.track_table import TrackTable, write_track_table

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)


def written(catalogue: Catalogue, folder: Path) -> TrackTable:
    write_track_table(catalogue, folder)
    return TrackTable(folder)


@given(st.dictionaries(TEXT, st.tuples(st.none() | TEXT, st.none() | TEXT, st.integers(0, 9)), max_size=12))
def test_it_says_what_the_catalogue_says(
    tmp_path_factory: pytest.TempPathFactory, tracks: dict[str, tuple[str | None, str | None, int]]
) -> None:
    facts = [(track_id, *rest) for track_id, rest in tracks.items()]
    schema = {"track_id": pl.String, "title": pl.String, "artist": pl.String, "plays": pl.Int64}
    catalogue = Catalogue(pl.DataFrame(facts, schema=schema, orient="row"))
    table = written(catalogue, tmp_path_factory.mktemp("table"))
    assert len(table) == len(tracks)
    assert table.rows([*tracks, "no such track"]).tolist() == catalogue.rows([*tracks, "no such track"]).tolist()
    for row, (track_id, title, artist, _) in enumerate(facts, start=1):
        assert table.track_id(row) == track_id
        known = {"track_id": track_id, "title": title, "artist": artist}
        assert json.loads(b"{%b}" % table.json(row)) == {
            name: value for name, value in known.items() if value is not None
        }
    assert table.plays.tolist() == catalogue.plays.tolist()
    assert table.by_plays.tolist() == sorted(range(1, len(tracks) + 1), key=lambda row: (-catalogue.plays[row], row))


def test_values_that_look_like_absent_fields_are_kept(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"track_id": ['a,"title":null', "b,", 'c","artist":null'], "title": ['x,"artist":null', None, ","]}
    )
    table = written(Catalogue(frame), tmp_path)
    assert [json.loads(b"{%b}" % table.json(row)) for row in (1, 2, 3)] == [
        {"track_id": 'a,"title":null', "title": 'x,"artist":null'},
        {"track_id": "b,"},
        {"track_id": 'c","artist":null', "title": ","},
    ]


def test_an_unknown_track_is_told(tmp_path: Path) -> None:
    table = written(Catalogue.of(["a", "c"]), tmp_path)
    assert [table.row_or_pad(track_id) for track_id in ("", "b", "d", "\ud800")] == [PAD_ROW] * 4
    assert "b" not in table
    with pytest.raises(UnknownTrack, match="'b' is not in the catalogue of 2 tracks"):
        table.row("b")


class TestSearch:
    catalogue = Catalogue(
        pl.DataFrame(
            {
                "track_id": ["t1", "t2", "t3", "100%_x"],
                "plays": [1, 9, 5, 0],
                "title": ["Blue Harbour", "Blue Lanterns", "Red Harbour", None],
                "artist": ["Ada", "Bo", "Ada", None],
            }
        )
    )

    @pytest.fixture
    def find(self, tmp_path: Path) -> Callable[..., list[str]]:
        table = written(self.catalogue, tmp_path)
        return lambda query, limit=10: [table.track_id(row) for row in table.search(query, limit)]

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
