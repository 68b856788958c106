"""SASRec: self-attentive sequential recommendation (Kang and McAuley, ICDM 2018, https://arxiv.org/abs/1808.09781).

BERT4Rec has the same transformer blocks (Vaswani et al., 2017, https://arxiv.org/abs/1706.03762), for padded and for
concatenated sessions. In training, the non-padding steps of all sessions can be concatenated to [steps, width], so that
linear layers do not compute padding. Only the attention needs padded sessions, separated by heads. One gather builds
the padded tensors, and one gather returns to the concatenated steps. The backward pass of the attention is written by
hand. With autograd, the storing, copying and zero-filling of intermediate tensors took as long on a CPU as the matrix
products.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segue.catalogue import PAD_ROW
from training.models.encoders.encoder import CausalEncoder, dropout, dropout_mask, scatter_to_padded
from training.options import SasRecOptions, TransformerOptions

_PARTS = 3  # query, key, value


class PackedLayout:
    """The positions of the non-padding steps of a batch.

    The layout has the indices that gather concatenated steps into padded tensors by heads, and the indices back.
    """

    def __init__(self, non_padding: Tensor, attention_mask: Tensor, heads: int) -> None:
        """Compute the layout of a batch.

        Args:
            non_padding: [batch, n] bool, True for the steps of a session.
            attention_mask: [batch, 1, n, n] bool. Every step must attend to itself. A non-padding step must attend only
                to non-padding steps. A padding step attends only to itself here, with any mask, so that the values and
                gradients of padding do not reach other steps.
            heads: The number of attention heads.

        """
        self.sessions, self.length = non_padding.shape
        self.heads = heads
        flat = non_padding.flatten()
        self.of_real = flat.nonzero()[:, 0]  # [steps] int64
        # Padding gets the values of an arbitrary step. No other step attends to padding.
        self.sources = (flat.cumsum(0) - 1).clamp_(min=0)  # [batch * n] int64
        alone = torch.eye(self.length, dtype=torch.bool, device=non_padding.device)
        hidden = torch.where(attention_mask & (non_padding[:, None, :, None] | alone), 0.0, -torch.inf)
        self.hidden = hidden.expand(-1, heads, -1, -1).flatten(0, 1)  # [batch * heads, n, n], added to the scores
        head = torch.arange(heads, device=non_padding.device)
        part = torch.arange(_PARTS, device=non_padding.device)
        # A row is the slice of one head and one step, of the query, key, value or attention output.
        rows = self.sources.view(1, self.sessions, 1, self.length) * heads
        self.to_heads = (
            rows + head[:, None]
        ).flatten()  # [batch * heads * n], indices of rows in order of session, head, step
        self.to_parts = (
            rows * _PARTS + (part[:, None] * heads + head)[:, None, :, None]
        ).flatten()  # [3 * batch * heads * n], in order of part, session, head, step
        session, column = self.of_real // self.length, self.of_real % self.length
        positions = ((session * heads)[:, None] + head) * self.length + column[:, None]  # [steps, heads]
        self.of_heads = positions.flatten()
        self.of_parts = (positions[:, None, :] + part[:, None] * (self.sessions * heads * self.length)).flatten()

    def scatter_to_padded(self, rows: Tensor) -> Tensor:
        """Scatter concatenated steps to their positions in the padded batch. [steps, width] -> [batch * n, width].

        The values of padding positions are arbitrary.
        """
        return scatter_to_padded(rows, self.sources, self.of_real)

    def attend(self, inputs: Tensor, share: float) -> Tensor:
        """Compute multi-head attention. [steps, 3 * width] -> [steps, width].

        `inputs` are the query, key and value of each step, concatenated along the last dimension. `share` is the
        dropout rate of the attention weights.
        """
        found: Tensor = _Attend.apply(inputs, self, share)  # type: ignore[no-untyped-call]
        return found


class _Attend(torch.autograd.Function):
    """Compute softmax(query key^T / sqrt(width) + hidden) value for every head (Vaswani et al., 2017, equation 1)."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layout: PackedLayout, share: float) -> Tensor:
        width = inputs.shape[1] // (_PARTS * layout.heads)
        if not len(inputs):  # a batch, or one process's shard of a batch, without any step
            ctx.layout = None
            return inputs.new_zeros(0, layout.heads * width)
        rows = inputs.reshape(-1, width).index_select(0, layout.to_parts)
        parts = rows.view(_PARTS, -1, layout.length, width)  # [3, batch * heads, n, width]
        query, key, value = parts
        scale = 1 / math.sqrt(width)
        weights = torch.baddbmm(layout.hidden.to(query.dtype), query, key.mT, alpha=scale).softmax(dim=-1)
        mask = dropout_mask(weights, share)
        dropped = weights if mask is None else weights * mask
        ctx.save_for_backward(parts, weights, dropped, mask)
        ctx.layout, ctx.scale = layout, scale
        attend = torch.bmm(dropped, value).view(-1, width)
        return attend.index_select(0, layout.of_heads).view(len(inputs), -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        layout, gradient = ctx.layout, gradients[0]
        if layout is None:
            return gradient.new_zeros(0, _PARTS * gradient.shape[1]), None, None
        parts, weights, dropped, mask = ctx.saved_tensors
        query, key, value = parts
        grad_attended = gradient.reshape(-1, query.shape[-1]).index_select(0, layout.to_heads).view_as(query)
        grad_parts = torch.empty_like(parts)
        torch.bmm(dropped.mT, grad_attended, out=grad_parts[2])
        grad_weights = torch.bmm(grad_attended, value.mT)
        if mask is not None:
            grad_weights.mul_(mask)
        grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype).mul_(ctx.scale)
        torch.bmm(grad_scores, key, out=grad_parts[0])
        torch.bmm(grad_scores.mT, query, out=grad_parts[1])
        rows = grad_parts.view(-1, query.shape[-1]).index_select(0, layout.of_parts)
        return rows.view(len(gradient), -1), None, None


