"""A table of item embeddings that no process holds as a whole: each owns every N-th row, and its optimiser's state.

What a step lends is put together from all, each giving the rows that it owns, and each takes Adam's step on those. The
table is whole on disk alone, and in the leader's memory for as long as it is written.
"""

from typing import Any, Final

import torch
from torch import Tensor, distributed, nn

from segue.catalogue import PAD_ROW
from training.models.encoders.encoder import Encoder, RankCounts
from training.models.encoders.tensor_ops import put
from training.optimizer import ItemRows, Moments, adam, gradient_of

WEIGHTS: Final = "item_embeddings.weight"  # their name among an encoder's weights
_ROWS_AT_ONCE: Final = 262_144


class ShardedRows(ItemRows):
    """The rows r of a table for which r modulo the number of processes is this one's rank, at r // that number."""

    def __init__(self, embedding: nn.Embedding, weight_decay: float) -> None:
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        self.rows, self.dimension = embedding.weight.shape
        self.shard = embedding.weight.detach()[self.rank :: self.world].clone()  # [owned, dimension] float32
        embedding.weight = nn.Parameter(embedding.weight.detach().new_empty((0, self.dimension)))
        super().__init__(embedding, weight_decay)
        self.first, self.second = torch.zeros_like(self.shard), torch.zeros_like(self.shard)

    def _lent(self, rows: Tensor | None) -> Tensor:
        """`rows` are the same in all processes."""
        assert rows is not None, "only a part of a table is held"
        whole = self.shard.new_zeros((len(rows), self.dimension))
        mine, owned = self._mine(rows)
        whole[mine] = self.shard.index_select(0, owned)
        distributed.all_reduce(whole)  # every row is zero in all processes but one: nothing is rounded
        return nn.Parameter(whole)

    def update(self, rows: Tensor | None, lent: Tensor, learning_rate: float) -> None:
        """See ItemRows; the gradient is that of all processes."""
        assert rows is not None
        mine, owned = self._mine(rows)
        weights, gradient = lent.detach()[mine], gradient_of(lent)[mine]
        first, second = self.first.index_select(0, owned), self.second.index_select(0, owned)
        adam([weights], [gradient], Moments([first], [second], [self.steps]), learning_rate, self.weight_decay)
        for tensor, values in ((self.shard, weights), (self.first, first), (self.second, second)):
            put(tensor, owned, values)

    def state_dict(self) -> dict[str, Tensor]:
        """See ItemRows: whole in the leader, empty elsewhere. All processes call this alike, as with `whole`."""
        return {"first": self._gathered(self.first), "second": self._gathered(self.second), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See ItemRows."""
        self.first.copy_(state["first"][self.rank :: self.world])
        self.second.copy_(state["second"][self.rank :: self.world])
        self.steps.copy_(state["steps"])

    def whole(self, weights: dict[str, Any]) -> dict[str, Any]:
        """See ItemRows."""
        return weights | {WEIGHTS: self._gathered(self.shard)}

    def kept(self, weights: dict[str, Any]) -> dict[str, Any]:
        """See ItemRows."""
        self.shard.copy_(weights[WEIGHTS][self.rank :: self.world])
        return weights | {WEIGHTS: self.table.detach()}

    def end(self) -> None:
        """See ItemRows."""
        self.embedding.weight = nn.Parameter(self.shard.new_empty((self.rows, self.dimension)))

    @property
    def sharded_counts(self) -> RankCounts:
        """See ItemRows. All processes call it together, and each scores the rows that it owns."""
        return self._counts

    def _counts(self, encoder: Encoder, tracks: Tensor, skipped: Tensor, targets: Tensor) -> Tensor:
        rows = torch.cat([tracks.new_full((1,), PAD_ROW), tracks.flatten()]).unique()  # type: ignore[no-untyped-call]
        with self.lent(rows):
            query = encoder.query(torch.searchsorted(rows, tracks), skipped)
        scores = query @ self.shard.T  # [batch, owned]
        if self.rank == PAD_ROW % self.world:
            scores[:, PAD_ROW // self.world] = -torch.inf
        mine, owned = self._mine(targets)
        at_target = scores.new_zeros(len(targets))
        at_target[mine] = scores[mine].gather(1, owned[:, None])[:, 0]
        distributed.all_reduce(at_target)
        counts = torch.stack([(scores > at_target[:, None]).sum(dim=1), (scores == at_target[:, None]).sum(dim=1)])
        distributed.all_reduce(counts)
        return counts

    def _mine(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The places in `rows` of those that this process owns, and where it keeps them."""
        mine = (rows % self.world == self.rank).nonzero()[:, 0]
        return mine, rows[mine] // self.world

    def _gathered(self, shard: Tensor) -> Tensor:
        """The whole of what is sharded, on the leader's CPU; a part at a time travels."""
        leads = self.rank == 0
        whole = torch.empty((self.rows if leads else 0, self.dimension), dtype=shard.dtype)
        step = max(_ROWS_AT_ONCE // self.world, 1)
        for start in range(0, -(-self.rows // self.world), step):
            part = shard.new_zeros((step, self.dimension))
            part[: len(shard[start : start + step])] = shard[start : start + step]
            parts = [torch.empty_like(part) for _ in range(self.world)] if leads else None
            distributed.gather(part, parts)
            for rank, theirs in enumerate(parts or []):
                place = whole[start * self.world + rank : (start + step) * self.world : self.world]
                place.copy_(theirs[: len(place)])
        return whole
