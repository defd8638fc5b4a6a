"""The runs that the page shows: tokenizers at each of their rates, and generators with the tokenizer they are of."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ifsq.bench.runs import TITLES, path_tails
from ifsq.config import InputError
from ifsq.generators import Generator
from ifsq.sources import Pair, load_pair, load_tokenizer
from ifsq.store.run import MODEL, Run
from ifsq.tokenizer.bottleneck import rate_of
from ifsq.tokenizer.model import Tokenizer


@dataclass(frozen=True)
class Rate:
    """A tokenizer at one of its level counts.

    name    of its folder, with the levels where it has several rates
    levels  one of its nested level counts; 0: those that it was saved with
    """

    name: str
    tokenizer: Tokenizer
    levels: int = 0

    def at_levels(self) -> Tokenizer:
        """The tokenizer that rounds to these levels: a copy where they are others than its own."""
        return self.tokenizer.at_levels(self.levels) if self.levels else self.tokenizer

    @property
    def text(self) -> str:
        """Levels or codebook, and bits a position, in words."""
        config = self.tokenizer.config.quantizer
        told = rate_of(config.at(self.levels) if self.levels else config)
        return ", ".join(f"{name} {told[name]}" for name in ("codes", "codebook", "levels") if name in told) + (
            f", {told['bits a position']} bits a position" if "bits a position" in told else ""
        )


@dataclass(frozen=True)
class Drawer:
    """A generator, by the name of its folder, and the tokenizer it is of."""

    name: str
    pair: Pair

    @property
    def title(self) -> str:
        """Its name, and its kind in words where that is another."""
        kind = self.pair.generator.title
        return self.name if self.name == kind else f"{self.name} ({kind})"


@dataclass(frozen=True)
class Shown:
    """What the page has to show."""

    rates: tuple[Rate, ...]
    drawers: tuple[Drawer, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of all that the generators draw, each once."""
        return tuple(dict.fromkeys(name for one in self.drawers for name in one.pair.generator.origin.classes))


def open_shown(folders: Sequence[Path], device: torch.device) -> Shown:
    """The models of runs and saved models, on a device.

    Raises InputError for a folder that is given twice, that is neither tokenizer nor generator, or that cannot be
    opened.
    """
    runs = [Run.open(folder) for folder in folders]
    places = [run.folder.resolve() for run in runs]
    for at, run in enumerate(runs):
        if places[at] in places[:at]:
            raise InputError(f"{run.folder}: is given twice; expected each run once")
        if _kind(run) not in TITLES:
            raise InputError(f"{run.folder}: is a {_kind(run)}; expected a tokenizer or a generator")
    rates, drawers = list[Rate](), list[Drawer]()
    loaded: dict[str, Tokenizer] = {}  # by what it is: generators of one tokenizer share it
    for run, name in sorted(zip(runs, path_tails(places), strict=True), key=lambda one: _kind(one[0]) != "tokenizer"):
        if _kind(run) in Generator.kinds:
            pair = load_pair(run, device)
            shared = loaded.setdefault(pair.tokenizer.digest(), pair.tokenizer)
            drawers.append(Drawer(name, Pair(pair.generator, shared)))
        else:
            tokenizer = load_tokenizer(run, device)
            rates += _rates(name, loaded.setdefault(tokenizer.digest(), tokenizer))
    return Shown(tuple(rates), tuple(drawers))


def _kind(run: Run) -> str:
    """``tokenizer`` or a kind of generator, of a saved model too."""
    described = run.config.get("model")
    return str(described.get("kind")) if run.kind == MODEL and isinstance(described, dict) else run.kind


def _rates(name: str, tokenizer: Tokenizer) -> list[Rate]:
    nested = tokenizer.config.quantizer.nested_levels
    return [Rate(f"{name}, {levels} levels", tokenizer, levels) for levels in nested] or [Rate(name, tokenizer)]
