"""The variational bound of DDPM, which trains the variance of a step beside its mean (arXiv 2102.09672, sect. 3.1)."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ifsq.generators.diffusion.path import DDPMPath

HALF_BIN = 1 / 255  # of the likelihood of the last step, as of images with 8 bits in [-1, 1]
LEAST_PROBABILITY = 1e-12


def log_variance(path: DDPMPath, values: Float[Tensor, "b *d"], k: Int[Tensor, "b"]) -> Float[Tensor, "b *d"]:
    """Logarithm of the variance of the step from k to k - 1 that the network's ``values`` stand for.

    -1 is the least that it can be, the posterior's given the data, and 1 the most, beta_k; the logarithm is a line.
    """
    share = (values + 1) / 2
    _, least, most = _posterior(path, k, values)
    return share * most + (1 - share) * least


def variational_bound(
    path: DDPMPath,
    data: Float[Tensor, "b *d"],
    values: Float[Tensor, "b *d"],
    x: Float[Tensor, "b *d"],
    x1: Float[Tensor, "b *d"],
    k: Int[Tensor, "b"],
) -> Float[Tensor, "b"]:
    """What step k adds to the bound of -log2 p(x1), in bits a number of x1: a mean over its numbers.

    data    that the network sees in x
    values  of `log_variance`
    x       at step k, x1 is its data

    At k = 0 it is the likelihood of x1 in bins of 2 / 255, below -0.999 and above 0.999 without an end.
    """
    (of_data, of_x), least, _ = _posterior(path, k, x)
    mean, true_mean = of_data * data + of_x * x, of_data * x1 + of_x * x
    log_var = log_variance(path, values, k)
    divergence = (log_var - least + torch.exp(least - log_var) + (true_mean - mean) ** 2 * torch.exp(-log_var) - 1) / 2
    nats = torch.where(_columns(k == 0, x), -_log_bins(x1, mean, log_var), divergence)
    return nats.flatten(1).mean(dim=1) / math.log(2)


def _posterior(path: DDPMPath, k: Tensor, like: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """Of a step from k: the shares of data and x in the mean, and the logarithms of the least and the most variance."""
    betas = path.betas
    kept = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1, dtype=kept.dtype), kept[:-1]])
    least = betas * (1 - before) / (1 - kept)
    least[0] = least[1]  # it is 0, whose logarithm nothing can be compared with
    of_data = betas * before.sqrt() / (1 - kept)
    of_x = (1 - before) * (1 - betas).sqrt() / (1 - kept)
    table = torch.stack([of_data, of_x, least.log(), betas.log()], dim=1).to(like.dtype).to(like.device)
    data, x, low, high = (_columns(column, like) for column in table[k].unbind(dim=1))
    return (data, x), low, high


def _log_bins(x1: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Log-probability of x1's bin under N(mean, exp(log_var)), the distribution function approximated by a tanh."""
    scale = torch.exp(-log_var / 2)
    above = _distribution(scale * (x1 + HALF_BIN - mean))
    below = _distribution(scale * (x1 - HALF_BIN - mean))
    inside = torch.where(x1 < -0.999, above, torch.where(x1 > 0.999, 1 - below, above - below))
    return inside.clamp(min=LEAST_PROBABILITY).log()


def _distribution(z: Tensor) -> Tensor:
    return (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2


def _columns(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.ndim - 1))
