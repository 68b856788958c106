"""Policies: reading their files, and each step of a list."""

import math
import random
from collections import Counter
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.errors import BadPolicy, NoEmbeddings
from segue.filters import read_filter
from segue.list_steps import Spacing, boosted, diversified, explored, pinned, propensities
from segue.policy import Policy, read_policy
from service.releases.lists import check_policy
from service.releases.policies import Policies

RADIO = """
filter = "explicit:false,market:DE"
repeat = "after:50"
caution = 0.5
max_per_artist = 2
artist_gap = 3
max_per_album = 1
album_gap = 2
diversity = 0.2

[exploration]
rate = 0.05
depth = 60

[[boosts]]
filter = {genre = "jazz", released = {min = 2026-10-01}}
weight = 0.7
from = 2026-01-01
until = 2026-12-01T08:00:00+01:00

[[pins]]
tracks = ["t1", "t2"]
place = 3
until = 2026-12-24
"""


def written(folder: Path, text: str | bytes, name: str = "radio") -> Path:
    path = folder / f"{name}.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


class TestFiles:
    def test_a_rule_can_hold_to_the_end_of_all_dates(self, tmp_path: Path) -> None:
        policy = read_policy(written(tmp_path, '[[pins]]\ntracks = ["a"]\nplace = 1\nuntil = 9999-12-31'))
        assert policy.pins[0].is_active(datetime.fromisoformat("9999-12-31T23Z").timestamp())

    def test_every_key_is_read(self, tmp_path: Path) -> None:
        policy = read_policy(written(tmp_path, RADIO))
        assert policy.filter == read_filter("explicit:false,market:DE")
        assert str(policy.repeat) == "after:50"
        assert policy.caution == 0.5
        assert policy.spacing() == Spacing(2, 3, 1, 2)
        assert policy.spacing(4, 0) == Spacing(4, 0, 1, 2)  # those of the request take precedence
        assert policy.diversity == 0.2
        assert policy.exploration is not None
        assert (policy.exploration.rate, policy.exploration.depth) == (0.05, 60)
        [boost], [pin] = policy.boosts, policy.pins
        assert boost.filter == read_filter({"genre": "jazz", "released": {"min": "2026-10-01"}})
        assert boost.weight == 0.7
        times = [boost.start, boost.until, pin.until]
        expected = ["2026-01-01T00Z", "2026-12-01T07Z", "2026-12-25T00Z"]  # `until` holds to the end of its day
        assert times == [datetime.fromisoformat(one).timestamp() for one in expected]
        assert pin.tracks == ("t1", "t2")
        assert [boost.is_active(at) for at in (times[0] - 1, times[0], times[1] - 1, times[1])] == [
            False,
            True,
            True,
            False,
        ]
        assert policy.contents["boosts"][0]["filter"]["released"] == {"min": "2026-10-01"}
        assert read_policy(written(tmp_path, "")) == Policy()
        assert not Policy().has_steps

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            (
                "repeats = 'never'",
                "unknown key repeats, expected one of album_gap, artist_gap, boosts, caution, divers",
            ),
            ("repeat = 'after:0'", "repeat is 'after:0', expected allow, never, or after:N with N from 1 to 1000"),
            ("caution = 11", "caution is 11, expected a number of at most 10"),
            ("caution = true", "caution is true, expected a number"),
            ("max_per_artist = 1.5", "max_per_artist is 1.5, expected a whole number"),
            ("album_gap = 21", "album_gap is 21, expected a number of at most 20"),
            ("diversity = nan", "diversity is nan, expected a number of at most 1"),
            ("filter = 'genre'", "filter: the filter 'genre' has no condition name:value at character 1"),
            ("[filter]\nx = {y = 1}", "filter: x is '{\"y\": 1}': a range has min, max or both"),
            ("exploration = 0.1", "exploration is 0.1, expected a table"),
            ("[exploration]\nrate = 2", "exploration: rate is 2, expected a number of at most 1"),
            ("[exploration]\nrat = 0", "exploration: unknown key rat, expected one of depth, rate"),
            ("boosts = 1", "boosts is 1, expected a list"),
            ("boosts = [1]", "boost 1: expected a table"),
            ("[[boosts]]\nweight = 1", "boost 1: expected either filter or tracks"),
            ("[[boosts]]\nfilter = 'a:b'", "boost 1: weight is missing"),
            (
                "[[boosts]]\nfilter = 'a:b'\nweigth = 1",
                "boost 1: unknown key weigth, expected one of filter, from, tra",
            ),
            ("[[boosts]]\ntracks = ['a']\nweight = nan", "boost 1: weight is nan, expected a number"),
            ("[[boosts]]\ntracks = []\nweight = 1", "boost 1: tracks is a list of 0 values, expected at least 1"),
            ("[[pins]]\ntracks = [1]\nplace = 1", "pin 1: tracks.0 is 1, expected a text"),
            ("[[pins]]\ntracks = 'a'\nplace = 1", "pin 1: tracks is 'a', expected a list"),
            ("[[pins]]\ntracks = ['a']\nplace = 0", "pin 1: place is 0, expected a number of at least 1"),
            (
                "[[pins]]\ntracks = ['a']\nplace = 1\nfrom = 2026-02-01\nuntil = 2026-01-01",
                "pin 1: until is before from",
            ),
            ("[[pins]]\ntracks = ['a']\nplace = 1\nfrom = 2026-02-01T00:00:00", "expected a date such as 2026-12-01"),
            ("caution = ", "is no TOML: Invalid value"),
            ("x = \u2028", "is no TOML"),
            (b"\xff\xfe", "is no TOML"),
            ("a = " + "[" * 5000, "is no TOML"),
            ("a = " + "9" * 5000, "is no TOML"),
            ("#" * 2**21, "has 2,097,152 bytes, expected at most 1,048,576"),
        ],
    )
    def test_a_wrong_file_is_one_line(self, tmp_path: Path, text: str | bytes, told: str) -> None:
        path = written(tmp_path, text)
        with pytest.raises(BadPolicy) as raised:
            read_policy(path)
        assert told in str(raised.value)
        assert str(path) in str(raised.value)
        assert len(str(raised.value).splitlines()) == 1

    @settings(max_examples=300)
    @given(st.data())
    def test_a_damaged_file_is_a_policy_or_one_line(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        content = bytearray(RADIO.encode())
        for _ in range(data.draw(st.integers(1, 6))):
            at = data.draw(st.integers(0, len(content)))
            removed = data.draw(st.integers(0, 12))
            piece = data.draw(
                st.binary(max_size=4)
                | st.sampled_from(
                    [b"[[", b"]", b"\n", b"nan", b"inf", b"1e999", b"-1", b'"', b"'''", b"{", b"true", b"\\u2028"]
                )
                | st.just(bytes(content[at : at + 40]))
            )
            content[at : at + removed] = piece
        path = written(tmp_path_factory.getbasetemp(), bytes(content), "damaged")
        told = ""
        try:
            assert read_policy(path).diversity <= 1
        except BadPolicy as error:
            told = str(error)
        assert len(told.splitlines()) == (str(path) in told)
        assert told.isprintable()
        assert len(told) < 1_000

    def test_a_folder_is_read_at_the_start_or_refused(self, tmp_path: Path) -> None:
        assert not Policies(None).by_name
        written(tmp_path, RADIO)
        (tmp_path / ".radio.toml.swp.toml").write_text("caution = ")
        (tmp_path / "notes.txt").write_text("not a policy")
        assert [*Policies(tmp_path).by_name] == ["radio"]
        written(tmp_path, "caution = 11", "other")
        with pytest.raises(BadPolicy, match=r"other\.toml: caution is 11"):
            Policies(tmp_path)
        (tmp_path / "other.toml").unlink()
        written(tmp_path, "", "not a name")
        with pytest.raises(BadPolicy, match="cannot name a policy"):
            Policies(tmp_path)
        with pytest.raises(BadPolicy, match="cannot be read"):
            Policies(tmp_path / "nowhere")

    def test_a_release_without_an_encoder_refuses_diversity(self) -> None:
        check_policy(Policy(), has_embeddings=False)
        with pytest.raises(NoEmbeddings, match=r"diversity 0\.5, but the release has no encoder"):
            check_policy(Policy(diversity=0.5), has_embeddings=False)


class TestSteps:
    @given(st.lists(st.tuples(st.floats(-30, 30), st.floats(-20, 20)), max_size=30))
    def test_boosts_add_their_weights(self, tracks: list[tuple[float, float]]) -> None:
        values, weights = (np.array([one[part] for one in tracks], dtype=np.float64) for part in (0, 1))
        expected = sorted(range(len(tracks)), key=lambda at: (-(values[at] + weights[at]), at))
        assert boosted(values, weights) == expected

    @given(st.integers(0, 25), st.integers(0, 30), st.floats(0, 1), st.integers(0, 2**32 - 1))
    def test_diversity_is_maximal_marginal_relevance(self, count: int, k: int, diversity: float, seed: int) -> None:
        vectors = np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)
        vectors[::5] = 0  # a track without an embedding is similar to none
        made = diversified(vectors, k, diversity)
        assert sorted(made) == list(range(count))

        def value(one: int, chosen: list[int]) -> float:
            lengths = [np.linalg.norm(vectors[one]) * np.linalg.norm(vectors[other]) for other in chosen]
            cosines = [
                vectors[one] @ vectors[other] / length if length else 0.0
                for other, length in zip(chosen, lengths, strict=True)
            ]
            return float((1 - diversity) * (1 - one / count) - diversity * max(cosines, default=0.0))

        for at, one in enumerate(made[:k]):
            left = [other for other in range(count) if other not in made[:at]]
            best = max(value(other, made[:at]) for other in left) if at else value(0, [])
            assert value(one, made[:at]) == pytest.approx(best, abs=1e-5)
        assert made[k:] == sorted(made[k:])
        assert diversified(vectors, k, 0.0) == list(range(count))

    @given(st.permutations(range(12)), st.integers(1, 15), st.dictionaries(st.integers(0, 14), st.integers(0, 20)))
    def test_pins_have_their_places(self, ranked: list[int], k: int, wanted: dict[int, int]) -> None:
        pins = {place: one for place, one in wanted.items() if [*wanted.values()].count(one) == 1}
        listed = ranked[:k]
        made = pinned(listed, pins, k)
        inside = {place: one for place, one in pins.items() if place < k}
        assert len(made) == len(set(made)) == min(k, len({*listed, *inside.values()})) >= len(listed)
        if len(made) == k:
            assert all(made[place] == one for place, one in inside.items())
        assert set(inside.values()) <= set(made)  # also behind the end of a shorter list
        others = [one for one in made if one not in inside.values()]
        assert others == [one for one in listed if one not in inside.values()][: len(others)]

    @given(st.integers(0, 10), st.integers(0, 8), st.floats(0, 1), st.sets(st.integers(0, 9)), st.integers(0, 99))
    def test_exploration_takes_further_tracks(self, k: int, more: int, rate: float, fixed: set[int], seed: int) -> None:
        listed, pool = list(range(k)), list(range(k, k + more))

        def even(_: list[int], place: int, candidates: list[int]) -> list[int]:
            return [one for one in candidates if (place + one) % 2 == 0]

        made = explored(listed, pool, rate, random.Random(seed), fixed, even)
        assert len(set(made)) == len(made) == k
        for place, (before, after) in enumerate(zip(listed, made, strict=True)):
            assert after == before or (after in pool and place not in fixed and even(made, place, [after]))
        assert made == explored(listed, pool, rate, random.Random(seed), fixed, even)
        assert explored(listed, pool, 0.0, random.Random(seed)) == listed

    @given(st.integers(1, 4), st.integers(0, 4), st.floats(0, 1), st.sets(st.integers(0, 3)), st.integers(1, 3))
    def test_propensities_of_all_lists_sum_to_one(
        self, k: int, more: int, rate: float, fixed: set[int], modulus: int
    ) -> None:
        """At each place, given the places above it, and of whole lists."""
        listed, pool = list(range(k)), list(range(k, k + more))

        def some(_: list[int], place: int, candidates: list[int]) -> list[int]:
            return [one for one in candidates if (place + one) % modulus == 0]

        def below(above: list[int]) -> float:
            place = len(above)
            if place == k:
                return 1.0
            kept = [*above, *listed[place:]]
            possible = [listed[place]]
            if place not in fixed:
                possible += some(kept, place, [one for one in pool if one not in kept])
            if rate == 1 and len(possible) > 1:
                possible = possible[1:]
            total = 0.0
            for candidate in possible:
                shown = [*above, candidate, *listed[place + 1 :]]
                total += propensities(listed, shown, pool, rate, fixed, some)[place] * below([*above, candidate])
            return total

        assert below([]) == pytest.approx(1)

    def test_propensities_are_the_shares_of_many_draws(self) -> None:
        """A drawn track is one less for the places below, and a track that lost its place may be drawn again."""
        listed, pool, rate, fixed = [0, 1, 7], [5, 6, 7], 0.4, {1}
        draw = random.Random(11)
        lists = Counter(tuple(explored(listed, pool, rate, draw, fixed)) for _ in range(50_000))
        chances = {shown: math.prod(propensities(listed, shown, pool, rate, fixed)) for shown in lists}
        assert sum(chances.values()) == pytest.approx(1)
        for shown, count in lists.items():
            deviation = math.sqrt(chances[shown] * (1 - chances[shown]) * 50_000)
            assert abs(count - chances[shown] * 50_000) < 5 * deviation
        assert propensities(listed, [5, 1, 6], pool, rate, fixed) == pytest.approx([0.4 / 2, 1, 0.4 / 1])
        assert propensities(listed, [0, 1, 7], pool, rate, fixed) == pytest.approx([0.6, 1, 0.6])
        assert propensities(listed, listed, [], rate) == [1, 1, 1]

    def test_exploration_has_its_rate_and_draws_uniformly(self) -> None:
        draw, rate, pool = random.Random(7), 0.2, list(range(10, 40))
        lists = [explored(list(range(10)), pool, rate, draw) for _ in range(20_000)]
        taken = np.array([[one >= 10 for one in made] for made in lists])
        deviation = math.sqrt(rate * (1 - rate) / len(lists))
        assert np.abs(taken.mean(axis=0) - rate).max() < 5 * deviation  # at each place
        counts = np.bincount([one for made in lists for one in made if one >= 10], minlength=40)[10:]
        expected = counts.sum() / len(pool)
        assert ((counts - expected) ** 2 / expected).sum() < 29 + 5 * math.sqrt(58)  # chi-square with 29 degrees
