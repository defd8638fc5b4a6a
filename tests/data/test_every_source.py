"""What holds for every kind of source: a batch is a function of (seed, step), whoever reads it."""

import itertools
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ifsq.data import (
    DataConfig,
    ImageBatches,
    ImageSource,
    StepSampler,
    iterate_once,
    open_images,
    sample_order,
    write_png,
)
from ifsq.data.draws import mix

COUNT, BATCH, STEPS = 11, 8, 5
KINDS = ("folder", "list", "shards", "table", "stream")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], DataConfig]:
    """The same pictures in every form, in the same order; the third one is broken."""
    root = tmp_path_factory.mktemp("sources")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IFSQ_CACHE", str(root / "cache"))
        names = _fill(root / "folder")
        (root / "list.txt").write_text("".join(f"folder/train/{name} {name[0]}\n" for name in names))
        for shard, part in enumerate((names[:5], names[5:])):
            with tarfile.open(root / f"s{shard}.tar", "w") as tar:
                for name in part:
                    tar.add(root / "folder/train" / name, f"{name}")
        places = {"folder": root / "folder", "list": root / "list.txt", "shards": root / "s{0,1}.tar"}
        config = DataConfig(str(root), 8, crop="resized", flip=True, broken="skip", max_pixels=1000, block=3)
        yield (
            lambda kind: (
                replace(config, source=str(places[kind]), val_source=str(places[kind]))
                if kind in places
                else replace(config, source=f"hf:{_save(root, names)}", stream=kind == "stream")
            )
        )


def _fill(folder: Path) -> list[str]:
    names = [f"{'ab'[k // 6]}/{k:02d}.png" for k in range(COUNT)]
    for split in ("train", "val"):
        for number, name in enumerate(names):
            (folder / split / name).parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (12, 10, 3), dtype=np.uint8)
            write_png(pixels, folder / split / name)
        (folder / split / names[2]).write_bytes(b"broken")
    return names


def _save(root: Path, names: list[str]) -> Path:
    datasets = pytest.importorskip("datasets")
    if not (root / "table").exists():
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
        image = [{"bytes": (root / "folder/train" / name).read_bytes(), "path": None} for name in names]
        rows = datasets.Dataset.from_dict(
            {"image": image, "label": ["ab".index(n[0]) for n in names]}, features=features
        )
        datasets.DatasetDict({"train": rows, "val": rows}).save_to_disk(str(root / "table"))
    return root / "table"


def by_hand(source: ImageSource, step: int) -> tuple[list[bytes], list[int]]:
    """Pictures and labels of a step, from the definition alone and a source that can read anywhere."""
    images, labels = [], []
    for position in range(step * BATCH, step * BATCH + BATCH):
        epoch, place = divmod(position, COUNT)
        index = int(sample_order(5, epoch, COUNT, source.block)[place])
        if index != 2:
            image, label = source.load(index, mix(5, epoch, place))
            images.append(torch.from_numpy(image).permute(2, 0, 1).contiguous() / 127.5 - 1)
            labels.append(label)
    return [image.numpy().tobytes() for image in images], labels


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_the_same_for_any_workers_and_processes(sources: Callable[[str], DataConfig], kind: str) -> None:
    source = open_images(sources(kind), "train")
    assert len(source) == COUNT
    expected = [by_hand(source, step) for step in range(STEPS)]
    for world, workers, start in ((1, 0, 0), (1, 2, 0), (1, 2, 3), (2, 0, 3), (2, 2, 0), (4, 0, 0), (4, 2, 3)):
        parts = [_taken(source, rank, world, start, workers) for rank in range(world)]
        for step in range(start, STEPS):
            images = [image.numpy().tobytes() for part in parts for image in part[step - start].images]
            labels = [int(label) for part in parts for label in part[step - start].labels]
            assert (images, labels) == expected[step], (world, workers, start, step)


def _taken(source: ImageSource, rank: int, world: int, start: int, workers: int) -> list:
    batches = ImageBatches(source, StepSampler(COUNT, BATCH, 5, rank, world), start=start, workers=workers)
    return list(itertools.islice(batches, STEPS - start))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_rectangles_and_luminance(sources: Callable[[str], DataConfig], kind: str) -> None:
    config = replace(sources(kind), size=(8, 16), crop="center", flip=False)
    colour, grey = (open_images(config, "train", channels=channels) for channels in (3, 1))
    assert (colour.shape, grey.shape) == ((8, 16, 3), (8, 16, 1))
    assert len({source.fingerprint for source in (colour, grey, open_images(sources(kind), "train"))}) == 3
    for index in (0, 1, 3):
        whole = Image.fromarray(np.random.default_rng(index).integers(0, 256, (12, 10, 3), dtype=np.uint8))
        for source, mode in ((colour, "RGB"), (grey, "L")):
            covering = whole.convert(mode).resize((16, 19), Image.Resampling.BICUBIC)
            expected = np.asarray(covering.crop((0, 5, 16, 13))).reshape(source.shape)
            np.testing.assert_array_equal(source.load(index, 0)[0], expected)
    empty = next(iterate_once(grey, 4, indices=[2]))
    assert empty.images.shape == (0, 1, 8, 16)


@pytest.mark.filterwarnings("ignore")
def test_every_kind_gives_the_same_pictures_and_names_what_it_skips(sources: Callable[[str], DataConfig]) -> None:
    read = {}
    for kind in KINDS:
        batches = list(iterate_once(open_images(sources(kind), "train"), 4, seed=1))
        skipped = [line for batch in batches for line in batch.skipped]
        assert len(skipped) == 1
        assert "cannot be read: " in skipped[0]
        read[kind] = (torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches]))
    for kind in KINDS[1:]:
        assert torch.equal(read[kind][0], read["folder"][0])
        assert torch.equal(read[kind][1], read["folder"][1])
