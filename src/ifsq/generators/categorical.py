"""Drawing from the logits of a digit or an index: temperature, filters, the distribution inverted. Pure functions."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def tempered(logits: Float[Tensor, "*b v"], temperature: float) -> Float[Tensor, "*b v"]:
    """Logits whose greatest is 0, float32, divided by the temperature, in place; one too small leaves the greatest."""
    if temperature == 1:
        return logits
    real = torch.finfo(torch.float32)
    return logits.div_(min(max(temperature, real.tiny), real.max))


def filter_logits(logits: Float[Tensor, "b v"], top_k: int, top_p: float) -> Float[Tensor, "b v"]:
    """Set the logits that top-k, then top-p, remove to -inf. Ties at the k-th stay; so does the one that passes p.

    Of codes that tie where p is passed the first stay.
    """
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < _kth(logits, top_k), -torch.inf)
    if top_p < 1:
        ordered = _descending(logits)
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        count = (before <= top_p).sum(dim=-1, keepdim=True).clamp_min(1)  # of what is no number there would be none
        last = ordered.gather(-1, count - 1)
        ties = logits == last
        room = count - (logits > last).sum(dim=-1, keepdim=True)
        remove = (logits < last) | (ties & (ties.cumsum(dim=-1, dtype=torch.int32) > room))
        logits = logits.masked_fill(remove, -torch.inf)
    return logits


def _kth(logits: Float[Tensor, "b v"], k: int) -> Float[Tensor, "b 1"]:
    """The k-th greatest of each row; of 16384 on a CPU NumPy finds it in a tenth of torch's time."""
    if logits.device.type != "cpu" or logits.dtype != torch.float32:
        return logits.topk(k, dim=-1).values[:, -1:]
    place = logits.shape[-1] - k
    return torch.from_numpy(np.partition(logits.detach().numpy(), place, axis=-1)[:, place : place + 1])


def _descending(logits: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
    """Each row from its greatest down; of 16384 on a CPU NumPy takes a thirtieth of torch's time."""
    if logits.device.type != "cpu" or logits.dtype != torch.float32:
        return logits.sort(dim=-1, descending=True).values
    return torch.from_numpy(np.sort(logits.detach().numpy(), axis=-1)).flip(-1)


def inverted(probabilities: Float[Tensor, "b v"], uniform: Float[Tensor, "b"]) -> Int[Tensor, "b"]:
    """One index a row: where the sums of its probabilities pass its number of [0, 1)."""
    cumulative = probabilities.cumsum(dim=-1)
    total = cumulative[:, -1:]
    level = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    if cumulative.device.type == "cpu":  # it sums one after the other, so the sums rise and halving finds the place
        return torch.searchsorted(cumulative, level, right=True)[:, 0].clamp_max(probabilities.shape[-1] - 1)
    reached = (cumulative > level) & (probabilities > 0)  # a parallel sum need not rise everywhere
    return reached.to(torch.uint8).argmax(dim=-1)
