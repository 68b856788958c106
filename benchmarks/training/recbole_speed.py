"""RecBole's SASRec for some seconds on generated sessions; runs in RecBole's own environment (benchmarks/peers).

    python recbole_speed.py SESSIONS.npz --loss CE --seconds 15 --out FILE.json

RecBole trains on every prefix of a session as an example of its own, and with more than one negative it encodes the
prefix again for each. Its rate in examples, over the examples that a session makes, is its rate in sessions.
"""

import argparse
import json
import resource
import tempfile
import time
import warnings
from collections.abc import Iterator
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

WINDOW = 20
HEADER = "session_id:token\titem_id_list:token_seq\titem_id:token\n"
WARM_UP = 2
LEAST_STEPS = 3


class Limited:
    """A loader of batches that takes the time between them and ends after some seconds of CPU time."""

    def __init__(self, loader: Any, seconds: float) -> None:
        self.loader, self.seconds = loader, seconds
        self.at: list[float] = []
        self.cpu: list[float] = []

    def __iter__(self) -> Iterator[Any]:
        while True:
            for batch in self.loader:
                self.at.append(time.perf_counter())
                self.cpu.append(time.process_time())
                if len(self.at) > WARM_UP + LEAST_STEPS and self.cpu[-1] - self.cpu[0] > self.seconds:
                    return
                yield batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


def write_examples(arrays: Any, folder: Path) -> float:
    """RecBole's benchmark files; returns examples a session. Sessions for the catalogue's sake alone are one each."""
    rows, offsets, played = arrays["rows"], arrays["offsets"], int(arrays["played"])
    examples = 0
    with (folder / "generated.train.inter").open("w") as stream:
        stream.write(HEADER)
        for session, (start, end) in enumerate(pairwise(offsets)):
            for at in range(start + 1 if session < played else end - 1, end):
                before = rows[max(start, at - WINDOW) : at]
                stream.write(f"{session}\t{' '.join(map(str, before))}\t{rows[at]}\n")
                examples += session < played
    for part in ("valid", "test"):  # which nothing here asks
        (folder / f"generated.{part}.inter").write_text(f"{HEADER}0\t{rows[0]}\t{rows[1]}\n")
    return examples / played


def settings(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    sampled = {"distribution": "uniform", "sample_num": chosen.negatives, "dynamic": False, "candidate_num": 0}
    return {
        "data_path": str(folder.parent),
        "benchmark_filename": ["train", "valid", "test"],
        "load_col": {"inter": ["session_id", "item_id_list", "item_id"]},
        "USER_ID_FIELD": "session_id",
        "alias_of_item_id": ["item_id_list"],
        "MAX_ITEM_LIST_LENGTH": WINDOW,
        "train_neg_sample_args": None if chosen.loss == "CE" else sampled,
        "loss_type": chosen.loss,
        "n_layers": 2,
        "n_heads": 8,
        "hidden_size": 128,
        "inner_size": 128,
        "hidden_dropout_prob": 0.2,
        "attn_dropout_prob": 0.2,
        "train_batch_size": chosen.batch_size,
        "learning_rate": 0.001,
        "use_gpu": False,
        "show_progress": False,
        "state": "ERROR",
        "checkpoint_dir": str(folder),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("arrays", type=Path)
    parser.add_argument("--loss", choices=["CE", "BPR"], required=True)
    parser.add_argument("--negatives", type=int, default=1)
    parser.add_argument("--batch-size", type=int, required=True, help="examples, each once for each of its negatives")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "generated"
        folder.mkdir()
        a_session = write_examples(np.load(chosen.arrays), folder)
        config = Config(model="SASRec", dataset="generated", config_dict=settings(chosen, folder))
        init_seed(0, config["reproducibility"])
        train, _, _ = data_preparation(config, create_dataset(config))
        model = get_model("SASRec")(config, train.dataset)
        trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
        torch.set_num_threads(chosen.threads)
        clock = Limited(train, chosen.seconds)
        trainer._train_epoch(clock, 0, show_progress=False)
    step_s = float(np.median(np.diff(clock.at)[WARM_UP:]))
    result = {
        "version": metadata.version("recbole"),
        "rows": int(model.n_items),
        "steps": len(clock.at) - WARM_UP - 1,
        "step_ms": 1e3 * step_s,
        "sessions_per_s": train.step / step_s / a_session,
        "sessions_per_cpu_s": train.step / float(np.median(np.diff(clock.cpu)[WARM_UP:])) / a_session,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    chosen.out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
