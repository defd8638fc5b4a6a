"""Decoding token by token with a cache, with classifier-free guidance."""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from ifsq.generators.ar.draw import guide
from ifsq.generators.ar.heads.base import Pick
from ifsq.generators.ar.steps import Steps
from ifsq.nn.modes import evaluating


def decode(
    steps: Steps,
    labels: Int[Tensor, "b"],
    choose: Callable[[Tensor], Tensor],
    guidance: float = 1.0,
    guidance_interval: int | None = None,
) -> Int[Tensor, "b t g"]:
    """All tokens of one image for every label; ``choose`` turns float32 logits (b, v) into indices (b,).

    steps              through the network, at their beginning
    guidance           1 is none, else ``null + s * (class - null)`` of the logits, at twice the batch
    guidance_interval  as `guided_tokens` takes it
    """
    network = steps.network
    tokens = network.spec.tokens
    labels = labels.to(network.cls_embedding.embedding_table.weight.device)
    guided = guided_tokens(tokens, guidance, guidance_interval)
    rows = torch.cat([labels, torch.full_like(labels, network.num_classes)]) if guided > 0 else labels
    drawn: list[Tensor] = []
    with evaluating(network):
        state = steps.first(rows)  # b width, or 2b while it is guided
        for position in range(tokens):
            pick = _guided(choose, guidance) if position < guided else _plain(choose)
            indices = steps.draw(state, pick)  # rows g
            drawn.append(indices[: len(labels)])
            if position + 1 == guided:  # from here on the null class is asked no more
                steps.keep_first(len(labels))
                indices = drawn[-1]
            if position + 1 < tokens:
                state = steps.next(indices[:, None])[:, 0]
    return torch.stack(drawn, dim=1)


def guided_tokens(tokens: int, guidance: float, guidance_interval: int | None) -> int:
    """How many of an image's tokens, its first, are guided.

    guidance_interval  guide the first so many alone, then go on with half the batch; None guides all (the official
                       ``cfg_interval`` n guides n + 2)
    """
    if guidance == 1:
        return 0
    return tokens if guidance_interval is None else min(guidance_interval, tokens)


def _plain(choose: Callable[[Tensor], Tensor]) -> Pick:
    return lambda logits: choose(logits.to(torch.float32))


def _guided(choose: Callable[[Tensor], Tensor], guidance: float) -> Pick:
    """Both halves of the batch go on with the index drawn from their combined logits."""
    return lambda logits: choose(guide(logits, guidance)).repeat(2)
