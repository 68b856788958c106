"""Writes the last-play split of a dataset as plain arrays, for programs that know nothing of Segue.

    python benchmarks/peers/export.py DATASET OUT.npz

Arrays of rows (int64, from 1 on) with offsets: what is trained on, and the inputs and targets of validation and test.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from training.data.dataset import open_dataset
from training.data.splits import examples, training_part


def main(dataset: str, out: str) -> None:
    data = open_dataset(Path(dataset))
    train = training_part(data, "last-play").gathered()
    arrays: dict[str, Any] = {
        "num_rows": np.array(data.catalogue.num_rows),
        "train": train.rows,
        "train_offsets": train.offsets,
    }
    for part in ("validation", "test"):
        asked = examples(data, "last-play", part)
        inputs = asked.inputs.gathered()
        arrays |= {
            f"{part}": inputs.rows,
            f"{part}_offsets": inputs.offsets,
            f"{part}_targets": asked.targets,
        }
    np.savez(out, allow_pickle=False, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
