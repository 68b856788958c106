"""VMIS-kNN: by hand, against a plain loop, and where no neighbour is found."""

import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy")

from segue.arrays import Float64, Int
from segue.catalogue import PAD_ROW
from segue.release import DatasetFacts, ReleaseMetadata, WindowFacts, write_release
from segue.window import Sessions, Windows, to_windows
from tests.catalogues import catalogue_of
from training.models.baselines.knn import VmisKnn
from training.options import VmisKnnOptions

ROWS = 30


def sessions_of(*texts: str) -> Sessions:
    """`"abc"` is a session of the rows 1, 2, 3, all played."""
    rows = np.array([ord(letter) - 96 for letter in "".join(texts)], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
    return Sessions(rows, np.zeros(len(rows), dtype=np.bool_), offsets)


def fitted(sessions: Sessions, **options: float) -> VmisKnn:
    plays = np.bincount(sessions.rows, minlength=ROWS)
    return VmisKnn.fit(sessions, ROWS, plays, VmisKnnOptions.model_validate(options))


def ranking(model: VmisKnn, text: str, k: int = 4) -> str:
    rows = model.rank(to_windows(sessions_of(text), 5), k).rows[0]
    return "".join(chr(96 + row) for row in rows.tolist())


def random_sessions(count: int, seed: int) -> Sessions:
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 12, count))])
    rows = rng.integers(0, ROWS - 3, offsets[-1])  # PAD_ROW among them, and three tracks that nobody plays
    return Sessions(rows, rng.random(len(rows)) < 0.3, offsets)


def by_loops(sessions: Sessions, window: list[int], options: VmisKnnOptions) -> Float64:
    """The scores of all rows, as the module describes them."""
    logs = [sessions.rows[start:end] for start, end in zip(sessions.offsets[:-1], sessions.offsets[1:], strict=True)]
    held = [{int(row): place for place, row in enumerate(log[log != PAD_ROW])} for log in logs]
    newest_first = list(dict.fromkeys(row for row in reversed(window) if row != PAD_ROW))
    similarity: dict[int, float] = {}
    place: dict[int, int] = {}
    for row in newest_first:
        holders = [number for number, log in enumerate(held) if row in log]
        age = window[::-1].index(row)
        weight = options.decay**age * (math.log(1 + len(held) / len(holders)) if options.idf and holders else 1.0)
        for number in holders[-options.sample :]:
            similarity[number] = similarity.get(number, 0.0) + weight
            place.setdefault(number, held[number][row])
    nearest = sorted(similarity, key=lambda number: (-round(similarity[number], 9), -number))[: options.neighbours]
    scores = np.zeros(ROWS)
    for number in nearest:
        for row, position in held[number].items():
            distance = position - place[number]
            side = 0.0 if distance == 0 else 1.0 if distance > 0 else options.before
            scores[row] += similarity[number] * side * math.exp((1 - abs(distance)) / options.reach)
    return scores


