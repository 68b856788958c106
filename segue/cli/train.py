"""`segue train`, `segue evaluate` and `segue index`: from a dataset to a measured, indexed release."""

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from segue.cli.data import FOLDER, SPLIT
from segue.cli.evaluate import beyond_hits, evaluation_table, hit_rates
from segue.cli.terminal import TrainingProgress, counting, facts_table, print_json, print_table, say
from segue.errors import BadOption, BadRelease, InputError

if TYPE_CHECKING:
    from segue.release import Release
    from training.evaluation.evaluate import Question, RecommenderUnderTest
    from training.options import Options
    from training.run_log import TensorBoard


@click.command(short_help="A dataset to a release.")
@click.argument("dataset", type=FOLDER)
@click.option(
    "--model",
    help="sasrec, bert4rec, gru4rec, caser, wrmf[-bl|-nr], bpr[-bl|-nr], vmis-knn, markov or popularity.  "
    "[default: sasrec, or the model of --init-from]",
)
@click.option(
    "--init-from",
    "origin",
    type=FOLDER,
    metavar="RELEASE",
    help="Fine-tune RELEASE. Known tracks keep their embeddings; new tracks are initialised from co-played tracks.",
)
@click.option("--no-nce", is_flag=True, help="Train without the skip-aware InfoNCE loss (beta = 0).")
@click.option("--recipe", help="A TOML file of options, or the name of a shipped recipe.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Set one option; may be repeated.")
@click.option(
    "--split",
    type=SPLIT,
    default="last-play",
    show_default=True,
    help="Hold out each session's last plays, or whole sessions.",
)
@click.option(
    "--out",
    type=FOLDER,
    required=True,
    help="The release folder to write; training metadata and metrics go to OUT.run.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing release.")
@click.option("--resume", is_flag=True, help="Fail if there is no checkpoint to resume from.")
@click.option("--tensorboard", type=FOLDER, metavar="DIR", help="Write TensorBoard logs to DIR.")
@click.option("--device", default="cpu", show_default=True, help="A torch device: cpu or cuda.")
@click.option("--sharded", is_flag=True, help="With torchrun: shard the item embeddings over the processes.")
@click.option("--json", "as_json", is_flag=True, help="Print the release's facts as JSON.")
def train(
    dataset: Path,
    model: str | None,
    origin: Path | None,
    no_nce: bool,
    recipe: str | None,
    settings: tuple[str, ...],
    split: str,
    out: Path,
    overwrite: bool,
    resume: bool,
    tensorboard: Path | None,
    device: str,
    sharded: bool,
    as_json: bool,
) -> None:
    """Train a model on DATASET and write a release.

    You can interrupt it: the same command resumes where it stopped. With several GPUs or machines:
    `torchrun --nproc-per-node 2 -m segue train ...`.
    """
    from training.data.dataset import open_dataset
    from training.registry import model_named
    from training.run import TrainingJob, started_processes, train_distributed
    from training.run_log import MultiReporter

    release = None
    if origin is None:
        model = model_named(model or "sasrec")
        options = options_of(model, recipe, settings, no_nce=no_nce)
    else:
        release, options = _continued(origin, model, recipe, settings, no_nce=no_nce)
        model = release.manifest.model
    boards = () if tensorboard is None else (_board(tensorboard),)
    job = TrainingJob(
        model,
        options,
        open_dataset(dataset),
        split,  # type: ignore[arg-type]  # click has checked it
        out,
        overwrite,
        _torch_device(device),
        release,
        resume,
    )
    with started_processes(job.device, sharded=sharded) as processes, contextlib.ExitStack() as stack:
        console = Console(stderr=True, quiet=not processes.is_main)
        progress = stack.enter_context(TrainingProgress(getattr(options, "epochs", 1), console))
        reporters = MultiReporter(progress, *map(stack.enter_context, boards if processes.is_main else ()))
        trained = train_distributed(job, reporters, processes)
    if trained is not None:
        _print_release(trained, as_json=as_json)


def _board(folder: Path) -> "TensorBoard":
    from training.run_log import TensorBoard

    return TensorBoard(folder)


