"""Lookup-free quantization: a code is the signs of the latent, one bit a dimension, with an entropy loss for their use.

`LFQ` (MAGVIT-v2, arXiv 2310.05737) takes the signs of the latent as it is, `BSQ` (arXiv 2406.07548) those of the latent
on the unit sphere. The entropies are of the soft assignment ``softmax(-|z - c|^2 / temperature)`` over all 2^d codes c,
which is a product over the bits: each is a logistic of its own latent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ifsq.quantizers.bottleneck import Bottleneck, check_count, check_weight
from ifsq.quantizers.compilers import is_exporting
from ifsq.quantizers.lattice import Lattice
from ifsq.quantizers.record import Quantized

if TYPE_CHECKING:
    from jaxtyping import Float, Int

MAX_DIM = 2**16  # bits of a code; every one is a level, an entry of a tuple
MAX_JOINT_BITS = 20  # a distribution over a million codes
TINY = 1e-30  # below it a probability counts as this in the logarithm: the slope of p*log(p) at 0 is infinite


class LFQ(Bottleneck):
    """Signs of the latent: codes -1 and +1, digit 1 for a latent of at least 0 (so 0 becomes +1), digit 0 below.

    dim                channels of the latent and of the codes: bits
    entropy_weight     of the entropy loss, ``losses["entropy"]``
    diversity_gamma    of the second of its two terms: ``mean(H(p)) - gamma * H(mean(p))``, in nats; the first makes
                       assignments sure, the second uses the codes; it may be negative
    commitment_weight  of ``mean((sg[code] - z)^2)``, ``losses["commitment"]``
    temperature        of the soft assignment; a bit is +1 with probability ``sigmoid(4*|c|*z/temperature)``, where |c|
                       is the size of a code's entries
    joint_bits         bits whose joint distribution the second term counts, 1 to 20. The mean of H(p) is exact, a sum
                       over independent bits. H(mean(p)) is exact where ``joint_bits >= dim``; else the dimensions fall
                       into the fewest even runs of at most so many, and the sum of their joint entropies stands for it,
                       which is never smaller. 1 is the fully factorised form
    groups             sizes of the groups of dimensions that share one index, little-endian; default: one group

    Indices int64 (...) or (..., g) with several groups, exact to 63 bits; None where a group has more. The batch of
    the entropy is that of one process. Source: arXiv 2310.05737; the factorised form is arXiv 2406.07548's.
    """

    lattice: Lattice
    levels: tuple[int, ...]
    groups: tuple[int, ...]

    def __init__(
        self,
        dim: int,
        *,
        entropy_weight: float = 0.1,
        diversity_gamma: float = 1.0,
        commitment_weight: float = 0.25,
        temperature: float = 0.01,
        joint_bits: int = 12,
        groups: Sequence[int] | None = None,
        channel_first: bool = False,
    ) -> None:
        super().__init__(check_count("dim", dim, most=MAX_DIM), dim, channel_first)
        groups = tuple(groups) if groups is not None else (dim,)
        self._state(Lattice((2,) * dim, groups, "little", "symmetric", self.scale))
        self.entropy_weight = check_weight("entropy_weight", entropy_weight)
        self.diversity_gamma = check_weight("diversity_gamma", diversity_gamma)
        self.commitment_weight = check_weight("commitment_weight", commitment_weight)
        if check_weight("temperature", temperature) == 0:
            raise ValueError(f"temperature={temperature}: expected a number above 0")
        if check_count("joint_bits", joint_bits) > MAX_JOINT_BITS:
            raise ValueError(f"joint_bits={joint_bits}: expected at most {MAX_JOINT_BITS}")
        self.temperature, self.joint_bits = float(temperature), joint_bits
        self._indexed = self.lattice.has_indices

    @property
    def scale(self) -> float:
        """Size of a code's entries."""
        return 1.0

    @property
    def codebook_size(self) -> int:
        """Codes over all groups, a Python integer of any size."""
        return 2**self.dim

    def forward(self, z: Float[Tensor, "..."]) -> Quantized:
        latent, axis = self._enter(z)
        rows = self._project(latent.movedim(axis, -1))
        digits = (rows >= 0).to(torch.uint8)
        codes = self._values(digits, rows.dtype)
        losses = {} if is_exporting() else self._losses(rows, codes)
        codes = codes + (rows - rows.detach())  # straight through; a difference of 0
        indices = self.lattice.digits_to_indices(digits) if self._indexed else None
        return Quantized(codes.to(z.dtype).movedim(-1, axis), indices, digits, losses)

    def indices_to_codes(self, indices: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Integer indices as `forward` gives them -> float32 codes in its layout.

        Raises ValueError (on a CPU) outside the codebook, and where a group has no index.
        """
        self._check_indices(indices)
        return self._leave_codes(self._values(self.lattice.indices_to_digits(indices), torch.float32))

    def codes_to_indices(self, codes: Float[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Float codes in `forward`'s layout -> int64 indices of their signs.

        Raises ValueError where a group has no index.
        """
        return self.lattice.digits_to_indices((self._enter_codes(codes) >= 0).to(torch.uint8))

    def entropies(self, z: Float[Tensor, "..."]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Mean entropy of a latent's soft assignment, and entropy of their mean: scalars in nats, 0 to d*log(2)."""
        latent, axis = self._enter(z)
        return self._entropies(self._project(latent.movedim(axis, -1)))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, groups={list(self.groups)}, joint_bits={self.joint_bits}"

    def _project(self, rows: Tensor) -> Tensor:
        return rows

    def _values(self, digits: Tensor, dtype: torch.dtype) -> Tensor:
        return (digits.to(dtype) * 2 - 1) * self.scale

    def _losses(self, rows: Tensor, codes: Tensor) -> dict[str, Tensor]:
        sure, diverse = self._entropies(rows)
        return {
            "entropy": self.entropy_weight * (sure - self.diversity_gamma * diverse),
            "commitment": self.commitment_weight * F.mse_loss(rows, codes),
        }

    def _entropies(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        logits = rows.reshape(-1, self.dim) * (4 * self.scale / self.temperature)
        # H of a bit, of either sign of its logit, without the difference of two large numbers.
        size = logits.abs()
        sure = (F.softplus(-size) + size * torch.sigmoid(-size)).sum(1).mean()
        bits = torch.stack([torch.sigmoid(-logits), torch.sigmoid(logits)], dim=-1)  # (n, d, 2)
        diverse = torch.zeros_like(sure)
        for run in bits.split(_even_runs(self.dim, self.joint_bits), dim=1):
            p = _mean_joint(run)
            diverse = diverse - (p * p.clamp(min=TINY).log()).sum()
        return sure, diverse


class BSQ(LFQ):
    """Signs of the latent on the unit sphere: ``u = z/|z|``, codes -1/sqrt(d) and +1/sqrt(d), of length 1 too.

    Options, digits, indices and losses are `LFQ`'s with u in place of z: the commitment is bounded, a bit is +1 with
    probability ``sigmoid(4*u/(sqrt(d)*temperature))``, and the entropy of the mean is factorised bit by bit
    (``joint_bits=1``). The paper's inverse temperature tau is ``2/temperature``. A latent of length 0 becomes all +1.
    Source: arXiv 2406.07548.
    """

    def __init__(self, dim: int, *, temperature: float = 1.0, joint_bits: int = 1, **options: Any) -> None:
        super().__init__(dim, temperature=temperature, joint_bits=joint_bits, **options)

    @property
    def scale(self) -> float:
        """Size of a code's entries."""
        return 1 / math.sqrt(self.dim)

    def _project(self, rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=-1)


def _even_runs(dim: int, most: int) -> list[int]:
    """Sizes of the fewest runs of at most so many that make up the dimensions, as even as can be."""
    runs = -(-dim // most)
    return [dim // runs + (i < dim % runs) for i in range(runs)]


def _mean_joint(bits: Float[Tensor, "n k 2"]) -> Float[Tensor, "codes"]:
    """Probabilities (n, k, 2) of k independent bits -> the mean over n of their joint distribution, (2^k,).

    Two halves and one matrix product: n * 2^(k/2) numbers in memory where all joints would be n * 2^k.
    """
    half = bits.shape[1] // 2
    # The joint of all bits is the outer product of the joints of both halves; its mean is their product as matrices.
    with torch.autocast(bits.device.type, enabled=False):
        return (_joint(bits[:, :half]).t() @ _joint(bits[:, half:])).flatten() / len(bits)


def _joint(bits: Float[Tensor, "n k 2"]) -> Float[Tensor, "n codes"]:
    """Probabilities (n, k, 2) of k independent bits -> their joint distribution, (n, 2^k)."""
    joint = bits.new_ones(len(bits), 1)
    for bit in bits.unbind(1):  # (n, 2): every code so far continues with a 0 and with a 1
        joint = (joint.unsqueeze(2) * bit.unsqueeze(1)).flatten(1)
    return joint
