"""The tables of `segue evaluate` (metrics with intervals, hit rates as bars), and the command `segue compare`."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import click
from rich.table import Table
from rich.text import Text

from segue.cli.data import FOLDER
from segue.cli.terminal import bar, example, first_that_fits, print_json, print_table, say, titled

if TYPE_CHECKING:
    from training.evaluation.compare.report import ReportSection
    from training.evaluation.evaluate import Question
    from training.reports.tables import Table as ComparisonTable

# The name of each system and its result, as `segue evaluate --output` writes it.
Results: TypeAlias = Sequence[tuple[str, Mapping[str, Any]]]

# The option of all commands that choose targets. The function of the command has the parameter `targets`.
TARGETS: Final = click.option(
    "--targets",
    type=click.Choice(["last", "known"]),
    default="last",
    show_default=True,
    help="last: the last play of a session is its target. known: the last play with a known outcome; if skips were "
    "inferred from time, the play after it is left out of training and evaluation.",
)
# The option of all commands that choose whether tracks repeat. The function of the command has the parameter `repeat`.
REPEAT: Final = click.option(
    "--repeat",
    default="allow",
    show_default=True,
    metavar="POLICY",
    help="Whether tracks of the session may be recommended. allow: yes. never: no. after:N, N from 1 to 1000: once N "
    "plays, skipped ones included, have followed the latest play of the track.",
)
# The option of the commands that rank. The function of the command has the parameter `caution`.
CAUTION: Final = click.option(
    "--caution",
    type=click.FloatRange(0, 10),
    metavar="X",
    help="Weight of the probability that a track is not skipped, 0 to 10: rank by log P(next) + X * log P(played). "
    "Default: that of the release.",
)
METRIC_COLUMNS: Final = ("HR@1", "HR@10", "MRR@10")
HIT_RATES: Final = ("HR@1", "HR@5", "HR@10", "HR@20")
_STYLES: Final = {"played": "green", "skipped": "yellow"}
_BAR_WIDTHS: Final = (24, 16, 12, 8, 4)  # the widest that the terminal has room for


def say_notes(notes: Sequence[str]) -> None:
    """Print sentences about what a training or an evaluation rests on."""
    for note in notes:
        say(f"Note: {note}")


def evaluation_table(title: str, results: Results, room: int | None = None) -> Table:
    """Return a row for each group of targets and system: means with 95 % bootstrap intervals.

    With less `room` (characters), the number of sessions is omitted, then MRR@10, then the intervals. None: no limit.
    """
    narrower = (("sessions", *METRIC_COLUMNS), METRIC_COLUMNS, METRIC_COLUMNS[:2])
    tables = [partial(_evaluation_table, title, results, columns) for columns in narrower]
    return first_that_fits([*tables, partial(_evaluation_table, title, results, METRIC_COLUMNS, intervals=False)], room)


def _evaluation_table(title: str, results: Results, columns: Sequence[str], *, intervals: bool = True) -> Table:
    words = "value [95 % interval]. " if intervals else ""
    table = titled(title, f"{words}For skipped targets, lower is better.")
    for name in ("system", "targets"):
        table.add_column(name)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for group in ("all", "played", "skipped"):
        for system, result in results:
            measured = result["groups"][group]
            cells = [
                f"{measured[name]:,}" if name == "sessions" else _cell(result, group, name, intervals)
                for name in columns
            ]
            table.add_row(Text(system), Text(group, style=_STYLES.get(group, "")), *cells)
        if len(results) > 1:
            table.add_section()
    return table


def hit_rates(results: Results, room: int | None = None) -> Table:
    """Return the hit rates at each k of played and skipped targets, with bars that fit in `room` characters."""
    return first_that_fits([partial(_hit_rates, results, width) for width in _BAR_WIDTHS], room)


def _hit_rates(results: Results, width: int) -> Table:
    table = titled("Hit rate@k", "Good: long bars for played targets, short bars for skipped targets.")
    for name in ("k", "system"):
        table.add_column(name)
    for group in _STYLES:
        table.add_column(group, justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
    for metric in HIT_RATES:
        for system, result in results:
            k = metric.partition("@")[2]
            cells: list[str | Text] = [f"{k} (1 by construction)" if _is_constant(result, metric) else k, Text(system)]
            for group, style in _STYLES.items():
                estimate = result["groups"][group][metric]
                cells.append(_value(estimate) if estimate is not None else _missing(result))
                cells.append(bar(estimate["value"], width, style) if estimate is not None else Text())
            table.add_row(*cells)
        if len(results) > 1:
            table.add_section()
    return table


def other_metrics(results: Results) -> Table:
    """Return the difference between played and skipped targets, coverage@20, and the share of unseen targets."""
    notes = "coverage@20: share of the catalogue in any top-20 list. unseen: targets without a play in training."
    is_unknown = any(result.get("unknown_targets") for _, result in results)
    unknown = " not measurable: the outcome of targets is unknown." if is_unknown else ""
    table = titled("Other metrics", f"{notes} -: no targets, or not measured.{unknown}")
    table.add_column("system")
    for name in ("MRR@10 played - skipped", "coverage@20", "unseen"):
        table.add_column(name, justify="right", no_wrap=True)
    for system, result in results:
        coverage = result.get("catalogue_coverage@20")
        table.add_row(
            Text(system),
            _estimate(result["skip_down_ranking"]["MRR@10 played - skipped"], _missing(result)),
            f"{coverage:.1%}" if coverage is not None else "-",
            f"{result['unseen_targets']:.1%}",
        )
    return table


def _cell(result: Mapping[str, Any], group: str, metric: str, intervals: bool) -> Text:
    estimate = result["groups"][group][metric]
    if intervals and estimate is not None and _is_constant(result, metric):
        return Text.assemble((_value(estimate), "bold"), (" by construction", "dim"))
    return _estimate(estimate, _missing(result), intervals=intervals)


def _is_constant(result: Mapping[str, Any], metric: str) -> bool:
    """Whether a metric is 1 for each target in the catalogue, because the catalogue is that small."""
    return metric in result.get("by_construction", ())


def _missing(result: Mapping[str, Any]) -> str:
    """Return the text that is printed if a measure has no targets, or if outcomes of targets are unknown."""
    return "not measurable" if result.get("unknown_targets") else "-"


_GROUPS: Final = {
    "pair_seen": "last two tracks seen together",
    "pair_unseen": "last two never seen together",
    "after_play": "after a play",
    "after_skip": "after a skip",
    "repeat": "repeat of a track of the session",
    "new": "new in the session",
}
_GAPS: Final = {"raw_gap": "raw gap", "matched_gap": "matched gap"}
_AUC: Final = "AUC, played above skipped"
_RESPONSES: Final = {
    "after_skip": "similar tracks after a skip",
    "after_play": "similar tracks after a play",
    "skip_minus_play": "similar tracks, skip - play",
}


def target_groups(results: Results, room: int | None = None) -> Table:
    """Return HR@1 and HR@10 of each group of targets for each system.

    With little `room` (characters), the intervals are omitted, then the number of sessions.
    """
    narrower = ((True, True), (False, True), (False, False))
    return first_that_fits([partial(_target_groups, results, *shown) for shown in narrower], room)


def _target_groups(results: Results, intervals: bool, sessions: bool) -> Table:
    notes = "seen together: the last two tracks directly follow each other in a training session."
    table = titled("Hit rates by group of targets", f"{notes} -: no targets, or not known.")
    for name in ("targets", "system"):
        table.add_column(name)
    for name in ("sessions", "HR@1", "HR@10") if sessions else ("HR@1", "HR@10"):
        table.add_column(name, justify="right", no_wrap=True)
    for group, text in _GROUPS.items():
        for system, result in results:
            of = result["target_groups"][group]
            cells = [_estimate(of[metric], intervals=intervals) for metric in ("HR@1", "HR@10")]
            table.add_row(text, Text(system), *([f"{of['sessions']:,}"] if sessions else []), *cells)
    return table


def skip_measures(results: Results, room: int | None = None) -> Table:
    """Return the measures of skip learning, a column for each system, without intervals if there is little `room`."""
    return first_that_fits([partial(_skip_measures, results, intervals) for intervals in (True, False)], room)


def _skip_measures(results: Results, intervals: bool) -> Table:
    measured = [(system, result["skip_measures"]) for system, result in results]
    notes = (
        "gap: played minus skipped targets. Higher is better. matched: between sessions in the same state. similar "
        "tracks: change of their position in percentage points. It should be negative after a skip, and lower "
        "than after a play."
    )
    reasons = {key: text for _, of in measured for key, text in of["reasons"].items()}
    names = _GAPS | {"pairwise_auc": "AUC", "responsiveness": "similar tracks", "caution_effect": "effect of caution"}
    table = titled("Skip measures", " ".join([notes, *(f"No {names[key]}: {text}." for key, text in reasons.items())]))
    table.add_column("measure", no_wrap=True)
    for system, _ in measured:
        table.add_column(Text(system), justify="right")
    for key, text in _GAPS.items():
        for metric in METRIC_COLUMNS:
            cells = [_estimate((of[key] or {}).get(metric), sign="+", intervals=intervals) for _, of in measured]
            table.add_row(f"{text}, {metric}", *cells)
    if any(of.get("caution_effect") for _, of in measured):
        for metric in METRIC_COLUMNS:
            effects = [((of.get("caution_effect") or {}).get("effect") or {}).get(metric) for _, of in measured]
            table.add_row(
                f"effect of caution, {metric}", *(_estimate(of, sign="+", intervals=intervals) for of in effects)
            )
    table.add_row(_AUC, *(_estimate(of["pairwise_auc"], intervals=intervals) for _, of in measured))
    for key, text in _RESPONSES.items():
        changes = [(of["responsiveness"] or {}).get(key) for _, of in measured]
        table.add_row(text, *(_estimate(_in_percent(change), sign="+", intervals=intervals) for change in changes))
    return table


def _in_percent(estimate: Mapping[str, float] | None) -> Mapping[str, float] | None:
    return None if estimate is None else {key: 100 * estimate[key] for key in ("value", "low", "high")}


def print_evaluations(question: "Question", results: list[tuple[str, Any]]) -> None:
    """Print the tables of one or more systems with the same evaluation settings."""
    targets = f"{question.part} targets{' of known outcome' if question.targets == 'known' else ''}"
    title = f"{question.dataset.facts.title}: {targets}, {question.split} split, {question.protocol} ranking"
    if question.repeat.plays:
        title += f", repeat={question.repeat}"
    print_table(partial(evaluation_table, title, results))
    print_table(partial(hit_rates, results))
    print_table(other_metrics(results))
    if all("skip_measures" in result for _, result in results):
        print_table(partial(target_groups, results))
        print_table(partial(skip_measures, results))


def _estimate(
    estimate: Mapping[str, float] | None, missing: str = "-", *, sign: str = "", intervals: bool = True
) -> Text:
    if estimate is None:
        return Text(missing)
    interval = f" [{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]" if intervals else ""
    return Text.assemble((_value(estimate, sign), "bold"), (interval, "dim"))


def _value(estimate: Mapping[str, float], sign: str = "") -> str:
    return f"{estimate['value']:{sign}.3f}"


@click.command(
    short_help="Compare evaluation results: intervals, significance tests, plots.",
    epilog=example(
        "segue evaluate releases/a data/mine --output a.json",
        "segue evaluate releases/b data/mine --output b.json",
        "segue compare a.json b.json --html comparison.html",
    ),
)
@click.argument("results", type=FOLDER, nargs=-1, required=True, metavar="RESULT.json...")
@click.option("--html", type=FOLDER, metavar="FILE", help="Write tables and plots to FILE as one offline HTML page.")
@click.option("--markdown", type=FOLDER, metavar="FILE", help="Write the tables to FILE as Markdown.")
@click.option("--json", "to_stdout", is_flag=True, help="Print estimates and significance tests as JSON.")
@click.option("--output", type=FOLDER, metavar="FILE", help="Write estimates and significance tests to FILE as JSON.")
def compare(
    results: tuple[Path, ...], html: Path | None, markdown: Path | None, to_stdout: bool, output: Path | None
) -> None:
    """Compare evaluation results of several releases.

    RESULT.json is a file that `segue evaluate --output` wrote. Results are compared if they have the same
    dataset, split, part, protocol, targets and policy for repeated tracks.
    """
    from training.evaluation.compare.report import as_json, measure, write_report

    sections = measure(results)
    write_report(sections, html, markdown, output)
    if to_stdout:
        print_json(as_json(sections))
        return
    show(sections)
    written = [str(path) for path in (html, markdown, output) if path is not None]
    say(f"Written: {', '.join(written)}" if written else "For all tables and plots, add --html FILE.")


def show(sections: "Sequence[ReportSection]") -> None:
    """Print the conclusions of a comparison, then its main tables."""
    for section in sections:
        for sentence in section.sentences:
            say(f"{section.setting}: {sentence}")
        for table in section.tables:
            if table.title.startswith(("Every system", "Groups of targets", "Skip measures")):
                print_table(partial(_rich, table))


def _rich(table: "ComparisonTable", room: int | None) -> Table:
    """Return the first columns of a table, at most six and no more than fit.

    With little `room` (characters), the number of seeds is omitted, then the intervals.
    """
    first = [partial(_first_columns, table, range(number)) for number in (6, 5, 4)]
    places = [place for place, column in enumerate(table.columns) if column != "seeds"]
    narrow = [partial(_first_columns, table, places[:number]) for number in (4, 3)]
    return first_that_fits(
        [*first, *narrow, *(partial(_first_columns, table, places[:number], intervals=False) for number in (4, 3, 2))],
        room,
    )


def _first_columns(table: "ComparisonTable", places: Sequence[int], *, intervals: bool = True) -> Table:
    """Return the columns at `places`. Those that a table does not have are left out."""
    shown = titled(table.title, table.note)
    places = [place for place in places if place < len(table.columns)]
    for place in places:
        shown.add_column(table.columns[place], no_wrap=place > 0)  # the first has names, which are never cut
    for row in table.rows:
        shown.add_row(*(row[place] if intervals else row[place].partition(" [")[0] for place in places))
    return shown