class TestByHand:
    def test_what_follows_the_shared_track_comes_first_and_the_nearest_of_it(self) -> None:
        assert ranking(fitted(sessions_of("abcd", "zz")), "b") == "cdaz"

    def test_the_newest_play_weighs_most(self) -> None:
        model = fitted(sessions_of("ac", "bd", "zz"))
        assert ranking(model, "ab")[:2] == "dc"
        assert ranking(model, "ba")[:2] == "cd"

    def test_the_scores(self) -> None:
        model = fitted(sessions_of("abc", "bd"), idf=False, decay=0.5, reach=2.0, before=0.25)
        found = model.scores(to_windows(sessions_of("ab"), 5), np.array([[1, 2, 3, 4]]))
        # abc shares a and b: similarity 0.5 + 1, newest shared track b; bd shares b: similarity 1
        assert found[0] == pytest.approx([1.5 * 0.25, 0, 1.5, 1.0], abs=1e-6)

    def test_a_repeated_track_counts_where_it_came_last(self) -> None:
        assert ranking(fitted(sessions_of("abac", "zz")), "a", 1) == "c"

    def test_only_the_most_recent_sessions_of_a_track_take_part(self) -> None:
        assert ranking(fitted(sessions_of("ab", "ab", "ac"), sample=1), "a", 1) == "c"
        assert ranking(fitted(sessions_of("ab", "ab", "ac")), "a", 1) == "b"

    def test_of_equally_similar_sessions_the_most_recent_stay(self) -> None:
        assert ranking(fitted(sessions_of("ab", "ab", "ac"), neighbours=1), "a", 1) == "c"

    def test_a_rare_shared_track_weighs_more(self) -> None:
        log = sessions_of("axz", "bx", *["by"] * 5, "ay")
        similar = {idf: fitted(log, idf=idf, neighbours=1, decay=1.0) for idf in (True, False)}
        assert ranking(similar[True], "ba", 1) == "y"
        assert ranking(similar[True], "ab", 1) == "y"
        assert fitted(log, idf=True).scores(to_windows(sessions_of("a"), 5), np.array([[24]])) > fitted(
            log, idf=False
        ).scores(to_windows(sessions_of("a"), 5), np.array([[24]]))

    def test_popularity_orders_what_no_neighbour_holds(self) -> None:
        model = fitted(sessions_of("ab", "ccc", "dd", "e"))
        assert ranking(model, "a", 5) == "bcdea"[:1] + "cdae"
        assert ranking(model, "z", 3) == "cda"


class TestAgainstPlainLoops:
    @pytest.mark.parametrize("options", [{}, {"sample": 3, "neighbours": 4}, {"idf": False, "before": 0.0, "decay": 1}])
    def test_scores(self, options: dict[str, float]) -> None:
        sessions, asked = random_sessions(60, 0), random_sessions(70, 1)
        windows, model = to_windows(asked, 6), fitted(sessions, **options)
        everything = np.tile(np.arange(1, ROWS), (len(windows), 1))
        found = model.scores(windows, everything)
        for window, line in zip(windows.tracks.tolist(), found, strict=True):
            expected = by_loops(sessions, window, VmisKnnOptions.model_validate(options))[1:]
            assert line == pytest.approx(expected, abs=1e-5)

    def test_rank_orders_by_the_same_scores(self) -> None:
        sessions, asked = random_sessions(60, 0), random_sessions(70, 1)
        model, windows = fitted(sessions), to_windows(asked, 6)
        ranked = model.rank(windows, ROWS - 1)
        assert (np.sort(ranked.rows, axis=1) == np.arange(1, ROWS)).all()
        assert (np.diff(ranked.scores, axis=1) <= 0).all()
        assert np.array_equal(ranked.scores, model.scores(windows, ranked.rows))
        few = model.rank(windows, 5)
        assert np.array_equal(few.rows, ranked.rows[:, :5])

    def test_more_tracks_than_there_are_and_no_window_at_all(self) -> None:
        model = fitted(random_sessions(20, 0))
        assert model.rank(to_windows(random_sessions(3, 1), 6), 1000).rows.shape == (3, ROWS - 1)
        none: Int = np.empty((0, 6), dtype=np.int64)
        assert model.rank(Windows(none, none > 0), 5).rows.shape == (0, 5)


def test_a_release_gives_the_same_ranker(tmp_path: Path) -> None:
    sessions = random_sessions(60, 0)
    plays = np.bincount(sessions.rows, minlength=ROWS)
    options = VmisKnnOptions(neighbours=7, sample=9)
    model = VmisKnn.fit(sessions, ROWS, plays, options)
    catalogue = catalogue_of([f"t{row}" for row in range(1, ROWS)]).with_counts(plays, plays * 0)
    draft = ReleaseMetadata(
        model="vmis-knn",
        options=options.model_dump(),
        loss=None,
        window=WindowFacts(length=6),
        dimension=None,
        dataset=DatasetFacts(fingerprint="0" * 16, source="tests", split="last-play"),
        source_commit=None,
        evaluation={},
    )
    opened = VmisKnn.of_release(write_release(tmp_path / "r", draft, catalogue, model.arrays()))
    windows = to_windows(random_sessions(20, 1), 6)
    first, second = model.rank(windows, 10), opened.rank(windows, 10)
    assert np.array_equal(first.rows, second.rows)
    assert np.allclose(first.scores, second.scores, atol=1e-7)
