"""Decoding token by token with a cache, with classifier-free guidance."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from ifsq.generators.ar.guidance import guide
from ifsq.generators.ar.heads.base import Pick
from ifsq.generators.ar.steps import Steps
from ifsq.nn.modes import evaluating

Choose = Callable[[Tensor, int, int], Tensor]
"""Float32 logits (b * t, v) of t tokens an image, which token is the first, and which group -> indices (b * t,)."""
Told = Callable[[int, Callable[[], Tensor]], None]
"""How many tokens stand, and what gives them (b, so many, g)."""


def decode(
    steps: Steps,
    labels: Int[Tensor, "b"],
    choose: Choose,
    scales: Sequence[Sequence[float]] = (),
    tell: Told | None = None,
) -> Int[Tensor, "b t g"]:
    """All tokens of one image for every label.

    steps   through the network, at their beginning
    choose  turns logits into indices
    scales  of guidance, of each guided token's groups, see `guidance_scales`. While tokens are guided the batch is
            twice as large
    tell    is called with every token
    """
    network = steps.network
    tokens = network.spec.tokens
    labels = labels.to(network.cls_embedding.embedding_table.weight.device)
    rows = torch.cat([labels, torch.full_like(labels, network.num_classes)]) if scales else labels
    drawn: list[Tensor] = []
    with evaluating(network):
        state = steps.first(rows)  # b width, or 2b while it is guided
        for position in range(tokens):
            pick = picking(choose, position, scales[position : position + 1])
            indices = steps.draw(state, pick)  # rows g
            drawn.append(indices[: len(labels)])
            if tell is not None:
                tell(len(drawn), lambda: torch.stack(drawn, dim=1))
            if position + 1 == len(scales):  # from here on the null class is asked no more
                steps.keep_first(len(labels))
                indices = drawn[-1]
            if position + 1 < tokens:
                state = steps.next(indices[:, None])[:, 0]
    return torch.stack(drawn, dim=1)


def picking(choose: Choose, first: int, scales: Sequence[Sequence[float]]) -> Pick:
    """What draws tokens from ``first`` on: guided where there are ``scales``, one list a token, which draw them all.

    Where they are guided both halves of the batch go on with the index drawn from their combined logits.
    """
    if not scales:
        return lambda logits, group: choose(logits.to(torch.float32), first, group)

    def guided(logits: Tensor, group: int) -> Tensor:
        return choose(guide(logits, [scale[group] for scale in scales]), first, group).repeat(2)

    return guided
