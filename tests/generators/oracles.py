"""Distributions of four digits of three levels, known as a table, and networks that know their conditionals."""

from itertools import product

import torch

from ifsq.codes import CodeBatch, CodeSpec

TOY = CodeSpec((3, 3), (2,), "little", "equal", (1, 2))
"""Two positions of two digits: 81 images, of two classes."""
STATES = torch.tensor(list(product(range(3), repeat=4)))


def table(seed, independent=False):
    """Probabilities (2 classes, 81 images); ``independent``: of the digits of a position, given the other position."""
    rng = torch.Generator().manual_seed(seed)
    whole = torch.rand(2, 3, 3, 3, 3, generator=rng, dtype=torch.float64) ** 2 + 0.02
    if independent:
        whole = torch.einsum("ka,kb,kc,kd->kabcd", *(torch.rand(2, 3, generator=rng).double() + 0.1 for _ in range(4)))
    flat = whole.flatten(1)
    return flat / flat.sum(dim=1, keepdim=True)


def all_images():
    """Every image of both classes, in the order of the table."""
    digits = STATES.view(-1, 1, 2, 2).repeat(2, 1, 1, 1)
    return CodeBatch(TOY, digits, torch.arange(2).repeat_interleave(len(STATES)))


def log_likelihood(known, batch):
    """Of images, by the table."""
    place = (batch.content.reshape(len(batch.labels), 4) * torch.tensor([27, 9, 3, 1])).sum(dim=1)
    return known[batch.labels, place].log()


def exact_conditionals(model, known):
    """The generator with the conditionals of a table in place of its network; the null class is the first."""

    def logits(digits, hidden, labels):
        flat, masked = digits.flatten(1), hidden.flatten(1)
        fits = ((flat[:, None] == STATES) | masked[:, None]).all(dim=2)  # b 81
        weights = known[torch.where(labels < 2, labels, 0)] * fits
        chances = torch.stack([weights @ (level == STATES).double() for level in range(3)], dim=-1)  # b 4 3
        return list(chances.log().view(-1, 2, 2, 3).unbind(dim=2))

    def nats(digits, hidden, labels, taps=None):
        found = torch.stack(logits(digits, hidden, labels), dim=2).log_softmax(dim=-1)  # b t d 3
        return -(found.gather(-1, digits[..., None])[..., 0] * hidden).nan_to_num().sum(dim=(1, 2))

    model.logits, model.nats = logits, nats
    return model.eval()
