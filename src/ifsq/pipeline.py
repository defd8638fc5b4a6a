"""READ FIRST. The whole road, one function a stage, in flow order:

    train_tokenizer -> encode -> train_generator -> sample
    evaluate_tokenizer, evaluate_generator (with a judge), reconstruct

Every stage joins the processes that torchrun started (or stands alone), checks what it is given before it writes
anything, and can be run again after an interruption.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ifsq.codes import writer as cache_writer
from ifsq.codes.cache import MANIFEST, CodeCache, CodeSet
from ifsq.codes.spec import CodeSpec, LatentSpec
from ifsq.config import InputError, build, differences, to_dict
from ifsq.data import (
    DataConfig,
    DataError,
    Reading,
    describe_counts,
    describe_images,
    describe_splits,
    image_grid,
    iterate_once,
    open_images,
    read_image,
    split_called,
    splits_of,
    to_channels,
    to_float,
    to_uint8,
    write_png,
)
from ifsq.data.folder import images_below
from ifsq.data.images import SPLITS, ImageSource, Size, height_width, size_text
from ifsq.evaluation import (
    BALANCED,
    LIKE_REFERENCE,
    OFFICIAL,
    SHEET_CLASSES,
    Judges,
    Pairs,
    TokenizerEvaluation,
    at_once,
    class_sheet,
    difference_sheet,
    draw_images,
    labels_balanced,
    labels_like,
    measure_likelihood,
    measure_samples,
    measure_tokenizer,
    pair_sheet,
    real_sheet,
    reconstructed,
    reference,
    sampling_card,
    shown_pairs,
    spread,
)
from ifsq.evaluation.record import Evaluation, write_evaluation
from ifsq.experiment import GeneratorExperiment, TokenizerExperiment, check_cache
from ifsq.generators import Generator, Origin
from ifsq.generators.train import GeneratorTask
from ifsq.metrics import JudgeNet, ProtocolCard, psnr
from ifsq.metrics.judge import JUDGE_TRAINING, JudgeTask
from ifsq.pretrained.inception import load_inception
from ifsq.pretrained.lpips import load_lpips
from ifsq.store.files import is_free, make_folder
from ifsq.store.run import CONFIG, Run
from ifsq.tokenizer.losses import LossConfig
from ifsq.tokenizer.model import Tokenizer
from ifsq.tokenizer.tiling import Tiling
from ifsq.tokenizer.train import TokenizerTask
from ifsq.training.claim import Claim, alone_in
from ifsq.training.config import EngineConfig, TrainConfig
from ifsq.training.distributed import World, from_first, pick_device, world
from ifsq.training.log import Reporter, Silent
from ifsq.training.loop import check_batch, fit

Frozen = TypeVar("Frozen", bound=nn.Module)
HELD_OUT = 1024  # images at most that are looked at while a tokenizer trains


def train_tokenizer(experiment: TokenizerExperiment, device: str = "auto", watch: Reporter | None = None) -> Path:
    """Train, or go on training, the tokenizer of an experiment; returns its folder."""
    folder = Path(experiment.out)
    with _join(device) as here:
        channels = experiment.tokenizer.conv.in_channels
        train, val = (
            open_images(experiment.data, split, labels=False, channels=channels) for split in ("train", "val")
        )
        check_batch(experiment.train, here)
        judge = _perceptual(experiment.loss, here)
        watch = watch or Silent()
        torch.manual_seed(experiment.train.seed)
        model = Tokenizer(experiment.tokenizer)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        task = TokenizerTask(
            model, train, experiment.loss, experiment.train, judge, lambda net, at: _held_out(net, at, val)
        )
        claim = Claim(folder, "tokenizer", experiment, train.fingerprint)
        fit(task, experiment.train, claim, here, watch, notes=[f"data: {describe_images(train, val)}"])
    return folder


def encode(
    folder: Path,
    source: str,
    out: Path,
    size: Size | None = None,
    flip: bool = False,
    device: str = "auto",
    watch: Reporter | None = None,
    splits: Sequence[str] = SPLITS,
    reading: Reading | None = None,
) -> CodeCache:
    """Write the codes of splits of a data source as a cache; a cache that already says the same is returned.

    Digits, see `Tokenizer.spec`; float16 latents of kinds ``ae`` and ``kl`` (the mean). Killed and started again it
    goes on.

    folder   of a tokenizer
    source   images, as ``data.source`` of an experiment
    size     pixels a side, or height and width; default: what the tokenizer was trained on
    flip     store the codes of the mirrored images too
    splits   names of splits; ``all`` for the whole of a source without any. Generators need ``train`` and ``val``
    reading  how the images are read; where the source is the run's own, default as there
    """
    watch, reading = watch or Silent(), reading or Reading()
    with _join(device) as here:
        run = Run.open(folder)
        tokenizer = Tokenizer.from_run(run).to(here.device)
        data = _data_of(run, source, size, tokenizer.factor, reading)
        names = dict.fromkeys(split_called(data, name) for name in splits)
        sources = {name: open_images(data, name, channels=tokenizer.channels) for name in names}
        about = {
            "data": to_dict(data),
            "fingerprints": {split: images.fingerprint for split, images in sources.items()},
            "tokenizer": tokenizer.digest(),
            **({"flips": True} if flip else {}),
        }
        existing = _existing_cache(out, about)
        if existing is not None:
            return existing
        layout = tokenizer.layout(*data.sides)
        counts = {split: len(images) for split, images in sources.items()}
        partial = cache_writer.partial_of(out)
        with alone_in(out, here, watch.say):
            if from_first(here, lambda: _existing_cache(out, about) is not None):  # another process was at work there
                return CodeCache.open(out)
            if from_first(here, lambda: cache_writer.prepare(partial, about)):
                watch.say(f"{out}: goes on with the shards that are there")
            usual = tuple(sources) == SPLITS
            watch.say(f"data: {describe_images(*sources.values()) if usual else describe_splits(sources)}")
            try:
                for split, images in sources.items() if not cache_writer.is_complete(partial) else ():
                    watch.start(f"codes, {split}", 0, len(images))
                    mine = range(here.rank, cache_writer.shards_of(len(images)), here.size)
                    encoder = _encoder(tokenizer, images, layout, flip, _workers_of(run, reading), here, watch)
                    cache_writer.write_shards(
                        partial, split, len(images), encoder, mine, layout, flips=flip, named=True
                    )
                    watch.finish({})
            except InputError:
                cache_writer.drop_unfinished(partial)
                raise
            here.barrier()
            if here.first:
                classes = next(iter(sources.values())).classes
                cache_writer.finish(partial, out, layout, classes, counts, about)
            here.barrier()
        cache = CodeCache.open(out)
        for line in cache.skipped:
            watch.say(f"left out: {line}")
        return cache


def train_generator(experiment: GeneratorExperiment, device: str = "auto", watch: Reporter | None = None) -> Path:
    """Train, or go on training, the generator of an experiment on cached codes; returns its folder."""
    folder = Path(experiment.out)
    with _join(device) as here:
        cache = CodeCache.open(experiment.codes)
        tokenizer = Tokenizer.from_pretrained(Path(experiment.tokenizer)) if experiment.tokenizer else None
        check_cache(cache, tokenizer, experiment.tokenizer)
        check_batch(experiment.train, here)
        torch.manual_seed(experiment.train.seed)
        codebook = None if tokenizer is None else tokenizer.codebook()
        code_dim = None if codebook is None else codebook.shape[1]
        model = experiment.make(cache.layout, len(cache.classes), code_dim)
        model.origin = Origin(
            classes=cache.classes,
            tokenizer=experiment.tokenizer,
            tokenizer_digest="" if tokenizer is None else tokenizer.digest(),
            codes_digest=cache.digest,
            sampling=to_dict(experiment.sampling),
        )
        train = cache.read("train", codebook)
        val = cache.read("val", codebook) if "val" in cache.splits else None
        model.observe(train)
        watch = watch or Silent()
        task = GeneratorTask(model, train, val, experiment.train)
        counts = describe_counts(len(train), train.labels.tolist(), cache.classes, len(val or ()))
        claim = Claim(folder, experiment.kind, experiment, cache.digest)
        fit(task, experiment.train, claim, here, watch, notes=[f"codes: {counts}"])
    return folder


def sample(
    folder: Path,
    labels: Sequence[str | int],
    seed: int,
    out: Path,
    device: str = "auto",
    sampling: Mapping[str, Any] | None = None,
) -> Path:
    """Draw one image for every label, a class's number or name, and write them as one PNG; returns its path.

    sampling  options of the kind's sampling class in place of the run's own
    """
    _check_png(out)
    _check_seed(seed)
    with _join(device) as here:
        generator, tokenizer = load_pair(Run.open(folder), here)
        wanted = torch.tensor(generator.origin.labels(labels))
        options = generator.sampling(sampling)
        if here.first:
            images = draw_images(generator, tokenizer, wanted, seed, options)
            make_folder(out.parent)
            write_png(image_grid(images, min(len(labels), 10)), out)
    return out


def reconstruct(
    run: Path,
    paths: Sequence[Path],
    out: Path,
    tile: int | None = None,
    alone: bool = False,
    device: str = "auto",
) -> Iterator[str]:
    """Write every image beside its reconstruction as a PNG below ``out``; yields a line about each.

    Images keep their size; up to ``factor - 1`` pixels at the right and the bottom are cut off. Processes share them.

    paths  images, and folders of them, whose layout is kept
    tile   pixels a side of what passes through at once, for large images; see `Tokenizer.encode`
    alone  write the reconstruction without the original
    """
    with _join(device) as here:
        tokenizer = Tokenizer.from_pretrained(run).to(here.device)
        if tile is not None:
            _check_tile(tile, tokenizer.factor)
        targets = _distinct_targets(paths, out)
        for path in targets:
            height, width = read_image(path).shape[:2]
            if min(height, width) < tokenizer.factor:
                raise InputError(f"{path}: {width} x {height} pixels; expected {tokenizer.factor} a side")
        here.barrier()  # every process has seen the targets free
        for path, target in list(targets.items())[here.rank :: here.size]:
            yield _reconstruct_one(tokenizer, path, target, tile, alone)


def _reconstruct_one(tokenizer: Tokenizer, path: Path, target: Path, tile: int | None, alone: bool) -> str:
    picture = to_channels(read_image(path), tokenizer.channels)
    height, width = (side - side % tokenizer.factor for side in picture.shape[:2])
    original = to_float(picture[None, :height, :width])
    again = tokenizer.reconstruct(original.to(next(tokenizer.parameters()).device), tile).cpu()
    make_folder(target.parent)
    shown = to_uint8(again)[0] if alone else image_grid(to_uint8(torch.cat([original, again])), 2)
    write_png(shown, target)
    quality = float(psnr(original, again).mean())
    places = "" if alone else ", original left, reconstruction right"
    return f"{target}: {width} x {height} pixels, {quality:.2f} dB{places}"


def load_pair(run: Run, here: World) -> tuple[Generator, Tokenizer]:
    """A generator and the tokenizer it was trained behind, on this process's device.

    Raises InputError when that tokenizer is gone or has other weights now.
    """
    generator = Generator.from_run(run)
    origin = generator.origin
    if not origin.tokenizer:
        raise InputError(f"{run.name}: names no tokenizer to decode its codes with; expected one as origin.tokenizer")
    # A run that was moved, or is used from elsewhere, has its tokenizer beside it; the digest decides.
    place = Path(origin.tokenizer)
    place = place if place.exists() else run.folder.parent / place.name
    if not place.exists():
        raise InputError(
            f"{run.name}: its tokenizer {origin.tokenizer} ({origin.tokenizer_digest[:12]}) is neither there nor beside"
            f" it; expected it at {place}"
        )
    tokenizer = Tokenizer.from_pretrained(place)
    if tokenizer.digest() != origin.tokenizer_digest:
        raise InputError(
            f"{run.name}: was trained behind other weights than {place} holds now; train in another folder"
        )
    return generator.to(here.device), tokenizer.to(here.device)


def evaluate_tokenizer(
    folder: Path,
    device: str = "auto",
    watch: Reporter | None = None,
    asked: TokenizerEvaluation | None = None,
) -> list[ProtocolCard]:
    """Measure a tokenizer, by default on the held-out images of its run. All processes share the images.

    Writes ``evaluation.json``, ``samples/reconstructions.png`` and ``samples/differences_xN.png``, N being how much
    larger the differences are drawn. Other images than the run's held-out ones add ``_SPLIT_FINGERPRINT`` to the names.
    Of a source that somebody names and that has no splits, all images are measured; see `TokenizerEvaluation`.
    """
    watch, asked = watch or Silent(), asked or TokenizerEvaluation()
    with _join(device) as here:
        run = Run.open(folder)
        tokenizer = Tokenizer.from_run(run).to(here.device)
        data = _evaluated_data(run, asked, tokenizer.factor)
        split = _split_to_measure(run, asked, data)
        images = open_images(data, split, labels=False, channels=tokenizer.channels)
        asked.check(data.size, len(images))
        drawn = spread(images, asked.count or len(images))
        name = f"{_name_of(data, split)}{f', {asked.count} drawn' if asked.count else ''}"
        judges = _judges(run, asked, data, tokenizer.channels, len(drawn), here, watch)
        measured = measure_tokenizer(
            tokenizer, images, data, name, sorted(drawn), judges, here, watch, _workers_of(run, asked.reading)
        )
        left_out = [*measured.left_out, *(["rFD(judge): 1 image, needs 2"] if asked.judge and len(drawn) < 2 else [])]
        for line in left_out:
            watch.say(f"left out: {line}")
        if measured.skipped:
            watch.say(f"skipped: {len(measured.skipped)} images; the first: {measured.skipped[0]}")
        if here.first:
            suffix = "" if _is_usual(run, asked, split, data) else f"_{split}_{images.fingerprint[:8]}"
            suffix += f"_{asked.count}" if asked.count else ""
            _write_pairs(run, suffix, shown_pairs(tokenizer, images, here.device, drawn))
            held = Evaluation(
                cards=tuple(measured.cards),
                step=run.step,
                levels=measured.levels,
                latent={"mean": tuple(measured.latent_mean), "std": tuple(measured.latent_std)},
                left_out=tuple(left_out),
                skipped=tuple(measured.skipped),
            )
            write_evaluation(run, held, suffix)
        here.barrier()
    return measured.cards


def evaluate_generator(
    folder: Path,
    samples: int,
    seed: int = 0,
    device: str = "auto",
    watch: Reporter | None = None,
    balanced: bool = False,
    sampling: Mapping[str, Any] | None = None,
) -> list[ProtocolCard]:
    """Measure a generator run against the real images that it learned from, and an untrained twin beside it.

    samples   images drawn, of the classes that these images have and in their proportions
    balanced  draw every one of these classes alike instead
    sampling  options of the kind's sampling class in place of the run's own

    Writes ``evaluation.json``, ``samples/classes.png`` (one class a row) and ``samples/real.png``. The judge,
    a classifier of the same images, is trained beside the run when it is not there yet.
    """
    _check_seed(seed)
    if samples < 2:
        raise InputError(f"samples {samples}: expected at least 2")
    watch = watch or Silent()
    with _join(device) as here:
        run = Run.open(folder)
        generator, tokenizer = load_pair(run, here)
        origin, options = generator.origin, generator.sampling(sampling)
        cache = CodeCache.open(_codes_of(run))
        if cache.digest != origin.codes_digest:
            raise InputError(f"{cache.folder}: holds other codes than {folder} was trained on; train in another folder")
        if not cache.about.get("data"):
            raise InputError(f"{cache.folder}: does not say of which images its codes are; nothing to measure by")
        data = build(DataConfig, cache.about["data"], str(cache.folder))
        cards: list[ProtocolCard] = []
        if here.first:
            real = open_images(data, "train", channels=tokenizer.channels)
            if real.fingerprint != cache.about["fingerprints"]["train"]:
                raise InputError(
                    f"{data.source}: has changed since {cache.folder} was written, or another build read it otherwise;"
                    " encode it again"
                )
            judge = _judge(folder.parent, data, tokenizer.channels, here, watch)
            assert judge is not None  # this is the first process
            against = reference(judge, real, data, _name_of(data, "train"))
            codes = cache.read("train", tokenizer.codebook())
            labels = (labels_balanced if balanced else labels_like)(codes.labels, samples)
            law = BALANCED if balanced else LIKE_REFERENCE
            card = sampling_card(generator, tokenizer, against, seed, options, law)
            images = draw_images(generator, tokenizer, labels, seed, options)
            cards = measure_samples(judge, against, images, labels, card)
            held_out = cache.about["fingerprints"]["val"]
            told = replace(card, reference=_name_of(data, "val"), reference_hash=held_out, function_evaluations=1)
            cards += measure_likelihood(generator, cache.read("val"), told)
            twin = draw_images(_untrained(run, codes, here), tokenizer, labels, seed, options)
            cards.append(_renamed(measure_samples(judge, against, twin, labels, card)[0], "untrained generator"))
            kept = reconstructed(tokenizer, real, samples)
            floor = replace(card, guidance=0.0, sampler="", labels="", function_evaluations=0, generator_hash="")
            cards.append(
                _renamed(measure_samples(judge, against, kept.images, kept.labels, floor)[0], "tokenizer alone")
            )
            make_folder(folder / "samples")
            shown = labels.unique().tolist()[:SHEET_CLASSES]
            counts = {label: int((codes.labels == label).sum()) for label in shown}
            write_png(class_sheet(images, labels.numpy(), shown), folder / "samples" / "classes.png")
            write_png(real_sheet(real, counts), folder / "samples" / "real.png")
            occurring = [origin.classes[label] for label in codes.labels.unique().tolist()]
            names = tuple(origin.classes[label] for label in shown)
            held = Evaluation(tuple(cards), run.step, classes=tuple(occurring), shown=names)
            write_evaluation(run, held)
        here.barrier()
    return cards


def _join(device: str) -> Any:
    try:
        pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    except ValueError as error:
        raise InputError(str(error)) from error
    return world(device)


OWN_IMAGES = ("val_source", "label_column", "broken", "max_pixels", "stream", "block")
"""How a run reads the images of its own source, besides their size."""


def _data_of(run: Run, source: str, size: Size | None, factor: int, reading: Reading) -> DataConfig:
    """The data a tokenizer reads from ``source``: in its own size unless told otherwise, without flips."""
    own = to_dict(run.experiment(DataConfig, "data")) if run.trained else {}
    if size is None and not own:
        raise InputError(f"{run.name}: is not a training run and has no image size of its own; give --size")
    size = own["size"] if size is None else size
    how = {name: own[name] for name in OWN_IMAGES if name in own} if own.get("source") == source else {}
    data = build(DataConfig, {"source": source, "size": size, **how, **reading.options()}, "encode")
    _check_size(data.size, factor)
    return data


def _evaluated_data(run: Run, asked: TokenizerEvaluation, factor: int) -> DataConfig:
    """The images that are asked for, by default the run's own; nothing about them is left to chance."""
    if run.trained:
        own = run.experiment(DataConfig, "data")
    elif asked.source and asked.size:
        own = DataConfig(asked.source, asked.size)
    else:
        raise InputError(f"{run.name}: is not a training run and has no images of its own; give --data and --size")
    size = asked.size or own.size
    _check_size(size, factor)
    if asked.source and asked.source != own.source:
        own = DataConfig(asked.source, size, broken=own.broken, max_pixels=own.max_pixels)
    return replace(own, size=size, flip=False, crop="center", **asked.reading.options())


