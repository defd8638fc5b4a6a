"""The face of a feature network: what measurements of distributions ask of it, whichever it is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from jaxtyping import Float, UInt8
from torch import Tensor, nn


class FeatureNetwork(nn.Module, ABC):
    """Looks at 8-bit images and says numbers about each. Frozen, always in eval mode, float32; no gradient.

    Set by a subclass:

    name      of these weights at these settings: unlike networks bear unlike names. A distance is called by it
    widths    outputs by name, with how many numbers each has for one image
    pooled    the output that says what an image shows: of the Fréchet and kernel distances, precision and recall
    spatial   the one that also says where, or None
    logits    class scores, of the Inception Score, or None
    smallest  pixels that each side of an image needs
    """

    name: str
    widths: Mapping[str, int]
    pooled: str
    spatial: str | None = None
    logits: str | None = None
    smallest: int = 1

    @abstractmethod
    def forward(self, images: UInt8[Tensor, "b c H W"], wanted: Sequence[str]) -> dict[str, Float[Tensor, "b _"]]:
        """The wanted ones of the outputs by name, one row an image; each row depends on its image alone.

        Images have three channels, or one, luminance, which is taken as grey RGB. Raises ValueError, as `check`.
        """

    def check(self, images: UInt8[Tensor, "b c H W"], wanted: Sequence[str]) -> None:
        """Raise ValueError for an output that is none, and for images that are too small or of other channels."""
        if unknown := sorted(set(wanted) - set(self.widths)):
            raise ValueError(f"features {unknown}: expected some of {', '.join(self.widths)}")
        channels, height, width = images.shape[1:]
        if channels not in (1, 3):
            raise ValueError(f"images of {channels} channels: {self.name} expects 3, or 1 for luminance")
        if min(height, width) < self.smallest:
            raise ValueError(f"images of {height}x{width} pixels: {self.name} expects at least {self.smallest} a side")

    def train(self, mode: bool = True) -> "FeatureNetwork":
        """Stays in eval mode, whatever a surrounding module asks."""
        return super().train(False)
