"""Which classes a generator is asked for: those that a reference has, and how often; or all that it knows."""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

LIKE_REFERENCE = "in the reference's proportions"
BALANCED = "every class of the reference alike"


def labels_like(reference: Int[Tensor, "m"], n: int) -> Int[Tensor, "n"]:
    """``n`` labels in the proportions of those of a reference, always the same; a class that it lacks is not drawn.

    The counts are as near as whole numbers come (largest remainders; of equal ones the first classes), and so are
    those of every beginning: the next label is of the class that is furthest behind. With n below the number of
    classes the most frequent ones are drawn. Labels of classes as often as each other come round in turn.

    Raises ValueError where there is no label to go by, or n is below 1.
    """
    if not len(reference) or n < 1:
        raise ValueError(f"{n} labels like {len(reference)}: expected at least one, like one at least")
    classes, counts = reference.cpu().unique(return_counts=True)
    owed = _largest_remainders(counts.numpy(), n)
    behind, drawn = np.zeros_like(owed), np.empty(n, np.int64)
    for place in range(n):  # in units of 1 / n of an image: whole numbers, so that ties are ties
        behind += owed
        drawn[place] = behind.argmax()
        behind[drawn[place]] -= n
    return classes.to(torch.int64)[torch.from_numpy(drawn)]


def labels_balanced(reference: Int[Tensor, "m"], n: int) -> Int[Tensor, "n"]:
    """``n`` labels of the classes that the reference has, every class as often as any other; see `labels_like`."""
    return labels_like(reference.unique(), n)


def _largest_remainders(counts: Int[np.ndarray, "k"], n: int) -> Int[np.ndarray, "k"]:
    owed, remainders = np.divmod(counts * n, counts.sum())
    owed[np.argsort(-remainders, kind="stable")[: n - owed.sum()]] += 1
    return owed
