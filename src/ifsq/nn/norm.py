"""Root-mean-square norm that takes its fused path under autocast too."""

from jaxtyping import Float
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm, computed in the dtype of its scale: under autocast torch would warn and be slow."""

    def forward(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        return super().forward(x.to(self.weight.dtype))
