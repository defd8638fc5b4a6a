"""Batches as a pure function of (seed, step), whatever the workers, the processes and the step one starts at."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ifsq.data import (
    DataConfig,
    DataError,
    ImageBatch,
    ImageBatches,
    ImageSource,
    StepSampler,
    iterate_once,
    open_images,
    sample_order,
    to_uint8,
    write_png,
)
from ifsq.data.draws import mix


@pytest.fixture(scope="module")
def shapes() -> ImageSource:
    return open_images(DataConfig(source="bundled:shapes", size=16, flip=True), "train")


def take(batches: ImageBatches, count: int) -> list[ImageBatch]:
    return list(itertools.islice(batches, count))


def assert_equal(left: list[ImageBatch], right: list[ImageBatch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)


def test_an_order_is_a_permutation_and_changes_with_seed_and_epoch() -> None:
    orders = [sample_order(seed, epoch, 100) for seed in (0, 1) for epoch in (0, 1)]
    assert all(np.array_equal(np.sort(order), np.arange(100)) for order in orders)
    assert len({order.tobytes() for order in orders}) == 4


@given(n=st.integers(1, 30), batch=st.integers(1, 40), seed=st.integers(0, 2**62), steps=st.integers(1, 8))
def test_steps_run_through_whole_epochs(n: int, batch: int, seed: int, steps: int) -> None:
    sampler = StepSampler(n, batch, seed)
    stream = [item for step in range(steps) for item in sampler.items(step)]
    expected = [(int(sample_order(seed, p // n, n)[p % n]), mix(seed, p // n, p % n)) for p in range(steps * batch)]
    assert stream == expected


@given(n=st.integers(1, 30), share=st.integers(1, 8), world=st.integers(1, 5), step=st.integers(0, 50))
def test_ranks_share_exactly_the_batch_of_one_process(n: int, share: int, world: int, step: int) -> None:
    whole = StepSampler(n, share * world, 3).items(step)
    parts = [StepSampler(n, share * world, 3, rank, world).items(step) for rank in range(world)]
    assert [item for part in parts for item in part] == whole


def test_steps_may_be_asked_in_any_order() -> None:
    sampler = StepSampler(7, 5, 0)
    forward = [sampler.items(step) for step in range(20)]
    assert [sampler.items(step) for step in reversed(range(20))] == forward[::-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4, 0), "0 images in batches of 4"),
        ((4, 0, 0), "4 images in batches of 0"),
        ((4, 4, 0, 2, 2), "rank=2 of world=2"),
        ((4, 5, 0, 0, 2), "batch=5: expected a multiple of the 2"),
    ],
)
def test_impossible_samplers_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StepSampler(*arguments)


def test_batches_are_floats_of_the_source(shapes: ImageSource) -> None:
    sampler = StepSampler(len(shapes), 6, 0)
    batch = take(ImageBatches(shapes, sampler), 1)[0]
    assert batch.images.shape == (6, 3, 16, 16)
    assert batch.images.dtype == torch.float32
    assert batch.labels.dtype == torch.int64
    image, label = shapes.load(*sampler.items(0)[4])
    assert torch.equal(batch.images[4], torch.from_numpy(image).permute(2, 0, 1) / 127.5 - 1)
    assert batch.labels[4] == label


def test_workers_and_the_starting_step_change_nothing(shapes: ImageSource) -> None:
    sampler = StepSampler(len(shapes), 6, 0)
    straight = take(ImageBatches(shapes, sampler), 6)
    assert_equal(take(ImageBatches(shapes, sampler, workers=2), 6), straight)
    assert_equal(take(ImageBatches(shapes, sampler, start=4), 2), straight[4:])
    assert_equal(take(ImageBatches(shapes, sampler, start=4, workers=2), 2), straight[4:])


def test_reading_leaves_the_global_generator_alone(shapes: ImageSource) -> None:
    before = torch.get_rng_state()
    take(ImageBatches(shapes, StepSampler(len(shapes), 4, 0)), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_iterate_once_gives_every_image_in_order(shapes: ImageSource) -> None:
    few = open_images(DataConfig(source="bundled:shapes", size=16), "val")
    batches = list(iterate_once(few, 100))
    assert [len(batch.labels) for batch in batches] == [100, 100, 100, 20]
    labels = torch.cat([batch.labels for batch in batches])
    assert labels.tolist() == [few.load(index, 0)[1] for index in range(len(few))]
    seeded = next(iter(iterate_once(shapes, 2, seed=9)))
    assert torch.equal(seeded.images[1], torch.from_numpy(shapes.load(1, mix(9, 0, 1))[0]).permute(2, 0, 1) / 127.5 - 1)
    assert_equal(list(iterate_once(few, 100, workers=2)), batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_one_line_also_from_a_worker(tmp_path: Path, workers: int) -> None:
    for k in range(6):
        write_png(np.zeros((8, 8, 3), dtype=np.uint8), tmp_path / f"{k}.png")
    source = open_images(DataConfig(source=str(tmp_path), size=8), "train")
    for path in tmp_path.iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(DataError) as caught:
        next(iter(ImageBatches(source, StepSampler(len(source), 2, 0), workers=workers)))
    assert "\n" not in str(caught.value)
    assert "cannot be read" in str(caught.value)


def test_a_sampler_of_another_source_is_refused(shapes: ImageSource) -> None:
    with pytest.raises(ValueError, match="sampler over 5 images"):
        ImageBatches(shapes, StepSampler(5, 2, 0))


@given(n=st.integers(1, 60), block=st.integers(1, 20), seed=st.integers(0, 2**62), epoch=st.integers(0, 3))
def test_an_order_in_blocks_stays_in_them(n: int, block: int, seed: int, epoch: int) -> None:
    order = sample_order(seed, epoch, n, block)
    for start in range(0, n, block):
        part = list(range(start, min(start + block, n)))
        assert order[part].tolist() == sorted(part, key=lambda index: mix(seed, epoch, index))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
def test_bytes_become_floats_on_the_gpu(shapes: ImageSource, workers: int) -> None:
    sampler, device = StepSampler(len(shapes), 6, 0), torch.device("cuda")
    there = take(ImageBatches(shapes, sampler, workers=workers, prefetch=3, device=device), 3)
    here = take(ImageBatches(shapes, sampler), 3)
    for a, b in zip(there, here, strict=True):
        assert a.images.device.type == "cuda"
        assert a.labels.device.type == "cpu"
        torch.testing.assert_close(a.images.cpu(), b.images, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(to_uint8(a.images), to_uint8(b.images))
