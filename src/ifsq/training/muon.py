"""Muon: momentum whose update of a matrix is made orthogonal, for the hidden layers; AdamW for everything else.

Keller Jordan et al., 2024 (kellerjordan.github.io/posts/muon), with its coefficients and its scale ``sqrt(max(1, rows /
columns))``. torch.optim.Muon is the same for one matrix after the other; here those of a shape are one batch, which
costs a model of many small layers a fraction of the calls, and a convolution is the matrix (out, in * height * width).
"""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ifsq.training.precision import computes_bfloat16

COEFFICIENTS = (3.4445, -4.775, 2.0315)
ITERATIONS = 5
EPS = 1e-7


class Muon(torch.optim.Optimizer):
    """Muon over matrices, the last of ``param_groups``, and a fused AdamW over the other groups.

    matrices      parameters of two or more dimensions, the first against all others
    lr            of the matrices
    momentum      of the matrices' gradients, Nesterov's
    weight_decay  of the matrices: each step takes ``lr * weight_decay`` of them
    others        groups of AdamW, with their options
    """

    def __init__(
        self, matrices: Iterable[Tensor], lr: float, momentum: float, weight_decay: float, others: torch.optim.AdamW
    ) -> None:
        self._others = others
        group = {"params": list(matrices), "lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__([*others.param_groups, group], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move all parameters that have a gradient."""
        assert closure is None
        *others, group = self.param_groups
        self._others.param_groups, self._others.state = others, self.state  # loading a state exchanges both
        self._others.step()
        moved = [p for p in group["params"] if p.grad is not None]
        if not moved:
            return
        for p in moved:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers, grads = [self.state[p]["momentum_buffer"] for p in moved], [p.grad for p in moved]
        torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
        updates = torch._foreach_lerp(grads, buffers, group["momentum"])
        torch._foreach_mul_(moved, 1 - group["lr"] * group["weight_decay"])
        by_shape: dict[torch.Size, list[int]] = {}
        for number, p in enumerate(moved):
            by_shape.setdefault(p.shape, []).append(number)
        for shape, numbers in by_shape.items():
            matrices = torch.stack([updates[number].flatten(1) for number in numbers])  # m rows columns
            rows, columns = matrices.shape[1:]
            steps = orthogonal(matrices).view(-1, *shape).to(moved[numbers[0]].dtype)
            scale = max(1, rows / columns) ** 0.5
            torch._foreach_add_([moved[number] for number in numbers], list(steps), alpha=-group["lr"] * scale)


def orthogonal(matrices: Float[Tensor, "m rows columns"]) -> Float[Tensor, "m rows columns"]:
    """Each matrix with its singular values at about 1, between 0.7 and 1.2; bfloat16 where the device computes in it.

    Five steps of the quintic Newton-Schulz iteration, which makes small singular values grow quickest.
    """
    a, b, c = COEFFICIENTS
    x = matrices.to(torch.bfloat16 if computes_bfloat16(matrices.device.type) else torch.float32)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)  # no singular value above 1
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