def _continued(
    origin: Path, model: str | None, recipe: str | None, settings: tuple[str, ...], *, no_nce: bool
) -> tuple["Release", "Options"]:
    """The release of --init-from, and its options as flags, recipe and settings change them."""
    from segue.release import open_release
    from training.registry import MODELS, EncoderModel, model_named
    from training.warm_start import check_can_fine_tune, fine_tune_options

    release = open_release(origin)
    trained = release.manifest.model
    entry = MODELS.get(trained)
    if not isinstance(entry, EncoderModel):
        raise BadRelease(
            f"--init-from {origin} is of model {trained}, which cannot be fine-tuned: leave --init-from out"
        )
    check_can_fine_tune(release)
    if model is not None and model_named(model) != trained:
        raise BadOption(f"--model {model}: --init-from {origin} is of model {trained}: leave --model out")
    flags = {"beta": 0.0} if no_nce else {}
    return release, fine_tune_options(release, entry.options, recipe, settings, **flags)


def options_of(model: str, recipe: str | None, settings: tuple[str, ...], *, no_nce: bool) -> "Options":
    """The options of a model (a key of MODELS) from recipe, settings and flags. Raises BadOption."""
    from training.options import NeuralOptions, read_options
    from training.registry import MODELS

    kind = MODELS[model].options
    if no_nce and not issubclass(kind, NeuralOptions):
        raise BadOption(f"--no-nce: {model} has no loss terms; leave the flag out")
    return read_options(kind, recipe, settings, model, **({"beta": 0.0} if no_nce else {}))


def _torch_device(device: str) -> str:
    if device != "cpu":
        import torch

        if device.partition(":")[0] != "cuda" or not torch.cuda.is_available():
            raise BadOption(f"--device {device!r}: expected cpu, or cuda where torch sees a GPU (it sees none here)")
    return device


def _print_release(release: "Release", *, as_json: bool) -> None:
    from training.registry import system_name

    manifest = release.manifest
    if as_json:
        print_json({"path": str(release.path), **manifest.model_dump(mode="json")})
        return
    validation = manifest.evaluation.get("validation")
    facts = {
        "release": release.name,
        "folder": release.path,
        "tracks": manifest.tracks,
        "best epoch": manifest.evaluation.get("best_epoch", "-"),
        "validation HR@10": f"{validation['HR@10']:.4f}" if validation else "-",
        "size": f"{sum(file.bytes for file in manifest.files.values()) / 1e6:,.1f} MB",
    }
    print_table(facts_table(f"trained {system_name(manifest.model, manifest.options)}", facts))


@click.command(short_help="Hit rates, MRR and NDCG of a release, with intervals.")
@click.argument("release", type=FOLDER)
@click.argument("dataset", type=FOLDER)
@click.option("--part", type=click.Choice(["test", "validation"]), default="test", show_default=True)
@click.option(
    "--split", type=SPLIT, default="last-play", show_default=True, help="The split that the release was trained on."
)
@click.option("--protocol", type=click.Choice(["full", "sampled"]), default="full", show_default=True)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Random seed for the bootstrap and for sampled tracks.",
)
@click.option(
    "--url",
    metavar="URL",
    help="Evaluate a running service that serves RELEASE; SEGUE_API_KEY is its admin key.",
)
@click.option("--exact", is_flag=True, help="Use exact search instead of the index.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--output", type=FOLDER, metavar="FILE", help="Write the result to FILE as JSON.")
def evaluate(
    release: Path,
    dataset: Path,
    part: str,
    split: str,
    protocol: str,
    seed: int,
    url: str | None,
    exact: bool,
    as_json: bool,
    output: Path | None,
) -> None:
    """Measure RELEASE on DATASET: hit rates, MRR, NDCG with 95 % intervals for played and skipped targets."""
    from segue.release import open_release
    from training.data.dataset import open_dataset
    from training.evaluation.evaluate import Question
    from training.evaluation.evaluate import evaluate as measure

    if output is not None and output.is_dir():
        raise InputError(f"--output {output} is a folder: name a file")
    if output is not None and not output.parent.is_dir():
        raise InputError(f"--output {output}: the folder {output.parent} does not exist: create it first")
    question = Question(
        open_dataset(dataset),
        open_release(release),
        "new-sessions" if split == "new-sessions" else "last-play",
        "validation" if part == "validation" else "test",
        "sampled" if protocol == "sampled" else "full",
        seed,
    )
    with counting("evaluating") as advance:
        result = measure(question, answers_of(question, url, exact=exact), advance)
    if output is not None:
        unfinished = output.with_name(f"{output.name}.unfinished")
        unfinished.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        unfinished.rename(output)
    if as_json:
        print_json(result)
    else:
        print_evaluations(question, [(result["system"], result)])


