"""Off-policy estimates: on simulated logs with a known reward, and on lists worked out by hand."""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from segue.cli.off_policy import _lists_of
from segue.errors import InputError
from segue.list_steps import explored, propensities
from segue.off_policy import ListLog, PolicyRates, bootstrap, observed_places, play_rates, read_log
from segue.release import Release
from segue.sessions import Outcome, Play

pytest.importorskip("faiss")
from service.releases.loaded import load_release

START = datetime(2026, 1, 1, tzinfo=UTC)
LIST = {"release": "r-1", "arm": None, "policy": "radio"}
_TYPES: dict[str, pl.DataType] = {
    "arm": pl.String(),
    "policy": pl.String(),
    "position": pl.Int64(),
    "timestamp": pl.Datetime("ms", "UTC"),
    "written_at": pl.Datetime("us", "UTC"),
}


def log_of(lists: list[dict[str, Any]], plays: list[dict[str, Any]], folder: Path) -> ListLog:
    pl.DataFrame(lists, schema_overrides=_TYPES, infer_schema_length=None).write_parquet(folder / "lists-1.parquet")
    at: dict[str, pl.DataType] = {"written_at": pl.Datetime("us", "UTC"), "position": pl.Int64()}
    pl.DataFrame(plays, schema_overrides=at, infer_schema_length=None).write_parquet(folder / "events-1.parquet")
    return read_log(folder)


def served(session: str, position: int, tracks: str, after_s: float = 0, **more: Any) -> dict[str, Any]:
    at = START + timedelta(seconds=after_s)
    line = {"session_id": session, "position": position, "timestamp": at, "written_at": at, **LIST}
    own = {"track_ids": list(tracks), "propensities": [1.0] * len(tracks), "explored": [False] * len(tracks)}
    return line | own | more


def played(session: str, position: int, track: str, after_s: float = 1, *, skipped: bool = False) -> dict[str, Any]:
    at = START + timedelta(seconds=after_s)
    return {"session_id": session, "position": position, "track_id": track, "skipped": skipped, "written_at": at}


def rates(log: ListLog, targets: list[list[str]] | None = None, window_s: float = 60) -> PolicyRates:
    [found] = play_rates(log, observed_places(log, window_s), targets)
    return found


def test_the_next_play_decides(tmp_path: Path) -> None:
    lists = [
        served("a", 1, "xyz"),  # y was skipped, as a later row says
        served("b", 1, "xyz"),  # another track
        served("c", 1, "xyz"),  # too late
        served("d", 1, "xyz"),  # nothing followed
        served("e", 1, "abc"),  # another list was shown before the play
        served("e", 1, "xyz", 5),
        served("e", 2, "xyz", 7),
        served("f", 1, "xyz"),
        served("f", 1, "abc", 3),  # answered after the play: requested before it, or together with it
        served("g", 1, "xyz", 3),  # the only list, and the clocks differ
        served("g", 1, "abc", 4),
    ]
    plays = [
        played("a", 0, "x", 0),
        played("a", 1, "y"),
        played("a", 1, "y", 20, skipped=True),
        played("b", 1, "q"),
        played("c", 1, "x", 61),
        played("e", 1, "x", 6),
        played("e", 2, "z", 8),
        played("f", 1, "x", 2),
        played("f", 1, "x", 9, skipped=True),
        played("g", 1, "x", 2),
    ]
    log = log_of(lists, plays, tmp_path)
    found = rates(log)
    assert (found.release, found.arm, found.policy) == ("r-1", None, "radio")
    assert (found.lists, found.sessions, found.observed) == (8, 7, 5)
    assert found.play_rate == pytest.approx(3 / 5)
    assert [(one.rank, one.observed, one.skip_rate) for one in found.by_rank] == [
        (1, 3, pytest.approx(1 / 3)),
        (2, 1, 1),
        (3, 1, 0),
    ]
    assert (found.explores, found.target) == (False, None)
    assert (rates(log, window_s=0.5).observed, rates(log, window_s=0.5).play_rate) == (1, 1)  # of g
    assert rates(log_of([served("d", 1, "x")], [played("e", 1, "x")], tmp_path)).play_rate is None


def test_weights_are_worked_out_by_hand(tmp_path: Path) -> None:
    drawn: dict[str, Any] = {"propensities": [0.8, 0.1], "explored": [False, True]}
    own: dict[str, Any] = {"propensities": [0.8, 0.8], "explored": [False, False]}
    lists = [served("a", 1, "xq", **drawn), served("b", 1, "xy", **own), served("c", 1, "xy", **own)]
    plays = [played("a", 1, "q"), played("b", 1, "x"), played("c", 1, "y", skipped=True)]
    log = log_of(lists, plays, tmp_path)
    target = rates(log).target
    assert target is not None
    assert target.play_rate == pytest.approx(0.5)  # of b and c, with the weight 1.25 each
    assert target.matched == 2
    assert target.effective == pytest.approx(2)
    assert target.support == pytest.approx(5 * 1.25 / 6)
    other = rates(log, [["x", "q"], ["z", "x"], ["y"]]).target
    assert other is not None
    assert (other.play_rate, other.matched) == (1, 1)  # of a, with the weight 10
    assert other.effective == pytest.approx(1)
    assert rates(log, [[], ["q"], ["y", "x"]]).target is None


