"""A trained release made larger: tracks between trained ones, so that an index of any size meets a real encoder.

A new track lies between a trained track and one of its neighbours, with noise of the size of half their distance. Its
windows are the trained release's sample windows with each play replaced by a new track of the same origin, the more
popular ones more often (Zipf's law). The encoder is the trained one; its graph refers to the larger table.
"""

from pathlib import Path

import numpy as np
import onnx
import polars as pl

from segue.arrays import Float32, Float64, Int
from segue.catalogue import FIRST_TRACK_ROW, PAD_ROW, Catalogue
from segue.release import ENCODER, ITEM_EMBEDDINGS, TRACK_MAP, Release, ReleaseMetadata, sample_arrays, write_release
from segue.window import Windows
from training.export_onnx import header_bytes
from training.track_map import track_map

_NEIGHBOURS = 20
_MARKETS, _MARKETS_OF_MANY = 60, 8  # above a million tracks, the names of 60 markets would not fit into memory at once
_ROWS_AT_ONCE = 200_000


def enlarge(trained: Release, tracks: int, out: Path, seed: int = 0, *, mapped: bool = True) -> Release:
    """A release of `tracks` tracks made of a smaller one. Written to `out`; `mapped`: with places on a map."""
    rng = np.random.default_rng(seed)
    small = np.asarray(trained.item_embeddings)
    origins = rng.integers(FIRST_TRACK_ROW, len(small), tracks)
    popularity = np.asarray(1.0 / (1.0 + rng.permutation(tracks)), dtype=np.float64)
    draft = ReleaseMetadata.model_validate(trained.manifest.model_dump(include=set(ReleaseMetadata.model_fields)))
    catalogue = Catalogue.from_frame(
        pl.DataFrame(
            {
                "track_id": pl.int_range(tracks, eager=True).cast(pl.String).str.pad_start(8, "0"),
                "plays": (popularity * tracks).astype(np.int64),
                "title": pl.int_range(tracks, eager=True).cast(pl.String),
                "artist": pl.Series(origins).cast(pl.String),
                **_attributes(origins, rng),
            }
        ).with_columns(
            track_id=pl.format("track:{}", "track_id"),
            title=pl.format("Title of {}", "title"),
            artist=pl.format("Artist {}", "artist"),
        )
    )
    arrays = {ITEM_EMBEDDINGS: _between(small, origins, rng)}
    arrays |= sample_arrays(_renamed(trained.sample_windows, origins, popularity, rng))
    if mapped:
        arrays[TRACK_MAP] = track_map(arrays[ITEM_EMBEDDINGS], catalogue.plays)
    encoder = _referring((trained.path / ENCODER).read_bytes(), small, arrays[ITEM_EMBEDDINGS])
    return write_release(out, draft, catalogue, arrays, encoder)


def _attributes(origins: Int, rng: np.random.Generator) -> dict[str, pl.Series]:
    """Attributes for filters: some of the track alone, others shared by all tracks of the same origin."""
    count = int(origins.max()) + 1
    all_markets = _MARKETS if len(origins) <= 1_000_000 else _MARKETS_OF_MANY
    markets = [[f"M{number:02}" for number in np.flatnonzero(rng.random(all_markets) < 0.7)] for _ in range(200)]
    return {
        "bucket": pl.Series(rng.integers(0, 1000, len(origins))),  # any share of all tracks
        "explicit": pl.Series(rng.random(len(origins)) < 0.15),
        "genre": pl.Series([f"genre {number}" for number in range(40)]).gather(rng.integers(0, 40, count)[origins]),
        "markets": pl.Series(markets).gather(rng.integers(0, len(markets), count)[origins]),
        "released": pl.Series(rng.integers(0, 20_000, len(origins)).astype(np.int32)).cast(pl.Date),
    }


def _between(small: Float32, origins: Int, rng: np.random.Generator) -> Float32:
    """[tracks + 1, dimension] float32."""
    norms = small / np.maximum(np.linalg.norm(small, axis=1, keepdims=True), 1e-12)
    near = np.empty((len(small), _NEIGHBOURS), dtype=np.int64)
    for start in range(0, len(small), 2000):
        alike = norms[start : start + 2000] @ norms.T
        alike[:, PAD_ROW] = -np.inf
        near[start : start + 2000] = np.argpartition(-alike, _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS]
    large = np.zeros((len(origins) + FIRST_TRACK_ROW, small.shape[1]), dtype=np.float32)
    for start in range(0, len(origins), _ROWS_AT_ONCE):
        own = origins[start : start + _ROWS_AT_ONCE]
        other = near[own, rng.integers(0, _NEIGHBOURS, len(own))]
        way = small[other] - small[own]
        noise = rng.standard_normal(way.shape, dtype=np.float32)
        size = 0.5 * np.linalg.norm(way, axis=1, keepdims=True) / np.sqrt(small.shape[1])
        first = start + FIRST_TRACK_ROW
        large[first : first + len(own)] = small[own] + rng.random((len(own), 1), dtype=np.float32) * way + size * noise
    return large


def _renamed(windows: Windows, origins: Int, popularity: Float64, rng: np.random.Generator) -> Windows:
    order = np.lexsort((-popularity, origins))  # the tracks of each origin, most popular first
    starts = np.searchsorted(origins[order], np.arange(origins.max() + 2))
    have = np.diff(starts)[windows.tracks]
    # Zipf's law over a track's clones: the inverse of its distribution function, for many clones.
    drawn = np.minimum((np.maximum(have, 1) ** rng.random(windows.tracks.shape) - 1).astype(np.int64), have - 1)
    chosen = order[np.minimum(starts[windows.tracks] + np.maximum(drawn, 0), len(order) - 1)] + FIRST_TRACK_ROW
    tracks = np.where((windows.tracks == PAD_ROW) | (have == 0), PAD_ROW, chosen)
    return Windows(tracks, windows.skipped & (tracks != PAD_ROW))


def _referring(content: bytes, small: Float32, large: Float32) -> bytes:
    model = onnx.load_from_string(content)
    tables = [tensor for tensor in model.graph.initializer if list(tensor.dims) == list(small.shape)]
    if not tables:
        raise ValueError("the encoder's graph refers to no table of item embeddings")
    for tensor in tables:
        tensor.dims[0] = len(large)
        facts = {entry.key: entry for entry in tensor.external_data}
        facts["offset"].value, facts["length"].value = str(header_bytes(large)), str(large.nbytes)
    return bytes(model.SerializeToString(deterministic=True))
