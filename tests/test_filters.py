"""Filters of tracks: the language, three-valued logic, and answers that equal a search through all allowed tracks."""

import contextlib
import json
import tempfile
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("faiss")

from index import faiss_cpu
from index.exact import ExactIndex
from index.faiss_cpu import KINDS, Kind
from segue.arrays import Float32
from segue.attributes import ATTRIBUTE_FILES, Attributes
from segue.catalogue import PAD_ROW, Catalogue
from segue.errors import BadFilter, BadRelease, InputError, UnknownAttribute
from segue.filters import Allowed, read_filter, tracks_allowed
from segue.hybrid import HybridRanker
from segue.recommend import EncoderRanker, PopularityRanker, Recommender
from segue.sessions import ALLOW_REPEATS, NEVER_REPEAT, Play
from segue.window import Windows, to_sessions
from tests.test_ngram import counts_of, plays_of
from training.models.mixture import prior_mixture

GENRES, MARKETS = ("rock", "jazz", 'a, "b" | c..d'), ("DE", "US", "JP")
FIRST_DAY: Final = date(2020, 1, 1)

tracks = st.fixed_dictionaries(
    {
        "explicit": st.none() | st.booleans(),
        "genre": st.none() | st.sampled_from(GENRES),
        "year": st.none() | st.integers(1990, 1995),
        "released": st.none() | st.integers(0, 5).map(lambda days: FIRST_DAY + timedelta(days=days)),
        "markets": st.none() | st.lists(st.sampled_from(MARKETS), max_size=4),
    }
)
SCHEMA: Final[dict[str, Any]] = {
    "explicit": pl.Boolean,
    "genre": pl.String,
    "year": pl.Int64,
    "released": pl.Date,
    "markets": pl.List(pl.String),
}
texts = st.one_of(st.sampled_from(GENRES), st.lists(st.sampled_from(GENRES), min_size=1, max_size=3))
sets = st.one_of(st.sampled_from(MARKETS), st.lists(st.sampled_from(MARKETS), min_size=1, max_size=3))


def in_order(ends: dict[str, Any]) -> dict[str, Any]:
    """The lower end as `min`."""
    return dict(zip(sorted(ends, reverse=True), sorted(ends.values()), strict=True)) if len(ends) == 2 else ends


bounds = st.dictionaries(st.sampled_from(["min", "max"]), st.integers(1989, 1996), min_size=1).map(in_order)
days = st.dictionaries(
    st.sampled_from(["min", "max"]),
    st.integers(-1, 6).map(lambda days: (FIRST_DAY + timedelta(days=days)).isoformat()),
    min_size=1,
).map(in_order)
conditions = st.one_of(
    st.booleans().map(lambda value: {"explicit": value}),
    texts.map(lambda value: {"genre": value}),
    sets.map(lambda value: {"markets": value}),
    (bounds | st.integers(1989, 1996)).map(lambda value: {"year": value}),
    days.map(lambda value: {"released": value}),
)
filters = st.recursive(
    conditions,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"all": parts}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"any": parts}),
        inner.map(lambda part: {"not": part}),
        st.tuples(conditions, conditions).map(lambda two: two[0] | two[1]),
    ),
    max_leaves=6,
)


def truth(wanted: dict[str, Any], track: dict[str, Any]) -> bool | None:
    """Evaluate a filter for one track, in plain Python. None: unknown."""
    results: list[bool | None] = []
    for name, value in wanted.items():
        if name == "not":
            inner = truth(value, track)
            results.append(None if inner is None else not inner)
        elif name == "all":
            results.append(both([truth(part, track) for part in value]))
        elif name == "any":
            opposite = both([None if (one := truth(part, track)) is None else not one for part in value])
            results.append(None if opposite is None else not opposite)
        else:
            results.append(of_condition(value, track[name]))
    return both(results)


def both(parts: list[bool | None]) -> bool | None:
    if False in parts:
        return False
    return None if None in parts else True


def of_condition(value: Any, held: Any) -> bool | None:
    if held is None:
        return None
    if isinstance(value, dict):
        held = held.isoformat() if isinstance(held, date) else held
        return bool(value.get("min", held) <= held <= value.get("max", held))
    wanted = value if isinstance(value, list) else [value]
    return bool(set(wanted) & set(held)) if isinstance(held, list) else held in wanted


