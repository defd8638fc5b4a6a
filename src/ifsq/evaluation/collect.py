"""What networks see of images: sums that are small enough to send, whatever the number of images and of processes.

Images are looked at in batches that depend on their number alone, whole ones are dealt to the processes, and the sums
of `GROUPS` interleaved groups of batches are kept apart and joined in their order. So one process, or as many as divide
`GROUPS`, find the same numbers to the last bit; and leaving out a group at a time says how sure a distance is.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ifsq.data import sample_order
from ifsq.evaluation.given import GivenImages
from ifsq.evaluation.samples import Part
from ifsq.metrics import FeatureStatistics
from ifsq.metrics.inception_score import InceptionScore
from ifsq.nn.modes import exact_float32
from ifsq.pretrained.network import FeatureNetwork
from ifsq.training.distributed import World, gather_or_refuse
from ifsq.training.log import Reporter, Silent

GROUPS = 8
"""Of batches, whose sums are kept apart."""
LEAST_AT_ONCE = 16  # images, where there are as many: drawing few takes as long as drawing some
NETWORK_AT_ONCE = 32  # images: Inception enlarges each to 299 pixels
TOGETHER = 512  # rows that are summed at a time: a sum of few costs as much


@dataclass(frozen=True)
class Look:
    """What is asked of a network.

    network    of features
    spatial    sums of its spatial features too
    score      the Inception Score of its class scores
    pairs      images at most whose features are kept, to be compared pair by pair; drawn over all, always the same
    agreement  how often its class scores are highest for the label
    """

    network: FeatureNetwork
    spatial: bool = False
    score: bool = False
    pairs: int = 0
    agreement: bool = False

    @property
    def outputs(self) -> list[str]:
        """Of the network, that are needed."""
        network = self.network
        logits = network.logits if self.score or self.agreement else None
        return [name for name in (network.pooled, network.spatial if self.spatial else None, logits) if name]

    @property
    def summed(self) -> list[str]:
        """Outputs whose means and covariances are taken."""
        return [self.network.pooled, *([self.network.spatial] if self.spatial and self.network.spatial else [])]


@dataclass
class Seen:
    """What one network has seen.

    n       images
    right   of them, whose class scores are highest for the label
    groups  by output, statistics of each group that was met
    score   sums of the Inception Score, where it was asked for
    places  of the kept rows in the order of measurement
    rows    pooled features of kept images
    """

    n: int = 0
    right: int = 0
    groups: dict[str, dict[int, FeatureStatistics]] = field(default_factory=dict)
    score: InceptionScore | None = None
    places: list[Int[Tensor, "b"]] = field(default_factory=list)
    rows: list[Float[Tensor, "b f"]] = field(default_factory=list)

    def merge(self, other: "Seen") -> None:
        """Count what ``other``, of other images, has counted."""
        self.n += other.n
        self.right += other.right
        for output, groups in other.groups.items():
            mine = self.groups.setdefault(output, {})
            for number, statistics in groups.items():
                if number in mine:
                    mine[number].merge(statistics)
                else:
                    mine[number] = statistics
        if self.score is not None and other.score is not None:
            self.score.merge(other.score)
        self.places += other.places
        self.rows += other.rows

    def parts(self, output: str) -> list[FeatureStatistics]:
        """Statistics of each group, in their order; a group may be missing where there are few images."""
        groups = self.groups.get(output, {})
        return [groups[number] for number in sorted(groups)]

    def statistics(self, output: str) -> FeatureStatistics:
        """Of all images. Raises ValueError where there are none."""
        parts = self.parts(output)
        if not parts:
            raise ValueError(f"statistics of {output} of no images: expected at least one")
        whole = FeatureStatistics(len(parts[0].mean))
        for part in parts:
            whole.merge(part)
        return whole

    def kept(self) -> Float[Tensor, "m f"]:
        """Rows of the kept images in the order of measurement, whichever process saw them."""
        return torch.cat(self.rows)[torch.cat(self.places).argsort()]


@dataclass
class Collected:
    """Of all processes.

    seen     by the place of what was asked
    kept     images that were to be kept, by number
    skipped  a line about each image that was left out
    """

    seen: list[Seen]
    kept: dict[int, np.ndarray] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def collect(
    looks: Sequence[Look],
    images: GivenImages,
    numbers: Sequence[int],
    world: World,
    reporter: Reporter | None = None,
    what: str = "images",
    keep: Collection[int] = (),
) -> Collected:
    """What networks see of images at these numbers, in every process; what one of them refuses, all refuse.

    looks     networks, on this process's device; all see the images as they are read once
    numbers   in the order of measurement
    reporter  is told how many are behind, about
    what      to call them there
    keep      numbers of images that are to be kept
    """
    reporter = reporter or Silent()
    batches = batches_of(len(numbers), images.at_once)
    reporter.start(what, 0, len(numbers))
    mine = range(len(batches))[world.rank :: world.size]  # dealt in turn: those of a group lie in one process

    def count() -> Collected:
        tallies = [_Tally(look, len(numbers), world.device) for look in looks]
        found, behind = Collected([]), 0
        asked = [[numbers[place] for place in batches[batch]] for batch in mine]
        with exact_float32():
            for batch, part in zip(mine, images.parts(asked), strict=True):
                places = _places(part, batches[batch], numbers)
                for tally in tallies:
                    tally.add(batch % GROUPS, places, part)
                found.kept |= {n: image.copy() for n, image in zip(part.numbers, part.images, strict=True) if n in keep}
                behind += len(batches[batch])
                reporter.advance(min(behind * world.size, len(numbers)), {})
        found.seen = [tally.done() for tally in tallies]
        found.skipped = list(images.skipped)
        return found

    first, *others = gather_or_refuse(world, count)
    reporter.finish({})
    for other in others:
        for mine_of, theirs in zip(first.seen, other.seen, strict=True):
            mine_of.merge(theirs)
        first.kept |= other.kept
        first.skipped += other.skipped
    return first


def batches_of(n: int, most: int) -> list[range]:
    """Places 0 .. n - 1 in batches, as many in each of the `GROUPS` as can be; fewer than `GROUPS` of few images.

    most  images that a batch may have
    """
    count = max(1, min(GROUPS * -(-n // (GROUPS * most)), max(n // LEAST_AT_ONCE, -(-n // most))))
    size = max(1, -(-n // count))
    return [range(at, min(at + size, n)) for at in range(0, n, size)]


class _Tally:
    """Runs batches through a network, and counts."""

    def __init__(self, look: Look, n: int, device: torch.device) -> None:
        self.look, self.device = look, device
        network = look.network
        score = InceptionScore(network.widths[network.logits]) if look.score and network.logits else None
        self.seen = Seen(score=score)
        self._waiting: dict[tuple[str, int], list[Tensor]] = {}
        self._keeps = _drawn(look.pairs, n)

    @torch.no_grad()
    def add(self, group: int, places: Int[Tensor, "b"], part: Part) -> None:
        """Count a batch; it may be empty, where none of its images could be read."""
        if not len(part.images):
            return
        look, seen = self.look, self.seen
        outputs = self._outputs(part)
        seen.n += len(part.images)
        for name in look.summed:
            waiting = self._waiting.setdefault((name, group), [])
            waiting.append(outputs[name])
            if sum(map(len, waiting)) >= TOGETHER:
                self._sum(name, group)
        if look.network.logits and (look.score or look.agreement):
            logits = outputs[look.network.logits]
            if seen.score is not None:
                seen.score.add(logits.double().softmax(dim=1), int(places[0]))
            seen.right += int((logits.argmax(dim=1) == part.labels).sum())
        wanted = self._keeps[places]
        if bool(wanted.any()):
            seen.places.append(places[wanted])
            seen.rows.append(outputs[look.network.pooled][wanted])

    def done(self) -> Seen:
        """All that was counted."""
        for name, group in list(self._waiting):
            self._sum(name, group)
        return self.seen

    def _outputs(self, part: Part) -> dict[str, Tensor]:
        writable = part.images if part.images.flags.writeable else part.images.copy()  # torch warns of Pillow's arrays
        images = torch.from_numpy(writable).movedim(-1, 1)
        found = [
            {
                name: value.float().cpu()
                for name, value in self.look.network(few.to(self.device), self.look.outputs).items()
            }
            for few in images.split(NETWORK_AT_ONCE)
        ]
        return {name: torch.cat([outputs[name] for outputs in found]) for name in self.look.outputs}

    def _sum(self, name: str, group: int) -> None:
        rows = self._waiting.pop((name, group))
        groups = self.seen.groups.setdefault(name, {})
        statistics = groups.setdefault(group, FeatureStatistics(self.look.network.widths[name]))
        statistics.add(torch.cat(rows))


def _drawn(count: int, n: int) -> Bool[Tensor, "n"]:
    """Which of n places are among ``count`` drawn ones, always the same."""
    drawn = torch.zeros(n, dtype=torch.bool)
    drawn[torch.from_numpy(sample_order(1, 0, n)[:count])] = True
    return drawn


def _places(part: Part, places: range, numbers: Sequence[int]) -> Int[Tensor, "b"]:
    """Places in the order of measurement of the images that could be read."""
    if len(part.numbers) == len(places):
        return torch.tensor(places, dtype=torch.int64)
    at = {numbers[place]: place for place in places}
    return torch.tensor([at[number] for number in part.numbers], dtype=torch.int64)
