"""A small classifier trained on the same bundled images: the judge of the demo's samples.

Its features give `FD(judge)`, its predictions the class agreement. It knows ten pictures, not ImageNet, so its numbers
compare runs of one data set with each other and with nothing else. Trained by ``pipeline`` through the one loop.
"""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

FEATURES = "judge"


class JudgeNet(nn.Module):
    """Three strided convolution stages, mean over the grid, one linear layer.

    num_classes  classes k
    width        channels of the first stage; the features have four times as many

    Any image size from 16 pixels on.
    """

    def __init__(self, num_classes: int, width: int = 16) -> None:
        super().__init__()
        if num_classes < 2 or width < 1:
            raise ValueError(f"num_classes={num_classes}, width={width}: expected at least 2 classes and width 1")
        self.num_classes, self.feature_dim = num_classes, 4 * width
        widths = (3, width, 2 * width, 4 * width)
        self.stages = nn.ModuleList(_Stage(*pair) for pair in zip(widths, widths[1:], strict=False))
        self.head = nn.Linear(self.feature_dim, num_classes)

    def features(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b f"]:
        """Penultimate activations of images in [-1, 1]."""
        hidden = images
        for stage in self.stages:
            hidden = stage(hidden)
        return hidden.mean(dim=(2, 3))

    def logits(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b k"]:
        """Class scores before the softmax."""
        return self.head(self.features(images))

    def loss(self, images: Float[Tensor, "b 3 H W"], labels: Int[Tensor, "b"]) -> dict[str, Tensor]:
        """``loss``, the mean cross-entropy in nats, and ``accuracy`` of the batch."""
        logits = self.logits(images)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        return {"loss": F.cross_entropy(logits, labels, label_smoothing=0.05), "accuracy": accuracy}


class _Stage(nn.Module):
    """Halve the grid, then a residual convolution. Group norm, so that a picture's features do not depend on others."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(inner, outer, 3, stride=2, padding=1)
        self.norm_down = nn.GroupNorm(1, outer)
        self.conv = nn.Conv2d(outer, outer, 3, padding=1)
        self.norm_conv = nn.GroupNorm(1, outer)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.silu(self.norm_down(self.down(images)))
        return hidden + F.silu(self.norm_conv(self.conv(hidden)))
