"""Datasets for tests, written from plays as a frame."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from training.data.dataset import Dataset, RawInteractions, write_listening
from training.data.log_facts import LogFacts


def write_dataset(
    path: Path,
    plays: pl.DataFrame,
    source: str,
    options: Mapping[str, Any] | None = None,
    *,
    malformed_lines: int = 0,
    last_known: Sequence[bool] | None = None,
    log: LogFacts | None = None,
    overwrite: bool = False,
) -> Dataset:
    """Write a dataset from one row a play, in order: `session_id`, `track_id`, `skipped`, optional `title`, `artist`.

    Sessions come in the order of their first rows. A track's title and artist are the first ones given for it.
    """
    names = [pl.col(name).drop_nulls().first() for name in ("title", "artist") if name in plays.columns]
    tracks = plays.group_by("track_id", maintain_order=True).agg(names)
    sessions = plays.select("session_id").unique(maintain_order=True).with_row_index("session")
    coded = (
        plays.select("session_id", "track_id", "skipped")
        .join(sessions, on="session_id", how="left", maintain_order="left")
        .join(tracks.select("track_id").with_row_index("code"), on="track_id", how="left", maintain_order="left")
        .sort("session", maintain_order=True)
    )
    lengths = np.bincount(coded["session"].to_numpy(), minlength=len(sessions))
    listening = RawInteractions(
        tracks=tracks,
        codes=coded["code"].to_numpy(),
        skipped=coded["skipped"].to_numpy(),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        session_ids=sessions["session_id"],
        last_known=None if last_known is None else np.array(last_known, dtype=np.bool_),
    )
    return write_listening(
        path, listening, source, options, malformed_lines=malformed_lines, log=log, overwrite=overwrite
    )
