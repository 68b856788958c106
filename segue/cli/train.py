"""`segue train`, `segue evaluate` and `segue index`: create a release, evaluate it and build its index."""

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from segue.cli.data import FOLDER, SPLIT
from segue.cli.evaluate import CAUTION, REPEAT, TARGETS, print_evaluations, say_notes
from segue.cli.terminal import TrainingProgress, counting, example, facts_table, print_json, print_table, say
from segue.errors import BadOption, BadRelease, InputError

if TYPE_CHECKING:
    from segue.release import Release
    from training.evaluation.evaluate import Question, RecommenderUnderTest
    from training.options import Options
    from training.run_log import TensorBoard


@click.command(
    short_help="Train a model on a dataset and write a release.",
    epilog=example("segue train data/mine --set epochs=20 --out releases/mine"),
)
@click.argument("dataset", type=FOLDER)
@click.option(
    "--model",
    metavar="NAME",
    help="Model: hybrid (transition counts and SASRec), ngram (transition counts), sasrec, bert4rec, gru4rec, caser, "
    "wrmf, bpr, vmis-knn, markov or popularity. hybrid-bert4rec, hybrid-gru4rec and hybrid-caser mix the counts with "
    "another encoder. wrmf-bl and bpr-bl do not count a skipped track as a positive; wrmf-nr and bpr-nr also count it "
    "as a negative.  [default: hybrid, or the model of --init-from]",
)
@click.option(
    "--init-from",
    "origin",
    type=FOLDER,
    metavar="RELEASE",
    help="Fine-tune RELEASE. Known tracks keep their embeddings; new tracks are initialised from co-played tracks; "
    "counts are added. With --model hybrid, RELEASE may be a sasrec release.",
)
@click.option("--no-nce", is_flag=True, help="Train without the skip loss (InfoNCE; sets beta to 0).")
@click.option(
    "--recipe",
    metavar="RECIPE",
    help="Training options: a TOML file, or a built-in recipe (demo, mssd).  [default: the model's defaults]",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set one training option, such as epochs=20. Repeatable; overrides the recipe.",
)
@click.option(
    "--split",
    type=SPLIT,
    default="last-play",
    show_default=True,
    help="last-play: hold out the last plays of each session. new-sessions: hold out whole sessions.",
)
@TARGETS
@click.option(
    "--out",
    type=FOLDER,
    required=True,
    metavar="FOLDER",
    help="Folder to write the release to. Training metadata and metrics go to FOLDER.run.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing release.")
@click.option("--resume", is_flag=True, help="Fail if there is no checkpoint to resume from.")
@click.option("--tensorboard", type=FOLDER, metavar="FOLDER", help="Write TensorBoard logs to FOLDER.")
@click.option("--device", default="cpu", show_default=True, metavar="DEVICE", help="cpu, cuda or cuda:N.")
@click.option("--sharded", is_flag=True, help="With torchrun: shard the item embeddings across processes.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest of the release as JSON.")
def train(
    dataset: Path,
    model: str | None,
    origin: Path | None,
    no_nce: bool,
    recipe: str | None,
    settings: tuple[str, ...],
    split: str,
    targets: str,
    out: Path,
    overwrite: bool,
    resume: bool,
    tensorboard: Path | None,
    device: str,
    sharded: bool,
    as_json: bool,
) -> None:
    """Train a model on DATASET and write a release: a folder with everything that serving needs.

    If you interrupt the command, run it again to resume from the last checkpoint. For several GPUs or machines, run
    `torchrun --nproc-per-node 2 -m segue train ...`.
    """
    from training.data.dataset import open_dataset
    from training.registry import model_named
    from training.run import TrainingJob, end_process, started_processes, train_distributed
    from training.run_log import MultiReporter

    release = None
    if origin is None:
        model = model_named(model or "hybrid")
        options = options_of(model, recipe, settings, no_nce=no_nce)
    else:
        release, model, options = _continued(origin, model, recipe, settings, no_nce=no_nce)
    boards = () if tensorboard is None else (_board(tensorboard),)
    job = TrainingJob(
        model,
        options,
        open_dataset(dataset),
        split,  # type: ignore[arg-type]  # click checks it
        out,
        overwrite,
        _torch_device(device),
        release,
        resume,
        targets,  # type: ignore[arg-type]  # click checks it
    )
    with started_processes(job.device, sharded=sharded) as processes, contextlib.ExitStack() as stack:
        console = Console(stderr=True, quiet=not processes.is_main)
        progress = stack.enter_context(TrainingProgress(getattr(options, "epochs", 1), console))
        reporter = MultiReporter(progress, *map(stack.enter_context, boards if processes.is_main else ()))
        trained = train_distributed(job, reporter, processes, lambda note: say_notes([note]))
    if trained is not None:
        _print_release(trained, dataset, as_json=as_json)
    if processes.world > 1:
        end_process()


def _board(folder: Path) -> "TensorBoard":
    from training.run_log import TensorBoard

    return TensorBoard(folder)


