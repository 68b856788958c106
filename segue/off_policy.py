"""Off-policy estimates: what the log of served lists says about a list policy that did not serve them.

The log is the folder of the service's event log: `lists-*.parquet` (SEGUE_LIST_LOG_RATE) and `events-*.parquet`. The
next play of a session after a list is the observation: 1 if it is a track of the list and was played, 0 if it is one
and was skipped, none if it is another track or comes too late.

An estimate weights each observation by the inverse of the track's propensity at its rank if the target policy has the
same track there, otherwise by 0, and divides by the sum of the weights (self-normalised inverse propensity scoring).
Source: Swaminathan and Joachims, "The self-normalized estimator for counterfactual learning", NIPS 2015,
https://papers.nips.cc/paper/5748-the-self-normalized-estimator-for-counterfactual-learning. Weighting each rank by its
own propensity is the item-position model: Li et al., "Offline evaluation of ranking policies with click models", KDD
2018, https://doi.org/10.1145/3219819.3220028.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import polars as pl

from segue.arrays import Float64, Int
from segue.errors import InputError
from segue.safe_files import UNREADABLE, check_footer

LEAST_EFFECTIVE: Final = 100.0  # effective observations below which an estimate is uncertain, whatever its interval
_RESAMPLES: Final = 1_000
_GROUP: Final = ("release", "arm", "policy")
_LIST_COLUMNS: Final = (
    "session_id",
    "position",
    "timestamp",
    *_GROUP,
    "track_ids",
    "propensities",
    "explored",
    "written_at",
)
_PLAY_COLUMNS: Final = ("session_id", "position", "track_id", "skipped", "written_at")

Interval: TypeAlias = tuple[float, float]


@dataclass(frozen=True, slots=True)
class ListLog:
    """The lists and plays of a log. Of several lists before the same play, and several rows of a play, the last.

    A list that was answered after the play at its position was reported counts only if there is no earlier one: lists
    have the service's time and plays have Redis' time, and these clocks may differ.
    """

    lists: pl.DataFrame  # a row for each list: `list`, its number from 0, and _LIST_COLUMNS
    # session_id, position, track_id, skipped, reported and skipped_at (datetimes of the first report, and of the first
    # that says that the play was skipped), by session and position
    plays: pl.DataFrame


@dataclass(frozen=True, slots=True)
class RankRate:
    """Observations of tracks at one rank."""

    rank: int  # from 1
    observed: int
    skip_rate: float


@dataclass(frozen=True, slots=True)
class TargetRate:
    """The estimated play rate of the target policy."""

    play_rate: float
    interval: Interval | None  # 95 %; None with fewer than two sessions
    matched: int  # observations whose track the target has at the same rank
    effective: float  # effective sample size: (sum of weights)^2 / sum of squared weights
    support: float  # about the share of places whose target track the log could show: 1 if it could always


@dataclass(frozen=True, slots=True)
class PolicyRates:
    """What the log says about the lists of one release, arm of an A/B test and policy."""

    release: str
    arm: str | None
    policy: str | None
    lists: int
    sessions: int
    observed: int
    play_rate: float | None  # of the observations, as served
    interval: Interval | None  # 95 %
    by_rank: list[RankRate]
    explores: bool  # whether a propensity is below 1
    target: TargetRate | None  # None without exploration, or if no observation matches the target


def read_log(folder: Path) -> ListLog:
    """Read the lists and plays of an event log. Raises InputError if there are no lists, or a file is damaged."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the folder of the service's event log, such as data/events")
    files = sorted(folder.glob("lists-*.parquet"))
    if not files:
        raise InputError(
            f"{folder} has no served lists (lists-*.parquet): set SEGUE_LIST_LOG_RATE above 0 in the service"
        )
    lists = _read(files, _LIST_COLUMNS).sort("timestamp", maintain_order=True)
    plays = _read(sorted(folder.glob("events-*.parquet")), _PLAY_COLUMNS) if any(folder.glob("events-*")) else None
    if plays is None:
        raise InputError(f"{folder} has served lists but no plays (events-*.parquet): copy the whole event log")
    last = plays.sort("written_at", maintain_order=True).group_by("session_id", "position")
    skipped_at = pl.col("written_at").filter("skipped").first().alias("skipped_at")
    plays = last.agg(pl.last("track_id", "skipped"), pl.first("written_at").alias("reported"), skipped_at)
    place = ["session_id", "position"]
    lists = lists.join(plays.select(*place, "reported"), on=place, how="left", maintain_order="left")
    is_late = pl.col("timestamp") > pl.col("reported")  # null without a report
    in_time = lists.filter(~is_late.fill_null(value=False)).unique(place, keep="last", maintain_order=True)
    late = lists.filter(is_late).unique(place, keep="first", maintain_order=True)
    lists = pl.concat([in_time, late.join(in_time, on=place, how="anti")]).sort("timestamp", maintain_order=True)
    return ListLog(lists.drop("reported").with_row_index("list"), plays.sort(place))


def _read(files: Sequence[Path], columns: Sequence[str]) -> pl.DataFrame:
    frames: list[pl.DataFrame] = []
    for file in files:
        try:
            check_footer(file)
            frames.append(pl.read_parquet(file, columns=list(columns)))
        except FileNotFoundError as error:
            raise InputError(f"{file} was replaced by an erasure: run the command again") from error
        except UNREADABLE as error:
            reason = str(error).partition("\n")[0][:200]
            raise InputError(f"{file} cannot be read ({reason}): remove it or copy it again") from error
    return pl.concat(frames)


