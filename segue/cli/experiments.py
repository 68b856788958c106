"""`segue tune` and `segue reproduce`: the options to train with, and every system of the paper compared."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from segue.cli.data import FOLDER, SPLIT
from segue.cli.evaluate import show
from segue.cli.terminal import counting_steps, facts_table, print_json, print_table, say
from segue.errors import BadOption

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from training.evaluation.reproduce import Plan


@click.command(short_help="The best options for a dataset, by validation.")
@click.argument("dataset", type=FOLDER)
@click.option("--model", default="sasrec", show_default=True, help="Any model that `segue train` knows.")
@click.option(
    "--no-nce", is_flag=True, help="Leave out the InfoNCE term; of the paper's space the learning rate stays."
)
@click.option("--recipe", help="What the trials start from: a TOML file, or the name of a shipped recipe.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Fix one option; may be repeated.")
@click.option(
    "--search",
    "searched",
    multiple=True,
    metavar="KEY=V1,V2,...",
    help="Search these values instead of the paper's alpha, beta and learning_rate; may be repeated.",
)
@click.option(
    "--split",
    type=SPLIT,
    default="last-play",
    show_default=True,
    help="Validate on each session's last plays, or on whole sessions.",
)
@click.option("--trials", type=click.IntRange(1), default=30, show_default=True, help="Total number of trials.")
@click.option("--out", type=FOLDER, required=True, help="Folder of the study; an existing study is resumed.")
@click.option("--json", "as_json", is_flag=True, help="Print the best options as JSON.")
def tune(
    dataset: Path,
    model: str,
    no_nce: bool,
    recipe: str | None,
    settings: tuple[str, ...],
    searched: tuple[str, ...],
    split: str,
    trials: int,
    out: Path,
    as_json: bool,
) -> None:
    """Choose options for DATASET by validation HR@10, and write the best as a recipe.

    Test targets play no part. You can interrupt it: the same command resumes where it stopped.
    """
    from segue.cli.train import options_of
    from training.data.dataset import open_dataset
    from training.evaluation.tune import BEST, StudySpec
    from training.evaluation.tune import tune as tune_model
    from training.registry import model_named

    model = model_named(model)
    options = options_of(model, recipe, settings, no_nce=no_nce)
    space = _space(options.model_dump(), searched, no_nce=no_nce)
    tuning = StudySpec(model, options, space, open_dataset(dataset), split, out, trials)  # type: ignore[arg-type]
    study = tune_model(tuning, _tell_trial)
    best = {"validation HR@10": study.best_value, **study.best_params, "recipe": out / BEST}
    if as_json:
        print_json(best)
    else:
        print_table(facts_table(f"best of {len(study.trials)} trials of {model}", best))


def _tell_trial(trial: "FrozenTrial", study: "Study") -> None:
    value = "ended early" if trial.value is None or trial.state.name != "COMPLETE" else f"HR@10 {trial.value:.4f}"
    chosen = " ".join(f"{key}={value}" for key, value in trial.params.items())
    best = f"  (best {study.best_value:.4f})" if study.best_trials else ""
    say(f"trial {trial.number}  {chosen}  {value}{best}")


def _space(options: dict[str, Any], searched: tuple[str, ...], *, no_nce: bool) -> dict[str, list[Any]]:
    """Names and values to search, as plain values."""
    from training.evaluation.tune import PAPER_SPACE

    if not searched:
        fixed = {"alpha", "beta"} if no_nce else set()
        space = {key: list(values) for key, values in PAPER_SPACE.items() if key in options and key not in fixed}
        if not space:
            raise BadOption("this model has none of the paper's alpha, beta and learning_rate: say what to --search")
        return space
    found: dict[str, list[Any]] = {}
    for text in searched:
        key, equals, values = text.partition("=")
        if not equals or not values:
            raise BadOption(f"--search {text!r}: expected key=value,value,..., such as learning_rate=0.001,0.005")
        found[key.strip()] = [_plain(value.strip()) for value in values.split(",")]
    return found


def _plain(text: str) -> Any:
    """A number where the text is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


@click.command(short_help="Every system of the paper, trained and compared.")
@click.argument("datasets", type=FOLDER, nargs=-1, required=True, metavar="DATASET...")
@click.option("--out", type=FOLDER, required=True, help="Folder of releases, results and the report.")
@click.option("--recipe", help="Options of each model: a TOML file with a table a model, or a shipped recipe.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="An option of every neural system.")
@click.option("--system", "systems", multiple=True, metavar="NAME", help="Only these systems.  [default: all]")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Seeds 0, 1, ... of each system.")
@click.option("--split", type=click.Choice(["last-play", "new-sessions", "both"]), default="both", show_default=True)
@click.option("--protocol", type=click.Choice(["full", "sampled", "both"]), default="both", show_default=True)
@click.option("--jobs", type=click.IntRange(1), help="Trainings at a time.  [default: one for each core]")
def reproduce(
    datasets: tuple[Path, ...],
    out: Path,
    recipe: str | None,
    settings: tuple[str, ...],
    systems: tuple[str, ...],
    seeds: int,
    split: str,
    protocol: str,
    jobs: int | None,
) -> None:
    """Train and measure every system of the paper on each DATASET, and write tables and a page that compare them.

    You can interrupt it: the same command resumes where it stopped.
    """
    from training.data.dataset import open_dataset
    from training.evaluation.reproduce import SYSTEMS, Wanted, plan

    wanted = Wanted(
        systems=systems or tuple(SYSTEMS),
        seeds=range(seeds),
        splits=("last-play", "new-sessions") if split == "both" else (split,),  # type: ignore[arg-type]
        protocols=("full", "sampled") if protocol == "both" else (protocol,),  # type: ignore[arg-type]
        recipe=recipe,
        settings=settings,
    )
    if len({dataset.name for dataset in datasets}) < len(datasets):
        raise BadOption("two datasets have folders of the same name, and would share one in --out: rename one")
    plans = [
        (dataset.name, plan(wanted, dataset, open_dataset(dataset).facts.fingerprint, out / dataset.name))
        for dataset in datasets
    ]
    for name, planned in plans:
        report(_carry_out(name, planned, jobs or os.cpu_count() or 1), out / name)


def _carry_out(name: str, planned: "Plan", jobs: int) -> list[Path]:
    from training.evaluation.reproduce import run_plan

    with counting_steps() as advance:

        def tell(what: str, done: int, total: int) -> None:
            advance(name, done, total)
            if what:
                say(f"{name}: {what} ({done} of {total})")

        return run_plan(planned, jobs, tell)


def report(results: list[Path], folder: Path) -> None:
    """Write the comparison of these results as JSON, Markdown and HTML, and show it."""
    from training.evaluation.compare.report import measure, write_report

    sections = measure(results)
    write_report(sections, folder / "report.html", folder / "report.md", folder / "report.json")
    show(sections)
    say(f"the whole of it: {folder / 'report.html'}, report.md and report.json")
