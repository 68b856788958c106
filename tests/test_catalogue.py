"""TrackId <-> Row, and search."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segue.catalogue import FIRST_TRACK_ROW, PAD_ROW, Catalogue
from segue.errors import InputError, UnknownTrack


@given(st.lists(st.text(min_size=1), unique=True, max_size=20))
def test_every_track_finds_its_row_and_back(track_ids: list[str]) -> None:
    catalogue = Catalogue.of(track_ids)
    assert catalogue.num_rows == len(track_ids) + FIRST_TRACK_ROW
    for position, track_id in enumerate(track_ids):
        row = catalogue.row(track_id)
        assert row == position + FIRST_TRACK_ROW
        assert catalogue.track_id(row) == track_id


def test_an_unknown_track_is_padding_to_the_window_and_an_error_to_who_asks_for_it() -> None:
    catalogue = Catalogue.of(["a"])
    assert catalogue.row_or_pad("b") == PAD_ROW
    assert catalogue.rows(["b", "a"]).tolist() == [PAD_ROW, 1]
    with pytest.raises(UnknownTrack, match="'b' is not in the catalogue of 1 tracks"):
        catalogue.row("b")


@pytest.mark.parametrize("row", [PAD_ROW, -1, 3])
def test_a_reserved_or_missing_row_names_no_track(row: int) -> None:
    with pytest.raises(IndexError):
        Catalogue.of(["a", "b"]).track_id(row)


@pytest.mark.parametrize("ids", [["a", "a"], ["a", None]])
def test_repeated_and_missing_ids_are_refused(ids: list[str | None]) -> None:
    with pytest.raises(InputError, match="every track once"):
        Catalogue(pl.DataFrame({"track_id": ids}))


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    tracks = pl.DataFrame({"track_id": ["z", "a"], "plays": [5, 7], "skips": [1, 2], "title": ["Zoë", None]})
    Catalogue(tracks).write(tmp_path / "catalogue.parquet")
    read = Catalogue.read(tmp_path / "catalogue.parquet")
    assert read.track_ids == ["z", "a"]
    assert read.plays.tolist() == [0, 5, 7]
    assert read.skips.tolist() == [0, 1, 2]
    assert read.titles == ["Zoë", None]
    assert read.artists == [None, None]


def test_counts_are_replaced_by_row() -> None:
    counted = Catalogue.of(["a", "b"]).with_counts(np.array([9, 1, 2]), np.array([9, 0, 1]))
    assert counted.plays.tolist() == [0, 1, 2]
    assert counted.skips.tolist() == [0, 0, 1]
