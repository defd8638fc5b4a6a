"""Drawing an index from logits: temperature, top-k, top-p, greedy, guidance. Pure functions."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ifsq.generators.base import Sampling

GUIDANCE_LIMIT = 1e30  # float32 then keeps nothing of the null class's logits, and a greater scale would overflow


@dataclass(frozen=True)
class ARSampling(Sampling):
    """How an autoregressive generator is sampled.

    guidance           as of `Sampling`, of the logits
    temperature        divides the logits, above 0; one too small for float32 leaves the most likely code alone
    top_k              keep the k most likely codes, ties included; 0 keeps all
    top_p              keep the most likely codes until their probability passes p, in (0, 1]
    greedy             take the most likely code and ignore the three above
    guidance_interval  guide the first so many tokens only; None guides all
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    greedy: bool = False
    guidance_interval: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}: expected a positive number; for the mode set greedy")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k}: expected 0 (all) or a positive count")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: expected a number above 0 and at most 1")
        if self.guidance_interval is not None and self.guidance_interval < 0:
            raise ValueError(f"guidance_interval={self.guidance_interval}: expected None or a count of tokens")


def filter_logits(logits: Float[Tensor, "b v"], top_k: int, top_p: float) -> Float[Tensor, "b v"]:
    """Set the logits that top-k, then top-p, remove to -inf. Ties at the k-th stay; so does the one that passes p."""
    if 0 < top_k < logits.shape[-1]:
        kth = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)  # ties alike on every device
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        remove = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before > top_p)
        logits = logits.masked_fill(remove, -torch.inf)
    return logits


def draw(logits: Float[Tensor, "b v"], sampling: ARSampling, uniform: Float[Tensor, "b"]) -> Int[Tensor, "b"]:
    """One index a row, float32 throughout, by its number in [0, 1): the distribution is inverted.

    A row's index depends on nothing of the other rows. Logits that are not finite give no meaningful one.
    """
    logits = logits.to(torch.float32)
    if sampling.greedy:
        return logits.argmax(dim=-1)
    # Down from the greatest: under a small temperature the others then fall to -inf, and it stays at 0.
    below = logits - logits.amax(dim=-1, keepdim=True)
    kept = filter_logits(below, sampling.top_k, 1.0)  # before a great temperature makes ties
    if sampling.temperature != 1:
        real = torch.finfo(torch.float32)
        kept = kept.div_(min(max(sampling.temperature, real.tiny), real.max))
    probabilities = filter_logits(kept, 0, sampling.top_p).softmax(dim=-1)
    cumulative = probabilities.cumsum(dim=-1)
    total = cumulative[:, -1:]
    level = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    reached = (cumulative > level) & (probabilities > 0)  # a parallel sum need not rise everywhere
    return reached.to(torch.uint8).argmax(dim=-1)


def guide(logits: Float[Tensor, "r v"], guidance: float) -> Float[Tensor, "b v"]:
    """Classifier-free guidance of logits whose first half is told the class and the second half nothing (r = 2b)."""
    conditional, null = logits.to(torch.float32).chunk(2)
    return null + min(guidance, GUIDANCE_LIMIT) * (conditional - null)