def _continued(
    origin: Path, model: str | None, recipe: str | None, settings: tuple[str, ...], *, no_nce: bool
) -> tuple["Release", str, "Options"]:
    """Return the release of --init-from, the model, and its options with the changes of flags, recipe and settings."""
    from segue.release import open_release
    from training.registry import MODELS, EncoderModel, NgramModel, model_named
    from training.warm_start import check_can_fine_tune, fine_tune_options

    release = open_release(origin)
    trained = release.manifest.model
    entry = MODELS.get(trained)
    if not isinstance(entry, EncoderModel | NgramModel):
        raise BadRelease(f"--init-from {origin} is a {trained} model, which cannot be fine-tuned: omit --init-from")
    check_can_fine_tune(release)
    named = trained if model is None else model_named(model)
    chosen = MODELS[named]
    if named != trained and not (isinstance(chosen, NgramModel) and chosen.encoder is entry):  # a hybrid of an encoder
        raise BadOption(f"--model {model}: --init-from {origin} is a {trained} model: omit --model")
    flags = {"beta": 0.0} if no_nce else {}
    return release, named, fine_tune_options(release, entry.options, recipe, settings, **flags)


def options_of(model: str, recipe: str | None, settings: tuple[str, ...], *, no_nce: bool) -> "Options":
    """Return the options of a model (a key of MODELS) from flags, recipe and settings. Raises BadOption."""
    from training.options import NeuralOptions, read_options
    from training.registry import MODELS

    kind = MODELS[model].options
    if no_nce and not issubclass(kind, NeuralOptions):
        raise BadOption(f"--no-nce: {model} has no skip loss; omit --no-nce")
    return read_options(kind, recipe, settings, model, **({"beta": 0.0} if no_nce else {}))


def _torch_device(device: str) -> str:
    if device != "cpu":
        import torch

        if device.partition(":")[0] != "cuda" or not torch.cuda.is_available():
            raise BadOption(
                f"--device {device!r}: expected cpu, or cuda if torch finds a GPU (it finds none on this machine)"
            )
    return device


def _print_release(release: "Release", dataset: Path, *, as_json: bool) -> None:
    from training.notes import by_construction
    from training.registry import system_name

    manifest, path = release.manifest, release.path
    if as_json:
        print_json({"path": str(path), **manifest.model_dump(mode="json")})
        return
    validation = manifest.evaluation.get("validation")
    constant = " (1 by construction)" if "HR@10" in by_construction(manifest.tracks) else ""
    facts = {
        "release": release.name,
        "folder": path,
        "tracks": manifest.tracks,
        "best epoch": manifest.evaluation.get("best_epoch", "-"),
        "validation HR@10": f"{validation['HR@10']:.4f}{constant}" if validation else "-",
        "size": f"{sum(file.bytes for file in manifest.files.values()) / 1e6:,.1f} MB",
    }
    print_table(facts_table(f"trained {system_name(manifest.model, manifest.options)}", facts))
    say(f"Release written to {path}.", f"segue evaluate {path} {dataset}", f"segue serve {path}")


@click.command(
    short_help="Measure hit rates, MRR and NDCG of a release.",
    epilog=example("segue evaluate releases/mine data/mine --output mine.json"),
)
@click.argument("release", type=FOLDER)
@click.argument("dataset", type=FOLDER)
@click.option(
    "--part",
    type=click.Choice(["test", "validation"]),
    default="test",
    show_default=True,
    help="Part of the split to evaluate on.",
)
@click.option(
    "--split", type=SPLIT, default="last-play", show_default=True, help="Split that the release was trained with."
)
@TARGETS
@REPEAT
@click.option(
    "--protocol",
    type=click.Choice(["full", "sampled"]),
    default="full",
    show_default=True,
    help="full: rank all tracks. sampled: rank each target among 1,000 sampled tracks.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="Random seed for bootstrap intervals and sampled tracks.",
)
@click.option(
    "--url",
    metavar="URL",
    help="Evaluate through a running service that serves RELEASE. If it needs an API key, set SEGUE_API_KEY to one "
    "with the scope admin.",
)
@click.option("--exact", is_flag=True, help="Use exact search instead of the release's index.")
@CAUTION
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--output", type=FOLDER, metavar="FILE", help="Write the result to FILE as JSON.")
def evaluate(
    release: Path,
    dataset: Path,
    part: str,
    split: str,
    targets: str,
    repeat: str,
    protocol: str,
    seed: int,
    url: str | None,
    exact: bool,
    caution: float | None,
    as_json: bool,
    output: Path | None,
) -> None:
    """Evaluate RELEASE on DATASET.

    Reports hit rates, MRR and NDCG with 95 % bootstrap intervals, separately for played and skipped targets.
    A target is the track that came next in a held-out session.
    """
    from segue.release import open_release
    from segue.sessions import repeat_policy
    from training.data.dataset import open_dataset
    from training.evaluation.evaluate import Question
    from training.evaluation.evaluate import evaluate as measure

    _check_order(release, dataset)
    if output is not None and output.is_dir():
        raise InputError(f"--output {output} is a folder: expected a file name")
    if output is not None and not output.parent.is_dir():
        raise InputError(f"--output {output}: the folder {output.parent} does not exist: create it")
    chosen: dict[str, Any] = {"split": split, "part": part, "protocol": protocol, "targets": targets}
    chosen |= {"seed": seed, "repeat": repeat_policy(repeat), "caution": caution}  # click has checked the other choices
    question = Question(open_dataset(dataset), open_release(release), **chosen)
    with counting("evaluating") as advance:
        result = measure(question, answers_of(question, url, exact=exact), advance)
    if output is not None:
        unfinished = output.with_name(f"{output.name}.unfinished")
        unfinished.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        unfinished.rename(output)
    say_notes(result["notes"])
    if as_json:
        print_json(result)
    else:
        print_evaluations(question, [(result["system"], result)])
        if output is None:
            say("To compare releases, save each result with --output FILE and run `segue compare FILE FILE`.")
        else:
            say(f"Result written to {output}.", f"segue compare {output} OTHER.json --html comparison.html")


