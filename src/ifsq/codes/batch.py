"""Codes between cache, generator and decoder: the batch that is learned from, and what is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor

from ifsq.codes.spec import CodeSpec, LatentSpec


@dataclass(frozen=True)
class CodeBatch:
    """The codes of some images, whatever their tokenizer, in the two views that generators have of them.

    layout    of the digits, or of the latents
    content   int64 digits (b, h, w, d), or float32 latents (b, d, h, w)
    labels    int64 (b,)
    codebook  float32 (v, c): the vectors that a VQ tokenizer's digits number, where they are known
    features  (b, n, f) of the same pictures, row-major, a tensor for each teacher that a generator is aligned to
    """

    layout: CodeSpec | LatentSpec
    content: Num[Tensor, "b _ _ _"]
    labels: Int[Tensor, "b"]
    codebook: Float[Tensor, "v c"] | None = None
    features: tuple[Float[Tensor, "b _ _"], ...] = ()

    def indices(self, groups: Sequence[int] = ()) -> Int[Tensor, "b h w g"]:
        """What an autoregressive model sees: int64 indices, the group axis kept for one group too.

        groups  sizes of the groups that share an index, in place of the layout's own: the digits are the same

        Raises ValueError for latents, which have none.
        """
        if isinstance(self.layout, LatentSpec):
            raise ValueError(f"latents of {self.layout.dim} channels have no indices: expected digits")
        layout = replace(self.layout, groups=tuple(groups)) if groups else self.layout
        return layout.digits_to_indices(self.content)

    def codes(self) -> Float[Tensor, "b d h w"]:
        """What a diffusion model and the decoder see, float32: points of the lattice, vectors of the codebook, latents.

        Raises ValueError for the digits of a codebook that is not known.
        """
        if isinstance(self.layout, LatentSpec):
            return self.content
        if self.codebook is not None:
            return F.embedding(self.content[..., 0], self.codebook).movedim(-1, 1)
        return self.layout.digits_to_codes(self.content)


@dataclass(frozen=True)
class Sampled:
    """What a generator draws, for `Tokenizer.decode_sampled`.

    codes    float32 (b, d, h, w); None where they are in the tokenizer's codebook alone
    indices  int64 (b, h, w, g) in the generator's own groups, the axis kept for one group too; None of latents
    passes   of the batch through the network, where drawing decided how many; None where the options do
    """

    codes: Float[Tensor, "b d h w"] | None
    indices: Int[Tensor, "b h w g"] | None
    passes: int | None = None
