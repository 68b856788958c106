"""Training on from a release: what is known stays, what is new gets rows, and nothing else changes."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

torch = pytest.importorskip("torch")

from segue.cli import main  # noqa: E402 (after the check that torch is there)
from segue.errors import BadOption, BadRelease  # noqa: E402
from segue.release import DatasetFacts, Loss, Release, ReleaseMetadata, WindowFacts, open_release, write_release  # noqa: E402
from segue.window import Sessions, Windows  # noqa: E402
from tests.catalogues import catalogue_of  # noqa: E402
from tests.datasets import write_dataset  # noqa: E402
from tests.stopped_training import Killed, KilledAfter, Silent  # noqa: E402
from training.data.dataset import Dataset  # noqa: E402
from training.data.synthetic import simulate_sessions  # noqa: E402
from training.models.encoders.sasrec import SasRec  # noqa: E402
from training.options import NeuralOptions, SasRecOptions, check_options  # noqa: E402
from training.registry import MODELS, EncoderModel  # noqa: E402
from training.run import TrainingJob, train  # noqa: E402
from training.warm_start import (  # noqa: E402
    ENCODER_WEIGHTS,
    cooccurrence_init,
    encoder_weights,
    load_encoder_weights,
    popularity_calibrated_scale,
    with_tracks_of,
)

FROZEN = Path(__file__).parent / "releases" / "v1"
OPTIONS = SasRecOptions(dimension=8, heads=2, window=6, epochs=1, batch_size=16, negatives=20, ema_decay=0.9)
LATER = 300  # sessions, of 400


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    """The listening of a first part, and that of a second alone, in which tracks are new and others are gone."""
    folder = tmp_path_factory.mktemp("listening")
    plays = simulate_sessions(1000, 400, seed=3).plays
    number = pl.col("session_id").str.tail(-1).cast(pl.Int64)
    first = write_dataset(folder / "first", plays.filter(number < LATER), "planted")
    return first, write_dataset(folder / "second", plays.filter(number >= LATER), "planted")


@pytest.fixture(scope="module")
def origin(datasets: tuple[Dataset, Dataset], tmp_path_factory: pytest.TempPathFactory) -> Release:
    return train(
        TrainingJob("sasrec", OPTIONS, datasets[0], "last-play", tmp_path_factory.mktemp("origin") / "o"), Silent()
    )


def on(origin: Release, dataset: Dataset, out: Path, **changes: Any) -> TrainingJob:
    return TrainingJob("sasrec", OPTIONS.model_copy(update=changes), dataset, "last-play", out, origin=origin)


class Scoring:
    """Stands for an encoder with four tracks: the first three have the same scores in every session."""

    options = OPTIONS

    def __init__(self, of_known: tuple[float, float, float], of_new: list[float]) -> None:
        self.item_embeddings = torch.nn.Embedding.from_pretrained(torch.eye(5))
        self.scores = torch.tensor([[0.0, *of_known, own] for own in of_new])

    def eval(self) -> None: ...

    def query(self, *_: Any) -> Any:
        return self.scores


def answers(release: Release, windows: Windows) -> list[list[tuple[str, float]]]:
    from service.releases.loaded import recommender_of
    from service.releases.rankers import OnnxEncoder

    queries = OnnxEncoder(release.path / "encoder.onnx").encode(windows)
    assert recommender_of(release, exact=True)
    scores = queries @ release.item_embeddings[1:].T
    best = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    return [
        [(release.catalogue.track_id(row + 1), float(of[row])) for row in rows.tolist()]
        for rows, of in zip(best, scores, strict=True)
    ]


class TestTakingOver:
    def test_the_same_data_and_no_further_epoch_give_the_same_release(
        self, datasets: tuple[Dataset, Dataset], origin: Release, tmp_path: Path
    ) -> None:
        same = train(on(origin, datasets[0], tmp_path / "same", epochs=0), Silent())
        np.testing.assert_array_equal(same.item_embeddings, origin.item_embeddings)
        assert answers(same, origin.sample_windows) == answers(origin, origin.sample_windows)
        assert same.name == origin.name  # by the hashes of all of its files
        told = same.manifest.evaluation
        assert told["validation"]["HR@10"] == pytest.approx(origin.manifest.evaluation["validation"]["HR@10"])
        assert (told["best_epoch"], told["epochs"]) == (0, 0)

    def test_other_data_leave_known_tracks_and_weights_as_they_are_and_keep_tracks_that_are_gone(
        self, datasets: tuple[Dataset, Dataset], origin: Release, tmp_path: Path
    ) -> None:
        second = datasets[1]
        fresh = train(on(origin, second, tmp_path / "fresh", epochs=0), Silent())
        old, held, now = (set(one.catalogue.track_ids) for one in (origin, second, fresh))
        assert now == old | held
        assert old - held
        assert held - old
        moved = 0
        for track in old:
            before, after = origin.catalogue.row(track), fresh.catalogue.row(track)
            moved += before != after
            np.testing.assert_array_equal(origin.item_embeddings[before], fresh.item_embeddings[after])
        assert moved > len(old) / 2  # rows go by popularity, which has changed
        assert fresh.catalogue.track_ids[: len(held)] == second.catalogue.track_ids
        assert fresh.manifest.files[ENCODER_WEIGHTS] == origin.manifest.files[ENCODER_WEIGHTS]
        gone = next(iter(old - held))
        assert fresh.catalogue.plays[fresh.catalogue.row(gone)] == 0
        new = fresh.item_embeddings[fresh.catalogue.rows(sorted(held - old))]
        usual = np.median(np.linalg.norm(origin.item_embeddings[1:], axis=1))
        lengths = np.linalg.norm(new, axis=1)
        common = lengths.max()  # the company's are all as long; the others are drawn
        assert 0 < common < usual * 1.2
        assert (np.isclose(lengths, common, rtol=0.01) | (lengths < 0.02 * 8**0.5)).all()

    def test_a_new_track_lies_amid_the_known_ones_that_were_played_around_it(self) -> None:
        """Row 4 is new. At reach 2: rows 1, 2 before it and 3 after it, then row 3 before it in another session."""
        table = np.array([[0, 0], [3, 0], [0, 3], [0, -3], [9, 9], [9, 9]], dtype=np.float32)
        known = np.array([False, True, True, True, False, False])
        plays = np.array([3, 1, 2, 4, 3, 5, 3, 4, 1, 5])
        part = Sessions(plays, np.zeros(10, np.bool_), np.array([0, 6, 8, 9, 10]))
        rows, means = cooccurrence_init(table, known, part)
        # 4: [3, 0] + [0, 3] + [0, -3] + [0, -3]; 5: [0, -3] alone. All known rows are 3 long, so these are.
        assert rows.tolist() == [4, 5]
        np.testing.assert_allclose(means, np.array([[3 / 2**0.5, -3 / 2**0.5], [0, -3]]), rtol=1e-6)
        assert cooccurrence_init(table, np.zeros(6, np.bool_), part)[0].tolist() == []
        assert cooccurrence_init(table, known, part.select(np.array([2])))[0].tolist() == []

    def test_new_tracks_are_in_as_many_lists_as_they_have_plays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every fifth play is of a new track, so one place of five is its, in five lists of two: it may be in two.

        Known tracks score 3, 2 and 1, so it is in a list where its own score times the factor is above 2.
        """
        monkeypatch.setattr("training.warm_start._LIST", 2)
        monkeypatch.setattr("training.warm_start._ROWS_AT_ONCE", 2)
        part = Sessions(np.array([4, 1, 1, 2, 3] * 5), np.zeros(25, np.bool_), np.arange(6) * 5)
        known, new = np.array([False, True, True, True, False]), np.array([4])

        def factor(own: list[float], of_known: tuple[float, float, float] = (3, 2, 1)) -> float:
            encoder: Any = Scoring(of_known, own)
            return popularity_calibrated_scale(encoder, known, new, part)

        assert factor([2.5, 8, 9, 10, 11]) == pytest.approx(2 / 9, abs=1e-5)  # longer, the third is above 2
        assert factor([2.5, 2.4, 1, 1, 1]) == 1.0  # in one list at full length
        assert factor([8, 8, 8, 8, 8], (-1, -2, -3)) == 1.0  # no shorter row comes behind what is below 0

    @pytest.mark.parametrize("model", ["sasrec", "bert4rec", "gru4rec", "caser", "deep"])
    def test_every_encoder_gets_its_weights_back(self, tmp_path: Path, model: str) -> None:
        settings = {"blocks": 40} if model == "deep" else {}
        line = MODELS["sasrec" if model == "deep" else model]
        options = check_options(line.options, {"dimension": 8, "window": 5, **settings})
        assert isinstance(line, EncoderModel)
        assert isinstance(options, NeuralOptions)
        one, other = (line.new_encoder(options.model_copy(update={"seed": seed}), 9) for seed in (0, 1))
        load_encoder_weights(other, with_weights(tmp_path / "r", encoder_weights(one)))
        for name, weight in one.named_parameters():
            same = torch.equal(weight, dict(other.named_parameters())[name])
            assert same == (name != "item_embeddings.weight"), name


