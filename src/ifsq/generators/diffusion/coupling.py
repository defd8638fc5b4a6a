"""Which noise of a batch leads to which of its data: pairs of least transport cost (arXiv 2302.00482, 2304.14772)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

COUPLINGS = ("independent", "optimal", "optimal_in_class")


@torch.no_grad()
def coupled(
    x0: Float[Tensor, "b *d"], x1: Float[Tensor, "b *d"], labels: Int[Tensor, "b"], coupling: str
) -> Float[Tensor, "b *d"]:
    """The noise x0 in the order in which it leads to the data x1: every one of both is used exactly once.

    independent       as drawn
    optimal           the permutation of least total squared distance. Of a conditional model it ties noise to class,
                      which sampling does not: at guidance 1 its samples are biased (arXiv 2503.10636)
    optimal_in_class  the same among those of one label, which leaves each class all of the noise's distribution
    """
    if coupling == "independent" or len(x1) < 2:
        return x0
    if coupling == "optimal":
        return x0[_assignment(x0, x1)]
    order = torch.arange(len(x1), device=x1.device)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        order[rows] = rows[_assignment(x0[rows], x1[rows])]
    return x0[order]


def _assignment(x0: Tensor, x1: Tensor) -> Tensor:
    """For each of x1 the number of its x0."""
    from scipy.optimize import linear_sum_assignment  # takes longer to import than all of this package's generators

    with torch.autocast(x1.device.type, enabled=False):
        # |x1 - x0|^2 less what no permutation changes
        products = x1.flatten(1).float() @ x0.flatten(1).float().T
    _, columns = linear_sum_assignment(products.cpu().numpy(), maximize=True)
    return torch.from_numpy(columns).to(x1.device)
