"""Names and memory layouts of torch and FAISS that are not public: a new version of either must fail here first.

uvicorn's are in test_connection.py.
"""

import inspect
from pathlib import Path

import numpy as np
import pytest

from segue.arrays import Float32

FROZEN = Path(__file__).parent / "indexes" / "ivf-pq4.faiss"  # faiss-cpu 1.15.1: faiss_cpu.build(...).to_bytes()
TRACKS, DIMENSION = 1_000, 8


def embeddings() -> Float32:
    """Those that the frozen index was built from. No random numbers, which may differ between versions of NumPy."""
    found = np.sin(np.arange((TRACKS + 1) * DIMENSION, dtype=np.float64) ** 2).reshape(-1, DIMENSION)
    found[0] = 0
    return found.astype(np.float32)


class TestTorch:
    """training/optimizer.py and training/models/encoders/sasrec.py call these."""

    @pytest.fixture(autouse=True)
    def torch_is_there(self) -> None:
        pytest.importorskip("torch")

    def test_operations_on_lists_of_tensors(self) -> None:
        import torch

        lists = [torch.tensor([3.0, 4.0]), torch.tensor([[6.0], [8.0]])]
        assert [norm.item() for norm in torch._foreach_norm(lists)] == [5, 10]
        torch._foreach_mul_(lists, torch.tensor(0.5))  # a tensor as factor, in place
        assert [one.flatten().tolist() for one in lists] == [[1.5, 2], [3, 4]]
        torch._foreach_lerp_(lists, [torch.zeros(2), torch.zeros(2, 1)], 0.5)
        assert [one.flatten().tolist() for one in lists] == [[0.75, 1], [1.5, 2]]

    def test_the_gradient_of_softmax(self) -> None:
        import torch

        scores = torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64, requires_grad=True)
        weights, gradient = scores.softmax(dim=-1), torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
        [expected] = torch.autograd.grad(weights, scores, gradient)
        found = torch._softmax_backward_data(gradient, weights.detach(), -1, scores.dtype)
        torch.testing.assert_close(found, expected)

    def test_adamw_as_a_function(self) -> None:
        from torch.optim.adamw import adamw

        named = {"fused", "foreach", "amsgrad", "beta1", "beta2", "lr", "weight_decay", "eps", "maximize"}
        parameters = list(inspect.signature(adamw).parameters)
        assert parameters[:6] == ["params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "state_steps"]
        assert named <= set(parameters[6:])


class TestFaiss:
    """index/ivf.py reads and writes the table of lists in FAISS's own memory, and blocks of four-bit codes."""

    @pytest.fixture(autouse=True)
    def faiss_is_there(self) -> None:
        pytest.importorskip("faiss")

    def test_the_table_of_lists_is_size_capacity_and_offset(self, tmp_path: Path) -> None:
        from index.faiss_cpu import faiss
        from index.ivf import _CAPACITY, _OFFSET, _SIZE, _table

        file, codes = tmp_path / "lists", np.arange(3 * 4, dtype=np.uint8)
        lists = faiss.OnDiskInvertedLists(2, 4, str(file))
        lists.add_entries(1, 3, faiss.swig_ptr(np.arange(3)), faiss.swig_ptr(codes))
        table = _table(lists)
        assert table.shape == (2, 3)
        assert table[0, _SIZE] == 0
        assert table[1, _SIZE] == 3 <= table[1, _CAPACITY]
        assert file.read_bytes()[int(table[1, _OFFSET]) :][: len(codes)] == codes.tobytes()

    def test_blocks_of_codes_have_the_size_that_files_give_them(self) -> None:
        from index import faiss_cpu
        from index.ivf import _BLOCK

        structure = faiss_cpu.build(embeddings(), "ivf-pq4").structure
        lists = structure.invlists
        assert (structure.bbs, structure.M2 // 2) == (_BLOCK, structure.code_size)
        assert sum(lists.list_size(number) for number in range(lists.nlist)) == TRACKS

    def test_a_frozen_file_is_read_and_answers(self) -> None:
        from index import faiss_cpu
        from index.exact import ExactIndex, recall_at_k

        parameters = faiss_cpu.Parameters(nlist=16, nprobe=16, rerank=2)
        opened = faiss_cpu.load(FROZEN, "ivf-pq4", parameters, embeddings())
        queries = embeddings()[1:101]
        exact = ExactIndex(embeddings()).search(queries, 10)
        assert recall_at_k(opened.search(queries, 10).rows, exact, queries, embeddings()) > 0.9
        assert opened.to_bytes() == FROZEN.read_bytes()
