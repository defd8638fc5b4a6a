"""READ FIRST. The whole road, one function a stage, in flow order:

    train_tokenizer -> encode -> train_generator -> sample
    evaluate_tokenizer, evaluate_generator (with a judge), reconstruct

Every stage joins the processes that torchrun started (or stands alone), checks what it is given before it writes
anything, and can be run again after an interruption. Called by ``cli`` and ``bench``.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ifsq.codes import cache as code_cache
from ifsq.codes.cache import CodeCache
from ifsq.codes.spec import CodeSpec
from ifsq.config import InputError, build, to_dict
from ifsq.data import DataConfig, image_grid, iterate_once, open_images, read_image, to_float, to_uint8, write_png
from ifsq.data.draws import mix
from ifsq.data.images import ImageSource
from ifsq.experiment import GeneratorExperiment, TokenizerExperiment, check_cache
from ifsq.generators.base import Generator
from ifsq.generators.pretrained import Origin, describe, load_generator
from ifsq.generators.train import GeneratorTask
from ifsq.tokenizer.model import Tokenizer
from ifsq.tokenizer.train import TokenizerTask
from ifsq.training.distributed import World, world
from ifsq.training.folder import check_run, create_run, read_config
from ifsq.training.log import Reporter, Silent
from ifsq.training.loop import fit

AT_ONCE = 128  # images that pass through a network together, outside training


def train_tokenizer(experiment: TokenizerExperiment, device: str = "auto", watch: Reporter | None = None) -> Path:
    """Train, or go on training, the tokenizer of an experiment; returns its folder."""
    folder = Path(experiment.out)
    with _join(device) as here:
        train, val = open_images(experiment.data, "train"), open_images(experiment.data, "val")
        record = {"kind": "tokenizer", "experiment": to_dict(experiment), "data": train.fingerprint}
        _claim(folder, record, here)
        torch.manual_seed(experiment.train.seed)
        model = Tokenizer(experiment.tokenizer).to(memory_format=torch.channels_last)
        task = TokenizerTask(model, train, experiment.loss, experiment.train, lambda net: _held_out(net, val))
        fit(task, experiment.train, folder, here, watch or Silent(), "tokenizer")
    return folder


def encode(
    run: Path, source: str, out: Path, size: int | None = None, device: str = "auto", watch: Reporter | None = None
) -> CodeCache:
    """Write the digits of both splits of a data source as a code cache; a cache that already says the same is returned.

    run     folder of a tokenizer
    source  folder of images or a bundled source
    size    pixels a side; default: what the tokenizer was trained on
    """
    watch = watch or Silent()
    with _join(device) as here:
        tokenizer = Tokenizer.from_pretrained(run).to(here.device)
        data = _data_of(run, source, size)
        sources = {split: open_images(data, split) for split in ("train", "val")}
        about = {
            "data": to_dict(data),
            "fingerprints": {split: images.fingerprint for split, images in sources.items()},
            "tokenizer": tokenizer.digest(),
        }
        existing = _existing_cache(out, about)
        if existing is not None:
            return existing
        spec = tokenizer.spec(data.size, data.size)
        counts = {split: len(images) for split, images in sources.items()}
        partial = out.with_name(f".partial_{out.name}")
        if here.first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        here.barrier()
        watch.start("codes", 0, sum(counts.values()))
        for split, images in sources.items():
            mine = range(here.rank, code_cache.shards_of(len(images)), here.size)
            code_cache.write_shards(partial, split, len(images), _encoder(tokenizer, images, here), iter(mine), spec)
        here.barrier()
        if here.first:
            code_cache.finish(partial, out, spec, sources["train"].classes, counts, about)
        here.barrier()
        watch.finish({})
        return CodeCache.open(out)


def train_generator(experiment: GeneratorExperiment, device: str = "auto", watch: Reporter | None = None) -> Path:
    """Train, or go on training, the generator of an experiment on cached codes; returns its folder."""
    folder = Path(experiment.out)
    with _join(device) as here:
        cache = CodeCache.open(experiment.codes)
        tokenizer = Tokenizer.from_pretrained(experiment.tokenizer)
        check_cache(cache, tokenizer, experiment.tokenizer)
        record = {"kind": experiment.kind, "experiment": to_dict(experiment), "data": cache.digest}
        torch.manual_seed(experiment.train.seed)
        model = experiment.make(experiment.view(cache.spec), len(cache.classes))
        train, val = cache.read("train"), cache.read("val")
        model.observe(train.digits)
        _claim(folder, record, here)
        origin = Origin(
            classes=cache.classes,
            tokenizer=experiment.tokenizer,
            tokenizer_digest=tokenizer.digest(),
            codes_digest=cache.digest,
            sampling=experiment.sampling.options(experiment.kind),
        )
        task = GeneratorTask(model, train, val, experiment.train, describe(model, origin))
        fit(task, experiment.train, folder, here, watch or Silent(), experiment.kind)
    return folder


def sample(
    run: Path, labels: Sequence[int], guidance: float | None, seed: int, out: Path, device: str = "auto"
) -> Path:
    """Draw one image for every label and write them as one PNG; returns its path."""
    _check_png(out)
    with _join(device) as here:
        generator, tokenizer, origin = load_pair(run, here)
        wanted = torch.tensor(labels)
        _refuse_labels(wanted, origin)
        options = origin.sampling | ({} if guidance is None else {"guidance": guidance})
        if here.first:
            images = draw_images(generator, tokenizer, wanted, seed, options)
            out.parent.mkdir(parents=True, exist_ok=True)
            write_png(image_grid(images, min(len(labels), 10)), out)
    return out


def reconstruct(run: Path, paths: Sequence[Path], out: Path, device: str = "auto") -> list[str]:
    """Write every image beside its reconstruction as ``OUT/NAME.png``; returns a line about each.

    Images keep their size; up to ``factor - 1`` pixels at the right and the bottom are cut off.
    """
    with _join(device) as here:
        tokenizer = Tokenizer.from_pretrained(run).to(here.device)
        pictures = [(path, read_image(path)) for path in paths]
        targets = _distinct_targets(paths, out)
        for path, picture in pictures:
            if min(picture.shape[:2]) < tokenizer.factor:
                raise InputError(f"{path}: {picture.shape[1]} x {picture.shape[0]} pixels; expected {tokenizer.factor} a side")
        lines = []
        for (path, picture), target in zip(pictures, targets, strict=True):
            height, width = (side - side % tokenizer.factor for side in picture.shape[:2])
            original = to_float(picture[None, :height, :width])
            again = tokenizer.reconstruct(original.to(here.device)).cpu()
            if here.first:
                out.mkdir(parents=True, exist_ok=True)
                write_png(image_grid(to_uint8(torch.cat([original, again])), 2), target)
            quality = float(psnr(original, again).mean())
            lines.append(f"{target}: {width} x {height} pixels, {quality:.2f} dB, original left, reconstruction right")
    return lines


def load_pair(run: Path, here: World) -> tuple[Generator, Tokenizer, Origin]:
    """A generator and the tokenizer it was trained behind, on this process's device.

    Raises InputError when that tokenizer is gone or has other weights now.
    """
    generator, origin = load_generator(run)
    tokenizer = Tokenizer.from_pretrained(origin.tokenizer)
    if tokenizer.digest() != origin.tokenizer_digest:
        raise InputError(f"{run}: was trained behind other weights than {origin.tokenizer} holds now; train it again")
    return generator.to(here.device), tokenizer.to(here.device), origin


@torch.no_grad()
def draw_images(
    generator: Generator, tokenizer: Tokenizer, labels: Tensor, seed: int, options: dict[str, Any]
) -> Any:
    """8-bit images (n, H, W, 3), one a label, drawn in batches whose seeds follow from ``seed``."""
    images = []
    for number, part in enumerate(labels.split(AT_ONCE)):
        drawn = generator.sample(part, seed=mix(seed, number), **options)
        images.append(torch.from_numpy(to_uint8(tokenizer.decode(drawn.codes))))
    return torch.cat(images).numpy()
