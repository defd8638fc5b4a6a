"""Projectors: from the states of a generator to the features of a teacher. States and features (b, t, _), row-major."""

from jaxtyping import Float
from torch import Tensor, nn

from ifsq.nn.linear import Linear

SIDE = 3  # of the convolution


class MLPProjector(nn.Sequential):
    """Three linear layers with SiLU in between, token by token: the official one, whose checkpoints name them so.

    width     of the states
    hidden    of the layers in between
    features  numbers in a feature
    """

    not_hidden = ("0", "2", "4")  # of Muon, which is for the generator's blocks

    def __init__(self, width: int, hidden: int, features: int) -> None:
        super().__init__(Linear(width, hidden), nn.SiLU(), Linear(hidden, hidden), nn.SiLU(), Linear(hidden, features))
        _initialize(self)


class ConvProjector(nn.Module):
    """A convolution over the grid, which keeps what a token by token map loses: where things are (iREPA, 2512.10794).

    grid  rows and columns of the tokens
    """

    not_hidden = ("conv",)

    def __init__(self, width: int, features: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.conv = nn.Conv2d(width, features, SIDE, padding=SIDE // 2)
        _initialize(self)

    def forward(self, states: Float[Tensor, "b t width"]) -> Float[Tensor, "b t f"]:
        maps = states.transpose(1, 2).unflatten(2, self.grid)  # b width h w
        return self.conv(maps).flatten(2).transpose(1, 2)


def _initialize(projector: nn.Module) -> None:
    """Glorot's uniform weights and no bias, as REPA's networks begin."""
    for parameter in projector.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter.flatten(1))
        else:
            nn.init.zeros_(parameter)
