"""RecBole's GRU4Rec or Caser on exported arrays (export.py); runs in an environment of its own, see requirements.

Every prefix of a training session is an example, as RecBole's own augmentation makes them. RecBole stops early on
validation and keeps its best epoch. Ranks are taken from RecBole's own scores of all items.
"""

import argparse
import json
import resource
import tempfile
import time
import warnings
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

MODELS = {"gru4rec": "GRU4Rec", "caser": "Caser"}
WINDOW = 20
HEADER = "session_id:token\titem_id_list:token_seq\titem_id:token\n"


def longest(arrays: Any) -> int:
    """Plays of the longest list that is written: RecBole's Caser takes no shorter ones."""
    ahead = np.diff(arrays["train_offsets"]).max() - 1
    return int(min(WINDOW, max(ahead, *(np.diff(arrays[f"{part}_offsets"]).max() for part in ("validation", "test")))))


def write_parts(arrays: Any, folder: Path) -> None:
    """RecBole's benchmark files: a line an example."""
    rows, offsets = arrays["train"], arrays["train_offsets"]
    with (folder / "mssd.train.inter").open("w") as stream:
        stream.write(HEADER)
        for session, (start, end) in enumerate(pairwise(offsets)):
            for at in range(start + 1, end):
                stream.write(f"{session}\t{' '.join(map(str, rows[max(start, at - WINDOW) : at]))}\t{rows[at]}\n")
    for part, name in (("validation", "valid"), ("test", "test")):
        rows, offsets, targets = arrays[part], arrays[f"{part}_offsets"], arrays[f"{part}_targets"]
        with (folder / f"mssd.{name}.inter").open("w") as stream:
            stream.write(HEADER)
            for session, (start, end) in enumerate(pairwise(offsets)):
                stream.write(
                    f"{session}\t{' '.join(map(str, rows[max(start, end - WINDOW) : end]))}\t{targets[session]}\n"
                )


def settings(chosen: argparse.Namespace, folder: Path, length: int) -> dict[str, Any]:
    """What RecBole is told; everything else is its default for the model."""
    return {
        "data_path": str(folder.parent),
        "benchmark_filename": ["train", "valid", "test"],
        "load_col": {"inter": ["session_id", "item_id_list", "item_id"]},
        "USER_ID_FIELD": "session_id",
        "alias_of_item_id": ["item_id_list"],
        "MAX_ITEM_LIST_LENGTH": length,
        "train_neg_sample_args": None,
        "loss_type": "CE",
        "embedding_size": 128,
        "hidden_size": 128,
        "num_layers": 1,
        "epochs": chosen.epochs,
        "stopping_step": chosen.patience,
        "train_batch_size": chosen.batch_size,
        "eval_batch_size": 2048,
        "learning_rate": chosen.learning_rate,
        "eval_args": {"order": "TO", "mode": {"valid": "full", "test": "full"}},
        "metrics": ["Hit"],
        "topk": [10],
        "valid_metric": "Hit@10",
        "seed": chosen.seed,
        "reproducibility": True,
        "use_gpu": False,
        "show_progress": False,
        "checkpoint_dir": str(folder / "saved"),
    }


def ranks_of(model: Any, dataset: Any, arrays: Any, part: str, length: int) -> Any:
    """Mean rank of each session's target by RecBole's scores of all items. [sessions] float64."""
    token = dataset.field2token_id["item_id"]
    rows, offsets, targets = arrays[part], arrays[f"{part}_offsets"], arrays[f"{part}_targets"]
    known = np.array([token.get(str(row), 0) for row in range(int(arrays["num_rows"]))])
    ranks = np.full(len(targets), np.inf)
    model.eval()
    for start in range(0, len(targets), 512):
        sessions = range(start, min(start + 512, len(targets)))
        items = torch.zeros((len(sessions), length), dtype=torch.int64)
        lengths = torch.zeros(len(sessions), dtype=torch.int64)
        for line, session in enumerate(sessions):
            plays = known[rows[offsets[session] : offsets[session + 1]][-length:]]
            items[line, : len(plays)] = torch.from_numpy(plays)
            lengths[line] = len(plays)
        asked = {"item_id_list": items, "item_length": lengths, "session_id": torch.tensor(list(sessions))}
        with torch.no_grad():
            scores = model.full_sort_predict(asked).view(len(sessions), -1).numpy()
        scores[:, 0] = -np.inf
        wanted = known[targets[start : start + len(sessions)]]
        at = scores[np.arange(len(sessions)), wanted][:, None]
        found = 1 + (scores > at).sum(axis=1) + ((scores == at).sum(axis=1) - 1) / 2
        ranks[start : start + len(sessions)] = np.where(wanted > 0, found, np.inf)
    return ranks


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("arrays", type=Path)
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--patience", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    arrays = np.load(chosen.arrays)
    length = longest(arrays)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "mssd"
        folder.mkdir()
        write_parts(arrays, folder)
        config = Config(model=MODELS[chosen.model], dataset="mssd", config_dict=settings(chosen, folder, length))
        init_seed(chosen.seed, config["reproducibility"])
        dataset = create_dataset(config)
        train, valid, _ = data_preparation(config, dataset)
        model = get_model(config["model"])(config, train.dataset)
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        started = time.monotonic()
        best, _ = trainer.fit(train, valid, verbose=False, saved=True, show_progress=False)
        seconds = time.monotonic() - started
        kept = torch.load(trainer.saved_model_file, weights_only=False)
        model.load_state_dict(kept["state_dict"])
        ranks = {part: ranks_of(model, dataset, arrays, part, length) for part in ("validation", "test")}
    hr10 = float((ranks["validation"] <= 10).mean())
    run = f"{chosen.model} lr {chosen.learning_rate} seed {chosen.seed}"
    print(f"{run}: validation HR@10 {hr10:.4f} (RecBole says {best})", flush=True)
    result = {
        "peer": "RecBole",
        "version": metadata.version("recbole"),
        "model": chosen.model,
        "learning_rate": chosen.learning_rate,
        "seed": chosen.seed,
        "epochs": chosen.epochs,
        "best_epoch": int(kept["epoch"]) + 1,
        "seconds": round(seconds, 1),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "validation": {"HR@10": hr10},
        "ranks": [float(rank) if rank <= 100 else None for rank in ranks["test"]],
    }
    chosen.out.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
