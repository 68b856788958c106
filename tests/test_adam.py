"""Adam on a list of weights, and clipping, beside torch's own optimiser and its own clipping."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from training.optimizer import DenseWeights, clip_grad_norm_  # noqa: E402 (after the check that torch is there)

SHAPES = (3,), (4, 5), (2, 3, 2)


def parameters() -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def with_gradients(weights: list[Any], step: int) -> None:
    """Every other step reaches the first two alone."""
    generator = torch.Generator().manual_seed(step)
    for i, weight in enumerate(weights):
        gradient = torch.randn(weight.shape, generator=generator)
        weight.grad = gradient if i < 2 or step % 2 else None


@pytest.mark.parametrize("fused_on", ["cpu", "no device"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_step_is_that_of_adamw(weight_decay: float, fused_on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.optimizer._FUSED_ON", fused_on)
    ours, theirs = parameters(), parameters()
    dense = DenseWeights(ours, weight_decay)
    optimizer = torch.optim.AdamW(theirs, lr=0.01, weight_decay=weight_decay)
    for step in range(10):
        with_gradients(ours, step)
        with_gradients(theirs, step)
        dense.update(0.01)
        optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_a_state_that_is_loaded_goes_on_to_the_same_bits() -> None:
    whole, first, second = parameters(), parameters(), parameters()
    through, before, after = DenseWeights(whole, 0.0), DenseWeights(first, 0.0), DenseWeights(second, 0.0)
    for step in range(6):
        with_gradients(whole, step)
        through.update(0.01)
    for step in range(3):
        with_gradients(first, step)
        before.update(0.01)
    after.load_state_dict(before.state_dict())
    for mine, other in zip(second, first, strict=True):
        mine.data.copy_(other.data)
    for step in range(3, 6):
        with_gradients(second, step)
        after.update(0.01)
    assert all(torch.equal(mine, other) for mine, other in zip(second, whole, strict=True))


@pytest.mark.parametrize("most", [0.5, 100.0])
def test_gradients_are_clipped_together_as_torch_does(most: float) -> None:
    ours, theirs = parameters(), parameters()
    with_gradients(ours, 1)
    with_gradients(theirs, 1)
    clip_grad_norm_([weight.grad for weight in ours], most)
    torch.nn.utils.clip_grad_norm_(theirs, most)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_a_gradient_that_is_no_number_is_told_to_all() -> None:
    weights = parameters()
    with_gradients(weights, 1)
    weights[0].grad[0] = float("nan")
    clip_grad_norm_([weight.grad for weight in weights], 1.0)
    assert all(weight.grad.isnan().all() for weight in weights)