def _split_to_measure(run: Run, asked: TokenizerEvaluation, data: DataConfig) -> str:
    """The split that is asked for; by default what is held out, or all of a source that somebody names as a whole."""
    if asked.split:
        return split_called(data, asked.split)
    if not asked.source or (run.trained and asked.source == run.experiment(DataConfig, "data").source):
        return "val"
    splits = splits_of(data)
    for split in ("val", "test"):
        if split in splits:
            return split
    if splits:
        raise InputError(f"{data.source}: has the splits {', '.join(splits)}; say with --split which to measure")
    return "all"


def _name_of(data: DataConfig, split: str) -> str:
    """The source of a split and the split, as cards name them."""
    return f"{(data.val_source if split == 'val' else '') or data.source} {split}"


def _is_usual(run: Run, asked: TokenizerEvaluation, split: str, data: DataConfig) -> bool:
    """Whether these are all held-out images of a run: what the report speaks of."""
    return run.trained and split == "val" and not asked.count and data == _evaluated_data(run, TokenizerEvaluation(), 1)


def _workers_of(run: Run, reading: Reading) -> int:
    """Processes that read images: as asked, or as in the training of the run."""
    if reading.workers is not None:
        return reading.workers
    return run.experiment(EngineConfig, "train", "engine").workers if run.trained else 0


