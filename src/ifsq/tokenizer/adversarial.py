"""Adversarial training of a tokenizer: losses of both sides, their balance, and two regularisations.

`Adversary` holds what is trained and stored beside the tokenizer; a training step goes from ``start`` on::

    out = tokenizer(images)
    losses = tokenizer_loss(images, out, tokenizer.decoder, weights, perceptual, adversary, step)   # in `losses`
    losses["loss"].backward()                                                  # reaches the tokenizer only
    adversary(images, out.images.detach(), step)["discriminator"].backward()   # reaches the discriminator only
    ...a step of both optimizers...

The official training alternates the two halves instead (``alternate``: odd steps from ``start`` on are the
discriminator's).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from ifsq.tokenizer.discriminator import DiscriminatorConfig, PatchDiscriminator

Kind = Literal["hinge", "vanilla", "non-saturating"]
KINDS: tuple[Kind, ...] = ("hinge", "vanilla", "non-saturating")


@dataclass(frozen=True)
class AdversarialConfig:
    """The discriminator, and what it weighs in the loss of the tokenizer.

    kind    ``hinge`` or ``vanilla`` (official), or ``non-saturating``; see `generator_loss`, `discriminator_loss`
    weight  of the generator's loss, times the `balance`; 0: the tokenizer does not see the discriminator
    start   first step of both; before it they are zero
    layers  and
    width   and
    norm    of the `PatchDiscriminator`
    r1      of `r1_penalty`, halved (the gamma of arXiv 1801.04406); needs the group norm
    lecam   of `LeCAM`
    rate    learning rate of the discriminator
    alternate  train the two in turn, as the official code does, instead of both at every step
    """

    kind: Kind = "hinge"
    weight: float = 0.5
    start: int = 50000
    layers: int = 4
    width: int = 64
    norm: Literal["batch", "group"] = "batch"
    r1: float = 0.0
    lecam: float = 0.0
    rate: float = 1e-4
    alternate: bool = False

    def __post_init__(self) -> None:
        _check_kind(self.kind)
        for name in ("weight", "start", "r1", "lecam"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)}: expected a finite number of at least 0")
        if not 0 < self.rate < float("inf"):
            raise ValueError(f"rate={self.rate}: expected a positive, finite number")
        if self.r1 and self.norm == "batch":
            raise ValueError(
                f"r1={self.r1} with norm='batch': it mixes images, and the penalty is on each; expected 'group'"
            )
        self.discriminator()  # it knows which shapes it takes

    def discriminator(self, channels: int = 3) -> DiscriminatorConfig:
        """Its shape, for images of so many channels. Raises ValueError."""
        return DiscriminatorConfig(self.layers, self.width, self.norm, channels)

    def started(self, step: int) -> bool:
        """Whether the discriminator plays at this step, counted from 0."""
        return step >= self.start


class Adversary(nn.Module):
    """Discriminator and state of its regularisation; the module's docstring says how to call it.

    channels  of the images
    """

    def __init__(self, config: AdversarialConfig, channels: int = 3) -> None:
        super().__init__()
        self.config = config
        self.discriminator = PatchDiscriminator(config.discriminator(channels))
        self.lecam = LeCAM() if config.lecam else None

    def against(self, reconstructed: Float[Tensor, "b c H W"]) -> Float[Tensor, ""]:
        """The tokenizer's unweighted loss, `generator_loss`; its gradient reaches the images alone."""
        return generator_loss(frozen_logits(self.discriminator, reconstructed), self.config.kind)

    def forward(
        self, images: Float[Tensor, "b c H W"], reconstructed: Float[Tensor, "b c H W"], step: int
    ) -> dict[str, Tensor]:
        """The discriminator's half: ``discriminator``, its loss with regularisations, and means of both logits.

        ``r1`` and ``lecam`` lie beside it, unweighted, where they are on. No gradient reaches either image. Before
        ``start`` the loss is zero without a graph, and the discriminator does not run.
        """
        config = self.config
        if not config.started(step):
            return {"discriminator": images.new_zeros((), dtype=torch.float32)}
        images = images.detach().requires_grad_(config.r1 > 0)
        # Two passes, so that a batch norm sees real and reconstructed images apart, in the official order.
        real, fake = self.discriminator(images).float(), self.discriminator(reconstructed.detach()).float()
        loss = discriminator_loss(real, fake, config.kind)
        parts = {"logits_real": real.detach().mean(), "logits_fake": fake.detach().mean()}
        if config.r1:
            penalty = r1_penalty(images, real)
            loss, parts["r1"] = loss + config.r1 / 2 * penalty, penalty.detach()
        if self.lecam is not None:
            distance = self.lecam(real, fake)
            loss, parts["lecam"] = loss + config.lecam * distance, distance.detach()
        return {"discriminator": loss, **parts}


