"""A sharded table of item embeddings: each of N processes owns every N-th row and its optimizer state.

For each step the processes gather the rows of the batch, and each applies Adam to the rows that it owns. The full table
exists only on disk, and in the main process's memory while it is written.
"""

from typing import Any, Final

import torch
from torch import Tensor, distributed, nn

from segue.catalogue import PAD_ROW
from training.models.encoders.encoder import Encoder, RankCounts
from training.models.encoders.tensor_ops import scatter_rows
from training.optimizer import ItemRows, Moments, adam, gradient_of

WEIGHTS: Final = "item_embeddings.weight"  # their key in an encoder's state_dict
_ROWS_AT_ONCE: Final = 262_144


class ShardedRows(ItemRows):
    """The shard of a table with the rows r for which r % world == rank, stored at r // world."""

    def __init__(self, embedding: nn.Embedding, weight_decay: float) -> None:
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        self.rows, self.dimension = embedding.weight.shape
        self.shard = embedding.weight.detach()[self.rank :: self.world].clone()  # [owned, dimension] float32
        embedding.weight = nn.Parameter(embedding.weight.detach().new_empty((0, self.dimension)))
        super().__init__(embedding, weight_decay)
        self.first, self.second = torch.zeros_like(self.shard), torch.zeros_like(self.shard)

    def _gather(self, rows: Tensor | None) -> Tensor:
        """Gather `rows` [n] int64, the same in all processes. [n, dimension] float32."""
        assert rows is not None, "a sharded table has no process with all rows"
        whole = self.shard.new_zeros((len(rows), self.dimension))
        mine, owned = self._mine(rows)
        whole[mine] = self.shard.index_select(0, owned)
        distributed.all_reduce(whole)  # each row is non-zero in one process only, so the sum is exact
        return nn.Parameter(whole)

    def update(self, rows: Tensor | None, gathered: Tensor, learning_rate: float) -> None:
        """Take one Adam step on the rows that this process owns; the gradient is already summed over processes."""
        assert rows is not None
        mine, owned = self._mine(rows)
        weights, gradient = gathered.detach()[mine], gradient_of(gathered)[mine]
        first, second = self.first.index_select(0, owned), self.second.index_select(0, owned)
        adam([weights], [gradient], Moments([first], [second], [self.steps]), learning_rate, self.weight_decay)
        for tensor, values in ((self.shard, weights), (self.first, first), (self.second, second)):
            scatter_rows(tensor, owned, values)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the full moments in the main process, empty ones elsewhere; all processes must call it."""
        return {"first": self._gathered(self.first), "second": self._gathered(self.second), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore this process's shard of a full state."""
        self.first.copy_(state["first"][self.rank :: self.world])
        self.second.copy_(state["second"][self.rank :: self.world])
        self.steps.copy_(state["steps"])

    def full_state_dict(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Return the weights with the full table in the main process, an empty one elsewhere; all must call it."""
        return weights | {WEIGHTS: self._gathered(self.shard)}

    def load_shard(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Load this process's shard of the table; return the weights with an empty table for the encoder."""
        self.shard.copy_(weights[WEIGHTS][self.rank :: self.world])
        return weights | {WEIGHTS: self.table.detach()}

    def finalize(self) -> None:
        """Give the encoder an uninitialised full table, into which trained weights are loaded."""
        self.embedding.weight = nn.Parameter(self.shard.new_empty((self.rows, self.dimension)))

    @property
    def sharded_counts(self) -> RankCounts:
        """Ranks targets among the rows of this process. All processes call it together."""
        return self._counts

    def _counts(self, encoder: Encoder, tracks: Tensor, skipped: Tensor, targets: Tensor) -> Tensor:
        rows = torch.cat([tracks.new_full((1,), PAD_ROW), tracks.flatten()]).unique()  # type: ignore[no-untyped-call]
        with self.gathered_rows(rows):
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
        """The positions in `rows` of those that this process owns, and their positions in the shard."""
        mine = (rows % self.world == self.rank).nonzero()[:, 0]
        return mine, rows[mine] // self.world

    def _gathered(self, shard: Tensor) -> Tensor:
        """The full table on the main process's CPU, gathered in parts; empty elsewhere."""
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
