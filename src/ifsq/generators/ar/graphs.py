"""Decoding on a CUDA device: a step is captured as a graph, and replaying it launches all its kernels in one call."""

import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ifsq.generators.ar.network import ARNetwork
from ifsq.generators.ar.steps import PlainSteps

WARM_UP = 2  # passes before a capture, in which libraries choose their kernels and take their memory


class GraphSteps(PlainSteps):
    """The network's own modules over whole buffers, a graph for each shape of new tokens.

    bf16  decode with a copy of the network in bfloat16
    """

    def __init__(self, network: ARNetwork, *, bf16: bool) -> None:
        super().__init__(copy.deepcopy(network).bfloat16().eval() if bf16 else network, whole=True)
        self._graphs: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def next(self, indices: Int[Tensor, "r t g"]) -> Float[Tensor, "r t width"]:
        if indices.shape not in self._graphs:
            self._graphs[indices.shape] = self._captured(indices)
        graph, given, states = self._graphs[indices.shape]
        given.copy_(indices)
        graph.replay()
        return states.clone()  # the next replay writes over them

    def keep_first(self, rows: int) -> None:
        super().keep_first(rows)
        self._graphs.clear()  # they go through the buffers of all rows

    def _captured(self, indices: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        """The graph, what it reads and what it writes; the caches stand where they stood."""
        given, known = indices.clone(), self._known()
        with torch.cuda.device(indices.device):  # streams and graphs are of the current device
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    super().next(given)
                    self.rewind(known)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):  # records the pass and does not run it
                states = super().next(given)
        return graph, given, states

    def _known(self) -> int:
        """How many tokens the caches hold."""
        return int(self._caches[0].position) - self._prefixes