def _existing_cache(out: Path, about: dict[str, Any]) -> CodeCache | None:
    """The cache that already lies at ``out`` and says the same; None where the place is free."""
    if out.is_file():
        raise InputError(f"{out}: is a file; expected a folder for the code cache")
    if is_free(out) or cache_writer.is_complete(cache_writer.partial_of(out)):
        return None
    if not (out / MANIFEST).is_file():
        raise InputError(f"{out}: is not empty and holds no code cache; choose another folder")
    cache = CodeCache.open(out)
    # Options that came later have their defaults in an older cache.
    known = cache.about | {"data": to_dict(build(DataConfig, cache.about.get("data", {}), str(out)))}
    different = differences(known, about)
    if different:
        raise InputError(f"{out}: holds another code cache ({different[0]}); choose another folder or remove it")
    return cache


def _encoder(
    tokenizer: Tokenizer,
    images: ImageSource,
    layout: CodeSpec | LatentSpec,
    flip: bool,
    workers: int,
    here: World,
    watch: Reporter,
) -> cache_writer.EncodeRange:
    def codes_of(pictures: Tensor) -> Tensor:
        encoded = tokenizer.encode(pictures.to(here.device))
        return (tokenizer.digits(encoded, layout) if isinstance(layout, CodeSpec) else encoded.codes).cpu()

    @torch.no_grad()
    def encode_range(start: int, stop: int) -> cache_writer.Part:
        nothing = torch.empty(0, *layout.shape, dtype=torch.uint8 if isinstance(layout, CodeSpec) else torch.float32)
        codes, flipped, labels = [nothing], [nothing], [torch.empty(0, dtype=torch.int64)]
        skipped: list[str] = []
        names: list[str] = []
        once = iterate_once(images, at_once(*images.shape[:2]), workers=workers, indices=range(start, stop))
        with closing(once) as batches:
            for batch in batches:
                skipped += batch.skipped
                names += [images.name(index) for index in batch.indices]
                if len(batch.images):
                    codes.append(codes_of(batch.images))
                    labels.append(batch.labels)
                    flipped += [codes_of(batch.images.flip(-1))] if flip else []
                watch.advance(start + sum(map(len, labels)) + len(skipped), {})
        mirrored = torch.cat(flipped) if flip else None
        return cache_writer.Part(torch.cat(codes), torch.cat(labels), mirrored, tuple(skipped), tuple(names))

    return encode_range