def _check_order(release: Path, dataset: Path) -> None:
    """Raise InputError if a dataset is given as the release, or a release as the dataset."""
    swapped_release, swapped_dataset = (release / "dataset.json").is_file(), (dataset / "manifest.json").is_file()
    if swapped_release and swapped_dataset:
        raise InputError(f"RELEASE and DATASET are swapped: run `segue evaluate {dataset} {release}`")
    if swapped_release:
        raise InputError(f"RELEASE {release} is a dataset: give a release of `segue train`, then the dataset")
    if swapped_dataset:
        raise InputError(f"DATASET {dataset} is a release: give the release first, then a dataset of `segue prepare`")


def answers_of(question: "Question", url: str | None = None, *, exact: bool = False) -> "RecommenderUnderTest":
    """Return the release in this process, or the service at `url`. Raises BadRelease."""
    from training.evaluation.evaluate import LocalRecommender
    from training.evaluation.http_recommender import HttpRecommender

    if url is None:
        return LocalRecommender(open_recommender(question.release, exact=exact), question.to_release())
    key = os.environ.get("SEGUE_API_KEY")
    over_http = HttpRecommender(url, question.dataset.catalogue, question.release, key)
    served = over_http.serves()
    if served != question.release.name:
        raise BadRelease(f"{url} serves {served}, not {question.release.name}: serve the release that you evaluate")
    return over_http


def open_recommender(release: "Release", *, exact: bool = False) -> Any:
    """Return the recommender of a release of any model."""
    from segue.recommend import PopularityRanker, Recommender
    from training.registry import open_ranker

    if release.has_encoder or release.has_counts:
        from service.releases.loaded import recommender_of

        return recommender_of(release, exact=exact)
    return Recommender(open_ranker(release), PopularityRanker(release.catalogue.plays), release.manifest.window.length)


@click.command(
    short_help="Build the search index of a release.", epilog=example("segue index releases/mine --recall 0.98")
)
@click.argument("release", type=FOLDER)
@click.option(
    "--kind",
    default="auto",
    show_default=True,
    metavar="KIND",
    help="Index type: auto, exact, flat, flat-sq8, ivf, ivf-sq8, ivf-pq, ivf-pq4, hnsw or hnsw-sq8. auto chooses by "
    "the number of tracks.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "gpu"]),
    default="cpu",
    show_default=True,
    help="Processor that the service will search on.",
)
@click.option(
    "--recall",
    type=click.FloatRange(0.0, 1.0),
    default=0.99,
    show_default=True,
    metavar="R",
    help="Recall@20 that the index must reach, from 0 to 1.",
)
@click.option("--json", "as_json", is_flag=True, help="Print index.json of the release.")
def index(release: Path, kind: str, device: str, recall: float, as_json: bool) -> None:
    """Build the nearest-neighbour index of RELEASE and write it to the release folder.

    The search parameters are tuned on queries of the release's own encoder until the index reaches --recall. A release
    without an index uses exact search, which is fast enough up to about 50,000 tracks.
    """
    from segue.release import open_release

    opened = open_release(release)
    facts = build_index(opened, kind=kind, device=device, recall=recall)
    if as_json:
        print_json(facts)
        return
    shown = {key: value for key, value in facts.items() if key != "tried"}
    on_terminals = {key: value for key, value in shown.items() if key != "embeddings_sha256"}  # one long word
    print_table(lambda room: facts_table(f"index of {opened.name}", shown if room is None else on_terminals))
    say(f"Index written to {release}.", f"segue serve {release}")


def build_index(release: "Release", *, kind: str = "auto", device: str = "cpu", recall: float = 0.99) -> dict[str, Any]:
    """Build the index of a release in its folder and return the content of index.json. Queries: its sample windows."""
    from index.tuning import index_release
    from segue.release import ENCODER
    from service.releases.rankers import OnnxEncoder

    if not release.has_encoder:
        raise BadRelease(f"{release.path} is a {release.manifest.model} model, which has no embeddings to index")
    windows = release.sample_windows
    say(f"Choosing the parameters of the search index on {len(windows):,} sample queries")
    queries = OnnxEncoder(release.path / ENCODER).encode(windows)
    _, facts = index_release(release, queries, kind=kind, device=device, recall_target=recall)
    return dict(facts.model_dump(mode="json"))
