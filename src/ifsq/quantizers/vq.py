"""Vector quantization: a learned codebook, the nearest code, gradient straight through (VQ-VAE, arXiv 1711.00937).

With ``normalize`` codes and latents lie on the unit sphere (ViT-VQGAN, arXiv 2110.04627; LlamaGen, arXiv 2406.06525).
The codebook's key is ``embedding.weight``, as in taming, LlamaGen and the official code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ifsq.quantizers.bottleneck import Bottleneck, check_count, check_weight
from ifsq.quantizers.cells import packed_dtype
from ifsq.quantizers.compilers import is_exporting
from ifsq.quantizers.lattice import CODEBOOK, Lattice
from ifsq.quantizers.record import Quantized

if TYPE_CHECKING:
    from jaxtyping import Float, Int

CODES_AT_ONCE = 16384  # of the codebook, in one matrix of distances
DISTANCES = {"cpu": 2**20}  # elements of such a matrix: what a cache holds, and what fills an accelerator
DISTANCES_ELSEWHERE = 2**25
SMOOTHING = 1e-5  # Laplace's, of the cluster counts


class VQ(Bottleneck):
    """Vector quantizer: a latent becomes the nearest of ``codebook_size`` learned codes, squared Euclidean distance.

    codebook_size      codes, at least 2
    dim                channels of the latent and of the codes
    commitment_weight  of ``mean((sg[code] - z)^2)``, which pulls the encoder to the codes: ``losses["commitment"]``
    codebook_weight    of ``mean((code - sg[z])^2)``, which pulls the codes to the encoder: ``losses["codebook"]``
    normalize          whether codes and latents are scaled to length 1 before anything else
    ema                the codebook follows moving averages of its clusters, with Laplace smoothing, in place of the
                       codebook loss (arXiv 1711.00937, appendix A.1); adds the state ``ema_count``
    ema_decay          of these averages
    revive_after       replace a code that no latent has chosen for so many training batches by a random latent of the
                       batch; 0: never. Adds the state ``unused`` and ``touched``, so that a run can be resumed exactly

    The paper and LlamaGen put beta on the commitment: ``commitment_weight=beta, codebook_weight=1``. Taming's legacy
    order, the official one here, puts it on the other term: ``commitment_weight=1, codebook_weight=beta``.

    Returns codes (rows of the codebook, exactly), indices 0..codebook_size-1 in the input's shape without its channels,
    and the index as the one digit. A tie goes to the smaller index. The codebook stays float32 whatever the module is
    cast to: its averages move by less than bfloat16 resolves. Under CUDA with TF32 allowed for matrix products, latents
    that are nearly as close to a second code may get that one.

    In a distributed run with ``ema`` or ``revive_after`` the processes share counts, sums and replacements, so that
    their codebooks stay equal: all of them must call it equally often in training.
    """

    levels: tuple[int, ...]
    groups: tuple[int, ...]
    unused: Tensor
    touched: Tensor
    ema_count: Tensor

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        *,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        normalize: bool = False,
        ema: bool = False,
        ema_decay: float = 0.99,
        revive_after: int = 0,
        channel_first: bool = False,
    ) -> None:
        super().__init__(check_count("dim", dim), dim, channel_first)
        self.codebook_size = check_count("codebook_size", codebook_size, 2)
        self._state(Lattice((codebook_size,), (1,), "little", CODEBOOK))
        self.commitment_weight = check_weight("commitment_weight", commitment_weight)
        self.codebook_weight = check_weight("codebook_weight", codebook_weight)
        if not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay={ema_decay!r}: expected a rate from 0 to below 1")
        self.normalize, self.ema, self.ema_decay = normalize, ema, ema_decay
        self.revive_after = check_count("revive_after", revive_after, 0)
        self.embedding = nn.Embedding(codebook_size, dim)
        nn.init.uniform_(self.embedding.weight, -1 / codebook_size, 1 / codebook_size)
        if normalize:
            with torch.no_grad():
                self.embedding.weight.copy_(F.normalize(self.embedding.weight, dim=-1))
        if ema:
            self.embedding.weight.requires_grad_(False)
            self.register_buffer("ema_count", torch.ones(codebook_size))
        # Training batches since a code was last chosen or replaced, and whether it was chosen since it was replaced.
        revives = revive_after > 0
        self.register_buffer("unused", torch.zeros(codebook_size, dtype=torch.int32), persistent=revives)
        self.register_buffer("touched", torch.zeros(codebook_size, dtype=torch.bool), persistent=revives)

    def forward(self, z: Float[Tensor, "..."]) -> Quantized:
        latent, axis = self._enter(z)
        rows = self._project(latent.movedim(axis, -1))
        indices = self._nearest(rows)
        chosen = self._lookup(indices).to(rows.dtype)
        losses = {} if is_exporting() else self._losses(rows, chosen)
        if self.training and not is_exporting():
            self._update(rows.detach().reshape(-1, self.dim), indices.reshape(-1))
        codes = chosen.detach() + (rows - rows.detach())  # a difference of 0: the codes are the codebook's to the bit
        digits = indices.unsqueeze(-1).to(packed_dtype(self.levels))
        return Quantized(codes.to(z.dtype).movedim(-1, axis), indices, digits, losses)

    def indices_to_codes(self, indices: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Integer indices (b, h, w), (b, t) or any shape -> float32 codes in `forward`'s layout, differentiable.

        Raises ValueError (on a CPU) outside the codebook.
        """
        self._check_indices(indices)
        return self._leave_codes(self._lookup(indices))

    def codes_to_indices(self, codes: Float[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Float codes in `forward`'s layout -> int64 index of the nearest code; any real value is accepted."""
        return self._nearest(self._project(self._enter_codes(codes)))

    def usage(self, window: int = 100) -> Float[Tensor, ""]:
        """Fraction of the codes chosen in the last ``window`` training batches, a float32 scalar, 0 to 1.

        Of this process, or of all where ``ema`` or ``revive_after`` lets them share counts. Counted since the module
        was made or, without ``revive_after``, loaded.
        """
        check_count("window", window)
        return ((self.unused < window) & self.touched).float().mean()

    def extra_repr(self) -> str:
        parts = [f"normalize={self.normalize}", f"ema={self.ema}", f"revive_after={self.revive_after}"]
        return ", ".join([f"codebook_size={self.codebook_size}", f"dim={self.dim}", *parts])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VQ:
        def move(t: Tensor) -> Tensor:
            moved = fn(t)
            return moved if moved.dtype == t.dtype else t.to(moved.device)

        super()._apply(move, recurse)
        return self

    def _project(self, rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=-1) if self.normalize else rows

    def _lookup(self, indices: Tensor) -> Tensor:
        return self._project(F.embedding(indices, self.embedding.weight))

    @torch.no_grad()
    def _nearest(self, rows: Float[Tensor, "... d"]) -> Int[Tensor, "..."]:
        """Latents (..., d), float32 or float64 -> int64 indices (...)."""
        codebook = self._project(self.embedding.weight).to(rows.dtype)
        with torch.autocast(rows.device.type, enabled=False):
            return nearest(rows.reshape(-1, self.dim), codebook).view(rows.shape[:-1])

    def _losses(self, rows: Tensor, chosen: Tensor) -> dict[str, Tensor]:
        losses = {"commitment": self.commitment_weight * F.mse_loss(rows, chosen.detach())}
        if not self.ema:
            losses["codebook"] = self.codebook_weight * F.mse_loss(chosen, rows.detach())
        return losses

    @torch.no_grad()
    def _update(self, rows: Float[Tensor, "n d"], indices: Int[Tensor, "n"]) -> None:
        """What a training batch leaves behind: counts of use, the averages, revived codes."""
        weight = self.embedding.weight
        rows = rows.to(weight.dtype)
        count = weight.new_zeros(self.codebook_size).index_add_(0, indices, rows.new_ones(len(rows)))
        shared = self.ema or self.revive_after > 0
        if shared:
            _sum_over_processes(count)
        chosen = count > 0
        self.unused.add_(1).masked_fill_(chosen, 0)
        self.touched.logical_or_(chosen)
        if self.ema:
            total = torch.zeros_like(weight).index_add_(0, indices, rows)
            _sum_over_processes(total)
            self._average(count, total)
        if self.revive_after:
            self._revive(rows)

    def _average(self, count: Float[Tensor, "k"], total: Float[Tensor, "k d"]) -> None:
        # The averaged sum of a cluster is its code times its smoothed count, so that it needs no state of its own, and
        # a codebook that was loaded without one goes on from where it is.
        weight = self.embedding.weight
        average = self._smoothed().unsqueeze(1) * weight * self.ema_decay + total * (1 - self.ema_decay)
        self.ema_count.mul_(self.ema_decay).add_(count, alpha=1 - self.ema_decay)
        weight.copy_(self._project(average / self._smoothed().unsqueeze(1)))

    def _smoothed(self) -> Tensor:
        whole = self.ema_count.sum()
        return (self.ema_count + SMOOTHING) / (whole + self.codebook_size * SMOOTHING) * whole

    def _revive(self, rows: Float[Tensor, "n d"]) -> None:
        dead = self.unused >= self.revive_after
        distributed = _distributed()
        if len(rows) == 0 or (distributed and not bool(dead.any())):
            return
        # Each dead code its own latent while there are enough of them.
        order = torch.randperm(len(rows), device=rows.device)
        place = (dead.cumsum(0) - 1).clamp(min=0) % len(rows)
        fresh = rows.index_select(0, order.index_select(0, place))
        if distributed:
            dist.broadcast(fresh, 0)
        self.embedding.weight.copy_(torch.where(dead.unsqueeze(1), fresh, self.embedding.weight))
        self.unused.masked_fill_(dead, 0)
        self.touched.logical_and_(~dead)
        if self.ema:
            self.ema_count.masked_fill_(dead, 1.0)


def nearest(rows: Float[Tensor, "n d"], codebook: Float[Tensor, "k d"]) -> Int[Tensor, "n"]:
    """Vectors (n, d) -> int64 index (n,) of the nearest row of a codebook (k, d); a tie goes to the smaller index.

    The matrix of distances exists in parts of at most 4 MiB (128 MiB on accelerators), float32. A compiler sees the
    rows in one piece, so that their number may stay a symbol; its parts are of 16384 codes.
    """
    at_once = DISTANCES.get(rows.device.type, DISTANCES_ELSEWHERE) // min(len(codebook), CODES_AT_ONCE)
    if torch.compiler.is_compiling() or len(rows) <= at_once:
        return _search(rows, codebook)
    return torch.cat([_search(part, codebook) for part in rows.split(at_once)])


def _search(rows: Float[Tensor, "n d"], codebook: Float[Tensor, "k d"]) -> Int[Tensor, "n"]:
    best, indices = None, None
    for start in range(0, len(codebook), CODES_AT_ONCE):
        part = codebook[start : start + CODES_AT_ONCE]
        # Without |z|^2, which is the same for every code and would only cost digits.
        distance, index = torch.addmm(part.square().sum(1), rows, part.t(), alpha=-2).min(dim=1)
        if best is None or indices is None:
            best, indices = distance, index
        else:
            closer = distance < best
            best, indices = torch.where(closer, distance, best), torch.where(closer, index + start, indices)
    assert indices is not None
    return indices


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _sum_over_processes(x: Tensor) -> None:
    if _distributed():
        dist.all_reduce(x)
