"""Steps as a CUDA graph: small nets on a GPU wait for kernel launches, and a graph is launched as one.

The first steps run as they are, which also readies the optimiser's state; then one is recorded, the gathering of its batch
included, and from there on a step is the copy of B row numbers and a replay. Learners whose losses have shapes that
depend on the data, or that read values back to the CPU, cannot be recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from plpm_ray.training.table import TensorTable

WARM_UP = 3


class GraphedUpdate:
    """Replays `update` on batches of a table that lies on the GPU.

    Args:
        update: forward, backward and optimiser step on a batch, in place.
        table: rows on the GPU.
    """

    def __init__(self, update: Callable[[Mapping[str, Tensor]], None], table: TensorTable) -> None:
        self._update, self._table = update, table
        self._seen = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._rows = torch.empty(0)
        self._stream = torch.cuda.Stream()

    def __call__(self, rows: Tensor) -> None:
        """One update on the batch of the given (B,) rows."""
        if self._seen < WARM_UP:
            # recording needs gradients and optimiser state that were made on a stream of their own
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._update(self._table.gather(rows))
            torch.cuda.current_stream().wait_stream(self._stream)
            self._seen += 1
            return
        if self._graph is None:
            self._rows = rows.clone()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._update(self._table.gather(self._rows))
        self._rows.copy_(rows)
        self._graph.replay()