def answers_of(question: "Question", url: str | None = None, *, exact: bool = False) -> "RecommenderUnderTest":
    """The release in this process, or the service at `url`."""
    from training.evaluation.evaluate import HttpRecommender, LocalRecommender

    if url is None:
        return LocalRecommender(open_recommender(question.release, exact=exact), question.to_release())
    over_http = HttpRecommender(
        url, question.dataset.catalogue, question.release.catalogue, key=os.environ.get("SEGUE_API_KEY")
    )
    served = over_http.serves()
    if served != question.release.name:
        raise BadRelease(f"{url} serves {served}, not {question.release.name}: serve the release you evaluate")
    return over_http


def open_recommender(release: "Release", *, exact: bool = False) -> Any:
    """A recommender for a release of any model."""
    from segue.recommend import PopularityRanker, Recommender
    from training.registry import open_ranker

    if release.has_encoder:
        from service.releases.loaded import recommender_of

        return recommender_of(release, exact=exact)
    popularity = PopularityRanker(release.catalogue.plays)
    return Recommender(open_ranker(release), popularity, release.manifest.window.length)


def print_evaluations(question: "Question", results: list[tuple[str, Any]]) -> None:
    """The tables of one or more systems on the same question."""
    title = (
        f"{question.dataset.facts.source}: {question.part} targets, {question.split} split, {question.protocol} ranking"
    )
    print_table(evaluation_table(title, results))
    print_table(hit_rates(results))
    print_table(beyond_hits(results))


@click.command(short_help="Index a release, tuned to a recall.")
@click.argument("release", type=FOLDER)
@click.option(
    "--kind", default="auto", help="auto, exact, flat, ivf, hnsw; the last three also as -sq8; ivf-pq, ivf-pq4."
)
@click.option("--device", type=click.Choice(["cpu", "gpu"]), default="cpu", show_default=True)
@click.option("--recall", type=click.FloatRange(0.0, 1.0), default=0.99, show_default=True, help="Recall@20 to reach.")
@click.option("--json", "as_json", is_flag=True, help="Print index.json.")
def index(release: Path, kind: str, device: str, recall: float, as_json: bool) -> None:
    """Build the index of RELEASE and tune it until the stated recall is measured on its own encoder's queries."""
    from segue.release import open_release

    opened = open_release(release)
    facts = build_index(opened, kind=kind, device=device, recall=recall)
    if as_json:
        print_json(facts)
        return
    shown = {key: value for key, value in facts.items() if key != "tried"}
    print_table(facts_table(f"index of {opened.name}", shown))


def build_index(release: "Release", *, kind: str = "auto", device: str = "cpu", recall: float = 0.99) -> dict[str, Any]:
    """Index a release in place and return the facts of index.json. The queries are those of its sample windows."""
    from index.tuning import index_release
    from segue.release import ENCODER
    from service.releases.onnx_encoder import OnnxEncoder

    if not release.has_encoder:
        raise BadRelease(f"{release.path} was trained as {release.manifest.model}, which has no vectors to index")
    windows = release.sample_windows
    say(f"tuning on {len(windows):,} queries")
    queries = OnnxEncoder(release.path / ENCODER).encode(windows)
    _, facts = index_release(release, queries, kind=kind, device=device, recall_target=recall)
    return dict(facts.model_dump(mode="json"))
