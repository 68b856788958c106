"""Fine-tuning: initialise a model from a release and train it on new data, faster than from scratch.

Known tracks keep their embedding rows, matched by track id. Tracks of the release that the dataset lacks stay, behind
the others. New tracks get new rows. All other weights are taken from the release; the optimizer starts without state,
because a release contains none.

A new track's row points in the direction of the mean row of the known tracks that were presented up to CONTEXT_WINDOW
plays before or after it: tracks of one session have similar rows, so training would move it there. A mean vector has a
large inner product with many queries, and at the usual length it would enter most lists. The rows of all new tracks are
therefore scaled down together until their share of the lists equals their share of the plays. New tracks are
recommended before the first step, but no more often than they are played. benchmarks/README.md compares this with rows
of the usual length and with random rows.

`encoder_weights.npy` contains one record of float32 with a field for each weight, named as in the encoder and with the
weight's shape. The item embeddings have a file of their own. The dtype states everything that must match, so one
comparison rejects the weights of another encoder, and the file is mapped and checked like every other array.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

from segue.arrays import Bool, Float32, Int, mapped_array
from segue.catalogue import FIRST_TRACK_ROW, PAD_ROW, Catalogue
from segue.errors import BadOption, BadRelease
from segue.release import Release
from segue.window import Sessions, to_windows
from training.data.dataset import Dataset
from training.models.encoders.encoder import SessionEncoder
from training.options import NeuralOptions, Options, check_options, read_options

ENCODER_WEIGHTS: Final = "encoder_weights.npy"
_LARGEST_HEADER: Final = 1_000_000  # characters; a block of self-attention takes 700


def encoder_weights(encoder: SessionEncoder) -> NDArray[Any]:
    """All weights but the item embeddings. [1] record of float32."""
    record = np.zeros(1, dtype=_fields(encoder))
    for name, weight in _weights(encoder).items():
        record[name][0] = weight.detach().cpu().numpy()
    return record


def load_encoder_weights(encoder: SessionEncoder, release: Release) -> None:
    """Give the encoder a release's weights, its item embeddings aside. Raises BadRelease with one line."""
    record = mapped_array(release.path / ENCODER_WEIGHTS, _LARGEST_HEADER)
    expected = _fields(encoder)
    if record.dtype != expected or record.shape != (1,):
        raise BadRelease(f"{release.path}: {ENCODER_WEIGHTS} holds {_differing(record.dtype, expected)}")
    with torch.no_grad():
        for name, weight in _weights(encoder).items():
            values = np.array(record[name][0])
            if not np.isfinite(values).all():
                raise BadRelease(f"{release.path}: {ENCODER_WEIGHTS}: {name} is not finite: train the release again")
            weight.copy_(torch.from_numpy(values))


def _weights(encoder: SessionEncoder) -> dict[str, torch.Tensor]:
    table = encoder.item_embeddings.weight
    return {name: weight for name, weight in sorted(encoder.named_parameters()) if weight is not table}


def _fields(encoder: SessionEncoder) -> np.dtype[Any]:
    return np.dtype([(name, "<f4", tuple(weight.shape)) for name, weight in _weights(encoder).items()])


def _differing(found: np.dtype[Any], expected: np.dtype[Any]) -> str:
    """The first weight that is not as expected."""
    theirs, ours = dict(found.fields or {}), dict(expected.fields or {})
    for name in sorted({*theirs, *ours}, key=str):
        one, other = (str(fields[name][0]) if name in fields else "nothing" for fields in (theirs, ours))
        if one != other:
            return f"{one} for {str(name)[:80]!r}, this Segue's encoder has {other}: train the release again"
    return f"an array of {str(found)[:80]}, expected one record of weights: train the release again"


CONTEXT_WINDOW: Final = 2
_NAMES: Final = ("title", "artist")
_LIST: Final = 10  # tracks
_SESSIONS_ASKED: Final = 500
_ROWS_AT_ONCE: Final = 65_536
_HALVINGS: Final = 20
_ENCODER: Final = {"window", "dimension", "plays", "skip_input"}  # options of all that say what the encoder is
_OF_TRAINING: Final = {
    "masking",
    "duplication_factor",
}  # options of one encoder that do not; all others of one encoder do


