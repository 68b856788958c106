"""RecTools' SASRec for some seconds on generated sessions; runs in RecTools' own environment (benchmarks/peers).

python rectools_speed.py SESSIONS.npz --loss softmax --seconds 15 --out FILE.json
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
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

WARM_UP = 2
LEAST_STEPS = 3


class Clock(Callback):  # type: ignore[misc]
    """Takes the time of every step, and stops training after some seconds of CPU time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.at: list[float] = []
        self.cpu: list[float] = []

    def __deepcopy__(self, _: Any) -> "Clock":
        """Itself: RecTools trains by a copy of the trainer."""
        return self

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """After each step."""
        self.at.append(time.perf_counter())
        self.cpu.append(time.process_time())
        if self.cpu[-1] - self.cpu[0] > self.seconds and len(self.at) > WARM_UP + LEAST_STEPS:
            trainer.should_stop = True


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("arrays", type=Path)
    parser.add_argument("--loss", choices=["softmax", "sampled_softmax", "BCE"], required=True)
    parser.add_argument("--negatives", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(chosen.threads)
    arrays = np.load(chosen.arrays)
    rows, offsets = arrays["rows"], arrays["offsets"]
    users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    when = pd.Timestamp("2020-01-01") + pd.to_timedelta(np.arange(len(rows)), unit="s")
    frame = pd.DataFrame({Columns.User: users, Columns.Item: rows, Columns.Weight: 1.0, Columns.Datetime: when})
    clock = Clock(chosen.seconds)

    def trainer() -> Trainer:
        silent = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
        settings: dict[str, Any] = dict.fromkeys(silent, False)
        return Trainer(accelerator="cpu", devices=1, max_epochs=100, callbacks=[clock], min_epochs=0, **settings)

    model = SASRecModel(
        n_factors=128,
        n_blocks=2,
        n_heads=8,
        dropout_rate=0.2,
        session_max_len=20,
        train_min_user_interactions=2,
        loss=chosen.loss,
        n_negatives=chosen.negatives,
        lr=0.001,
        batch_size=64,
        get_trainer_func=trainer,
    )
    model.fit(Dataset.construct(frame))
    step_s = np.diff(clock.at)[WARM_UP - 1 :]
    result = {
        "version": metadata.version("rectools"),
        "rows": int(model.torch_model.item_model.n_items),
        "steps": len(step_s),
        "step_ms": 1e3 * float(np.median(step_s)),
        "sessions_per_s": 64 / float(np.median(step_s)),
        "sessions_per_cpu_s": 64 / float(np.median(np.diff(clock.cpu)[WARM_UP - 1 :])),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    chosen.out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
