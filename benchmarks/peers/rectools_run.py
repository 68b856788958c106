"""RecTools' SASRec or BERT4Rec on exported arrays (export.py); runs in an environment of its own, see requirements.

Trains in rounds of `--round` epochs and keeps the ranks of the round that is best on validation, which is more than
RecTools itself offers. Lists of 100 tracks come from RecTools' own `recommend`; a target behind them has no rank.
"""

import argparse
import json
import logging
import resource
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import BERT4RecModel, SASRecModel

MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sasrec": (SASRecModel, {"loss": "softmax"}),
    "sasrec-bce": (SASRecModel, {"loss": "BCE", "n_negatives": 1}),  # its cheapest loss
    "bert4rec": (BERT4RecModel, {"loss": "softmax"}),
}
LIST = 100


def dataset_of(rows: Any, offsets: Any) -> Any:
    """RecTools' dataset of sessions as users, the plays in order."""
    users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    when = pd.Timestamp("2020-01-01") + pd.to_timedelta(np.arange(len(rows)), unit="s")
    frame = pd.DataFrame({Columns.User: users, Columns.Item: rows, Columns.Weight: 1.0, Columns.Datetime: when})
    return Dataset.construct(frame)


def ranks_of(model: Any, rows: Any, offsets: Any, targets: Any) -> Any:
    """Rank of each session's target in its list; infinite behind it. [sessions] float64."""
    found = model.recommend(np.arange(len(targets)), dataset_of(rows, offsets), k=LIST, filter_viewed=False)
    hits = found[found[Columns.Item].to_numpy() == targets[found[Columns.User].to_numpy()]]
    ranks = np.full(len(targets), np.inf)
    ranks[hits[Columns.User].to_numpy()] = hits[Columns.Rank].to_numpy()
    return ranks


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("arrays", type=Path)
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--round", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    seed_everything(chosen.seed)
    arrays = np.load(chosen.arrays)
    kind, loss = MODELS[chosen.model]
    model = kind(
        n_factors=128,
        n_blocks=2,
        n_heads=8,
        dropout_rate=0.2,
        session_max_len=20,
        train_min_user_interactions=2,
        **loss,
        lr=chosen.learning_rate,
        batch_size=64,
        deterministic=True,
        get_trainer_func=trainer,
    )
    train = dataset_of(arrays["train"], arrays["train_offsets"])
    seconds, best, kept, best_epoch = 0.0, -1.0, np.empty(0), 0
    for epoch in range(chosen.round, chosen.epochs + 1, chosen.round):
        started = time.monotonic()
        model.fit_partial(train, min_epochs=chosen.round, max_epochs=chosen.round)
        seconds += time.monotonic() - started
        ranks = {
            part: ranks_of(model, arrays[part], arrays[f"{part}_offsets"], arrays[f"{part}_targets"])
            for part in ("validation", "test")
        }
        hr10 = float((ranks["validation"] <= 10).mean())
        print(
            f"{chosen.model} lr {chosen.learning_rate} seed {chosen.seed} epoch {epoch}: validation HR@10 {hr10:.4f}",
            flush=True,
        )
        if hr10 > best:
            best, kept, best_epoch = hr10, ranks["test"], epoch
    result = {
        "peer": "RecTools",
        "version": metadata.version("rectools"),
        "model": chosen.model,
        "learning_rate": chosen.learning_rate,
        "seed": chosen.seed,
        "epochs": chosen.epochs,
        "best_epoch": best_epoch,
        "seconds": round(seconds, 1),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "validation": {"HR@10": best},
        "ranks": [None if np.isinf(rank) else float(rank) for rank in kept],
    }
    chosen.out.write_text(json.dumps(result))


def trainer() -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        deterministic=True,
    )


if __name__ == "__main__":
    main()