def fine_tune_options(
    release: Release,
    kind: type[Options],
    recipe: str | None,
    settings: Sequence[str],
    **flags: Any,
) -> Options:
    """The release's options, changed by recipe, `--set` and flags. Raises BadOption where they make another encoder."""
    chosen = read_options(kind, recipe, settings, release.manifest.model, **flags)
    options = check_options(kind, release.manifest.options | chosen.model_dump(include=chosen.model_fields_set))
    fixed = (_ENCODER | kind.model_fields.keys() - NeuralOptions.model_fields.keys()) - _OF_TRAINING
    before, now = release.manifest.options, options.model_dump()
    for name in sorted(fixed):
        if now[name] != before.get(name, now[name]):
            raise BadOption(
                f"--init-from {release.path} was trained with {name}={before[name]}, not {now[name]}: "
                f"leave {name} out, or train without --init-from"
            )
    return options


def check_can_fine_tune(release: Release) -> None:
    """Raise BadRelease for a release that nothing can be trained on from."""
    if release.manifest.loss is None:
        model = release.manifest.model
        raise BadRelease(
            f"--init-from {release.path} is of model {model}, which cannot be fine-tuned: leave --init-from out"
        )
    if ENCODER_WEIGHTS not in release.manifest.files:
        raise BadRelease(
            f"--init-from {release.path}: it holds no {ENCODER_WEIGHTS}, as an older Segue wrote it: train it once "
            "more, without --init-from"
        )


def check_same_split(release: Release, split: str) -> None:
    """Raise BadOption for a release of another split: the new one would be asked for plays that it was trained on."""
    before = release.manifest.dataset.split
    if before != split:
        raise BadOption(
            f"--init-from {release.path} was trained on the {before} split, which holds out other plays than {split}: "
            f"set --split {before}"
        )


def with_tracks_of(release: Release, dataset: Dataset) -> Dataset:
    """The dataset whose catalogue goes on with the release's tracks that it does not hold; its rows stay.

    Titles and artists that the dataset does not have, as an event log has none, are the release's.
    """
    names = [pl.col("track_id"), *(pl.col(name).alias(f"{name}_before") for name in _NAMES)]
    held = (
        dataset.catalogue.frame.join(
            release.catalogue.frame.select(names), on="track_id", how="left", maintain_order="left"
        )
        .with_columns(pl.coalesce(name, f"{name}_before").alias(name) for name in _NAMES)
        .drop(f"{name}_before" for name in _NAMES)
    )
    kept = release.catalogue.frame.join(held, on="track_id", how="anti", maintain_order="left")
    frame = pl.concat([held, kept.with_columns(pl.lit(0, pl.Int64).alias("plays"), pl.lit(0, pl.Int64).alias("skips"))])
    return replace(dataset, catalogue=Catalogue.from_frame(frame.drop("row")))


def take_over(encoder: SessionEncoder, release: Release, catalogue: Catalogue, part: Sessions) -> None:
    """Give a new encoder the release's weights and rows, and new tracks rows by their company in `part`.

    `encoder` has the rows of `catalogue`, as `part` has. New tracks without such company keep the rows that they have.
    """
    load_encoder_weights(encoder, release)
    origin = np.concatenate([np.full(FIRST_TRACK_ROW, PAD_ROW), release.catalogue.rows(catalogue.track_ids)])
    known: Bool = origin != PAD_ROW
    table: Float32 = encoder.item_embeddings.weight.detach().numpy().copy()
    table[known] = release.item_embeddings[origin[known]]
    if not np.isfinite(table).all():
        raise BadRelease(f"--init-from {release.path}: an item embedding is not finite: train the release again")
    new, means = cooccurrence_init(table, known, part)
    table[new] = means
    with torch.no_grad():
        weight = encoder.item_embeddings.weight
        weight.copy_(torch.from_numpy(table))
        if len(new):
            weight[torch.from_numpy(new)] *= popularity_calibrated_scale(encoder, known, new, part)