def _perceptual(loss: LossConfig, here: World) -> nn.Module | None:
    """LPIPS where the loss weighs it. The first process finds or downloads the weights for all."""
    if not loss.lpips:
        return None
    return from_first(here, lambda: load_lpips(loss.lpips_vgg16 or None)).to(here.device)


@torch.no_grad()
def _held_out(model: Tokenizer, here: World, images: ImageSource) -> dict[str, float]:
    """What is watched while a tokenizer trains: PSNR of all held-out images, or of `HELD_OUT` drawn over them.

    ``skipped``, where some of them cannot be read, is their number. What one process refuses, all refuse.
    """
    drawn = sorted(spread(images, HELD_OUT))
    measured, skipped, refusal = [], 0, None
    try:
        for batch in iterate_once(images, at_once(*images.shape[:2]), indices=drawn[here.rank :: here.size]):
            skipped += len(batch.skipped)
            if len(batch.images):
                measured.append(psnr(batch.images, model(batch.images.to(here.device)).images.cpu()))
    except InputError as error:
        refusal = error
    shares = here.gather((measured, skipped, refusal))
    for _, _, refused in shares:
        if refused is not None:
            raise refused
    decibels = [part for share, _, _ in shares for part in share]
    if not decibels:
        raise DataError(f"held-out images: none of {len(drawn)} could be read")
    left_out = sum(count for _, count, _ in shares)
    return {"psnr": float(torch.cat(decibels).mean()), **({"skipped": float(left_out)} if left_out else {})}


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise InputError(f"seed {seed}: expected 0 to 2**63 - 1")


