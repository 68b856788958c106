"""`segue off-policy`: play rates of served lists, and the estimated rate of a policy that did not serve them."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from segue.cli.data import FOLDER
from segue.cli.terminal import example, facts_table, print_json, print_table, say, titled
from segue.errors import BadOption, InputError

if TYPE_CHECKING:
    from segue.off_policy import ListLog, PolicyRates

_BATCH: Final = 256  # lists ranked at a time
_MAX_PLAYS: Final = 1_000  # of a session, as the service stores by default
_RANKS_SHOWN: Final = 10
_NO_EXPLORATION: Final = (
    "no exploration: every propensity is 1, so only the play rate of the lists as served can be estimated. Serve a "
    "policy with exploration to estimate others"
)


@click.command(
    "off-policy",
    short_help="Estimate the play rate of a policy from served lists.",
    epilog=example("segue off-policy data/events", "segue off-policy data/events --policy-release releases/mine-2"),
)
@click.argument("folder", type=FOLDER)
@click.option(
    "--policy-release",
    type=FOLDER,
    metavar="RELEASE",
    help="Estimate the lists of this release, without a policy.  [default: the served policy without exploration]",
)
@click.option(
    "--window",
    "window_s",
    type=float,
    default=1200,
    show_default=True,
    metavar="S",
    help="Ignore a play that is reported more than S seconds after the list.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all figures as JSON.")
def off_policy(folder: Path, policy_release: Path | None, window_s: float, as_json: bool) -> None:
    """Show how served lists did, and estimate how another policy would have done.

    FOLDER is the event log of a service that runs with SEGUE_LIST_LOG_RATE. The next play after a list is the
    observation: a track of the list that was played counts 1, one that was skipped 0, another track is no observation.

    The estimate needs lists with exploration (docs/how-to/policies.md). It weights each observation by the inverse of
    the probability that its track was shown at its rank. Intervals are 95 % and resample sessions.
    """
    from segue.off_policy import LEAST_EFFECTIVE, observed_places, play_rates, read_log

    if not window_s > 0:
        raise BadOption(f"--window is {window_s:g}: expected a number of seconds above 0")
    log = read_log(folder)
    places = observed_places(log, window_s)
    explores = bool((places["propensity"] < 1).any())
    if policy_release is not None and not explores:
        raise InputError(f"{folder} has {_NO_EXPLORATION}")
    targets = None if policy_release is None else _lists_of(policy_release, log)
    found = list(play_rates(log, places, targets))
    target = "without exploration" if policy_release is None else f"of {policy_release.name}"
    if as_json:
        print_json({"window_s": window_s, "target": target, "policies": [asdict(one) for one in found]})
    else:
        for rates in found:
            _show(rates, target)
    if not explores:
        say(f"Note: {_NO_EXPLORATION}.")
    if any(one.target is not None and one.target.effective < LEAST_EFFECTIVE for one in found):
        say(
            f"Note: fewer than {LEAST_EFFECTIVE:.0f} effective observations: an estimate may be far off, whatever its "
            "interval."
        )


def _lists_of(path: Path, log: "ListLog") -> Iterator[list[str]]:
    """Yield the list of a release for each list of the log, after the plays that the log has of its session.

    A play counts as skipped if that was known when the list was served: from its first report, or from a later one
    before the list was logged, by the same clock of Redis.
    """
    from segue.sessions import Outcome, Play
    from service.releases.loaded import Question, load_release

    live = load_release(path)
    by_session = log.plays.group_by("session_id", maintain_order=True)
    sessions = by_session.agg("position", "track_id", "reported", "skipped_at")
    plays = {name: columns for name, *columns in sessions.iter_rows()}
    asked = log.lists.select("session_id", "position", "written_at", "track_ids")
    for batch in asked.iter_slices(_BATCH):
        questions: list[Question] = []
        for session_id, position, at, track_ids in batch.iter_rows():
            positions, tracks, reported, skipped = plays.get(session_id, ((), (), (), ()))
            end = bisect_left(positions, position)
            known = slice(max(end - _MAX_PLAYS, 0), end)
            before = [
                Play(track, Outcome.SKIPPED if skip and (skip == first or skip <= at) else Outcome.PLAYED)
                for track, first, skip in zip(tracks[known], reported[known], skipped[known], strict=True)
            ]
            questions.append(Question(before, len(track_ids)))
        for answer in live.answer(questions):
            yield [live.catalogue.track_id(row) for row in answer.rows]


def _show(rates: "PolicyRates", target: str) -> None:
    arm = "" if rates.arm is None else f", {rates.arm} arm"
    policy = "no policy" if rates.policy is None else f"policy {rates.policy}"
    facts: dict[str, Any] = {
        "lists": rates.lists,
        "sessions": rates.sessions,
        "observed": rates.observed,
        "play rate as served": _rate(rates.play_rate, rates.interval),
    }
    name = f"play rate {target}"
    if rates.target is not None:
        facts |= {
            name: _rate(rates.target.play_rate, rates.target.interval),
            "effective observations": f"{rates.target.effective:,.1f} ({rates.target.matched:,} match)",
            "support": f"{rates.target.support:.1%}",
        }
    else:
        facts[name] = "- (no observation matches)" if rates.explores else "- (no exploration)"
    print_table(facts_table(f"{rates.release}, {policy}{arm}", facts))
    if rates.by_rank:
        more = len(rates.by_rank) - _RANKS_SHOWN
        table = titled("Skip rate by rank", f"{more:,} more ranks: see --json." if more > 0 else None)
        for column in ("rank", "observed", "skip rate"):
            table.add_column(column, justify="right")
        for one in rates.by_rank[:_RANKS_SHOWN]:
            table.add_row(str(one.rank), f"{one.observed:,}", f"{one.skip_rate:.1%}")
        print_table(table)


def _rate(rate: float | None, interval: tuple[float, float] | None) -> str:
    if rate is None:
        return "-"
    return f"{rate:.4f}" if interval is None else f"{rate:.4f} [{interval[0]:.4f}, {interval[1]:.4f}]"
