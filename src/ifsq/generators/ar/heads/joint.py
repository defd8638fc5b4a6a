"""The head of tokens of one group: one softmax over its codes."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from ifsq.generators.ar.heads.base import Pick, SoftmaxHead
from ifsq.generators.trunk.block import NORM_EPS
from ifsq.generators.trunk.output import OutputLayer
from ifsq.nn.norm import RMSNorm


class JointHead(SoftmaxHead):
    """One linear layer over the codes of the only group."""

    def __init__(self, width: int, vocab: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width, eps=NORM_EPS)
        self.output = nn.ModuleList([OutputLayer(width, vocab)])

    def before_output(
        self, state: Float[Tensor, "b t width"], indices: Int[Tensor, "b t g"]
    ) -> list[Float[Tensor, "b t _"]]:
        return [self.norm(state)]

    def draw(self, state: Float[Tensor, "r width"], pick: Pick) -> Int[Tensor, "r g"]:
        return pick(self.output[0](self.norm(state)), 0)[:, None]
