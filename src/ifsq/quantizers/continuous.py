"""Bottlenecks without a codebook: the autoencoder's and the variational one.

`Identity` (AE) and `KL` (VAE, arXiv 1312.6114) are what the discrete bottlenecks are compared with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ifsq.quantizers.bottleneck import Bottleneck, check_count, check_weight
from ifsq.quantizers.compilers import is_exporting
from ifsq.quantizers.record import Quantized

if TYPE_CHECKING:
    from jaxtyping import Float, Int

LOGVAR = (-30.0, 20.0)  # clamp of the log variance, as in the official code
KL_WEIGHT = 1e-6  # latent diffusion's (arXiv 2112.10752)


class Identity(Bottleneck):
    """The autoencoder's bottleneck: codes are the latent itself, any real value; no digits, indices or losses.

    dim  channels of the latent and of the codes
    """

    def __init__(self, dim: int, *, channel_first: bool = False) -> None:
        super().__init__(check_count("dim", dim), dim, channel_first)

    def forward(self, z: Float[Tensor, "..."]) -> Quantized:
        self._enter(z)
        return Quantized(z)

    def indices_to_codes(self, indices: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Raises ValueError: there are no indices."""
        raise ValueError("Identity has no indices: expected a quantizer with a codebook")

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


@dataclass(frozen=True, eq=False)
class Posterior:
    """A diagonal Gaussian for each sample: ``mean`` and ``logvar``, float32 or float64, the codes' shape."""

    mean: Float[Tensor, "..."]
    logvar: Float[Tensor, "..."]

    @property
    def kl(self) -> Float[Tensor, "b"]:
        """Divergence from N(0, 1) in nats, (b,): ``0.5*sum(mean^2 + var - 1 - logvar)`` over all axes but the first."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar).flatten(1).sum(1)

    def sample(self) -> Float[Tensor, "..."]:
        """A draw of the codes' shape, differentiable in mean and variance; from torch's generator of that device."""
        return self.mean + (0.5 * self.logvar).exp() * torch.randn_like(self.mean)


class KL(Bottleneck):
    """The variational bottleneck: codes are a sample of the latent's Gaussian in training, its mean in evaluation.

    dim     channels of the codes; the latent has ``width = 2*dim``, first the means, then the log variances (clamped
            to -30..20)
    weight  of the divergence from N(0, 1), summed over a sample and averaged over the batch, in ``losses["kl"]``. The
            default is latent diffusion's, where the reconstruction loss is a sum over pixels too

    Any real code; no digits, no indices. (The official model samples in evaluation too, which makes its metrics random
    and pessimistic.)
    """

    def __init__(self, dim: int, *, weight: float = KL_WEIGHT, channel_first: bool = False) -> None:
        super().__init__(2 * check_count("dim", dim), dim, channel_first)
        self.weight = check_weight("weight", weight)

    def forward(self, z: Float[Tensor, "..."]) -> Quantized:
        posterior = self.posterior(z)
        codes = posterior.sample() if self.training else posterior.mean
        losses = {} if is_exporting() else {"kl": self.weight * posterior.kl.mean()}
        return Quantized(codes.to(z.dtype), losses=losses)

    def posterior(self, z: Float[Tensor, "..."]) -> Posterior:
        """Latents of ``2*dim`` channels -> mean and log variance of ``dim`` channels, the layout of the input."""
        rows, axis = self._enter(z)
        mean, logvar = rows.chunk(2, dim=axis)
        return Posterior(mean, logvar.clamp(*LOGVAR))

    def indices_to_codes(self, indices: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Raises ValueError: there are no indices."""
        raise ValueError("KL has no indices: expected a quantizer with a codebook")

    def extra_repr(self) -> str:
        return f"dim={self.dim}, weight={self.weight}"
