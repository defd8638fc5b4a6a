"""The loss that aligns states of a generator to features of teachers: the negative cosine, in float32.

Features may lie on another grid than the tokens, as where a token is a patch of several codes: they are resampled.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ifsq.generators.repa.config import AlignmentConfig
from ifsq.generators.repa.projector import ConvProjector, MLPProjector
from ifsq.pretrained.teachers.face import on_grid

EPS = 1e-6  # of a standard deviation


class Alignment(nn.Module):
    """A projector for each teacher, and the loss of what they give.

    width    of the generator's states
    grid     rows and columns of its tokens
    widths   numbers in a feature of each teacher
    grids    on which each one's features lie; None: on the tokens' own
    """

    def __init__(
        self,
        config: AlignmentConfig,
        width: int,
        grid: tuple[int, int],
        widths: Sequence[int],
        grids: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        super().__init__()
        self.config, self.width, self.grid, self.widths = config, width, grid, tuple(widths)
        self.grids = tuple(grids) if grids is not None else (grid,) * len(widths)
        self.projectors = nn.ModuleList(
            MLPProjector(width, config.hidden or width, f)
            if config.projector == "mlp"
            else ConvProjector(width, f, grid)
            for f in widths
        )

    def forward(
        self,
        states: Float[Tensor, "b t width"],
        positions: Int[Tensor, "b t"] | None,
        features: Sequence[Float[Tensor, "b _ _"]],
    ) -> Float[Tensor, ""]:
        """Minus the cosine of projected states and features: the mean over tokens, images and teachers, -1 to 1.

        positions  row-major grid position that each state is about, as of `TrainingPass`; None: its own number
        features   (b, n, f) of each teacher, row-major on its grid
        """
        losses = []
        for projector, found, grid in zip(self.projectors, features, self.grids, strict=True):
            target = self.target(found, grid)  # b t f
            if positions is not None:
                target = target.gather(1, positions[..., None].expand_as(target))
            projected = projector(states)
            if self.config.token == "read":  # the state behind a token has read it
                projected, target = projected[:, 1:], target[:, :-1]
            losses.append(-cosine(projected, target).mean())
        return torch.stack(losses).mean()

    @torch.no_grad()
    def target(self, features: Float[Tensor, "b n f"], grid: tuple[int, int]) -> Float[Tensor, "b t f"]:
        """Features on the tokens' grid, normalised over it where that is asked for; float32."""
        found = resampled(features.detach().float(), grid, self.grid)
        return found if self.config.spatial_norm is None else spatially_normalized(found, self.config.spatial_norm)

    def idle(self) -> Float[Tensor, ""]:
        """0, with a gradient of 0 for every parameter: processes that train together expect one."""
        device = next(self.parameters()).device
        features = [
            torch.zeros(1, grid[0] * grid[1], f, device=device) for grid, f in zip(self.grids, self.widths, strict=True)
        ]
        return 0 * self(torch.zeros(1, self.grid[0] * self.grid[1], self.width, device=device), None, features)


def cosine(one: Float[Tensor, "b t f"], two: Float[Tensor, "b t f"]) -> Float[Tensor, "b t"]:
    """Cosine of the vectors, normalised and summed in float32: bfloat16 has three digits."""
    return (F.normalize(one.float(), dim=-1) * F.normalize(two.float(), dim=-1)).sum(dim=-1)


def resampled(features: Float[Tensor, "b n f"], grid: tuple[int, int], to: tuple[int, int]) -> Float[Tensor, "b t f"]:
    """Features on another grid, as teachers resample their own."""
    if grid == to:
        return features
    maps = features.transpose(1, 2).unflatten(2, grid)  # b f h w
    return on_grid(maps, to).flatten(2).transpose(1, 2)


def spatially_normalized(features: Float[Tensor, "b t f"], share: float) -> Float[Tensor, "b t f"]:
    """``(x - share * mean) / std`` over the tokens of each image, number by number (iREPA, arXiv 2512.10794)."""
    centred = features - share * features.mean(dim=1, keepdim=True)
    return centred / (features.std(dim=1, keepdim=True) + EPS)