class TestTraining:
    @pytest.mark.slow
    def test_killed_it_goes_on_to_what_an_undisturbed_one_gives(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After a track comes the next one of a ring, of which a release that hardly trained knows nothing."""
        monkeypatch.setattr("training.trainer.CHECKPOINT_EVERY_S", 0.0)
        plays = [(f"s{i:03}", f"t{(i * 7 + step) % 60:02}", False) for i in range(120) for step in range(8)]
        ring = pl.DataFrame(plays, schema=["session_id", "track_id", "skipped"], orient="row")
        data = write_dataset(tmp_path / "ring", ring, "planted")
        untaught = OPTIONS.model_copy(update={"learning_rate": 1e-9})
        origin = train(TrainingJob("sasrec", untaught, data, "last-play", tmp_path / "origin"), Silent())
        learning = {"epochs": 3, "learning_rate": 0.02, "ema_decay": 0.0}
        whole = train(on(origin, data, tmp_path / "whole", **learning), Silent())
        with pytest.raises(Killed):
            train(on(origin, data, tmp_path / "killed", **learning), KilledAfter(9))
        assert train(on(origin, data, tmp_path / "killed", **learning), Silent()).name == whole.name
        assert whole.name != origin.name
        assert whole.manifest.evaluation["best_epoch"] > 0

    def test_a_checkpoint_from_another_release_is_another_training(
        self, datasets: tuple[Dataset, Dataset], origin: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(Killed):
            train(on(origin, datasets[0], tmp_path / "r", epochs=2), _KilledAfterAnEpoch())
        settings = [f"--set={name}={value}" for name, value in (OPTIONS.model_dump() | {"epochs": 2}).items()]
        code = main(["train", str(datasets[0].path), "--model", "sasrec", "--out", str(tmp_path / "r"), *settings])
        assert code == 2
        assert f"another training (from '{origin.name}' there, None here)" in capsys.readouterr().err


class _KilledAfterAnEpoch(Silent):
    def epoch(self, line: dict[str, float]) -> None:
        raise Killed


def with_weights(path: Path, weights: Any, model: str = "sasrec") -> Release:
    """A release with these encoder weights and little else."""
    draft = ReleaseMetadata(
        model=model,
        options=SasRecOptions(dimension=8, window=5).model_dump(),
        loss=Loss(objective="next", alpha=1.0, beta=0.5, temperature=0.1, negatives=10),
        window=WindowFacts(length=5),
        dimension=8,
        dataset=DatasetFacts(fingerprint="0" * 16, source="tests", split="last-play"),
        source_commit=None,
        evaluation={},
    )
    catalogue = catalogue_of([f"t{number}" for number in range(8)])
    arrays = {} if weights is None else {ENCODER_WEIGHTS: weights}
    return write_release(path, draft, catalogue, {"item_embeddings.npy": np.zeros((9, 8), np.float32)} | arrays)


class TestRefusals:
    def encoder(self, **changes: Any) -> Any:
        return SasRec(9, SasRecOptions(**({"dimension": 8, "window": 5} | changes)))

    def test_weights_of_another_encoder(self, tmp_path: Path) -> None:
        release = with_weights(tmp_path / "r", encoder_weights(self.encoder(window=7)))
        with pytest.raises(BadRelease, match=r"\('<f4', \(7, 8\)\) for 'positions.weight', this Segue's encoder has"):
            load_encoder_weights(self.encoder(), release)
        fewer = with_weights(tmp_path / "fewer", encoder_weights(self.encoder(skip_input=False)))
        with pytest.raises(BadRelease, match="nothing for 'skip_embedding', this Segue's encoder has"):
            load_encoder_weights(self.encoder(), fewer)

    @pytest.mark.parametrize(
        "weights", [np.zeros(5, np.float32), np.zeros((), np.float32), np.array([object()]), np.zeros(0, "<f4,<f4")]
    )
    def test_an_array_that_is_no_record_of_weights(self, tmp_path: Path, weights: Any) -> None:
        release = with_weights(tmp_path / "r", encoder_weights(self.encoder()))
        np.save(release.path / ENCODER_WEIGHTS, weights, allow_pickle=True)
        with pytest.raises(BadRelease, match=ENCODER_WEIGHTS) as caught:
            load_encoder_weights(self.encoder(), release)
        assert "\n" not in str(caught.value)

    def test_weights_that_are_not_finite(self, tmp_path: Path) -> None:
        encoder = self.encoder()
        with torch.no_grad():
            encoder.positions.weight[2, 3] = torch.nan
        with pytest.raises(BadRelease, match=r"positions.weight is not finite: train the release again"):
            load_encoder_weights(self.encoder(), with_weights(tmp_path / "r", encoder_weights(encoder)))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                ["--set", "window=10"],
                "was trained with window=6, not 10: leave window out, or train without --init-from",
            ),
            (["--set", "dimension=16"], "was trained with dimension=8, not 16: leave dimension out"),
            (["--set", "heads=4"], "was trained with heads=2, not 4"),
            (["--set", "skip_input=false"], "was trained with skip_input=True, not False"),
            (["--set", "speed=1"], "unknown option 'speed'"),
            (["--model", "caser"], "is a sasrec model: omit --model"),
        ],
    )
    def test_options_that_make_another_encoder(
        self,
        datasets: tuple[Dataset, Dataset],
        origin: Release,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        arguments: list[str],
        message: str,
    ) -> None:
        self.refused(
            capsys, [datasets[0].path, "--init-from", origin.path, "--out", tmp_path / "r", *arguments], message
        )
        assert list(tmp_path.iterdir()) == []

    def test_releases_that_nothing_can_be_trained_on_from(
        self, datasets: tuple[Dataset, Dataset], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        common = [datasets[0].path, "--out", tmp_path / "out", "--init-from"]
        older = "holds no encoder_weights.npy, as an older Segue wrote it: train it once more, without --init-from"
        self.refused(capsys, [*common, with_weights(tmp_path / "old", None).path], older)
        self.refused(capsys, [*common, FROZEN], "encoder_weights.npy")
        counted = with_weights(tmp_path / "markov", None, "markov").path
        self.refused(capsys, [*common, counted], "is a markov model, which cannot be fine-tuned")
        self.refused(capsys, [*common, tmp_path], "is not a release")

    def test_no_epochs_without_a_release(
        self, datasets: tuple[Dataset, Dataset], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = [datasets[0].path, "--out", tmp_path / "r", "--set", "epochs=0"]
        self.refused(capsys, arguments, "epochs=0 trains nothing: expected 1 or more, or --init-from")

    def refused(self, capsys: pytest.CaptureFixture[str], arguments: list[Any], message: str) -> None:
        assert main(["train", *map(str, arguments)]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert len(said.splitlines()) == 1


def test_the_command_takes_model_and_options_of_the_release_unless_told_otherwise(
    datasets: tuple[Dataset, Dataset], origin: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "train",
        str(datasets[1].path),
        "--init-from",
        str(origin.path),
        "--out",
        str(tmp_path / "r"),
        "--no-nce",
    ]
    assert main([*command, "--set", "epochs=0", "--set", "learning_rate=0.001"]) == 0
    fresh = open_release(tmp_path / "r")
    changed = {"epochs": 0, "learning_rate": 0.001, "beta": 0.0}
    assert fresh.manifest.options == origin.manifest.options | changed
    assert "best epoch\t0" in capsys.readouterr().out


def test_a_release_of_another_split_is_refused(
    origin: Release, datasets: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    """Its weights know the plays that the other split asks for."""
    job = on(origin, datasets[0], tmp_path / "out")
    with pytest.raises(BadOption, match=r"was trained on the last-play split, .*: set --split last-play"):
        train(dataclasses.replace(job, split="new-sessions"), Silent())
    assert list(tmp_path.iterdir()) == []


def test_titles_and_artists_that_new_listening_lacks_stay(tmp_path: Path) -> None:
    """A service's event log has none."""
    plays = simulate_sessions(1000, 100, seed=3).plays
    titled = plays.with_columns(title=pl.format("title of {}", "track_id"), artist=pl.lit("of then"))
    before = write_dataset(tmp_path / "titled", titled, "planted")
    release = train(TrainingJob("sasrec", OPTIONS, before, "last-play", tmp_path / "release"), Silent())
    later = plays.with_columns(title=pl.lit(None, pl.String), artist=pl.lit("of now"))
    log = write_dataset(tmp_path / "log", later.filter(pl.col("session_id").hash() % 2 == 0), "planted")
    frame = with_tracks_of(release, log).catalogue.frame
    heard = len(log.catalogue)
    assert 0 < heard < len(before.catalogue)
    assert frame["track_id"].to_list()[:heard] == log.catalogue.frame["track_id"].to_list()
    assert frame["title"].to_list() == [f"title of {track}" for track in frame["track_id"]]
    assert frame["artist"].to_list() == ["of now"] * heard + ["of then"] * (len(frame) - heard)