def _check_size(size: Size, factor: int) -> None:
    if any(side % factor for side in height_width(size)):
        raise InputError(f"size {size_text(size)}: expected a multiple of the tokenizer's factor {factor}")


def _check_tile(tile: int, factor: int) -> None:
    try:
        Tiling.of_pixels(tile, None, factor)
    except ValueError as error:
        raise InputError(str(error)) from error


def _check_png(out: Path) -> None:
    if out.suffix.lower() != ".png":
        raise InputError(f"{out}: expected a name that ends in .png")
    if out.is_dir():
        raise InputError(f"{out}: is a folder; expected the name of a picture")


def _distinct_targets(paths: Sequence[Path], out: Path) -> dict[Path, Path]:
    """Where the picture of every image goes; folders are searched. Raises InputError where two would meet."""
    targets: dict[Path, Path] = {}
    taken: set[Path] = set()
    for path in paths:
        inside = [path / name for name in images_below(path)] if path.is_dir() else [path]
        for image in inside:
            target = (out / image.relative_to(path if path.is_dir() else path.parent)).with_suffix(".png")
            if target in taken:
                raise InputError(f"{target}: two images would be written there; give them different names")
            if target.exists():
                raise InputError(f"{target}: exists already; choose another folder")
            taken.add(target)
            targets[image] = target
    return targets


