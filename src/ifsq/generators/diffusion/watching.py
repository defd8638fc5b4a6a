"""What a solver tells of its steps, as whoever watches a generator draw is told."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ifsq.codes import Sampled
from ifsq.generators.diffusion.solvers import OnStep
from ifsq.generators.watch import Partly, Progress, Watch


def telling(watch: Watch, count: int, steps: int | None, codes_of: Callable[[Tensor], Tensor]) -> OnStep:
    """Tells ``watch`` of the steps of a batch of ``count`` images.

    steps     of all; None of a solver that finds them itself, and takes one image after another
    codes_of  gives the codes (b, d, h, w) of the state that is solved for
    """
    behind: list[Tensor] = []  # images that are done
    latest: Tensor | None = None
    total = 0

    def tell(done: int, t: Tensor, x: Tensor) -> None:
        nonlocal latest, total
        if done == 1 and latest is not None:
            behind.append(latest)
        latest, total = x, total + 1

        def look() -> Partly:
            codes = codes_of(torch.cat([*behind, x]))
            begun = torch.arange(count, device=x.device).view(-1, 1, 1, 1) < len(codes)
            padded = F.pad(codes, (0, 0, 0, 0, 0, 0, 0, count - len(codes)))
            return Partly(Sampled(padded, None), begun.expand(-1, 1, *codes.shape[2:]))

        watch(Progress(total, steps, look, float(t)))

    return tell