def attributes_of(lines: list[dict[str, Any]]) -> Attributes:
    return Attributes.from_frame(pl.DataFrame(lines, schema=SCHEMA))


class TestLanguage:
    @given(st.lists(tracks, min_size=1, max_size=12), filters)
    def test_a_filter_allows_the_tracks_for_which_it_holds(
        self, lines: list[dict[str, Any]], wanted: dict[str, Any]
    ) -> None:
        found = tracks_allowed(read_filter(wanted), attributes_of(lines), len(lines))
        assert found.rows.tolist() == [row for row, line in enumerate(lines, start=1) if truth(wanted, line) is True]
        assert tracks_allowed(read_filter(json.dumps(wanted)), attributes_of(lines), len(lines)).count == found.count

    @given(st.lists(tracks, max_size=12), st.lists(st.tuples(st.booleans(), conditions), min_size=1, max_size=4))
    def test_the_compact_form_means_the_same(
        self, lines: list[dict[str, Any]], parts: list[tuple[bool, dict[str, Any]]]
    ) -> None:
        def shown(value: Any) -> str:
            if isinstance(value, dict):
                return f"{value.get('min', '')}..{value.get('max', '')}"
            if isinstance(value, list):
                return "|".join(map(shown, value))
            return json.dumps(value) if any(mark in str(value) for mark in ',|"') else str(value)

        text = ",".join(
            f"{'!' * negated}{name}:{shown(value)}" for negated, part in parts for name, value in part.items()
        )
        same = {"all": [{"not": part} if negated else part for negated, part in parts]}
        attributes = attributes_of(lines)
        compact = tracks_allowed(read_filter(text), attributes, len(lines))
        assert compact.rows.tolist() == tracks_allowed(read_filter(same), attributes, len(lines)).rows.tolist()

    @given(st.lists(tracks, max_size=12))
    def test_attributes_survive_their_files(self, lines: list[dict[str, Any]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            attributes_of(lines).write(Path(folder))
            read = Attributes.map(Path(folder), len(lines))
        expected = [
            {
                name: sorted(set(value)) if isinstance(value, list) else str(value) if name == "released" else value
                for name, value in line.items()
                if value is not None
            }
            for line in lines
        ]
        assert read.of_rows(range(1, len(lines) + 1), SCHEMA) == expected

    @pytest.mark.parametrize(
        ("wanted", "told"),
        [
            ("genr:rock", "'genr' is not an attribute of this release. It has explicit, genre, markets"),
            ("explicit:1", "explicit is a boolean, and the filter compares it with '1': give true or false"),
            ({"explicit": "maybe"}, "give true or false"),
            ({"genre": 1}, "genre is a text"),
            ({"genre": {"min": "a"}}, "a range needs a number or a date"),
            ({"year": "soon"}, "give a number"),
            ({"year": True}, "give a number"),
            ({"released": "2020"}, "give a date such as"),
            ({"released": "2020-02-30"}, "give a date such as"),
            ({"markets": []}, "an empty list"),
            ({"markets": [["DE"]]}, "expected a text"),
            ({"year": {"from": 1}}, "a range has min, max or both"),
            ({"year": {}}, "a range has min, max or both"),
            ({"year": None}, "expected a text, a finite number"),
            ({"any": []}, "expected a list of filters"),
            ({"any": {"genre": "rock"}}, "expected a list of filters"),
            ({"not": "genre"}, "is no filter"),
            ({}, "is no filter"),
            ([], "is no filter"),
            ('{"genre"', "is no JSON"),
            ("genre", "has no condition name:value at character 1"),
            ("genre:", "has no value at character 7"),
            ("genre:rock|", "has no value at character 12"),
            ("genre:rock,", "has no condition name:value at character 12"),
            ('genre:"rock', "has no value"),
            ('genre:"rock"x', "expected , or |"),
            ("year:..", "has no bound"),
            ("year:1..2..3", "expected , or |"),
            ("x" * 4_001, "expected at most 4,000"),
            ('genre:"\\ud800"', "expected a text"),
            ({"genre": "\ud800"}, "expected a text"),
            ({"year": 10**400}, "a finite number"),
            ("year:1_0", "give a number"),
            ("year:\uff11", "give a number"),
            ({"genre": ["rock"] * 201}, "has 201 values, expected at most 200"),
            (",".join(["genre:" + "|".join(["rock"] * 150)] * 2), "has 300 values, expected at most 200"),
            ("genre: ", "has no value"),
            ("genre:rock| ,year:1", "has no value"),
            ("year:2..1", "2 to 1 is no range"),
            ({"released": {"min": "2020-02-01", "max": "2020-01-31"}}, "give the lower end first"),
            ('{"not": {"genre": "rock"}, "not": {"genre": "jazz"}}', "'not' twice"),
            ('{"year": NaN}', "NaN is no number of JSON"),
        ],
    )
    def test_a_filter_that_means_nothing_is_refused(self, wanted: object, told: str) -> None:
        with pytest.raises((BadFilter, UnknownAttribute)) as refused:
            tracks_allowed(read_filter(wanted), attributes_of([]), 0)
        assert told in str(refused.value)
        assert "\n" not in str(refused.value)

    def test_nesting_has_a_limit(self) -> None:
        nested: dict[str, Any] = {"genre": "rock"}
        for _ in range(8):
            nested = {"not": nested}
        with pytest.raises(BadFilter, match="more than 8 levels"):
            read_filter(nested)
        with pytest.raises(BadFilter):
            read_filter('{"not":' * 600)

    @given(st.text(max_size=40) | st.text(alphabet='genre:|,!".{}[] x1', max_size=30))
    def test_no_text_breaks_the_reader(self, text: str) -> None:
        with contextlib.suppress(InputError):
            tracks_allowed(read_filter(text), attributes_of([]), 0)

    def test_the_files_depend_on_the_values_alone(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        names = [f"a name that is too long to be stored within a view {number}" for number in range(3_000)]
        lines = pl.DataFrame(
            {"genre": rng.choice(names, 20_000), "markets": [[one] for one in rng.choice(names, 20_000)]}
        )
        written = []
        for turn in range(3):
            folder = tmp_path / str(turn)
            folder.mkdir()
            Attributes.from_frame(lines).write(folder)
            written.append([(folder / name).read_bytes() for name in ATTRIBUTE_FILES])
        assert written[0] == written[1] == written[2]

    def test_damaged_files_are_refused(self, tmp_path: Path) -> None:
        attributes_of([dict.fromkeys(SCHEMA)]).write(tmp_path)
        with pytest.raises(BadRelease, match="does not fit"):
            Attributes.map(tmp_path, 2)
        codes = np.load(tmp_path / "attribute_codes.npy")
        np.save(tmp_path / "attribute_codes.npy", codes + np.uint8(7))
        with pytest.raises(BadRelease, match="disagree"):
            Attributes.map(tmp_path, 1)
        (tmp_path / "attributes.arrow").write_bytes(b"no arrow")
        with pytest.raises(BadRelease, match="not an Arrow file"):
            Attributes.map(tmp_path, 1)


TRACKS: Final = 60
EMBEDDINGS: Final = np.random.default_rng(0).standard_normal((TRACKS + 1, 8)).astype(np.float32)
CATALOGUE: Final = Catalogue.from_frame(pl.DataFrame({"track_id": [f"t{row}" for row in range(1, TRACKS + 1)]}))
LISTENED: Final = [[1, 2, 3, 4], [2, 3, 5], [3, 9, 2, 3], [40, 41], [42, 50, 51]]
PLAYS: Final = plays_of(LISTENED, TRACKS + 1)
sessions = st.lists(st.integers(0, TRACKS), max_size=6).map(lambda rows: [Play(f"t{row}") for row in rows])
masks = st.lists(st.booleans(), min_size=TRACKS, max_size=TRACKS).map(np.array) | st.sets(
    st.integers(0, TRACKS - 1), max_size=6
).map(lambda rows: np.isin(np.arange(TRACKS), list(rows)))


class MeanEncoder:
    def encode(self, windows: Windows) -> Float32:
        return np.asarray(EMBEDDINGS[windows.tracks].sum(axis=1), dtype=np.float32)


def rankers() -> dict[str, Any]:
    exact = ExactIndex(EMBEDDINGS)
    encoder = EncoderRanker(MeanEncoder(), exact, exact, EMBEDDINGS)
    few = EncoderRanker(MeanEncoder(), faiss_cpu.build(EMBEDDINGS, "hnsw"), exact, EMBEDDINGS)
    counts = counts_of(LISTENED, TRACKS + 1)
    by_plays = np.argsort(-PLAYS[1:], kind="stable") + 1
    hybrid = HybridRanker(counts, prior_mixture(0.3), by_plays, encoder)
    return {
        "exact": encoder,
        "hnsw": few,
        "hybrid": hybrid,
        "counts": HybridRanker(counts, prior_mixture(0.3), by_plays),
    }


RANKERS: Final = rankers()


class TestAnswers:
    @settings(max_examples=100)
    @given(st.sampled_from(sorted(RANKERS)), sessions, masks, st.sets(st.integers(1, TRACKS), max_size=5), st.data())
    def test_an_answer_is_the_best_of_what_is_allowed(
        self, kind: str, session: list[Play], mask: Any, excluded: set[int], data: st.DataObject
    ) -> None:
        k = data.draw(st.integers(1, TRACKS))
        repeat = data.draw(st.sampled_from([ALLOW_REPEATS, NEVER_REPEAT]))
        allowed = Allowed(mask)
        whole = Recommender(RANKERS[kind], PopularityRanker(PLAYS), window=5)
        within = whole.within(allowed)
        asked = to_sessions([session], CATALOGUE)
        [found] = within.recommend(asked, k, [np.array(sorted(excluded), dtype=np.int64)], repeat=repeat)
        heard = {int(play.track_id[1:]) for play in session} if repeat is NEVER_REPEAT else set()
        left = [row for row in allowed.rows.tolist() if row not in heard | excluded]
        scores = within.scores(asked, np.array([left], dtype=np.int64))[0] if left else np.empty(0)
        expected = sorted(zip((-scores).tolist(), left, strict=True))[:k]
        assert len(found.rows) == min(k, len(left))
        np.testing.assert_allclose(found.scores, [-score for score, _ in expected], rtol=1e-4, atol=1e-5)
        assert set(found.rows.tolist()) <= set(left)
        if kind != "hybrid":  # its part of the encoder is of the best allowed tracks, so that its scores differ
            np.testing.assert_allclose(scores, whole.scores(asked, np.array([left], dtype=np.int64))[0] if left else [])

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("share", [0.9, 0.5, 0.05])
    def test_no_index_returns_a_track_that_is_not_allowed(
        self, kind: Kind, share: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(faiss_cpu, "SCORED_EXACTLY", 20)  # the index itself is asked
        rng = np.random.default_rng(2)
        embeddings = rng.standard_normal((20_001, 16)).astype(np.float32)
        index = faiss_cpu.build(embeddings, kind)
        allowed = Allowed(rng.random(20_000) < share)
        queries = rng.standard_normal((50, 16)).astype(np.float32)
        found = index.search(queries, 20, allowed)
        best = ExactIndex(embeddings).search(queries, 20, allowed)
        assert allowed.contains(found.rows[found.rows != PAD_ROW]).all()
        shared = [len(set(a) & set(b)) / 20 for a, b in zip(found.rows.tolist(), best.rows.tolist(), strict=True)]
        assert np.mean(shared) > 0.5  # random vectors, and parameters that are not tuned

    def test_the_most_played_allowed_tracks_are_found_however_far_they_are(self) -> None:
        mask = np.zeros(200_000, dtype=np.bool_)
        mask[[199_999, 150_000]] = True
        order = np.arange(1, 200_001)
        assert Allowed(mask).first(order, 5).tolist() == [150_001, 200_000]
        assert Allowed(mask).first(order, 1).tolist() == [150_001]
        assert Allowed(mask).without(np.array([PAD_ROW, 150_001])).rows.tolist() == [200_000]
