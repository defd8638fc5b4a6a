"""Held-out bits of tokens given their neighbours: against a dictionary, and on sources whose entropy is known."""

import math
from collections import Counter, defaultdict

import pytest
import torch

from ifsq.metrics import ngram
from ifsq.metrics.ngram import neighbour_entropy


def _markov(images, side, stay, vocab, rng):
    """Each token is its left neighbour's with probability ``stay``, else any."""
    tokens = torch.randint(vocab, (images, side, side), generator=rng)
    keeps = torch.rand(images, side, side, generator=rng) < stay
    for column in range(1, side):
        tokens[:, :, column] = torch.where(keeps[:, :, column], tokens[:, :, column - 1], tokens[:, :, column])
    return tokens


def _by_dictionary(train, held_out, vocab):
    """The same model, a token at a time."""
    tables = [defaultdict(Counter) for _ in range(4)]

    def contexts(image, row, column):
        left = int(image[row, column - 1]) if column else "border"
        above = int(image[row - 1, column]) if row else "border"
        return (), ("l", left), ("a", above), (left, above)

    for image in train:
        for row in range(image.shape[0]):
            for column in range(image.shape[1]):
                for table, context in zip(tables, contexts(image, row, column), strict=True):
                    table[context][int(image[row, column])] += 1

    def mixed(table, context, token, lower):
        seen = table.get(context)
        return lower if seen is None else (seen[token] + len(seen) * lower) / (seen.total() + len(seen))

    bits = [0.0, 0.0, 0.0]
    for image in held_out:
        for row in range(image.shape[0]):
            for column in range(image.shape[1]):
                token, at = int(image[row, column]), contexts(image, row, column)
                alone = mixed(tables[0], at[0], token, 1 / vocab)
                left, above = (mixed(tables[n], at[n], token, alone) for n in (1, 2))
                both = mixed(tables[3], at[3], token, (left + above) / 2)
                bits = [total - math.log2(p) for total, p in zip(bits, (alone, left, both), strict=True)]
    return [total / held_out.numel() for total in bits]


def test_counts_are_those_of_a_dictionary():
    rng = torch.Generator().manual_seed(0)
    train, held_out = _markov(6, 5, 0.7, 9, rng), _markov(4, 5, 0.5, 12, rng)
    found = neighbour_entropy(train, held_out, 12)
    assert [found.alone, found.left, found.both] == pytest.approx(_by_dictionary(train, held_out, 12))


def test_the_model_is_a_distribution():
    rng = torch.Generator().manual_seed(1)
    train = torch.randint(5, (20, 1, 1), generator=rng)
    each = [neighbour_entropy(train, torch.full((1, 1, 1), token), 7) for token in range(7)]
    for name in ("alone", "left", "both"):
        assert sum(2 ** -getattr(one, name) for one in each) == pytest.approx(1)


def test_a_known_conditional_entropy_is_met_from_above():
    rng = torch.Generator().manual_seed(2)
    vocab, stay = 8, 0.75
    train, held_out = _markov(600, 16, stay, vocab, rng), _markov(200, 16, stay, vocab, rng)
    same = stay + (1 - stay) / vocab
    inside = -same * math.log2(same) - (vocab - 1) * (1 - stay) / vocab * math.log2((1 - stay) / vocab)
    true = (15 * inside + 3) / 16  # the first column is any token
    found = neighbour_entropy(train, held_out, vocab)
    assert found.alone == pytest.approx(3, abs=0.01)
    assert true - 0.02 < found.left < true + 0.02
    assert found.left - 1e-3 < found.both < true + 0.03


def test_what_both_neighbours_decide_one_does_not():
    rng = torch.Generator().manual_seed(3)
    tokens = torch.randint(2, (400, 8, 8), generator=rng)
    for row in range(1, 8):
        for column in range(1, 8):
            tokens[:, row, column] = tokens[:, row, column - 1] ^ tokens[:, row - 1, column]
    found = neighbour_entropy(tokens[:300], tokens[300:], 2)
    assert found.left > 0.95
    assert found.both < 0.3  # the border takes 15 bits of 64


def test_large_vocabularies_take_no_memory_and_bracket_the_entropy():
    rng = torch.Generator().manual_seed(4)
    train, held_out = (torch.randint(500, (n, 8, 8), generator=rng) * 10**14 for n in (100, 20))
    found = neighbour_entropy(train, held_out, 17**14)
    assert found.plug_in < math.log2(500) < found.alone
    assert found.left == pytest.approx(found.alone, abs=1.5)


def test_tokens_that_cannot_be_counted_are_refused(monkeypatch):
    tokens = torch.zeros(2, 3, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="expected images of one grid"):
        neighbour_entropy(tokens, tokens[:0], 2)
    with pytest.raises(ValueError, match="tokens 0 to 2: expected 0 to 1"):
        neighbour_entropy(tokens, tokens + 2 * torch.eye(3, dtype=torch.int64), 2)
    monkeypatch.setattr(ngram, "MOST_POSITIONS", 17)
    with pytest.raises(ValueError, match="18 training positions: expected at most 17"):
        neighbour_entropy(tokens, tokens, 2)
