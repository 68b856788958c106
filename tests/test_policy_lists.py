"""Lists with policies and spacing, compared with a reference that states every rule plainly."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("faiss")
pytest.importorskip("onnx")

from segue.catalogue import Catalogue
from segue.filters import read_filter
from segue.list_steps import UNKNOWN, Spacing, diversified, explored, pinned
from segue.policy import Policy
from segue.sessions import ALLOW_REPEATS, NEVER_REPEAT, Outcome, Play
from service.releases.lists import Move
from service.releases.loaded import LoadedRelease, Question, load_release
from tests.conftest import write_encoder_release

TRACKS = 400
GENRES = ("rock", "jazz", "folk", "rare")


@dataclass(frozen=True)
class Facts:
    """The catalogue of the tests, and its release."""

    live: LoadedRelease
    frame: pl.DataFrame
    embeddings: np.ndarray[tuple[int, int], np.dtype[np.float32]]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """A release of 400 tracks: 12 artists with albums, some unknown, and few tracks of a rare genre."""
    rng = np.random.default_rng(5)
    artists = rng.integers(0, 12, TRACKS)
    frame = pl.DataFrame(
        {
            "track_id": [f"t{i}" for i in range(TRACKS)],
            "plays": rng.permutation(10 * TRACKS)[:TRACKS] + 1,
            "skips": [0] * TRACKS,
            "artist_id": [None if i % 17 == 0 else f"a{one}" for i, one in enumerate(artists)],
            "album_id": [None if i % 13 == 0 else f"a{one}-{i % 3}" for i, one in enumerate(artists)],
            "genre": ["rare" if i % 50 == 49 else GENRES[i % 3] for i in range(TRACKS)],
            "explicit": [i % 4 == 0 for i in range(TRACKS)],
        }
    ).with_columns(pl.col("plays").cast(pl.Int64), pl.col("skips").cast(pl.Int64))
    catalogue = Catalogue.from_frame(frame)
    embeddings = rng.standard_normal((TRACKS + 1, 6), dtype=np.float32) / np.float32(2)
    embeddings[0] = 0
    rare = np.flatnonzero(np.array(frame["genre"].to_list()) == "rare") + 1
    embeddings[rare] = embeddings[rare] / 4 - embeddings[2] - embeddings[3]  # far from t1 and t2
    path = tmp_path_factory.mktemp("policies") / "release"
    release = write_encoder_release(path, catalogue, embeddings)
    return Facts(load_release(release.path), frame, embeddings)


Lists = dict[str, list[int]]


def satisfies(facts: Facts, row: int, given: dict[str, Any] | None) -> bool:
    line = facts.frame.row(row - 1, named=True)
    return given is None or all(
        line[name] in (value if isinstance(value, list) else [value]) for name, value in given.items()
    )


def reference(facts: Facts, question: Question, wanted: dict[str, Any] | None, policy: dict[str, Any]) -> Lists:
    """The list after each step, with every rule written down plainly."""
    pool = max(5 * question.k, 100)
    if "exploration" in policy:
        pool = max(pool, policy["exploration"]["depth"])
    if any(one["weight"] < 0 for one in policy.get("boosts", [])):
        pool = 1_000
    lists = _reference(facts, question, wanted, policy, pool)
    if lists.pop("relaxed"):
        lists = _reference(facts, question, wanted, policy, 1_000)
        lists.pop("relaxed")
    return lists


def _reference(
    facts: Facts, question: Question, wanted: dict[str, Any] | None, policy: dict[str, Any], pool: int
) -> Lists:
    ids = facts.frame["track_id"].to_list()
    row_of = {track_id: row for row, track_id in enumerate(ids, start=1)}
    heard = [row_of[play.track_id] for play in question.plays]
    gone = {row_of[one] for one in question.exclude} | (set(heard) if question.repeat is NEVER_REPEAT else set())
    window = list(zip(heard, question.plays, strict=True))[-5:]
    query = sum((facts.embeddings[row] * (-2 if play.skipped else 1) for row, play in window), np.zeros(6, np.float32))
    plays = facts.frame["plays"].to_list()
    score = {
        row: float(facts.embeddings[row] @ query) if heard else math.log(plays[row - 1]) for row in row_of.values()
    }
    allowed = sorted(
        (row for row in score if satisfies(facts, row, wanted) and row not in gone), key=lambda row: -score[row]
    )
    lists: Lists = {"ranking": allowed[:pool]}
    order = lists["ranking"]
    if boosts := policy.get("boosts"):
        candidates = list(order)
        for boost in boosts:
            if boost["weight"] > 0:
                fits = [row for row in allowed if holds(facts, row, boost)]
                candidates += fits[: len(order)] if "filter" in boost else fits
        weight = {row: sum(one["weight"] for one in boosts if holds(facts, row, one)) for row in candidates}
        order = sorted(weight, key=lambda row: -(score[row] + weight[row]))
        lists["boost"] = order
    best = order
    if diversity := policy.get("diversity"):
        made = diversified(facts.embeddings[order], question.k, diversity)  # compared with its definition above
        order = [order[place] for place in made]
        lists["diversity"] = order
    places = pinned_places(facts, question, allowed, policy)
    order, relaxed = spaced_plainly(facts, order, question, heard, [*places.values()])
    if question.spacing is not None:
        lists["spacing"] = order
    lists["relaxed"] = [1] if relaxed and len(lists["ranking"]) == pool < 1_000 else []
    return lists | after_spacing(facts, order, best, question, places, policy)


def holds(facts: Facts, row: int, rule: dict[str, Any]) -> bool:
    if "filter" in rule:
        return satisfies(facts, row, rule["filter"])
    return facts.frame["track_id"][row - 1] in rule["tracks"]


def group(facts: Facts, row: int, name: str) -> int | str:
    found = facts.frame[name][row - 1]
    return UNKNOWN if found is None else str(found)


def broken(
    facts: Facts, row: int, listed: Sequence[int], before: Sequence[int], spacing: Spacing, pins: Sequence[int]
) -> int:
    """The last rule that would have to be given up for a track, 0 for none."""
    worst = 0
    for most, gap, name, of_gap, of_most in (
        (spacing.max_per_album, spacing.album_gap, "album_id", 1, 3),
        (spacing.max_per_artist, spacing.artist_gap, "artist_id", 2, 4),
    ):
        mine = group(facts, row, name)
        latest = [*before, *listed][-gap:] if gap else []
        if mine != UNKNOWN and mine in [group(facts, other, name) for other in latest]:
            worst = max(worst, of_gap)
        if (
            mine != UNKNOWN
            and most is not None
            and [group(facts, one, name) for one in [*listed, *pins]].count(mine) >= most
        ):
            worst = max(worst, of_most)
    return worst


def spaced_plainly(
    facts: Facts, order: list[int], question: Question, heard: list[int], pins: list[int]
) -> tuple[list[int], bool]:
    if question.spacing is None:
        return order[: question.k], False
    listed: list[int] = []
    left = [row for row in order if row not in pins]
    relaxed = False
    while left and len(listed) < question.k - len(pins):
        worst = [broken(facts, row, listed, heard, question.spacing, pins) for row in left]
        relaxed |= min(worst) > 0
        listed.append(left.pop(worst.index(min(worst))))
    return listed, relaxed


def pinned_places(facts: Facts, question: Question, allowed: list[int], policy: dict[str, Any]) -> dict[int, int]:
    places: dict[int, int] = {}
    for pin in policy.get("pins", []):
        ordered = allowed if "filter" in pin else [facts.live.catalogue.row(one) for one in pin["tracks"]]
        found = [row for row in ordered if row in allowed and holds(facts, row, pin) and row not in places.values()]
        if found and pin["place"] <= question.k and pin["place"] - 1 not in places:
            places[pin["place"] - 1] = found[0]
    return places


def after_spacing(
    facts: Facts,
    order: list[int],
    best: list[int],
    question: Question,
    places: dict[int, int],
    policy: dict[str, Any],
) -> Lists:
    lists: Lists = {}
    if places:
        order = pinned(order, places, question.k)
        lists["pin"] = order
    if exploration := policy.get("exploration"):
        further = best[question.k : exploration["depth"]]
        fixed = {place for place, row in enumerate(order) if row in places.values()}
        heard = [facts.live.catalogue.row(play.track_id) for play in question.plays]

        def may_have(listed: list[int], place: int, candidates: list[int]) -> list[int]:
            return [row for row in candidates if fits(facts, question.spacing, heard, listed, place, row)]

        made = explored(order, further, exploration["rate"], random.Random(question.seed), fixed, may_have)
        if made != order:
            lists["exploration"] = made
        order = made
    return lists | {"list": order}


def fits(facts: Facts, spacing: Spacing | None, heard: list[int], listed: list[int], place: int, row: int) -> bool:
    """Whether a track breaks no rule in a place of a list."""
    changed = [*listed[:place], row, *listed[place + 1 :]]
    for most, gap, name in (
        (spacing.max_per_artist if spacing else None, spacing.artist_gap if spacing else 0, "artist_id"),
        (spacing.max_per_album if spacing else None, spacing.album_gap if spacing else 0, "album_id"),
    ):
        groups = [group(facts, one, name) for one in [*heard, *changed]]
        middle, mine = len(heard) + place, group(facts, row, name)
        near = [groups[at] for at in range(len(groups)) if 0 < abs(at - middle) <= gap]
        if mine != UNKNOWN and (mine in near or (most is not None and groups[len(heard) :].count(mine) > most)):
            return False
    return True


tracks = st.integers(0, TRACKS - 1).map(lambda number: f"t{number}")
filters = st.sampled_from(
    [
        {"genre": "rock"},
        {"genre": "rare"},
        {"genre": ["jazz", "folk"]},
        {"explicit": False},
        {"artist_id": ["a1", "a2"]},
    ]
)
about = st.fixed_dictionaries({"filter": filters}) | st.fixed_dictionaries(
    {"tracks": st.lists(tracks, min_size=1, max_size=4)}
)
weights = st.floats(0.1, 20) | st.floats(-20, -0.1)
policies = st.fixed_dictionaries(
    {},
    optional={
        "diversity": st.floats(0.01, 1),
        "boosts": st.lists(
            st.tuples(about, weights).map(lambda one: one[0] | {"weight": one[1]}), min_size=1, max_size=3
        ),
        "pins": st.lists(
            st.tuples(about, st.integers(1, 12)).map(lambda one: one[0] | {"place": one[1]}), min_size=1, max_size=3
        ),
        "exploration": st.fixed_dictionaries({"rate": st.floats(0, 1), "depth": st.integers(2, 150)}),
    },
)
maxima = st.none() | st.integers(1, 3)
spacings = st.none() | st.builds(Spacing, maxima, st.integers(0, 4), maxima, st.integers(0, 3)).filter(
    lambda one: one.of_artists or one.of_albums
)
sessions = st.lists(st.tuples(tracks, st.booleans()), max_size=8).map(
    lambda plays: [Play(track, Outcome.SKIPPED if skipped else Outcome.PLAYED) for track, skipped in plays]
)


questions = st.builds(
    Question,
    sessions,
    st.integers(1, 15),
    st.lists(tracks, max_size=4),
    st.sampled_from([ALLOW_REPEATS, NEVER_REPEAT]),
    spacing=spacings,
    seed=st.just(3),
)


class TestLists:
    @settings(max_examples=150, deadline=None)
    @given(questions, policies, st.none() | filters)
    def test_a_list_is_that_of_the_reference(
        self, facts: Facts, question: Question, policy: dict[str, Any], wanted: dict[str, Any] | None
    ) -> None:
        made = Policy.model_validate(policy)
        question = replace(
            question,
            filter=None if wanted is None else read_filter(wanted),
            policy=made if made.has_steps else None,
        )
        facts.live.check(question)
        [answer] = facts.live.answer([question])
        lists = reference(facts, question, wanted, policy)
        assert answer.rows == lists.pop("list")
        [plain] = facts.live.answer([replace(question, policy=None, spacing=None)])
        assert len(answer.rows) == len(plain.rows) == len(set(answer.rows))  # never shorter
        if answer.steps is None:
            assert not lists.keys() - {"ranking"}
            return
        for row, moves in zip(answer.rows, answer.steps.moves(answer.rows), strict=True):
            assert [move[:3] for move in moves] == expected_moves(row, lists)
            # A pinned track leaves the list that is spaced, so those behind it move up without a rule.
            assert all(move.rules or "pins" in policy for move in moves if move.step == "spacing")

    def test_an_answer_does_not_depend_on_its_batch(self, facts: Facts) -> None:
        policies = [None, Policy(diversity=0.5), Policy.model_validate({"pins": [{"tracks": ["t3"], "place": 2}]})]
        questions = [
            Question([Play("t1")], 8, filter=wanted, policy=policy)
            for policy in policies
            for wanted in (None, read_filter("genre:jazz"))
        ]
        assert [one.rows for one in facts.live.answer(questions)] == [
            facts.live.answer([one])[0].rows for one in questions
        ]

    def test_a_boost_of_a_rare_genre_reaches_the_list(self, facts: Facts) -> None:
        question = Question([Play("t1"), Play("t2")], 8)
        rare = set(facts.frame.with_row_index("row", 1).filter(pl.col("genre") == "rare")["row"])
        [plain] = facts.live.answer([replace(question, k=100)])
        boosts = [{"filter": {"genre": "rare"}, "weight": 20.0}]
        [answer] = facts.live.answer([replace(question, policy=Policy.model_validate({"boosts": boosts}))])
        assert not rare & set(plain.rows)  # not among the candidates by their scores alone
        assert set(answer.rows) == rare
        assert answer.steps is not None
        assert answer.steps.moves(answer.rows)[0] == [Move("boost", None, 1, [])]
        demoted = [{"filter": {"genre": ["rock", "jazz"]}, "weight": -20.0}]
        [answer] = facts.live.answer([replace(question, policy=Policy.model_validate({"boosts": demoted}))])
        assert all(facts.frame["genre"][row - 1] in ("folk", "rare") for row in answer.rows)

    @pytest.mark.parametrize(
        "policy", [{"pins": [{"tracks": ["t7", "t8"], "place": 1}]}, {"boosts": [{"tracks": ["t7"], "weight": 20.0}]}]
    )
    def test_a_removed_track_is_never_pinned_or_boosted(self, facts: Facts, policy: dict[str, Any]) -> None:
        question = Question([Play("t1")], 5, policy=Policy.model_validate(policy))

        def first(asked: Question) -> str:
            [answer] = facts.live.answer([asked])
            assert len(answer.rows) == 5
            return answer.tracks[0].track_id

        assert first(question) == "t7"
        try:
            facts.live.remove({"t7"})
            assert first(question) != "t7"
            if "pins" in policy:
                assert first(question) == "t8"  # the next one of the pin
        finally:
            facts.live.remove(frozenset())
        heard = replace(question, plays=[Play("t7"), Play("t1")])
        assert first(heard) == "t7"
        assert first(replace(heard, repeat=NEVER_REPEAT)) != "t7"
        assert first(replace(question, exclude=["t7"])) != "t7"
        assert first(replace(question, filter=read_filter("explicit:true"))) != "t7"
        [popular] = [facts.live.popular(question)]
        assert popular.tracks[0].track_id == "t7"  # the fallback applies policies as well

    def test_rules_hold_between_their_dates(self, facts: Facts) -> None:
        for dates, active in (
            ({"from": "2020-01-01", "until": "2020-12-31"}, False),
            ({"from": "2999-01-01"}, False),
            ({"from": "2020-01-01", "until": "2999-12-31"}, True),
        ):
            policy = {
                "boosts": [{"tracks": ["t7"], "weight": 20, **dates}],
                "pins": [{"tracks": ["t8"], "place": 2, **dates}],
            }
            [answer] = facts.live.answer([Question([Play("t1")], 5, policy=Policy.model_validate(policy))])
            assert ([track.track_id for track in answer.tracks[:2]] == ["t7", "t8"]) is active

    def test_exploration_differs_without_a_seed_and_repeats_with_one(self, facts: Facts) -> None:
        policy = Policy.model_validate({"exploration": {"rate": 0.5, "depth": 200}})
        question = Question([Play("t1")], 15, policy=policy)
        assert len({tuple(facts.live.answer([question])[0].rows) for _ in range(5)}) > 1
        same = {tuple(facts.live.answer([replace(question, seed=9)])[0].rows) for _ in range(5)}
        assert len(same) == 1


def expected_moves(row: int, lists: Lists) -> list[tuple[str, int | None, int]]:
    moves: list[tuple[str, int | None, int]] = []
    rank = lists["ranking"].index(row) + 1 if row in lists["ranking"] else None
    for step, listed in lists.items():
        if step != "ranking" and row in listed and listed.index(row) + 1 != rank:
            moves.append((step, rank, listed.index(row) + 1))
            rank = listed.index(row) + 1
    return moves
