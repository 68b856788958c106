"""All that shapes a list at once: filters, takedowns, added tracks, bans, stations and policies."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("onnx")

from segue.catalogue import Catalogue
from segue.filters import read_filter
from segue.policy import Policy
from segue.sessions import ALLOW_REPEATS, NEVER_REPEAT, Outcome, Play, Station
from service.releases.added import AddedTrack
from service.releases.explanation import explain_answer
from service.releases.loaded import LoadedRelease, Question, load_release
from tests.conftest import write_encoder_release

TRACKS: Final = 60
GENRES: Final = ("rock", "jazz", "folk")


def attributes_of(number: int) -> dict[str, Any]:
    return {"artist_id": f"a{number % 7}", "genre": GENRES[number % 3], "explicit": number % 4 == 0}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> LoadedRelease:
    """60 tracks of seven artists, three added ones (new-60 to new-62) and a changed one (t5)."""
    rng = np.random.default_rng(1)
    lines = [{"track_id": f"t{i}", "plays": 100 - i, **attributes_of(i)} for i in range(TRACKS)]
    embeddings = rng.standard_normal((TRACKS + 1, 6), dtype=np.float32)
    embeddings[0] = 0
    path: Path = tmp_path_factory.mktemp("together") / "release"
    catalogue = Catalogue.from_frame(pl.DataFrame(lines))
    written = write_encoder_release(path, catalogue, embeddings)

    def changed(number: int, neighbours: list[str]) -> AddedTrack:
        return AddedTrack.now(title=None, artist=None, attributes=attributes_of(number), neighbours=neighbours)

    added = {f"new-{i}": changed(i, [f"t{i - 50}", f"t{i - 40}"]) for i in range(60, 63)}
    return load_release(written.path).with_added({**added, "t5": changed(61, [])})


def attributes(track_id: str) -> dict[str, Any]:
    return attributes_of(61 if track_id == "t5" else int(track_id.removeprefix("t").removeprefix("new-")))


IDS: Final = [*(f"t{i}" for i in range(TRACKS)), "new-60", "new-61", "new-62"]
ids = st.sampled_from(IDS)
some = st.lists(ids, max_size=6, unique=True)
policies = st.fixed_dictionaries(
    {},
    optional={
        "boosts": st.just([{"filter": {"genre": "jazz"}, "weight": 3.0}]),
        "diversity": st.sampled_from([0.3, 1.0]),
        "pins": st.lists(ids, min_size=1, max_size=3).map(lambda tracks: [{"tracks": tracks, "place": 2}]),
        "exploration": st.just({"rate": 0.5, "depth": 40}),
        "max_per_artist": st.integers(1, 3),
        "artist_gap": st.integers(0, 3),
    },
)


@settings(max_examples=60)
@given(
    plays=st.lists(st.tuples(ids, st.sampled_from(Outcome)), max_size=6),
    k=st.integers(1, 30),
    genre=st.sampled_from([None, *GENRES]),
    exclude=some,
    removed=some,
    seeds=st.one_of(st.none(), st.tuples(some, st.lists(st.sampled_from(["a1", "a5"]), max_size=2, unique=True))),
    repeat=st.sampled_from([ALLOW_REPEATS, NEVER_REPEAT]),
    given_policy=policies,
)
def test_a_list_has_k_allowed_tracks_and_no_other(
    *,
    live: LoadedRelease,
    plays: list[tuple[str, Outcome]],
    k: int,
    genre: str | None,
    exclude: list[str],
    removed: list[str],
    seeds: tuple[list[str], list[str]] | None,
    repeat: Any,
    given_policy: dict[str, Any],
) -> None:
    policy = Policy.model_validate(given_policy)
    pull = None if seeds is None else live.seeds.pull(Station(tuple(seeds[0]), tuple(seeds[1]), 0.5))[0]
    live.remove(set(removed))
    try:
        question = Question(
            [Play(track_id, outcome) for track_id, outcome in plays],
            k,
            exclude,
            repeat,
            filter=None if genre is None else read_filter({"genre": genre}),
            spacing=policy.spacing(None, None),
            policy=policy if policy.has_steps else None,
            seed=1,
            station=pull,
        )
        [answer] = live.answer([question])
        explained = explain_answer(live, question, answer)
    finally:
        live.remove(frozenset())
    found = [live.catalogue.track_id(row) for row in answer.rows]
    heard = {track_id for track_id, _ in plays} if repeat is NEVER_REPEAT else set()
    gone = {*exclude, *removed, *heard}
    allowed = {one for one in IDS if one not in gone and (genre is None or attributes(one)["genre"] == genre)}
    assert set(found) <= allowed
    assert len(set(found)) == len(found) == min(k, len(allowed))
    if len(explained.contributions) and explained.baseline is not None:
        totals = explained.contributions.sum(axis=1) + explained.baseline
        np.testing.assert_allclose(totals, answer.scores, rtol=1e-3, atol=1e-4)
