"""Exact parallel decoding: a window of tokens at once, again and again until it stands (Jacobi iteration).

A token is a function of its random numbers and of the tokens before it. So a whole window is drawn in one pass behind
drafts of its tokens, the draws become the next drafts, and each draw whose tokens before it were all drafted right is
the token that plain decoding draws (Wiggers & Hoogeboom, arXiv 2002.09928; Song et al., arXiv 2002.03629). The first of
a window always is; how many more are depends on how far a token follows from its random numbers without those before.

The tokens are those of plain decoding but for what a pass of another shape rounds otherwise, which can move a draw that
lies within that rounding of the next code.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from ifsq.generators.ar.decode import Choose, Told, picking
from ifsq.generators.ar.steps import Steps
from ifsq.nn.modes import evaluating


class ParallelDraw(NamedTuple):
    """Tokens of a batch, and how many passes through the network drew them: ``t / passes`` were kept a pass."""

    tokens: Int[Tensor, "b t g"]
    passes: int


def decode_parallel(
    steps: Steps,
    labels: Int[Tensor, "b"],
    choose: Choose,
    scales: Sequence[Sequence[float]],
    window: int,
    tell: Told | None = None,
) -> ParallelDraw:
    """As `decode`, in fewer passes of up to ``window`` tokens each.

    All images of the batch go on from the first token that one of them has not settled. A window ends where the guided
    tokens do.
    """
    network = steps.network
    count, tokens = len(labels), network.spec.tokens
    labels = labels.to(network.cls_embedding.embedding_table.weight.device)
    rows = torch.cat([labels, torch.full_like(labels, network.num_classes)]) if scales else labels
    with evaluating(network):
        state = steps.first(rows)
        drawn = steps.draw(state, picking(choose, 0, scales[:1]))[:count]  # b g
        drafts = drawn[:, None].repeat(1, tokens, 1)  # b t g; a token that was never drawn is drafted as the last drawn
        settled, known, passes = 1, 1, 1  # tokens that stand, tokens with a draft of their own
        while settled < tokens:
            if settled == len(scales):  # from here on the null class is asked no more
                steps.keep_first(count)
            stop = min(settled + window, tokens if settled >= len(scales) else len(scales))
            told = drafts[:, settled - 1 : stop - 1]
            told = torch.cat([told, told]) if settled < len(scales) else told
            states = steps.next(told)  # rows, stop - settled, width
            pick = picking(choose, settled, scales[settled:stop])
            drawn = steps.draw(states.flatten(0, 1), pick).unflatten(0, states.shape[:2])[:count]
            right = (drawn == drafts[:, settled:stop]).all(dim=-1).all(dim=0)  # of all images
            drafts[:, settled:stop] = drawn
            if stop > known:
                known = stop
                drafts[:, known:] = drafts[:, known - 1 : known]
            # Behind the first draft that was wrong nothing counts, but the draw in its place does.
            settled += min(int(right.to(torch.int64).cumprod(dim=0).sum()) + 1, stop - settled)
            passes += 1
            if tell is not None:
                tell(settled, partial(torch.clone, drafts[:, :settled]))
            if settled < stop:
                steps.rewind(settled - 1)
    return ParallelDraw(drafts, passes)