class Block(nn.Module):
    """Multi-head self-attention and a position-wise feed-forward layer, each with dropout, residual and layer norm.

    The feed-forward layer is `widening` times as wide as the states. The activation is ReLU for `widening` 1 (SASRec),
    and GELU otherwise (BERT4Rec). Pre-norm blocks follow Xiong et al., 2020, https://arxiv.org/abs/2002.04745.
    """

    def __init__(self, options: TransformerOptions, widening: int = 1) -> None:
        super().__init__()
        dimension = options.dimension
        self.heads = options.heads
        self.dropout = options.dropout
        self.pre_norm = options.norm == "pre"
        self.activation = F.relu if widening == 1 else F.gelu
        self.attention_input = nn.Linear(dimension, 3 * dimension)
        self.attention_output = nn.Linear(dimension, dimension)
        self.attention_norm = nn.LayerNorm(dimension)
        self.expand = nn.Linear(dimension, widening * dimension)
        self.contract = nn.Linear(widening * dimension, dimension)
        self.feed_forward_norm = nn.LayerNorm(dimension)

    def forward(self, states: Tensor, attention_mask: Tensor, *, newest: bool = False) -> Tensor:
        """Transform states. [batch, n, dimension] -> [batch, n, dimension]. `attention_mask` [batch, 1, n, n] bool.

        With `newest`, only the last state is computed, [batch, 1, dimension]. This is much cheaper, and sufficient for
        the last block of an encoder that computes a query vector.
        """
        return self._residual_block(
            states[:, -1:] if newest else states, states, lambda seen: self._attend(seen, attention_mask, newest=newest)
        )

    def packed(self, states: Tensor, layout: PackedLayout) -> Tensor:
        """Transform concatenated non-padding steps. [steps, dimension] -> [steps, dimension]."""
        share = self.dropout if self.training else 0.0
        return self._residual_block(
            states, states, lambda seen: self._output_projection(layout.attend(self.attention_input(seen), share))
        )

    def _residual_block(self, steps: Tensor, states: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre_norm:
            steps = self._residual_add(steps, attend(self.attention_norm(states)))
            return self._residual_add(steps, self._feed_forward(self.feed_forward_norm(steps)))
        states = self.attention_norm(self._residual_add(steps, attend(states)))
        normed: Tensor = self.feed_forward_norm(self._residual_add(states, self._feed_forward(states)))
        return normed

    def _residual_add(self, steps: Tensor, change: Tensor) -> Tensor:
        """Apply dropout to `change` and add the result to `steps`."""
        factors = dropout_mask(change, self.dropout) if self.training else None
        return steps + change if factors is None else torch.addcmul(steps, change, factors)

    def _feed_forward(self, states: Tensor) -> Tensor:
        changed: Tensor = self.contract(self._dropout(self.activation(self.expand(states))))
        return changed

    def _attend(self, states: Tensor, attention_mask: Tensor, *, newest: bool) -> Tensor:
        if not newest:
            return self._output_projection(
                self._attention(self._by_heads(self.attention_input(states)), attention_mask)
            )
        weight, bias, dimension = self.attention_input.weight, self.attention_input.bias, states.shape[-1]
        (query,) = self._by_heads(F.linear(states[:, -1:], weight[:dimension], bias[:dimension]))
        key_and_value = self._by_heads(F.linear(states, weight[dimension:], bias[dimension:]))
        return self._output_projection(self._attention([query, *key_and_value], attention_mask[:, :, -1:]))

    def _by_heads(self, inputs: Tensor) -> list[Tensor]:
        """Split a tensor into parts and heads.

        [batch, n, k * dimension] -> k tensors of [batch, heads, n, dimension / heads].
        """
        parts = torch.split(inputs, self.attention_output.in_features, dim=-1)
        return [part.view(*part.shape[:-1], self.heads, -1).transpose(1, 2) for part in parts]

    def _attention(self, parts: list[Tensor], attention_mask: Tensor) -> Tensor:
        """Compute scaled dot-product attention. [batch, n, dimension].

        `parts` are the query, key and value, [batch, heads, n, dimension / heads] each.
        """
        query, key, value = parts
        if self.training and self.dropout:
            # baddbmm scales and masks within the matrix product, which saves three passes over the attention weights in
            # the forward and backward passes.
            hidden = torch.where(attention_mask, query.new_zeros(()), -torch.inf).expand(-1, self.heads, -1, -1)
            query, key = query.flatten(0, 1), key.flatten(0, 1)
            scale = 1 / math.sqrt(query.shape[-1])
            weights = torch.baddbmm(hidden.flatten(0, 1), query, key.transpose(1, 2), alpha=scale).softmax(dim=-1)
            attend = self._dropout(weights).view(*value.shape[:2], *weights.shape[1:]) @ value
        elif torch.compiler.is_exporting():
            # A quarter fewer nodes than scaled_dot_product_attention becomes, so a window takes 0.9 of the time.
            hidden = torch.where(attention_mask, query.new_zeros(()), -torch.inf)
            attend = (query @ key.mT * (1 / math.sqrt(query.shape[-1])) + hidden).softmax(dim=-1) @ value
        else:
            attend = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        return attend.transpose(1, 2).flatten(2)

    def _output_projection(self, attend: Tensor) -> Tensor:
        attended: Tensor = self.attention_output(attend)
        return attended

    def _dropout(self, states: Tensor) -> Tensor:
        return dropout(states, self.dropout, self.training)


def build_attention_mask(non_padding: Tensor, *, causal: bool) -> Tensor:
    """Build an attention mask from `non_padding` [batch, n] bool. [batch, 1, n, n] bool.

    If `causal`, each step attends to all non-padding steps up to and including itself. Otherwise, each step attends to
    all non-padding steps. A padding step also attends to itself, because the softmax of an empty row is undefined.
    """
    length = non_padding.shape[1]
    diagonal = torch.eye(length, dtype=torch.bool, device=non_padding.device)
    reach = torch.ones(length, length, dtype=torch.bool, device=non_padding.device)
    return (((reach.tril() if causal else reach) & non_padding[:, None, :]) | diagonal)[:, None]


class SasRec(CausalEncoder):
    """Causal self-attention over the sum of item, position and skip embeddings."""

    def __init__(self, num_rows: int, options: SasRecOptions) -> None:
        super().__init__(num_rows, options)
        self.heads = options.heads
        self.positions = nn.Embedding(options.window, options.dimension)
        self.input_norm = nn.LayerNorm(options.dimension)
        self.blocks = nn.ModuleList(Block(options) for _ in range(options.blocks))

    def forward(self, tracks: Tensor, skipped: Tensor, *, newest: bool = False) -> Tensor:
        """Return the predicted embedding of the next track at every step. [batch, window, dimension] float32.

        `tracks` [batch, window] int64, `skipped` [batch, window] bool. With `newest`, only the prediction at the last
        step is returned, [batch, 1, dimension]. In training mode, `newest` is ignored.
        """
        if self.training:
            return self._packed(tracks, skipped)
        states: Tensor = self.input_norm(self.embed(tracks, skipped) + self.positions.weight)
        attention_mask = build_attention_mask(tracks != PAD_ROW, causal=True)
        for block in self.blocks:
            states = block(states, attention_mask, newest=newest and block is self.blocks[-1])
        return states

    def _packed(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """Compute `forward` in training mode. [batch, window, dimension] float32.

        The non-padding steps of all sessions are concatenated, because up to a third of the columns can be padding.
        """
        window = tracks.shape[1]
        non_padding = tracks != PAD_ROW
        layout = PackedLayout(non_padding, build_attention_mask(non_padding, causal=True), self.heads)
        inputs = self.embed(tracks.flatten()[layout.of_real], skipped.flatten()[layout.of_real])
        states: Tensor = self.input_norm(inputs + self.positions(layout.of_real % window))
        states = dropout(states, self.options.dropout, self.training)
        for block in cast("list[Block]", list(self.blocks)):
            states = block.packed(states, layout)
        return layout.scatter_to_padded(states).view(*tracks.shape, -1)

    def encode(self, tracks: Tensor, skipped: Tensor) -> Tensor:
        """Return the predicted embedding of the next track after the newest play. [batch, dimension] float32."""
        return self(tracks, skipped, newest=True)[:, -1]  # type: ignore[no-any-return]
