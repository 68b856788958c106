"""`segue tune` and `segue reproduce`: tune training options, and compare the systems of the paper."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segue.cli.data import FOLDER, SPLIT
from segue.cli.evaluate import TARGETS, say_notes, show
from segue.cli.terminal import counting_steps, example, facts_table, print_json, print_table, say
from segue.errors import BadOption

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from training.evaluation.reproduce import Plan


@click.command(
    short_help="Tune training options on the validation set.",
    epilog=example(
        "segue tune data/mine --trials 20 --out studies/mine",
        "segue train data/mine --recipe studies/mine/best.toml --out releases/mine",
    ),
)
@click.argument("dataset", type=FOLDER)
@click.option(
    "--model",
    default="sasrec",
    show_default=True,
    metavar="NAME",
    help="Model to tune: one of those of `segue train --model`.",
)
@click.option(
    "--no-nce",
    is_flag=True,
    help="Train without the skip loss (InfoNCE). By default, only learning_rate is then searched.",
)
@click.option(
    "--recipe",
    metavar="RECIPE",
    help="Options of all trials: a TOML file, or a built-in recipe (demo, mssd).  [default: the model's defaults]",
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set one option of all trials. Repeatable.")
@click.option(
    "--search",
    "searched",
    multiple=True,
    metavar="KEY=V1,V2,...",
    help="Search these values of an option. Repeatable.  "
    "[default: the paper's values of alpha, beta and learning_rate]",
)
@click.option(
    "--split",
    type=SPLIT,
    default="last-play",
    show_default=True,
    help="last-play: validate on the last plays of each session. new-sessions: on sessions not used in training.",
)
@TARGETS
@click.option(
    "--trials",
    type=click.IntRange(1),
    default=30,
    show_default=True,
    metavar="N",
    help="Total number of trials, including those of an interrupted run.",
)
@click.option(
    "--out", type=FOLDER, required=True, metavar="FOLDER", help="Folder of the study. An existing study is resumed."
)
@click.option("--json", "as_json", is_flag=True, help="Print the best options as JSON.")
def tune(
    dataset: Path,
    model: str,
    no_nce: bool,
    recipe: str | None,
    settings: tuple[str, ...],
    searched: tuple[str, ...],
    split: str,
    targets: str,
    trials: int,
    out: Path,
    as_json: bool,
) -> None:
    """Tune training options on DATASET by validation HR@10, and write the best ones to OUT/best.toml.

    Test targets are not used. If you interrupt the command, run it again to resume.
    """
    from segue.cli.train import options_of
    from training.data.dataset import open_dataset
    from training.evaluation.tune import BEST, StudySpec
    from training.evaluation.tune import tune as tune_model
    from training.notes import training_notes
    from training.registry import model_named

    model = model_named(model)
    options = options_of(model, recipe, settings, no_nce=no_nce)
    space = _space(options.model_dump(), searched, no_nce=no_nce)
    tuning = StudySpec(model, options, space, open_dataset(dataset), split, out, trials, targets)  # type: ignore[arg-type]
    say_notes(training_notes(model, options, tuning.dataset, tuning.split, tuning.targets))
    study = tune_model(tuning, _report_trial)
    best = {"validation HR@10": study.best_value, **study.best_params, "recipe": out / BEST}
    if as_json:
        print_json(best)
    else:
        print_table(facts_table(f"Best of {len(study.trials)} trials of {model}", best))
        same = "" if split == "last-play" else f" --split {split}"
        same += "" if targets == "last" else f" --targets {targets}"
        next_command = f"segue train {dataset} --recipe {out / BEST}{same} --out releases/tuned"
        say(f"Recipe written to {out / BEST}.", next_command)


def _report_trial(trial: "FrozenTrial", study: "Study") -> None:
    value = "stopped early" if trial.value is None or trial.state.name != "COMPLETE" else f"HR@10 {trial.value:.4f}"
    chosen = " ".join(f"{key}={value}" for key, value in trial.params.items())
    best = f"  (best {study.best_value:.4f})" if study.best_trials else ""
    say(f"Trial {trial.number + 1}: {chosen}  validation {value}{best}")


def _space(options: dict[str, Any], searched: tuple[str, ...], *, no_nce: bool) -> dict[str, list[Any]]:
    """Return the values to search for each option. Raises BadOption."""
    from training.evaluation.tune import PAPER_SPACE

    if not searched:
        fixed = {"alpha", "beta"} if no_nce else set()
        space = {key: list(values) for key, values in PAPER_SPACE.items() if key in options and key not in fixed}
        if not space:
            raise BadOption(
                "this model has none of the options alpha, beta and learning_rate: name options to --search"
            )
        return space
    found: dict[str, list[Any]] = {}
    for text in searched:
        key, equals, values = text.partition("=")
        if not equals or not values:
            raise BadOption(f"--search {text!r}: expected KEY=V1,V2,..., such as learning_rate=0.001,0.005")
        found[key.strip()] = [_plain(value.strip()) for value in values.split(",")]
    return found


def _plain(text: str) -> Any:
    """Convert a text to a number or a truth value if it is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


