"""The bound of the negative log-likelihood over all orders, one digit a step, in nats; see `schedule`.

By Jensen's inequality it is at least -log of the mixture of all orders, and equal where the network's conditionals are
those of one distribution, whatever the order.
"""

import math
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ifsq.generators.masked.network import MaskedNetwork
from ifsq.generators.masked.schedule import ranks
from ifsq.generators.streams import uniforms

MOST_EXACT = 12  # units of an image up to which all sets of them can be gone through


@dataclass(frozen=True)
class BoundOptions:
    """How the bound is computed.

    draws  evaluations of the network for an image, an even number: each with another number of hidden digits, spread
           evenly over all numbers, and a random set of so many; 0: all sets, exactly, of at most MOST_EXACT digits, or
           positions where these are hidden as one
    """

    draws: int = 32

    def __post_init__(self) -> None:
        if self.draws < 0 or self.draws % 2:
            raise ValueError(f"draws={self.draws}: expected 0 (all sets) or an even number")

    @property
    def sampler(self) -> str:
        """In words, as a protocol card states it."""
        return f"draws {self.draws}" if self.draws else "all sets of hidden ones"


@dataclass(frozen=True)
class Bound:
    """A bound of each image's negative log-likelihood.

    nats         float64
    error        standard error of the draws, float64, somewhat too large; None where all sets were gone through
    evaluations  of the network for an image
    """

    nats: Float[Tensor, "b"]
    error: Float[Tensor, "b"] | None
    evaluations: int


def bound(
    network: MaskedNetwork,
    digits: Int[Tensor, "b t d"],
    labels: Int[Tensor, "b"],
    options: BoundOptions,
    seed: int,
    first: int,
) -> Bound:
    """The bound, or an unbiased estimate of it, in eval mode. Raises ValueError, see `MaskedGenerator.bound`."""
    if not options.draws:
        return _exact(network, digits, labels)
    units, draws, device = network.units, options.draws, labels.device
    found = []
    for draw in range(draws):
        noise = uniforms(seed, first, len(labels), units + 1, place=draw)  # b units+1
        number = ((draw + noise[:, -1:].double()) / draws * units).long() + 1  # b 1, 1 to units, each as likely
        hidden = network.of_digits(ranks(noise[:, :-1]) < number)
        nats = network.nats(digits, hidden.to(device), labels).double().cpu()
        found.append(nats * units / number[:, 0])
    values = torch.stack(found)  # draws b
    # The variance within a stratum by its neighbour, whose other mean makes it somewhat too large.
    error = (values[0::2] - values[1::2]).square().sum(dim=0).sqrt() / draws
    return Bound(values.mean(dim=0), error, draws)


def _exact(network: MaskedNetwork, digits: Int[Tensor, "b t d"], labels: Int[Tensor, "b"]) -> Bound:
    units = network.units
    if units > MOST_EXACT:
        raise ValueError(f"draws=0: {units} digits or positions have too many sets; expected at most {MOST_EXACT}")
    total, evaluations = torch.zeros(len(labels), dtype=torch.float64), 0
    for number in range(1, units + 1):
        for chosen in combinations(range(units), number):
            hidden = torch.zeros(len(labels), units, dtype=torch.bool, device=labels.device)
            hidden[:, chosen] = True
            nats = network.nats(digits, network.of_digits(hidden), labels).double().cpu()
            total += nats / (number * math.comb(units, number))
            evaluations += 1
    return Bound(total, None, evaluations)
