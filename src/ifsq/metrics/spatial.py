"""How much the features of an image's patches say about where they lie: a score of teachers that needs no training.

Singh et al. 2025, arXiv:2512.10794: over 27 encoders it goes with how well a generator aligned to them draws, the
accuracy of a linear probe does not.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

FAR = 3 / 8
"""Of the mean side of the grid, from where on patches are distant: 6 of 16, as in the paper."""
PAIRS_AT_ONCE = 1 << 24


@torch.no_grad()
def local_distant_similarity(
    features: Float[Tensor, "b t f"], grid: tuple[int, int], far: int | None = None
) -> Float[Tensor, "b"]:
    """LDS of each image: the mean cosine of patches side by side, less that of distant ones. Float64, -2 to 2.

        E[cos(x_s, x_t) | d(s, t) = 1] - E[cos(x_s, x_t) | d(s, t) >= far],  d = rows + columns between two patches

    features  row-major, of a grid of rows and columns; their lengths do not matter
    far       distance from which patches are distant; None: `FAR` of the mean side, at least 2

    0 where patches are alike everywhere, and where they have nothing to do with their place. Raises ValueError for
    another number of patches, for a grid without distant ones, and for features that are not finite.
    """
    rows, columns = grid
    if features.shape[1] != rows * columns:
        raise ValueError(f"{features.shape[1]} patches: expected the {rows * columns} of a grid of {rows}x{columns}")
    far = far_from(grid) if far is None else far
    if not 1 <= far <= rows + columns - 2:
        raise ValueError(f"far={far}: a grid of {rows}x{columns} has patches up to {rows + columns - 2} apart")
    if not bool(features.isfinite().all()):
        raise ValueError("features that are not finite: expected numbers")
    apart = _distances(grid, features.device)
    near, distant = (apart == 1).double(), (apart >= far).double()
    found = []
    for part in features.split(max(1, PAIRS_AT_ONCE // apart.numel())):
        unit = F.normalize(part.double(), dim=-1)
        cosines = unit @ unit.transpose(1, 2)  # b t t
        local = (cosines * near).sum((1, 2)) / near.sum()
        found.append(local - (cosines * distant).sum((1, 2)) / distant.sum())
    return torch.cat(found)


def far_from(grid: tuple[int, int]) -> int:
    """Rows and columns between patches from which on they are distant, unless somebody says otherwise."""
    return max(2, round(FAR * sum(grid) / 2))


def _distances(grid: tuple[int, int], device: torch.device) -> Float[Tensor, "t t"]:
    """Rows and columns between each two patches, row-major."""
    index = torch.arange(grid[0] * grid[1], device=device)
    row, column = index // grid[1], index % grid[1]
    return ((row[:, None] - row).abs() + (column[:, None] - column).abs()).float()
