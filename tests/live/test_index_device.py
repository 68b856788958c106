"""A service whose index is to be searched on a GPU, where there is none."""

from pathlib import Path

import pytest

from index import faiss_gpu
from index.faiss_cpu import faiss
from segue.errors import BadOption
from service.app import check_settings
from service.settings import Settings
from tests.conftest import StartService

pytestmark = pytest.mark.skipif(faiss_gpu.gpu_available(), reason="there is a CUDA device here")

REMEDY = (
    "check that nvidia-smi lists one" if hasattr(faiss, "StandardGpuResources") else r"install segue\[gpu\] in place"
)


@pytest.mark.parametrize("workers", [1, 2])
def test_it_ends_in_one_line_before_redis_is_started_or_a_folder_made(
    start_service: StartService, tmp_path: Path, workers: int
) -> None:
    service = start_service(workers=workers, index_device="gpu")
    assert service.process.wait(60) != 0
    service.stop()
    assert "BadOption: SEGUE_INDEX_DEVICE=gpu: FAISS finds no CUDA device; " in service.output[-1]
    assert not (tmp_path / "data").exists()


def test_the_line_says_what_to_do_about_the_faiss_that_is_installed(tmp_path: Path) -> None:
    release = Path(__file__).parents[1] / "releases" / "v1"
    with pytest.raises(BadOption, match=f"^SEGUE_INDEX_DEVICE=gpu: FAISS finds no CUDA device; {REMEDY}"):
        check_settings(Settings(release=release, index_device="gpu"))


def test_the_cpu_needs_no_device() -> None:
    release = Path(__file__).parents[1] / "releases" / "v1"
    check_settings(Settings(release=release, index_device="cpu"))
