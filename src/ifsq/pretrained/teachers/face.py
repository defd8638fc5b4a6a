"""The face of a teacher: features of every token of a grid, whatever network they come from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ifsq.config import digest
from ifsq.nn.modes import evaluating
from ifsq.store.weights import tensors_digest

LARGEST_GRID = 1024
"""Tokens a side, above any use of it."""


class Teacher(nn.Module, ABC):
    """Gives one vector a token. Frozen, always in eval mode; no gradient.

    Set by a subclass:

    name    for tables and logs
    digest  SHA-256 (hex) of the weights and of all that is done to images before and to features after: the key of
            cached features. Empty where the weights change, so that nothing may be cached
    width   numbers f in a vector
    """

    name: str
    digest: str
    width: int

    @abstractmethod
    def features(self, seen: Any, grid: tuple[int, int]) -> Float[Tensor, "b t f"]:
        """Float32 vectors of the tokens of a grid of rows and columns, in row-major order, on the device of the input.

        seen  what this kind of teacher looks at: images, see `ImageTeacher`, or what `SelfTeacher` was told
        """

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in eval mode, whatever a surrounding module asks."""
        return super().train(False)


class ImageTeacher(Teacher):
    """A teacher that looks at images. It computes in float32 under any autocast.

    smallest  pixels that each side of an image needs
    """

    smallest: int = 1

    @torch.no_grad()
    def features(self, seen: Float[Tensor, "b c H W"], grid: tuple[int, int]) -> Float[Tensor, "b t f"]:
        """See `Teacher.features`.

        seen  images in [-1, 1]; of one channel, luminance, as of grey RGB

        Where the teacher's own grid is another, its features are resampled: bilinear, antialiased where the token grid
        is coarser, corners not aligned, so that a token sees the part of the image that it stands for. Raises
        ValueError for images that are too small or of other channels than 3 or 1, and for a grid without tokens.
        """
        self.check(seen, grid)
        with torch.autocast(seen.device.type, enabled=False):
            maps = self.maps(seen.float().expand(-1, 3, -1, -1), grid).float()
            maps = on_grid(maps, grid)
        return maps.flatten(2).transpose(1, 2).contiguous()  # b t f

    @abstractmethod
    def maps(self, images: Float[Tensor, "b 3 H W"], grid: tuple[int, int]) -> Float[Tensor, "b f _ _"]:
        """Features of float32 images in [-1, 1] on the teacher's own grid, which may follow the token grid."""

    def check(self, images: Float[Tensor, "b c H W"], grid: tuple[int, int]) -> None:
        """Raise ValueError, see `features`."""
        channels, height, width = images.shape[1:]
        if channels not in (1, 3):
            raise ValueError(f"images of {channels} channels: {self.name} expects 3, or 1 for luminance")
        if min(height, width) < self.smallest:
            raise ValueError(f"images of {height}x{width} pixels: {self.name} expects at least {self.smallest} a side")
        if not 1 <= min(grid) <= max(grid) <= LARGEST_GRID:
            raise ValueError(f"grid {grid[0]}x{grid[1]}: expected 1 to {LARGEST_GRID} tokens a side")


class SelfTeacher(Teacher):
    """A generator's own averaged weights, looked at in a deeper layer or with a cleaner input. Needs no other network.

    It computes in the precision of the training, as the generator does.

    model  averaged weights; whoever trains moves them, and they are no part of this module or of what it saves
    look   (model, what `features` is given) -> states (b, t, f)
    width  numbers f in a state
    """

    digest = ""

    def __init__(
        self, model: nn.Module, look: Callable[[Any, Any], Float[Tensor, "b t f"]], width: int, name: str = "self"
    ) -> None:
        super().__init__()
        self._model, self.look, self.width, self.name = (model,), look, width, name  # a tuple: not registered

    def features(self, seen: Any, grid: tuple[int, int]) -> Float[Tensor, "b t f"]:
        """See `Teacher.features`. Raises ValueError where the states are not those of the grid's tokens."""
        (model,) = self._model
        with evaluating(model):
            states = self.look(model, seen)
        if states.shape[1:] != (grid[0] * grid[1], self.width):
            raise ValueError(
                f"{self.name}: states of {tuple(states.shape[1:])}, expected {grid[0] * grid[1]} tokens of {self.width}"
            )
        return states.float()


def on_grid(maps: Float[Tensor, "b f _ _"], grid: tuple[int, int]) -> Float[Tensor, "b f h w"]:
    """Features on another grid: bilinear, antialiased where it is coarser, corners not aligned."""
    if tuple(maps.shape[-2:]) == grid:
        return maps
    return F.interpolate(maps, grid, mode="bilinear", antialias=True, align_corners=False)


def teacher_digest(table: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str:
    """`Teacher.digest` of a network's state dict and of settings that JSON can hold."""
    return digest({"weights": tensors_digest(table), **settings})
