"""Catalogues for tests."""

from collections.abc import Sequence

import polars as pl

from segue.catalogue import Catalogue


def catalogue_of(track_ids: Sequence[str]) -> Catalogue:
    """A catalogue of ids alone, in the given order."""
    return Catalogue.from_frame(pl.DataFrame({"track_id": list(track_ids)}, schema={"track_id": pl.String}))