def cooccurrence_init(table: Float32, known: Bool, part: Sessions) -> tuple[Int, Float32]:
    """Rows of unknown tracks that were played near known ones, and the means of these, as long as rows commonly are.

    Up to CONTEXT_WINDOW plays before and after count as near.

    Args:
        table: [num_rows, dimension] float32, in which rows of `known` count.
        known: [num_rows] bool, False for PAD_ROW.
        part: sessions of these rows.

    Returns:
        rows [n] int64, rising, and their means [n, dimension] float32, each of the median length of the known rows.

    """
    at = np.flatnonzero(~known[part.rows])
    session = np.searchsorted(part.offsets, at, side="right") - 1
    first, beyond = part.offsets[session], part.offsets[session + 1]
    pairs = []
    for shift in (*range(-CONTEXT_WINDOW, 0), *range(1, CONTEXT_WINDOW + 1)):
        inside = (at + shift >= first) & (at + shift < beyond)
        pair = np.stack([part.rows[at[inside]], part.rows[at[inside] + shift]])
        pairs.append(pair[:, known[pair[1]]])
    unknown, company = np.concatenate(pairs, axis=1)
    rows, place = np.unique(unknown, return_inverse=True)
    counts = csr_matrix((np.ones(len(place), np.float32), (place, company)), shape=(len(rows), len(table)))
    sums: Float32 = np.asarray(counts @ table, dtype=np.float32)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    usual = float(np.median(np.linalg.norm(table[known], axis=1))) if known.any() else 0.0
    return rows.astype(np.int64), sums / np.maximum(lengths, 1e-12) * np.float32(usual)


def popularity_calibrated_scale(encoder: SessionEncoder, known: Bool, new: Int, part: Sessions) -> float:
    """By what new tracks' rows are multiplied, at most 1, to have the share of lists that they have of `part`'s plays.

    Lists are the ten best of known and new tracks, by the encoder with its rows as they are, for sessions of `part`.

    Args:
        encoder: holds the rows of all tracks.
        known: [num_rows] bool, False for PAD_ROW.
        new: [n] int64, rows that are to be multiplied.
        part: sessions of these rows.

    Returns:
        The factor; 1 where their share is not reached, or where shorter rows would not lower it (known tracks' scores
        below 0).

    """
    wanted = float(np.isin(part.rows, new).mean())
    asked = np.unique(np.linspace(0, len(part) - 1, min(len(part), _SESSIONS_ASKED)).astype(np.int64))
    windows = to_windows(part.select(asked), encoder.options.window)
    encoder.eval()
    with torch.no_grad():
        queries = encoder.query(torch.from_numpy(windows.tracks), torch.from_numpy(windows.skipped))
        of_known, of_new = (
            _best_scores(queries, encoder.item_embeddings.weight, torch.from_numpy(rows))
            for rows in (np.flatnonzero(known), new)
        )

    def share(factor: float) -> float:
        best = torch.cat([of_known, of_new * factor], dim=1).topk(min(_LIST, of_known.shape[1]), dim=1).indices
        return float((best >= of_known.shape[1]).double().mean())

    low, high = 0.0, 1.0
    if share(high) <= wanted or share(low) > wanted:
        return 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if share(middle) > wanted else (middle, high)
    return low


def _best_scores(queries: Tensor, table: Tensor, rows: Tensor) -> Tensor:
    """The highest scores of each query among `rows` [n] int64, a list's or all. [batch, up to 10]."""
    best = queries.new_empty((len(queries), 0))
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[start : start + _ROWS_AT_ONCE]
        scores = torch.cat([best, queries @ table.index_select(0, part).T], dim=1)
        best = scores.topk(min(_LIST, scores.shape[1]), dim=1).values
    return best