def _codes_of(run: Run) -> str:
    """Where the cache lies that a generator was trained on."""
    codes = run.table().get("codes")
    if not isinstance(codes, str):
        raise InputError(f"{run.folder / CONFIG}: experiment.codes: {codes!r}; expected a folder")
    return codes


def _judges(
    run: Run, asked: TokenizerEvaluation, data: DataConfig, channels: int, count: int, here: World, watch: Reporter
) -> Judges:
    """The networks that were asked for, in every process. A distance of features needs two images."""
    lpips = inception = judge = None
    if asked.lpips:
        lpips = _in_turn(here, lambda: load_lpips(None if asked.lpips == OFFICIAL else asked.lpips))
    if asked.fid:
        inception = _in_turn(here, lambda: load_inception(None if asked.fid == OFFICIAL else asked.fid))
    if asked.judge and count > 1:
        judge = _shared_judge(run, data, channels, here, watch)
    return Judges(
        None if lpips is None else lpips.to(here.device),
        None if inception is None else inception.to(here.device),
        judge,
    )


def _in_turn(here: World, load: Callable[[], Frozen]) -> Frozen:
    """What ``load`` returns, first in the first process: a download is done once, and the others find it."""
    found: list[Frozen] = []
    from_first(here, lambda: found.append(load()))
    return found[0] if found else load()