def generator_loss(fake: Float[Tensor, "b 1 h w"], kind: Kind) -> Float[Tensor, ""]:
    """- mean fake, the official loss of ``hinge`` and ``vanilla``; mean softplus(-fake) of ``non-saturating``.

    ``fake`` are the logits of reconstructions; computed in float32.
    """
    _check_kind(kind)
    fake = fake.float()
    return F.softplus(-fake).mean() if kind == "non-saturating" else -fake.mean()


def discriminator_loss(real: Float[Tensor, "b 1 h w"], fake: Float[Tensor, "b 1 h w"], kind: Kind) -> Float[Tensor, ""]:
    """Half of mean relu(1 - real) + mean relu(1 + fake), of the ``hinge``; of the softplus of -real and fake else.

    ``real`` and ``fake`` are logits; computed in float32.
    """
    _check_kind(kind)
    real, fake = real.float(), fake.float()
    if kind == "hinge":
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


def frozen_logits(discriminator: nn.Module, images: Float[Tensor, "b c H W"]) -> Float[Tensor, "b 1 h w"]:
    """Logits with a gradient into the images alone; running statistics of a batch norm stay as they are."""
    held = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    spare = {name: buffer.clone() for name, buffer in discriminator.named_buffers()}
    return functional_call(discriminator, held | spare, (images,))


def balance(wanted: Tensor, given: Tensor, ceiling: float = 1e4) -> Float[Tensor, ""]:
    """|wanted| / (|given| + 1e-6) in [0, ceiling]: the adaptive weight of two losses' gradients (arXiv 2012.09841)."""
    return (wanted.float().norm() / (given.float().norm() + 1e-6)).clamp(0, ceiling)


def r1_penalty(images: Float[Tensor, "b c H W"], real: Float[Tensor, "b 1 h w"]) -> Float[Tensor, ""]:
    """Mean over images of the squared norm of d (sum of an image's logits) / d image (arXiv 1801.04406), with a graph.

    ``real`` are the logits of ``images``, which require a gradient.
    """
    (slope,) = torch.autograd.grad(real.sum(), images, create_graph=True)
    return slope.float().square().sum(dim=(1, 2, 3)).mean()


class LeCAM(nn.Module):
    """Distance of logits from the moving average of the other kind's, of arXiv 2104.03310.

    As in the authors' code: only real logits above the average fake one and fake ones below the average real one count
    (the paper squares both sides), and the averages hold the present batch and are free of their start at zero.
    Each process averages its own batches; the training loop takes the mean over the processes.

    decay  of the moving averages, a batch
    """

    real: Tensor
    fake: Tensor
    mass: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: expected a number in [0, 1)")
        self.decay = decay
        for name in ("real", "fake", "mass"):  # sums over batches, and that of their weights
            self.register_buffer(name, torch.zeros(()))

    def forward(self, real: Float[Tensor, "b 1 h w"], fake: Float[Tensor, "b 1 h w"]) -> Float[Tensor, ""]:
        """mean relu(real - average fake)^2 + mean relu(average real - fake)^2, in float32; training moves the averages.

        Zero in evaluation before any training.
        """
        real, fake = real.float(), fake.float()
        if self.training:
            with torch.no_grad():
                for total, value in ((self.real, real.mean()), (self.fake, fake.mean()), (self.mass, 1.0)):
                    total.mul_(self.decay).add_((1 - self.decay) * value)
        mass = self.mass.clamp_min(torch.finfo(torch.float32).tiny)
        mean_real, mean_fake = self.real / mass, self.fake / mass
        loss = F.relu(real - mean_fake).square().mean() + F.relu(mean_real - fake).square().mean()
        return loss * (self.mass > 0)


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(KINDS)}")