def test_the_lists_of_a_release_follow_the_plays_before_them(tiny_release: Release, tmp_path: Path) -> None:
    plays = [
        played("a", 0, "g0-t00", 0),
        played("a", 1, "g1-t00", 1, skipped=True),
        played("a", 0, "g0-t00", 3, skipped=True),  # a dislike: the first list is from before, the second from after
        played("a", 2, "g2-t00", 4),
        played("a", 3, "g3-t00", 5.001, skipped=True),  # at its first report: before the list, whatever the clocks say
    ]
    lists = [served("a", 2, "xyz", 2), served("a", 3, "xyz", 5), served("a", 4, "xy", 5), served("nothing", 1, "xy", 6)]
    live = load_release(tiny_release.path)
    skipped = Outcome.SKIPPED
    asked = [
        ([Play("g0-t00"), Play("g1-t00", skipped)], 3),
        ([Play("g0-t00", skipped), Play("g1-t00", skipped), Play("g2-t00")], 3),
        ([Play("g0-t00", skipped), Play("g1-t00", skipped), Play("g2-t00"), Play("g3-t00", skipped)], 2),
        ([], 2),
    ]
    expected = [[one.track_id for one in live.recommend(before, k).tracks] for before, k in asked]
    assert len({tuple(one) for one in expected}) == 4
    assert list(_lists_of(tiny_release.path, log_of(lists, plays, tmp_path))) == expected


def simulated(chance: random.Random, folder: Path, sessions: int = 1_500) -> ListLog:
    """Each context has its own list. The tracks that exploration draws are played less, and at other ranks."""
    lists, plays = [], []
    for number in range(sessions):
        name, context = f"s{number}", number % 5
        for position in (1, 2):
            own, pool = [f"{context}-{rank}" for rank in range(3)], [f"{context}-{rank}" for rank in range(3, 6)]
            numbers = list(range(6))
            made = explored(numbers[:3], numbers[3:], 0.6, chance)
            tracks = [(own + pool)[one] for one in made]
            chances = propensities(numbers[:3], made, numbers[3:], 0.6)
            at = float(position * 10)
            is_drawn = [one >= 3 for one in made]
            lists.append(served(name, position, "", at, track_ids=tracks, propensities=chances, explored=is_drawn))
            place = chance.choices([0, 1, 2, 3], _seen(made))[0]
            if place < 3:
                skipped = chance.random() >= _play_rate(context, made[place], place)
                plays.append(played(name, position, tracks[place], at + 1, skipped=skipped))
    return log_of(lists, plays, folder)


def _seen(made: list[int]) -> list[float]:
    """The probability of each place to have the next play, and the rest. Drawn tracks are more tempting."""
    of_places = [(0.3 if one < 3 else 0.33) / (1 + place) for place, one in enumerate(made)]
    return [*of_places, 1 - sum(of_places)]


def _play_rate(context: int, track: int, place: int) -> float:
    return (0.8 if track < 3 else 0.3) - 0.05 * context - 0.1 * place


def true_rate() -> float:
    """The play rate of the lists without exploration."""
    seen = np.array(_seen([0, 1, 2])[:3])
    of_contexts = [[_play_rate(context, place, place) for place in range(3)] for context in range(5)]
    return float((seen @ np.array(of_contexts).T / seen.sum()).mean())


def test_the_interval_covers_the_true_rate_and_the_mean_is_biased(tmp_path: Path) -> None:
    truth, covered, naive = true_rate(), 0, 0
    for seed in range(20):
        folder = tmp_path / str(seed)
        folder.mkdir()
        found = rates(simulated(random.Random(seed), folder))
        assert found.target is not None
        assert found.target.interval is not None
        assert found.interval is not None
        covered += found.target.interval[0] <= truth <= found.target.interval[1]
        naive += found.interval[0] <= truth <= found.interval[1]
        assert found.target.support == pytest.approx(1, abs=0.1)
        assert found.target.play_rate == pytest.approx(truth, abs=0.1)
    assert covered >= 17  # a 95 % interval has fewer in 1.6 of 100 such tests
    assert naive == 0


def test_sessions_are_resampled_as_a_whole() -> None:
    """Ten equal observations of a session are worth one."""
    rewards = np.tile([0.0, 1.0], 50)
    alone = bootstrap(np.arange(100), rewards, np.ones(100), np.random.default_rng(1))
    tenfold = bootstrap(np.repeat(np.arange(100), 10), np.repeat(rewards, 10), np.ones(1000), np.random.default_rng(1))
    assert alone == tenfold
    assert alone is not None
    assert alone == pytest.approx((0.4, 0.6), abs=0.03)
    assert bootstrap(np.zeros(5, dtype=np.int64), np.ones(5), np.ones(5), np.random.default_rng(1)) is None


def test_a_folder_without_lists_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no served lists"):
        read_log(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        read_log(tmp_path / "nothing")
    pl.DataFrame([served("a", 1, "x")], schema_overrides=_TYPES).write_parquet(tmp_path / "lists-1.parquet")
    with pytest.raises(InputError, match="has served lists but no plays"):
        read_log(tmp_path)
    (tmp_path / "events-1.parquet").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"events-1\.parquet cannot be read"):
        read_log(tmp_path)
