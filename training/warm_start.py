"""Fine-tuning: initialise a model from a release and train the model on new data, faster than from scratch.

Known tracks keep their embedding rows, matched by track id. If the dataset lacks a track of the release, the track is
appended to the catalogue. New tracks get new rows. All other weights are copied from the release. The optimizer starts
without state, because a release contains no optimizer state.

The row of a new track points in the direction of the mean row of its neighbours. Neighbours are known tracks played at
most CONTEXT_WINDOW plays before or after the new track. Tracks of the same session have similar rows, so training
would move the new row in the same direction. A mean vector has a large inner product with many queries. At the median
length of the known rows, new tracks would appear in most lists. One factor therefore scales down the rows of all new
tracks, until the new tracks' share of the lists equals their share of the plays. New tracks can be recommended before
the first training step, but no more often than they are played. benchmarks/README.md compares this method with
unscaled rows and with random rows.

`encoder_weights.npy` contains one record with a float32 field for each weight tensor. The name and the shape of a field
are those of the weight in the encoder. The item embeddings have a separate file. One comparison of dtypes
rejects the weights of an incompatible encoder, because the dtype contains all names and shapes.
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
from training.data.splits import Targets
from training.models.encoders.encoder import SessionEncoder
from training.options import NeuralOptions, Options, check_options, read_options

ENCODER_WEIGHTS: Final = "encoder_weights.npy"
_LARGEST_HEADER: Final = 1_000_000  # characters; each self-attention block needs about 700


def encoder_weights(encoder: SessionEncoder) -> NDArray[Any]:
    """Return all weights except the item embeddings as an array of one record with float32 fields. Shape: [1]."""
    record = np.zeros(1, dtype=_fields(encoder))
    for name, weight in _weights(encoder).items():
        record[name][0] = weight.detach().cpu().numpy()
    return record


def load_encoder_weights(encoder: SessionEncoder, release: Release) -> None:
    """Copy the weights of `release` into `encoder` in place, except the item embeddings.

    Raises:
        BadRelease: The weights belong to another encoder, or a weight is not finite.

    """
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
    """Return the text of an error message that names the first weight with an unexpected shape or dtype."""
    theirs, ours = dict(found.fields or {}), dict(expected.fields or {})
    for name in sorted({*theirs, *ours}, key=str):
        one, other = (str(fields[name][0]) if name in fields else "nothing" for fields in (theirs, ours))
        if one != other:
            return f"{one} for {str(name)[:80]!r}, this Segue's encoder has {other}: train the release again"
    return f"an array of {str(found)[:80]}, expected one record of weights: train the release again"


CONTEXT_WINDOW: Final = 2
_COUNTS: Final = ("plays", "skips")
_LIST: Final = 10  # tracks
_SESSIONS_ASKED: Final = 500
_ROWS_AT_ONCE: Final = 65_536
_HALVINGS: Final = 20
_ENCODER: Final = {"window", "dimension", "plays", "skip_input"}  # options that define every encoder
_OF_TRAINING: Final = {
    "masking",
    "duplication_factor",
    "max_followers",
}  # encoder-specific options that affect only training


def fine_tune_options(
    release: Release,
    kind: type[Options],
    recipe: str | None,
    settings: Sequence[str],
    **flags: Any,
) -> Options:
    """Return the options of `release`, overridden by `recipe`, `settings` (from `--set`) and `flags`.

    Raises:
        BadOption: An override would change the architecture of the encoder.

    """
    chosen = read_options(kind, recipe, settings, release.manifest.model, **flags)
    options = check_options(kind, release.manifest.options | chosen.model_dump(include=chosen.model_fields_set))
    fixed = (_ENCODER | kind.model_fields.keys() - NeuralOptions.model_fields.keys()) - _OF_TRAINING
    before, now = release.manifest.options, options.model_dump()
    for name in sorted(fixed & now.keys()):
        if now[name] != before.get(name, now[name]):
            raise BadOption(
                f"--init-from {release.path} was trained with {name}={before[name]}, not {now[name]}: "
                f"leave {name} out, or train without --init-from"
            )
    return options


def check_can_fine_tune(release: Release) -> None:
    """Check that `release` can be fine-tuned.

    Raises:
        BadRelease: The model has neither an encoder nor transition counts, or there is no `encoder_weights.npy`.

    """
    if release.manifest.loss is None and not release.has_counts:
        model = release.manifest.model
        raise BadRelease(
            f"--init-from {release.path} is of model {model}, which cannot be fine-tuned: leave --init-from out"
        )
    if release.manifest.loss is not None and ENCODER_WEIGHTS not in release.manifest.files:
        raise BadRelease(
            f"--init-from {release.path}: it holds no {ENCODER_WEIGHTS}, as an older Segue wrote it: train it once "
            "more, without --init-from"
        )


def check_same_split(release: Release, split: str, targets: Targets = "last") -> None:
    """Check that `release` was trained on `split`, and without the validation targets of `targets`.

    Each split holds out other plays. The release may therefore have been trained on the held-out plays of `split`.

    Raises:
        BadOption: The release was trained on another split, or with targets that are later plays.

    """
    before = release.manifest.dataset.split
    if before != split:
        raise BadOption(
            f"--init-from {release.path} was trained on the {before} split, which holds out other plays than {split}: "
            f"set --split {before}"
        )
    if split == "last-play" and targets == "known" and release.manifest.evaluation.get("targets") != "known":
        raise BadOption(
            f"--init-from {release.path} was trained without --targets known, so it was trained on validation targets "
            "of --targets known: omit --targets, or fine-tune a release that was trained with --targets known"
        )


def with_tracks_of(release: Release, dataset: Dataset) -> Dataset:
    """Append the tracks that only `release` has to the catalogue of `dataset`. The rows of `dataset` do not change.

    Missing titles, artists and attributes are copied from `release`. For example, an event log has none. An attribute
    that has another type in `dataset` is not copied.
    """
    ours, before = dataset.catalogue.frame, release.catalogue.frame
    before = before.select(
        name
        for name in before.columns
        if name not in ("row", *_COUNTS) and ours.schema.get(name) in (None, before[name].dtype)
    )
    shared = [name for name in before.columns if name in ours.columns and name != "track_id"]
    held = ours.join(before, on="track_id", how="left", maintain_order="left", suffix=" before")
    held = held.with_columns(pl.coalesce(name, f"{name} before").alias(name) for name in shared)
    held = held.drop(f"{name} before" for name in shared)
    kept = before.join(held, on="track_id", how="anti", maintain_order="left")
    kept = kept.with_columns(pl.lit(0, pl.Int64).alias(name) for name in _COUNTS)
    return replace(dataset, catalogue=Catalogue.from_frame(pl.concat([held.drop("row"), kept], how="diagonal")))


def take_over(encoder: SessionEncoder, release: Release, catalogue: Catalogue, part: Sessions) -> None:
    """Initialise `encoder` in place from `release`: its weights, and the embedding rows of all known tracks.

    A new track gets an embedding row from its neighbours in the sessions `part` (see `cooccurrence_init`). A new track
    without known neighbours keeps its random row. `encoder` and `part` use the rows of `catalogue`.

    Raises:
        BadRelease: The weights do not match the encoder, or a value is not finite.

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
    """Compute embeddings of new tracks from the known tracks that were played next to them.

    A neighbour is a known track at most CONTEXT_WINDOW plays before or after the new track in the same session. A new
    embedding is the mean of the neighbours' embeddings, rescaled to the median length of all known embeddings.

    Args:
        table: [num_rows, dimension] float32 embeddings. Only the rows of known tracks are used.
        known: [num_rows] bool, True for known tracks, False for PAD_ROW.
        part: sessions with rows of `table`.

    Returns:
        The rows of new tracks with at least one neighbour, [n] int64 in ascending order, and their embeddings,
        [n, dimension] float32.

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
    """Return the factor by which to multiply the embeddings of new tracks, so that they are not recommended too often.

    With this factor, the new tracks' share of the recommendation lists equals their share of the plays in `part`. A
    list contains the top ten of the known and new tracks for one session of `part`. A binary search finds the factor.

    Args:
        encoder: the encoder with the unscaled embeddings of all tracks.
        known: [num_rows] bool, True for known tracks, False for PAD_ROW.
        new: [n] int64, rows of the new tracks.
        part: sessions with rows of the encoder's item embeddings.

    Returns:
        A factor of at most 1. The factor is 1 if unscaled embeddings do not exceed the share of plays. The factor is
        also 1 if smaller embeddings cannot reduce the share of the lists, because known tracks have negative scores.

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
    """Return the ten highest scores of each query among `rows`, in blocks of rows to limit memory.

    Shapes: `queries` [batch, dimension] float32, `table` [num_rows, dimension] float32, `rows` [n] int64; the result
    is [batch, min(n, 10)] float32.
    """
    best = queries.new_empty((len(queries), 0))
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[start : start + _ROWS_AT_ONCE]
        scores = torch.cat([best, queries @ table.index_select(0, part).T], dim=1)
        best = scores.topk(min(_LIST, scores.shape[1]), dim=1).values
    return best
