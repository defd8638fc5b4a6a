"""What a run or an experiment names, opened and held against the rest: its tokenizer, its codes, its images."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ifsq.codes.cache import CodeCache
from ifsq.codes.spec import CodeSpec, LatentSpec
from ifsq.config import InputError, build, to_dict
from ifsq.data.images import DataConfig, Reading, Size, height_width, size_text
from ifsq.experiment import GeneratorExperiment, OnlineData
from ifsq.generators import Generator
from ifsq.store.run import CONFIG, Run
from ifsq.tokenizer.model import Tokenizer
from ifsq.tokenizer.online import OnlineCache
from ifsq.training.config import EngineConfig


def check_cache(cache: CodeCache, tokenizer: Tokenizer | None, where: str) -> None:
    """Refuse a cache that another tokenizer wrote. Raises InputError naming both.

    tokenizer  None will do for a cache that names none, as of latents that another project extracted
    """
    writer = cache.about["tokenizer"]
    if tokenizer is None:
        if writer:
            raise InputError(f"{cache.folder}: was written by tokenizer {writer[:12]}; expected its folder")
        return
    height, width = (side * tokenizer.factor for side in cache.layout.grid)
    different = cache.layout.differs_from(tokenizer.layout(height, width))
    if different:
        raise InputError(f"{cache.folder}: does not fit the tokenizer {where}: {different}")
    if writer and writer != tokenizer.digest():
        raise InputError(
            f"{cache.folder}: was written by tokenizer {writer[:12]}, "
            f"but {where} is {tokenizer.digest()[:12]}; encode again"
        )


OWN_IMAGES = ("val_source", "label_column", "broken", "max_pixels", "stream", "block")
"""How a run reads the images of its own source, besides their size."""


def data_to_encode(run: Run, source: str, size: Size | None, factor: int, reading: Reading) -> DataConfig:
    """The images of ``source`` as a tokenizer run reads them, without flips.

    size    pixels a side, or height and width; None: the run's own, which a saved model has not
    factor  of the tokenizer

    Raises InputError.
    """
    own = to_dict(run.experiment(DataConfig, "data")) if run.trained else {}
    if size is None and not own:
        raise InputError(f"{run.name}: is not a training run and has no image size of its own; give --size")
    size = own["size"] if size is None else size
    how = {name: own[name] for name in OWN_IMAGES if name in own} if own.get("source") == source else {}
    data = build(DataConfig, {"source": source, "size": size, **how, **reading.options()}, "encode")
    check_size(data.size, factor)
    return data


def check_size(size: Size, factor: int) -> None:
    """Raise InputError unless images of this size make a whole grid of codes."""
    if any(side % factor for side in height_width(size)):
        raise InputError(f"size {size_text(size)}: expected a multiple of the tokenizer's factor {factor}")


def workers_of(run: Run, reading: Reading) -> int:
    """Processes that read images: as told, or as in the training of the run."""
    if reading.workers is not None:
        return reading.workers
    return run.experiment(EngineConfig, "train", "engine").workers if run.trained else 0


def load_tokenizer(run: Run, device: torch.device, levels: int = 0) -> Tokenizer:
    """The tokenizer of a run, on a device. Raises InputError.

    levels  one of its nested levels; 0: those that it was saved with
    """
    tokenizer = Tokenizer.from_run(run)
    return (tokenizer.at_levels(levels) if levels else tokenizer).to(device)


def _behind(codes: CodeSpec | LatentSpec, tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer that codes are of: at their levels, where these are among its nested ones."""
    if isinstance(codes, CodeSpec) and codes.levels[0] in tokenizer.config.quantizer.nested_levels:
        return tokenizer.at_levels(codes.levels[0])
    return tokenizer


@dataclass(frozen=True)
class Pair:
    """A generator and the tokenizer it was trained behind."""

    generator: Generator
    tokenizer: Tokenizer


