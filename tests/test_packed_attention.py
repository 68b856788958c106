"""Attention of real steps alone, beside the plain formula differentiated by torch."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from training.models.encoders.encoder import gather_rows, scatter_to_padded  # noqa: E402
from training.models.encoders.sasrec import PackedLayout, build_attention_mask  # noqa: E402

HEADS, WIDTH = 2, 6
LENGTHS = 1, 4, 0, 3  # a session without a play among them
LONGEST = max(LENGTHS)


def real_steps(*, left: bool) -> Any:
    """Padding is on the left, or on the right."""
    columns = torch.arange(LONGEST)
    return torch.stack([columns >= LONGEST - length if left else columns < length for length in LENGTHS])


def by_hand(inputs: Any, real: Any, factors: Any, *, causal: bool) -> Any:
    """Session after session and head after head; `factors` [sessions * heads, n, n] multiply the weights."""
    mixed, start = [], 0
    for session, length in enumerate(LENGTHS):
        query, key, value = inputs[start : start + length].view(length, 3, HEADS, WIDTH // HEADS).unbind(dim=1)
        heads = []
        for head in range(HEADS):
            scores = query[:, head] @ key[:, head].T / (WIDTH / HEADS) ** 0.5
            if causal:
                scores = scores.masked_fill(~torch.ones(length, length).tril().bool(), -torch.inf)
            kept = factors[session * HEADS + head][real[session]][:, real[session]]
            heads.append((scores.softmax(dim=-1) * kept) @ value[:, head])
        mixed.append(torch.cat(heads, dim=1))
        start += length
    return torch.cat(mixed)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_it_equals_the_plain_formula_with_its_gradient(
    causal: bool, left: bool, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(sum(LENGTHS), 3 * WIDTH, generator=generator, dtype=torch.float64, requires_grad=True)
    factors = torch.ones(len(LENGTHS) * HEADS, LONGEST, LONGEST, dtype=torch.float64)
    if share:
        factors = (torch.rand(factors.shape, generator=generator) > share).double() / (1 - share)
        monkeypatch.setattr("training.models.encoders.sasrec.dropout_mask", lambda *_: factors)
    real = real_steps(left=left)
    places = PackedLayout(real, build_attention_mask(real, causal=causal), HEADS)
    found, expected = places.attend(inputs, share), by_hand(inputs, real, factors, causal=causal)
    torch.testing.assert_close(found, expected)
    towards = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(found, inputs, towards), torch.autograd.grad(expected, inputs, towards)
    )


def test_a_batch_without_a_real_step_has_no_line_and_no_gradient() -> None:
    real = torch.zeros(2, 3, dtype=torch.bool)
    places = PackedLayout(real, build_attention_mask(real, causal=True), HEADS)
    inputs = torch.zeros(0, 3 * WIDTH, requires_grad=True)
    mixed = places.attend(inputs, 0.5)
    assert mixed.shape == (0, WIDTH)
    (gradient,) = torch.autograd.grad(mixed.sum(), inputs)
    assert gradient.shape == inputs.shape
    assert places.scatter_to_padded(mixed).shape == (6, WIDTH)


def test_lines_are_picked_and_put_back_with_their_gradients() -> None:
    lines = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    places = torch.tensor([0, 3, 4])
    assert torch.equal(gather_rows(lines, places), lines[places])
    assert torch.autograd.gradcheck(lambda given: gather_rows(given, places), lines)
    few = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    back = scatter_to_padded(few, torch.tensor([0, 0, 1, 1, 2]), places)
    assert torch.equal(back[places], few)
    (gradient,) = torch.autograd.grad(back[places].sum(), few)
    assert torch.equal(gradient, torch.ones_like(few))
