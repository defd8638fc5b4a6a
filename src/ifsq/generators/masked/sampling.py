"""Sampling of the masked generator: in each round all hidden digits are drawn, and some of them stay.

Which stay is random, as in masked diffusion, or by how likely what was drawn is (MaskGIT, arXiv 2202.04200). Digits of
one round are drawn independently of each other given those before: fewer rounds lose what they say of each other.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ifsq.config import InputError
from ifsq.generators.base import Sampling
from ifsq.generators.categorical import inverted, tempered
from ifsq.generators.conditioning import GUIDANCE_LIMIT
from ifsq.generators.masked.network import MaskedNetwork
from ifsq.generators.masked.schedule import check_schedule, left_after
from ifsq.generators.streams import uniforms

ORDERS = ("random", "confidence")
NOISE_LIMIT = 1e30  # float32 then keeps nothing of the probabilities, and a greater number would overflow
Told = Callable[[int, Tensor, Tensor], None]
"""Rounds behind, digits (b, t, d), and which of them stand."""
SMALLEST = 2.0**-25  # half a step of the numbers of `uniforms`, whose least is 0


@dataclass(frozen=True)
class MaskedSampling(Sampling):
    """How a masked generator is sampled.

    guidance            as of `Sampling`, of the logits; one number
    rounds              evaluations of the network, guided ones count twice; at most as many as there are digits, or
                        positions where these are hidden as one
    schedule            how many are left hidden over the rounds: ``cosine``, few are revealed at first, or ``linear``
    order               which of them: ``random``, as the bound has it, or those that are drawn with most ``confidence``
    confidence_noise    of ``confidence``: Gumbel noise times this, falling linearly to 0 in the last round, is added to
                        the logarithms of the probabilities; 0: none
    temperature         divides the logits, above 0; one too small for float32 leaves the most likely level alone
    guidance_interval   guide the first so many rounds only; None guides all
    """

    guidance: float = 1.0
    rounds: int = 8
    schedule: str = "cosine"
    order: str = "random"
    confidence_noise: float = 1.0
    temperature: float = 1.0
    guidance_interval: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1:
            raise ValueError(f"rounds={self.rounds}: expected at least 1")
        check_schedule(self.schedule)
        if self.order not in ORDERS:
            raise ValueError(f"order={self.order!r}: expected one of {', '.join(ORDERS)}")
        if not 0 <= self.confidence_noise < math.inf:
            raise ValueError(f"confidence_noise={self.confidence_noise}: expected a number of at least 0")
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}: expected a positive number")
        if self.guidance_interval is not None and self.guidance_interval < 0:
            raise ValueError(f"guidance_interval={self.guidance_interval}: expected None or a count of rounds")

    @property
    def unsaid(self) -> tuple[str, ...]:
        return ("confidence_noise",) if self.order == "random" else ()

    @property
    def guided_rounds(self) -> int:
        """How many rounds are guided, the first ones."""
        if self.guidance == 1:
            return 0
        return self.rounds if self.guidance_interval is None else min(self.guidance_interval, self.rounds)

    def check_rounds(self, units: int, called: str) -> None:
        """Raise ValueError where there are more rounds than what can be revealed."""
        if self.rounds > units:
            raise ValueError(f"rounds={self.rounds}: expected at most {units}, the {called} of an image")


def reveal(
    network: MaskedNetwork,
    labels: Int[Tensor, "b"],
    sampling: MaskedSampling,
    seed: int,
    first: int,
    tell: Told | None = None,
) -> Int[Tensor, "b t d"]:
    """Digits of an image for each label, in eval mode.

    Image number i, the first one's being ``first``, has random numbers of its own in each round: one a digit, by which
    its distribution is inverted, and one a unit, for the order. ``tell`` is called after every round.

    Raises InputError where the logits are not finite numbers.
    """
    count, tokens, dim, units = len(labels), network.spec.tokens, network.spec.dim, network.units
    digits = torch.zeros(count, tokens, dim, dtype=torch.int64, device=labels.device)
    hidden = torch.ones_like(digits, dtype=torch.bool)
    finite = torch.ones((), dtype=torch.bool, device=labels.device)
    left = left_after(sampling.schedule, sampling.rounds, units)
    order = uniforms(seed, first, count, tokens * dim + units)[:, tokens * dim :].to(labels.device)
    for number, stay in enumerate(left):
        scale = sampling.guidance if number < sampling.guided_rounds else 1.0
        logits = _guided(network, digits, hidden, labels, scale) if number else _first(network, labels, scale)
        noise = uniforms(seed, first, count, tokens * dim + units, place=number).to(labels.device)
        levels = noise[:, : tokens * dim].view_as(digits)
        kept = [_kept(one, sampling.temperature) for one in logits]
        drawn = torch.stack([_drawn(one, levels[..., k]) for k, one in enumerate(kept)], dim=-1)
        finite = finite & torch.stack([one.amax().isfinite() for one in kept]).all()  # a greatest is 0, or no number
        if sampling.order == "confidence":
            sure = torch.stack([_sure(one, drawn[..., k]) for k, one in enumerate(kept)], dim=-1)
            gumbel = -(-noise[:, tokens * dim :].clamp_min(SMALLEST).log()).log()  # b n
            order = sure.view(count, units, -1).sum(dim=-1)
            noisy = min(sampling.confidence_noise, NOISE_LIMIT) * (1 - (number + 1) / sampling.rounds)
            order = order + noisy * gumbel
        revealed = _greatest(order, hidden.view(count, units, -1)[..., 0], _hidden_before(left, number, units) - stay)
        new = network.of_digits(revealed)
        digits, hidden = torch.where(new, drawn, digits), hidden & ~new
        if tell is not None:
            tell(number + 1, digits, ~hidden)
    if not bool(finite):
        raise InputError("the logits are not finite numbers: expected finite weights")
    return digits


def _first(network: MaskedNetwork, labels: Int[Tensor, "b"], scale: float) -> list[Float[Tensor, "b t _"]]:
    """Logits where all is hidden: those of a class are the same for all its images, and computed once."""
    classes, which = labels.unique(return_inverse=True)
    digits = torch.zeros(len(classes), network.spec.tokens, network.spec.dim, dtype=torch.int64, device=labels.device)
    found = _guided(network, digits, torch.ones_like(digits, dtype=torch.bool), classes, scale)
    return [one[which] for one in found]


def _guided(
    network: MaskedNetwork,
    digits: Int[Tensor, "b t d"],
    hidden: Bool[Tensor, "b t d"],
    labels: Int[Tensor, "b"],
    scale: float,
) -> list[Float[Tensor, "b t _"]]:
    """``null + scale * (class - null)`` of the logits, float32; a scale of 1 gives the class's own at half the cost."""
    if scale == 1:
        return [one.float() for one in network.logits(digits, hidden, labels)]
    null = torch.full_like(labels, network.num_classes)
    both = network.logits(digits.repeat(2, 1, 1), hidden.repeat(2, 1, 1), torch.cat([labels, null]))
    halves = [one.float().chunk(2) for one in both]
    return [none + min(scale, GUIDANCE_LIMIT) * (told - none) for told, none in halves]


def _kept(logits: Float[Tensor, "b t v"], temperature: float) -> Float[Tensor, "b t v"]:
    """Logits as they are drawn from, the greatest 0."""
    return tempered(logits - logits.amax(dim=-1, keepdim=True), temperature)


def _drawn(logits: Float[Tensor, "b t v"], noise: Float[Tensor, "b t"]) -> Int[Tensor, "b t"]:
    """A level of every digit."""
    return inverted(logits.softmax(dim=-1).flatten(0, 1), noise.flatten()).view(noise.shape)


def _sure(logits: Float[Tensor, "b t v"], drawn: Int[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """The logarithm of the probability of what was drawn."""
    return logits.log_softmax(dim=-1).gather(-1, drawn[..., None])[..., 0]


def _hidden_before(left: list[int], number: int, units: int) -> int:
    return left[number - 1] if number else units


def _greatest(order: Float[Tensor, "b n"], hidden: Bool[Tensor, "b n"], count: int) -> Bool[Tensor, "b n"]:
    """The ``count`` hidden ones that come first, the greatest number first; of equal ones the first."""
    places = order.masked_fill(~hidden, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(hidden).scatter_(1, places, True)