def _shared_judge(run: Run, data: DataConfig, channels: int, here: World, watch: Reporter) -> JudgeNet:
    """The judge, in every process, where the first has trained it or found it trained."""

    def learned() -> tuple[int, dict[str, Tensor]]:
        judge = _judge(run.folder.absolute().parent, data, channels, here, watch)
        assert judge is not None  # this is the first process
        return judge.num_classes, {key: value.cpu() for key, value in judge.state_dict().items()}

    classes, table = from_first(here, learned)
    judge = JudgeNet(classes)
    judge.load_state_dict(table)
    return judge.to(here.device).eval()


def _judge(parent: Path, data: DataConfig, channels: int, here: World, watch: Reporter) -> JudgeNet | None:
    """The classifier of these images, trained once, in the first process; None in the others.

    Images of a single class, or without any to train on, are judged by one of the photographs.
    """
    if not here.first:
        return None
    alone = World(0, 1, here.device)
    splits = splits_of(data)
    lacks = "" if not splits or "train" in splits else "no training images"
    if not lacks and len(open_images(data, "train", channels=channels).classes) < 2:
        lacks = "one class"
    if lacks:
        watch.say(f"{data.source} has {lacks}: the judge learns bundled:photos instead")
        height, width = (min(max(side, 16), 256) for side in data.sides)
        data = DataConfig("bundled:photos", (height, width))
    torch.manual_seed(JUDGE_TRAINING.seed)
    train, val = (open_images(data, name, labels=name == "train", channels=channels) for name in SPLITS)
    task = JudgeTask(train, val)
    claim = Claim(parent / f"judge_{task.source.fingerprint[:8]}", "judge", JUDGE_TRAINING, task.source.fingerprint)
    judge = fit(task, JUDGE_TRAINING, claim, alone, watch, wait=True)
    assert isinstance(judge, JudgeNet)
    return judge.eval()


def _untrained(run: Run, codes: CodeSet, here: World) -> Generator:
    """The generator as it was before its first step; ``codes`` are those it is trained on."""
    described = run.weights().described
    torch.manual_seed(run.experiment(TrainConfig, "train").seed)
    twin = Generator.from_description(described, run.name)
    twin.observe(codes)
    return twin.to(here.device).eval()


def _renamed(card: ProtocolCard, what: str) -> ProtocolCard:
    return replace(card, metric=f"{card.metric}, {what}")


def _write_pairs(run: Run, suffix: str, pairs: Pairs) -> None:
    """The sheets of reconstructions and of differences; an older sheet of differences may have had another scale."""
    folder = run.folder / "samples"
    make_folder(folder)
    write_png(pair_sheet(pairs), folder / f"reconstructions{suffix}.png")
    drawn = difference_sheet(pairs)
    for older in folder.glob(f"differences_x*{suffix}.png"):
        if older.stem.removesuffix(suffix).removeprefix("differences_x").isdigit():
            older.unlink(missing_ok=True)  # another evaluation of this run may be at it
    write_png(drawn.sheet, folder / f"differences_x{drawn.scale}{suffix}.png")