@click.command(
    short_help="Train, evaluate and compare all systems of the paper.",
    epilog=example("segue reproduce data/mine --recipe mssd --seeds 1 --out study"),
)
@click.argument("datasets", type=FOLDER, nargs=-1, required=True, metavar="DATASET...")
@click.option(
    "--out", type=FOLDER, required=True, metavar="FOLDER", help="Folder for releases, results and the report."
)
@click.option(
    "--recipe",
    metavar="RECIPE",
    help="Training options: a TOML file with one table per model, or the name of a built-in recipe.",
)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set one option of all neural models. Repeatable."
)
@click.option(
    "--system",
    "systems",
    multiple=True,
    metavar="NAME",
    help="Train only this system, such as sasrec, sasrec+nce or wrmf-nr. Repeatable.  [default: all]",
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    metavar="N",
    help="Number of trainings per system, with the random seeds 0 to N - 1.",
)
@click.option(
    "--split",
    type=click.Choice(["last-play", "new-sessions", "both"]),
    default="both",
    show_default=True,
    help="last-play: test on the last play of each session. new-sessions: on sessions not used in training.",
)
@click.option(
    "--protocol",
    type=click.Choice(["full", "sampled", "both"]),
    default="both",
    show_default=True,
    help="full: rank all tracks. sampled: rank each target among 1,000 sampled tracks.",
)
@TARGETS
@click.option(
    "--repeat",
    "repeats",
    multiple=True,
    default=("allow",),
    show_default=True,
    metavar="POLICY",
    help="Evaluate with this policy for tracks of the session: allow, never or after:N, as in `segue evaluate`. "
    "Repeatable.",
)
@click.option(
    "--jobs", type=click.IntRange(1), metavar="N", help="Number of parallel trainings.  [default: one per core]"
)
def reproduce(
    datasets: tuple[Path, ...],
    out: Path,
    recipe: str | None,
    settings: tuple[str, ...],
    systems: tuple[str, ...],
    seeds: int,
    split: str,
    protocol: str,
    targets: str,
    repeats: tuple[str, ...],
    jobs: int | None,
) -> None:
    """Train and evaluate all systems of the paper on each DATASET, and write a report that compares them.

    This takes hours on a large dataset. If you interrupt the command, run it again to resume.
    """
    from segue.sessions import repeat_policy
    from training.data.dataset import open_dataset
    from training.evaluation.reproduce import SYSTEMS, Wanted, plan, plan_notes

    wanted = Wanted(
        systems=systems or tuple(SYSTEMS),
        seeds=range(seeds),
        splits=("last-play", "new-sessions") if split == "both" else (split,),  # type: ignore[arg-type]
        protocols=("full", "sampled") if protocol == "both" else (protocol,),  # type: ignore[arg-type]
        recipe=recipe,
        settings=settings,
        targets=targets,  # type: ignore[arg-type]
        repeats=[repeat_policy(repeat).text for repeat in repeats],
    )
    if len({dataset.name for dataset in datasets}) < len(datasets):
        raise BadOption("two datasets have the same folder name and would share a folder in --out: rename one of them")
    plans = []
    for dataset in datasets:
        opened = open_dataset(dataset)
        planned = plan(wanted, dataset, opened.facts.fingerprint, out / dataset.name)
        say_notes([f"{dataset.name}: {note}" for note in plan_notes(planned, opened)])
        plans.append((dataset.name, planned))
    for name, planned in plans:
        report(_carry_out(name, planned, jobs or os.cpu_count() or 1), out / name)


def _carry_out(name: str, planned: "Plan", jobs: int) -> list[Path]:
    from training.evaluation.reproduce import run_plan

    with counting_steps() as advance:

        def on_progress(completed: str, done: int, total: int) -> None:
            advance(name, done, total)
            if completed:
                say(f"{name}: {completed} ({done} of {total})")

        return run_plan(planned, jobs, on_progress)


def report(results: list[Path], folder: Path) -> None:
    """Write the comparison of results as JSON, Markdown and HTML, and print it."""
    from training.evaluation.compare.report import measure, write_report

    sections = measure(results)
    write_report(sections, folder / "report.html", folder / "report.md", folder / "report.json")
    show(sections)
    say(f"Report written to {folder / 'report.html'}, report.md and report.json. Open report.html in a browser.")
