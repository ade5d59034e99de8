"""Forward passes captured in CUDA graphs: one launch instead of a thousand small ones.

A graph replays the very kernels of the eager pass on fixed buffers, so it needs shapes that never change: one graph is
captured for each (rows, width), rows rounded up so that a shrinking batch does not need one each. A machine on which
capturing fails goes on eagerly, with a warning. Not used on the CPU.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

LOG = logging.getLogger(__name__)
# Wider passes come once or twice a lane (prompts) and need no graph.
WIDEST = 32
_WARM_UPS = 3


class GraphedForward:
    """`forward(tokens [rows, width], starts [rows]) -> logits [rows, width, vocab]`, replayed from graphs.

    `spare`: a position of every lane, with WIDEST after it, that holds nothing; capturing writes there.
    """

    def __init__(self, forward: Callable[[Tensor, Tensor], Tensor], device: torch.device, spare: int) -> None:
        self.forward, self.device, self.spare = forward, device, spare
        self.graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Tensor]] = {}
        self.pool: Any = None
        self.usable = True

    def __call__(self, tokens: Tensor, starts: Tensor) -> Tensor:
        """As `forward`. Rows added to fill a graph write to the start of lanes that are not active."""
        count, width = tokens.shape
        if not self.usable or width > WIDEST:
            return self.forward(tokens, starts)
        rows = bucket(count)
        if (rows, width) not in self.graphs and not self._capture(rows, width):
            return self.forward(tokens, starts)
        graph, graph_tokens, graph_starts, logits = self.graphs[rows, width]
        graph_tokens.copy_(pad(tokens, (0, 0, 0, rows - count)))
        graph_starts.copy_(pad(starts, (0, rows - count)))
        graph.replay()
        # The graphs share their memory, so the next replay may write over this one's output.
        return logits[:count].clone()

    def _capture(self, rows: int, width: int) -> bool:
        tokens = torch.zeros(rows, width, dtype=torch.int64, device=self.device)
        starts = torch.full((rows,), self.spare, dtype=torch.int64, device=self.device)
        try:
            # Warm-up on a stream of its own: libraries choose their kernels and workspaces outside the graph.
            stream = torch.cuda.Stream(self.device)
            stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    self.forward(tokens, starts)
            torch.cuda.current_stream(self.device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool):
                logits = self.forward(tokens, starts)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            LOG.warning("no CUDA graph of %d rows and %d tokens (%s); going on without graphs", rows, width, error)
            self.usable = False
            return False
        self.pool = graph.pool()
        self.graphs[rows, width] = graph, tokens, starts, logits
        return True


def bucket(rows: int) -> int:
    """How many rows a graph has for a batch of `rows`: powers of two up to 16, then multiples of 16."""
    return 1 << (rows - 1).bit_length() if rows <= 16 else -(-rows // 16) * 16
