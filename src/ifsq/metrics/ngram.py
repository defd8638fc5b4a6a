"""Bits that a token takes given its left and its upper neighbour, on held-out images, by counting.

A conditional entropy over 17^4 tokens cannot be read off counts: most contexts occur once, and the plug-in estimate
falls towards 0. So counts of training images make a model, and its code length on held-out images is what is reported:
in expectation never below the entropy that it estimates, whatever the model lacks. The model interpolates by Witten and
Bell's rule (IEEE Transactions on Information Theory 37, 1991; method C of PPM), from the even distribution over single
tokens and one neighbour to both neighbours.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Integer
from torch import Tensor

from ifsq.quantizers.usage import entropy_bits

MOST_POSITIONS = 1 << 24
"""Of training images that are counted: some 2 GB of memory."""


@dataclass(frozen=True)
class NeighbourEntropy:
    """Bits a position, of one token.

    plug_in   entropy of the training tokens' own frequencies: too small by about (used - 1) / (2 n ln 2)
    alone     of held-out tokens by the frequencies of training ones; this and what follows is too large, if anything
    left      given the token to the left
    both      given the tokens to the left and above
    """

    plug_in: float
    alone: float
    left: float
    both: float


def neighbour_entropy(
    train: Integer[Tensor, "n h w"], held_out: Integer[Tensor, "m h w"], vocab: int
) -> NeighbourEntropy:
    """Of tokens 0 .. ``vocab`` - 1 on a grid; memory grows with the positions, not with the vocabulary.

    At the left and upper border the neighbour is a token of its own. Raises ValueError for tokens outside the
    vocabulary, grids that differ, no images, and more than `MOST_POSITIONS` training positions.
    """
    if train.shape[1:] != held_out.shape[1:] or not train.numel() or not held_out.numel():
        raise ValueError(f"tokens {tuple(train.shape)} and {tuple(held_out.shape)}: expected images of one grid")
    if train.numel() > MOST_POSITIONS:
        raise ValueError(f"{train.numel()} training positions: expected at most {MOST_POSITIONS}; draw fewer images")
    for tokens in (train, held_out):
        if int(tokens.min()) < 0 or int(tokens.max()) >= vocab:
            raise ValueError(f"tokens {int(tokens.min())} to {int(tokens.max())}: expected 0 to {vocab - 1}")
    # Tokens by their place among those that training has: one more for all others, one for the border.
    known, counts = np.unique(train.numpy(), return_counts=True)
    seen, asked = _numbered(train.numpy(), known), _numbered(held_out.numpy(), known)
    size = len(known) + 2
    even = np.full(asked.token.shape, 1 / vocab)
    nothing = np.zeros_like(seen.token), np.zeros_like(asked.token)
    alone = _Conditional(nothing[0], seen.token, size).probability(nothing[1], asked.token, even)
    left = _Conditional(seen.left, seen.token, size).probability(asked.left, asked.token, alone)
    above = _Conditional(seen.above, seen.token, size).probability(asked.above, asked.token, alone)
    # Below 2^50, as tokens are numbered up to 2^24 + 1.
    pair = _Conditional(seen.left * size + seen.above, seen.token, size)
    both = pair.probability(asked.left * size + asked.above, asked.token, (left + above) / 2)
    lengths = (float(-np.log2(probability).mean()) for probability in (alone, left, both))
    return NeighbourEntropy(entropy_bits(torch.from_numpy(counts)), *lengths)


@dataclass(frozen=True)
class _Positions:
    """Of every position: its token, and those to the left and above, int64 (n h w)."""

    token: np.ndarray
    left: np.ndarray
    above: np.ndarray


def _numbered(tokens: np.ndarray, known: np.ndarray) -> _Positions:
    unseen, border = len(known), len(known) + 1
    place = np.searchsorted(known, tokens)
    found = known[np.minimum(place, unseen - 1)] == tokens
    numbers = np.where(found, place, unseen).astype(np.int64)
    left, above = np.full_like(numbers, border), np.full_like(numbers, border)
    left[:, :, 1:], above[:, 1:] = numbers[:, :, :-1], numbers[:, :-1]
    return _Positions(numbers.ravel(), left.ravel(), above.ravel())


class _Conditional:
    """Counts of tokens behind contexts, both non-negative integers."""

    def __init__(self, context: np.ndarray, token: np.ndarray, size: int) -> None:
        self.size = size
        self.contexts, place, self.total = np.unique(context, return_inverse=True, return_counts=True)
        self.pairs, self.counts = np.unique(place * size + token, return_counts=True)
        self.distinct = np.bincount(self.pairs // size, minlength=len(self.contexts))

    def probability(self, context: np.ndarray, token: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """(count + distinct * lower) / (total + distinct); ``lower``, the shorter context's, where none was seen."""
        place, met = _looked_up(context, self.contexts)
        pair, counted = _looked_up(place * self.size + token, self.pairs)
        count = np.where(met & counted, self.counts[pair], 0)
        distinct, total = self.distinct[place], self.total[place]
        return np.where(met, (count + distinct * lower) / (total + distinct), lower)


def _looked_up(values: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of values in a sorted table, and whether they are there; of those that are not, some place."""
    place = np.minimum(np.searchsorted(table, values), len(table) - 1)
    return place, table[place] == values
