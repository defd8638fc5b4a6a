"""What networks see of images: against all features at once, and the same for any number of processes."""

import copy
from types import MappingProxyType

import numpy as np
import pytest
import torch

from ifsq.config import InputError
from ifsq.evaluation.collect import GROUPS, Look, batches_of, collect
from ifsq.evaluation.given import ArrayImages, GivenImages
from ifsq.metrics.inception_score import InceptionScore
from ifsq.pretrained.network import FeatureNetwork
from ifsq.training.distributed import World

ALONE = World(0, 1, torch.device("cpu"))
N = 203


class Small(FeatureNetwork):
    """A network with all three outputs."""

    name, pooled, spatial, logits = "small", "6", "12", "4"
    widths = MappingProxyType({"6": 6, "12": 12, "4": 4})

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(22, 48, generator=torch.Generator().manual_seed(0)))

    @torch.no_grad()
    def forward(self, images, wanted):
        self.check(images, wanted)
        every = torch.tanh(images.flatten(1).float() / 255 @ self.weight.T)
        return {name: dict(zip(("6", "12", "4"), every.split((6, 12, 4), dim=1), strict=True))[name] for name in wanted}


class Together(World):
    """One of several processes that meet through a list: the last to come gets all that was gathered."""

    def gather(self, value):
        SHARES.append(value)
        return copy.deepcopy(SHARES)


SHARES: list = []


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    pixels = np.random.default_rng(0).integers(0, 256, (N, 4, 4, 3), np.uint8)
    path = tmp_path_factory.mktemp("images") / "a.npz"
    np.savez(path, pixels, np.arange(N) % 4)
    return ArrayImages(path)


def looked(images, world=ALONE, numbers=range(N), **options):
    look = Look(Small(), **{"spatial": True, "score": True, "pairs": 50, "agreement": True, **options})
    return collect([look, Look(Small())], images, numbers, world, keep={3, 77})


def test_the_sums_are_those_of_all_features_at_once(images):
    found = looked(images)
    seen, alone = found.seen
    pixels = torch.cat([torch.from_numpy(part.images) for part in images.parts([range(N)])]).movedim(-1, 1)
    outputs = Small()(pixels, ("6", "12", "4"))
    for name in ("6", "12"):
        rows = outputs[name].double()
        assert seen.statistics(name).n == seen.n == N
        torch.testing.assert_close(seen.statistics(name).mean, rows.mean(dim=0))
        torch.testing.assert_close(seen.statistics(name).covariance, rows.T.cov())
    score = InceptionScore(4)
    score.add(outputs["4"].double().softmax(dim=1), 0)
    assert seen.score is not None
    torch.testing.assert_close(seen.score.values(), score.values())
    assert seen.right == int((outputs["4"].argmax(dim=1) == torch.arange(N) % 4).sum())
    kept = seen.kept()
    assert kept.shape == (50, 6)
    assert {tuple(row) for row in kept.tolist()} < {tuple(row) for row in outputs["6"].tolist()}
    assert [part.n for part in seen.parts("6")] == [26] * 7 + [21]
    assert (alone.score, alone.rows, list(alone.groups)) == (None, [], ["6"])
    assert np.array_equal(found.kept[77], next(images.parts([[77]])).images[0])
    assert sorted(found.kept) == [3, 77]


def bits(found):
    seen = found.seen[0]
    statistics = [seen.statistics(name) for name in ("6", "12")]
    return [*(s.mean for s in statistics), *(s.covariance for s in statistics), seen.kept(), seen.score.values()]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_processes_find_what_one_finds(images, size):
    whole = looked(images)
    SHARES.clear()
    for rank in range(size):
        merged = looked(images, Together(rank, size, torch.device("cpu")))
    assert (merged.seen[0].n, merged.seen[0].right) == (N, whole.seen[0].right)
    for mine, theirs in zip(bits(merged), bits(whole), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=1e-13)
    if GROUPS % size == 0:  # a group is then summed in one process
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(bits(merged)[:4], bits(whole)[:4], strict=True))
    assert sorted(merged.kept) == [3, 77]


def test_kept_rows_are_in_the_order_of_measurement(images):
    backwards = looked(images, numbers=range(N - 1, -1, -1), pairs=N).seen[0].kept()
    assert torch.equal(backwards.flip(0), looked(images, pairs=N).seen[0].kept())


@pytest.mark.parametrize(("n", "most"), [(1, 128), (40, 128), (100, 128), (1000, 128), (50_000, 64), (10, 1)])
def test_batches_cover_all_and_fill_the_groups_alike(n, most):
    batches = batches_of(n, most)
    assert [place for batch in batches for place in batch] == list(range(n))
    groups = [sum(len(batch) for batch in batches[group::GROUPS]) for group in range(min(GROUPS, len(batches)))]
    largest = max(map(len, batches))
    assert largest <= most
    assert max(groups) - min(groups) <= largest
    assert len(batches) >= GROUPS or n < 16 * GROUPS
    assert largest >= min(n, 16, most)


class Broken(GivenImages):
    shape = (4, 4, 3)

    def __len__(self):
        return 20

    def parts(self, batches):
        raise InputError("image 7: cannot be read")
        yield


def test_what_one_process_refuses_all_refuse(images):
    SHARES.clear()
    for rank, given in enumerate((Broken(), images)):
        with pytest.raises(InputError, match="image 7"):
            collect([Look(Small())], given, range(20), Together(rank, 2, torch.device("cpu")))
