"""Out of memory is one line that says what to lower, whoever runs out of it; other errors stay what they are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from segue.errors import OutOfMemory  # noqa: E402 (after the check that torch is there)
from training.checkpoint import Checkpoints, Progress  # noqa: E402
from training.options import Bert4RecOptions, Options, SasRecOptions, WrmfOptions  # noqa: E402
from training.run import oom_hint  # noqa: E402

ON_A_GPU = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 3 are free"
)


def advice(options: Options, folder: Path, act: Any, **rest: Any) -> str:
    with pytest.raises(OutOfMemory) as caught, oom_hint(options, Checkpoints(folder, {}), **rest):
        act()
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    return str(caught.value)


def raising(error: Exception) -> Any:
    def act() -> None:
        raise error

    return act


def test_what_torch_cannot_have_of_the_hosts_memory(tmp_path: Path) -> None:
    said = advice(SasRecOptions(), tmp_path, lambda: torch.empty(2**50))
    assert said == (
        "out of memory (4,194,304.0 GiB more were requested): "
        "lower batch_size (now 64), negatives (now 1000) or dimension (now 128) with --set"
    )


def test_what_numpy_cannot_have(tmp_path: Path) -> None:
    said = advice(WrmfOptions(), tmp_path, lambda: np.empty((2**40, 2**10)))
    assert said.startswith("out of memory (8 PiB more were requested): lower dimension (now ")


def test_what_a_gpu_does_not_have(tmp_path: Path) -> None:
    said = advice(Bert4RecOptions(), tmp_path, raising(torch.OutOfMemoryError(ON_A_GPU)))
    assert "out of memory (20 GiB more were requested): lower batch_size" in said
    assert "duplication_factor (now 2)" in said


def test_a_model_without_such_options_says_so(tmp_path: Path) -> None:
    said = advice(Options(), tmp_path, raising(MemoryError()))
    assert said == "out of memory: train on fewer sessions or a machine with more memory"


def test_what_is_fixed_is_not_advised_and_a_checkpoint_is_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "r.training", {})
    checkpoints.save(Progress(), {})
    said = advice(SasRecOptions(), checkpoints.folder, raising(MemoryError()), fixed=frozenset({"dimension"}))
    assert "lower batch_size (now 64) or negatives (now 1000) with --set; " in said
    assert f"the checkpoint stays in {checkpoints.folder}" in said
    assert checkpoints.exist()


def test_other_errors_are_left_alone(tmp_path: Path) -> None:
    for error in (RuntimeError("shapes do not match"), ValueError("not enough memory")):
        with pytest.raises(type(error), match=str(error)), oom_hint(SasRecOptions(), Checkpoints(tmp_path, {})):
            raise error
