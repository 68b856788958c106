"""Plays become arrays in one place; here by hand and against a plain reference."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from segue.catalogue import PAD_ROW
from segue.sessions import Outcome, Play
from segue.window import Sessions, to_sessions, to_windows
from tests.catalogues import catalogue_of

CATALOGUE = catalogue_of(["a", "b", "c"])  # rows 1, 2, 3


def plays(text: str) -> list[Play]:
    """`ab-c` reads: a played, b skipped, c played."""
    return [
        Play(track, Outcome.SKIPPED if text[i + 1 : i + 2] == "-" else Outcome.PLAYED)
        for i, track in enumerate(text)
        if track != "-"
    ]


class TestByHand:
    def test_the_newest_play_is_in_the_last_column(self) -> None:
        windows = to_windows(to_sessions([plays("ab-c")], CATALOGUE), 5)
        assert windows.tracks.tolist() == [[PAD_ROW, PAD_ROW, 1, 2, 3]]
        assert windows.skipped.tolist() == [[False, False, False, True, False]]
        assert windows.tracks.dtype == np.int64
        assert windows.skipped.dtype == np.bool_

    def test_only_the_last_plays_fit(self) -> None:
        assert to_windows(to_sessions([plays("abcab")], CATALOGUE), 2).tracks.tolist() == [[1, 2]]

    def test_played_plays_alone(self) -> None:
        kept = to_sessions([plays("ab-c"), plays("a-b-"), plays("b")], CATALOGUE).played()
        assert kept.rows.tolist() == [1, 3, 2]
        assert kept.offsets.tolist() == [0, 2, 2, 3]
        assert not kept.skipped.any()

    def test_unknown_tracks_take_no_column(self) -> None:
        windows = to_windows(to_sessions([plays("ax-xb-")], CATALOGUE), 3)
        assert windows.tracks.tolist() == [[PAD_ROW, 1, 2]]
        assert windows.skipped.tolist() == [[False, False, True]]

    def test_a_session_without_usable_plays_is_all_padding(self) -> None:
        windows = to_windows(to_sessions([[], plays("xx"), plays("a")], CATALOGUE), 2)
        assert windows.tracks.tolist() == [[PAD_ROW, PAD_ROW], [PAD_ROW, PAD_ROW], [PAD_ROW, 1]]

    def test_no_session_gives_no_window(self) -> None:
        assert to_windows(to_sessions([], CATALOGUE), 4).tracks.shape == (0, 4)


sessions_of_rows = st.lists(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=12), max_size=6)


def flat(sessions: list[list[tuple[int, bool]]]) -> Sessions:
    everything = [play for session in sessions for play in session]
    return Sessions(
        np.array([row for row, _ in everything], dtype=np.int64),
        np.array([skipped for _, skipped in everything], dtype=np.bool_),
        np.cumsum([0, *(len(session) for session in sessions)]).astype(np.int64),
    )


class TestProperties:
    @given(sessions_of_rows, st.integers(1, 8))
    def test_windows_equal_a_plain_loop(self, sessions: list[list[tuple[int, bool]]], length: int) -> None:
        windows = to_windows(flat(sessions), length)
        for i, session in enumerate(sessions):
            usable = [play for play in session if play[0] != PAD_ROW][-length:]
            padded = [(PAD_ROW, False)] * (length - len(usable)) + usable
            assert windows.tracks[i].tolist() == [row for row, _ in padded]
            assert windows.skipped[i].tolist() == [skipped for _, skipped in padded]

    @given(sessions_of_rows, st.data())
    def test_selecting_sessions_takes_their_plays_along(
        self, sessions: list[list[tuple[int, bool]]], data: st.DataObject
    ) -> None:
        which = data.draw(st.lists(st.integers(0, len(sessions) - 1), max_size=8) if sessions else st.just([]))
        chosen = flat(sessions).select(np.array(which, dtype=np.int64))
        expected = flat([sessions[i] for i in which])
        for part in ("rows", "skipped", "offsets"):
            assert getattr(chosen, part).tolist() == getattr(expected, part).tolist()

    @given(sessions_of_rows, st.integers(1, 8))
    def test_a_session_alone_has_the_window_that_it_has_among_others(
        self, sessions: list[list[tuple[int, bool]]], length: int
    ) -> None:
        together = to_windows(flat(sessions), length)
        for i, session in enumerate(sessions):
            alone = to_windows(flat([session]), length)
            assert alone.tracks[0].tolist() == together.tracks[i].tolist()
            assert alone.skipped[0].tolist() == together.skipped[i].tolist()
