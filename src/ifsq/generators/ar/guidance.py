"""Classifier-free guidance of logits: how strong it is at each token, and the formula."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ifsq.generators.ar.draw import ARSampling, of_group
from ifsq.generators.conditioning import GUIDANCE_LIMIT, guidance_rise


def guidance_scales(sampling: ARSampling, tokens: int, groups: int) -> list[list[float]]:
    """The scale of each guided token's groups, the tokens in order; those after them are not guided.

    Token i of n guided ones, i = 0..n-1, has ``1 + (guidance - 1) * rise(i / n)``, see `guidance_rise`.

    n is ``sampling.guidance_interval``, at most all (the official ``cfg_interval`` n guides n + 2). The list ends with
    the last token that has a scale other than 1, so it is empty where nothing is guided.
    """
    guided = tokens if sampling.guidance_interval is None else min(sampling.guidance_interval, tokens)
    guidance = [min(of_group(sampling.guidance, k), GUIDANCE_LIMIT) for k in range(groups)]
    schedule, power = sampling.guidance_schedule, sampling.guidance_power
    rises = [guidance_rise(schedule, i / guided, power) for i in range(guided)]
    scales = [[1 + (scale - 1) * rise if rise < 1 else scale for scale in guidance] for rise in rises]
    while scales and all(scale == 1 for scale in scales[-1]):
        scales.pop()
    return scales


def guide(logits: Float[Tensor, "r v"], scales: Sequence[float]) -> Float[Tensor, "b v"]:
    """``null + scale * (class - null)`` of logits whose first half is told the class, the second nothing (r = 2b).

    A scale of 1 gives the class's own as they are.

    scales  of as many tokens as each image has rows, which lie together
    """
    conditional, null = logits.to(torch.float32).chunk(2)
    if len(set(scales)) == 1:
        return conditional if scales[0] == 1 else null + scales[0] * (conditional - null)
    scale = torch.tensor(scales, device=logits.device).repeat(len(conditional) // len(scales))[:, None]
    return torch.where(scale == 1, conditional, null + scale * (conditional - null))