def observed_places(log: ListLog, window_s: float) -> pl.DataFrame:
    """Return a row for each place of each list: `list`, `session_id`, `rank` from 1, `track_id`, `propensity`,
    `explored` and `reward`.

    `reward` is 1 for a play, 0 for a skip, null for no observation: the next play of the session is another track, or
    was reported more than `window_s` seconds after the list.
    """  # noqa: D205 (the columns do not fit into one line)
    upcoming = log.plays.rename({"track_id": "next_id"})
    joined = log.lists.join(upcoming, on=["session_id", "position"], how="left", maintain_order="left")
    in_time = (pl.col("reported") - pl.col("timestamp")).dt.total_milliseconds() <= window_s * 1000
    places = joined.select(
        "list",
        "session_id",
        pl.int_ranges(1, pl.col("track_ids").list.len() + 1).alias("rank"),
        "track_ids",
        "propensities",
        "explored",
        pl.when(in_time).then("next_id").alias("next_id"),
        "skipped",
    ).explode("rank", "track_ids", "propensities", "explored")
    is_next = pl.col("track_ids") == pl.col("next_id")
    return places.select(
        "list",
        "session_id",
        "rank",
        pl.col("track_ids").alias("track_id"),
        pl.col("propensities").alias("propensity"),
        "explored",
        pl.when(is_next).then((~pl.col("skipped")).cast(pl.Float64)).alias("reward"),
    )


def play_rates(
    log: ListLog, places: pl.DataFrame, targets: Iterable[Sequence[str]] | None = None, seed: int = 0
) -> Iterator[PolicyRates]:
    """Yield the rates of each release, arm and policy, most lists first.

    `places` are those of `observed_places`. `targets` has the target policy's list for each list of the log, in order;
    None: the lists without exploration. `seed` is that of the resampling of sessions.
    """
    if targets is None:
        places = places.with_columns((~pl.col("explored")).alias("matches"))
    else:
        wanted = pl.DataFrame({"wanted": [list(one) for one in targets]}, schema={"wanted": pl.List(pl.String)})
        own = wanted.with_row_index("list")
        at_rank = pl.col("wanted").list.get(pl.col("rank") - 1, null_on_oob=True)
        places = places.join(own, on="list", how="left", maintain_order="left")
        places = places.with_columns((at_rank == pl.col("track_id")).fill_null(value=False).alias("matches"))
    for lists in sorted(log.lists.partition_by(_GROUP, maintain_order=True), key=len, reverse=True):
        found = places.join(lists.select("list"), on="list", how="semi", maintain_order="left")
        yield _rates(lists, found, np.random.default_rng(seed))


def _rates(lists: pl.DataFrame, places: pl.DataFrame, chance: np.random.Generator) -> PolicyRates:
    release, arm, policy = lists.select(_GROUP).row(0)
    seen = places.filter(pl.col("reward").is_not_null())
    rewards: Float64 = seen["reward"].to_numpy()
    by_rank = seen.group_by("rank").agg(pl.len(), (1 - pl.col("reward").mean()).alias("skip_rate")).sort("rank")
    explores = bool((places["propensity"] < 1).any())
    return PolicyRates(
        release,
        arm,
        policy,
        len(lists),
        lists["session_id"].n_unique(),
        len(seen),
        float(rewards.mean()) if len(seen) else None,
        bootstrap(_numbered(seen), rewards, np.ones(len(seen)), chance),
        [RankRate(*line) for line in by_rank.iter_rows()],
        explores,
        _target_rate(places, seen, chance) if explores else None,
    )


def _target_rate(places: pl.DataFrame, seen: pl.DataFrame, chance: np.random.Generator) -> TargetRate | None:
    weight = pl.col("matches").cast(pl.Float64) / pl.col("propensity")
    weights: Float64 = seen.select(weight).to_series().to_numpy()
    rewards: Float64 = seen["reward"].to_numpy()
    total = float(weights.sum())
    if not total:
        return None
    return TargetRate(
        float(weights @ rewards) / total,
        bootstrap(_numbered(seen), rewards, weights, chance),
        int((weights > 0).sum()),
        total**2 / float(weights @ weights),
        float(places.select(weight.mean()).item()),
    )


def _numbered(seen: pl.DataFrame) -> Int:
    """Return the number of the session of each observation, from 0. [n] int64."""
    numbers: Int = seen["session_id"].rank("dense").cast(pl.Int64).to_numpy() - 1
    return numbers


def bootstrap(sessions: Int, rewards: Float64, weights: Float64, chance: np.random.Generator) -> Interval | None:
    """Return the 95 % percentile interval of the weighted mean of `rewards` when sessions are resampled.

    `sessions` [n] int64 numbers the sessions from 0, `rewards` and `weights` are [n] float64. None with fewer than two
    sessions. Observations of a session depend on each other, so they are resampled together.
    """
    count = int(sessions.max(initial=-1)) + 1
    if count < 2:
        return None
    above = np.bincount(sessions, weights * rewards, count)
    below = np.bincount(sessions, weights, count)
    means = []
    for _ in range(_RESAMPLES):
        drawn = chance.integers(0, count, count)
        total = below[drawn].sum()
        if total > 0:
            means.append(above[drawn].sum() / total)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