def load_pair(run: Run, device: torch.device, step: int | None = None, average: bool = True) -> Pair:
    """The generator of a run and its tokenizer, on a device; ``step`` and ``average`` as of `Run.weights`.

    Raises InputError when that tokenizer is gone or has other weights now.
    """
    generator = Generator.from_run(run, step, average)
    if not generator.origin.tokenizer:
        raise InputError(
            f"{run.name}: names no tokenizer to decode its codes with; expected one of {_codes(generator.spec)}, as"
            " origin.tokenizer (import official has --tokenizer)"
        )
    tokenizer = _tokenizer_of(run, generator)
    try:
        generator.check_codebook(tokenizer.codebook())
    except ValueError as error:
        raise InputError(f"{run.name}: {error}") from error
    return Pair(generator.to(device), tokenizer.to(device))


def _codes(spec: CodeSpec | LatentSpec) -> str:
    """Codes or channels, and the grid, in words."""
    if isinstance(spec, LatentSpec):
        return f"{spec.dim} channels on {spec.grid[0]}x{spec.grid[1]}"
    return f"{' + '.join(map(str, spec.vocab_sizes))} codes on {spec.grid[0]}x{spec.grid[1]}"


def _tokenizer_of(run: Run, generator: Generator) -> Tokenizer:
    origin = generator.origin
    # A run that was moved, or is used from elsewhere, has its tokenizer beside it; the digest decides.
    place = Path(origin.tokenizer)
    place = place if place.exists() else run.folder.parent / place.name
    if not place.exists():
        raise InputError(
            f"{run.name}: its tokenizer {origin.tokenizer} ({origin.tokenizer_digest[:12]}) is neither there nor beside"
            f" it; expected it at {place}"
        )
    tokenizer = _behind(generator.spec, Tokenizer.from_pretrained(place))
    if tokenizer.digest() != origin.tokenizer_digest:
        raise InputError(
            f"{run.name}: was trained behind other weights than {place} holds now; train in another folder"
        )
    return tokenizer


def open_codes(run: Run, generator: Generator) -> CodeCache:
    """The cache that a generator was trained on, to measure it by; of one trained on images, what takes its place.

    Raises InputError where it is gone, holds other codes now, or does not say of which images.
    """
    codes, origin = run.table().get("codes"), generator.origin
    if run.table().get("data") is not None:
        online = OnlineCache(_tokenizer_of(run, generator), run.experiment(OnlineData, "data").images())
        if online.digest != origin.codes_digest:
            raise InputError(
                f"{online.folder}: has changed since {run.name} was trained on it; train in another folder"
            )
        return online
    if not isinstance(codes, str):
        raise InputError(f"{run.folder / CONFIG}: experiment.codes: {codes!r}; expected a folder")
    cache = CodeCache.open(codes)
    if cache.digest != origin.codes_digest:
        raise InputError(f"{cache.folder}: holds other codes than {run.name} was trained on; train in another folder")
    if not cache.about.get("data"):
        raise InputError(f"{cache.folder}: does not say of which images its codes are; nothing to measure by")
    return cache


def codes_of(experiment: GeneratorExperiment, device: torch.device) -> tuple[CodeCache, Tokenizer | None]:
    """The codes that a generator is trained on, and their tokenizer where one is named. Raises InputError.

    device  where images are encoded, of whose codes there is no cache
    """
    cache = None if experiment.data is not None else CodeCache.open(experiment.codes)
    tokenizer = Tokenizer.from_pretrained(Path(experiment.tokenizer)) if experiment.tokenizer else None
    if cache is None:
        assert experiment.data is not None
        assert tokenizer is not None  # the experiment has checked that
        check_size(experiment.data.size, tokenizer.factor)
        if experiment.data.levels:
            tokenizer = tokenizer.at_levels(experiment.data.levels)
        online = OnlineCache(tokenizer, experiment.data.images())
        return online, tokenizer.to(device)
    tokenizer = None if tokenizer is None else _behind(cache.layout, tokenizer)
    check_cache(cache, tokenizer, experiment.tokenizer)
    return cache, tokenizer
