"""The event log as a reader should take it, whoever wrote it and however often."""

import contextlib
from pathlib import Path

import polars as pl

from service.sessions.event_log import SCHEMA


def read_back(folder: Path) -> dict[str, list[tuple[str, bool]]]:
    """Plays by session id, as a reader of the log should make them: of one position, the latest row counts."""
    frames = [pl.DataFrame(schema=SCHEMA)]
    for file in sorted(folder.glob("events-*.parquet")):
        # As bytes, since polars opens a file twice and the writer may replace it in between.
        with contextlib.suppress(FileNotFoundError):
            frames.append(pl.read_parquet(file.read_bytes()))
    assert all(frame.schema == SCHEMA for frame in frames)
    rows = pl.concat(frames)
    plays: dict[str, dict[int, tuple[str, bool]]] = {}
    for row in rows.sort("written_at", maintain_order=True).iter_rows(named=True):
        assert row["timestamp"] is not None
        plays.setdefault(row["session_id"], {})[row["position"]] = (row["track_id"], row["skipped"])
    return {name: [of[position] for position in range(len(of))] for name, of in plays.items()}
