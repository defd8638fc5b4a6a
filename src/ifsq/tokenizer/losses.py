"""Losses of the tokenizer's half of a step.

L1 or L2, perceptual distances, the adversarial term with its adaptive weight (VQGAN, arXiv 2012.09841), and what the
quantizer adds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ifsq.pretrained.efficientnet_lite import NAME as EFFICIENTNET
from ifsq.pretrained.efficientnet_lite import FeatureDistance, load_efficientnet_lite
from ifsq.pretrained.lpips import load_lpips
from ifsq.tokenizer.adversarial import AdversarialConfig, Adversary, balance
from ifsq.tokenizer.conv import Decoder
from ifsq.tokenizer.model import Autoencoded
from ifsq.training.distributed import World, from_first

PERCEPTUAL_WEIGHT = 0.1
NO_NETWORKS: Mapping[str, nn.Module] = MappingProxyType({})


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms, over images in [-1, 1].

    l1            of the absolute error
    l2            of the squared error
    lpips         of the perceptual distance (VGG16 with the official linear heads); 0: its weights are not needed
    lpips_vgg16   file of torchvision's VGG16; empty: found in ``$IFSQ_WEIGHTS`` or torch's cache, or downloaded
    perceptual    network of a second perceptual distance (`FeatureDistance`), ``efficientnet-lite0``: its weights come
                  with the extra ``features``; empty: none
    perceptual_weight
                  of this distance
    adversarial   of a patch discriminator; absent: none
    """

    l1: float = 1.0
    l2: float = 1.0
    lpips: float = 0.0
    lpips_vgg16: str = ""
    perceptual: str = ""
    perceptual_weight: float = PERCEPTUAL_WEIGHT
    adversarial: AdversarialConfig | None = None

    def __post_init__(self) -> None:
        if min(self.l1, self.l2, self.lpips) < 0 or self.l1 + self.l2 == 0:
            raise ValueError(
                f"l1={self.l1}, l2={self.l2}, lpips={self.lpips}: expected weights of at least 0, l1 or l2 positive"
            )
        if self.perceptual not in ("", EFFICIENTNET):
            raise ValueError(f"perceptual={self.perceptual!r}: expected {EFFICIENTNET!r}, or nothing")
        if self.perceptual_weight <= 0:
            raise ValueError(f"perceptual_weight={self.perceptual_weight}: expected a positive weight")
        if not self.perceptual and self.perceptual_weight != PERCEPTUAL_WEIGHT:
            raise ValueError(f"perceptual_weight={self.perceptual_weight} weighs nothing: perceptual names no network")

    @property
    def distances(self) -> dict[str, float]:
        """Weights of the perceptual distances that are asked for, by the names that they are logged under."""
        weights = {"lpips": self.lpips, "perceptual": self.perceptual_weight if self.perceptual else 0.0}
        return {name: weight for name, weight in weights.items() if weight}


def load_perceptual(config: LossConfig, world: World) -> dict[str, nn.Module]:
    """The frozen networks of `LossConfig.distances`. The first process finds or downloads their weights for all.

    Raises InputError.
    """
    makers: dict[str, Callable[[], nn.Module]] = {
        "lpips": lambda: load_lpips(config.lpips_vgg16 or None),
        "perceptual": lambda: FeatureDistance(load_efficientnet_lite()),
    }
    found = from_first(world, lambda: {name: makers[name]() for name in config.distances})
    return {name: network.to(world.device) for name, network in found.items()}


def reconstruction_loss(
    images: Float[Tensor, "b c H W"],
    reconstructed: Float[Tensor, "b c H W"],
    config: LossConfig,
    perceptual: Mapping[str, nn.Module] = NO_NETWORKS,
) -> dict[str, Tensor]:
    """``loss`` = l1 * mean |x - y| + l2 * mean (x - y)^2, and the weighted means of perceptual distances; in float32.

    perceptual  by the names of ``config.distances``, which are required: (b, c, H, W) twice -> distances (b,)

    The parts stand beside it.
    """
    error = reconstructed.float() - images.float()
    l1, l2 = error.abs().mean(), error.square().mean()
    parts = {"loss": config.l1 * l1 + config.l2 * l2, "l1": l1, "l2": l2}
    for name, weight in config.distances.items():
        parts[name] = perceptual[name](reconstructed, images).float().mean()
        parts["loss"] = parts["loss"] + weight * parts[name]
    return parts


def tokenizer_loss(
    images: Float[Tensor, "b c H W"],
    out: Autoencoded,
    decoder: Decoder,
    config: LossConfig,
    perceptual: Mapping[str, nn.Module],
    adversary: Adversary | None,
    step: int,
) -> dict[str, Tensor]:
    """``loss``, whose gradient reaches the tokenizer alone, and its parts.

    From the adversary's start on: ``reconstruction + w * adversarial + auxiliary``, where the constant w is the
    config's weight times the ratio of the two gradients at the decoder's last weights.
    """
    auxiliary = sum(out.losses.values(), out.images.new_zeros(()))
    if adversary is None or not adversary.config.started(step) or not adversary.config.weight:
        parts = reconstruction_loss(images, out.images, config, perceptual)
        return parts | out.losses | {"loss": parts["loss"] + auxiliary}
    # The perceptual network and the discriminator run backward once, down to the images. The usual code walks each
    # twice, for the ratio and for the step, and keeps every graph meanwhile.
    seen = out.images.detach().requires_grad_()
    parts = reconstruction_loss(images, seen, config, perceptual)
    adversarial = adversary.against(seen)
    (wanted,) = torch.autograd.grad(parts["loss"], seen)
    (given,) = torch.autograd.grad(adversarial, seen)
    weight = adversary.config.weight * balance(
        decoder.last_gradient(out.last, wanted), decoder.last_gradient(out.last, given)
    )
    parts = {name: value.detach() for name, value in parts.items()}
    parts |= {"adversarial": adversarial.detach(), "adversarial_weight": weight}
    value = parts["loss"] + weight * parts["adversarial"]
    return parts | out.losses | {"loss": _with_gradient(value, out.images, wanted + weight * given) + auxiliary}


def _with_gradient(value: Tensor, images: Tensor, slope: Tensor) -> Tensor:
    """A scalar of this value whose gradient at the images is ``slope``."""
    pull = (images * slope).sum()
    return value + (pull - pull.detach())
