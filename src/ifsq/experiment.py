"""The rooms' configs together, as one experiment file gives them, and what takes several rooms to check."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from ifsq import config
from ifsq.codes.spec import CodeSpec, LatentSpec
from ifsq.config import InputError, build, to_dict
from ifsq.data.images import DataConfig, Size, check_channels, size_text
from ifsq.generators import Generator, Sampling
from ifsq.generators.ar import ARConfig, ARSampling
from ifsq.generators.diffusion import DiffusionSampling, DiTConfig
from ifsq.generators.masked import MaskedConfig, MaskedSampling
from ifsq.generators.repa import AlignmentConfig
from ifsq.nn.memory import within_memory
from ifsq.quantizers.bounds import BOUNDS
from ifsq.store.run import Run
from ifsq.tokenizer.bottleneck import KINDS, QuantizerConfig
from ifsq.tokenizer.losses import LossConfig
from ifsq.tokenizer.model import TokenizerConfig, config_of
from ifsq.training.config import TrainConfig
from ifsq.training.warm_start import goes_on


@dataclass(frozen=True)
class TokenizerExperiment:
    """One tokenizer run.

    out        folder of the run
    data       its images, see `DataConfig`
    tokenizer  the model, see `TokenizerConfig`
    loss       what it is trained with, see `LossConfig`
    train      the training, see `TrainConfig`
    """

    out: str
    data: DataConfig
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        factor, size = self.tokenizer.conv.factor, size_text(self.data.size)
        if any(side % factor for side in self.data.sides):
            raise ValueError(f"data.size={size}: expected a multiple of the tokenizer's factor {factor}")
        check_channels(self.tokenizer.conv.in_channels)
        quantizer, sharded = self.tokenizer.quantizer, self.train.engine.sharding == "shard"
        if sharded and (quantizer.ema or quantizer.revive_after):
            raise ValueError("train.engine.sharding='shard' with a codebook that is written to: expected 'replicate'")
        least = 16 if self.loss.distances else 1  # four times halved
        if self.loss.adversarial is not None:
            least = max(least, self.loss.adversarial.discriminator().smallest)
        if min(self.data.sides) < least:
            raise ValueError(f"data.size={size}: expected at least {least} pixels for the networks of the loss")


@dataclass(frozen=True)
class OnlineData(DataConfig):
    """Images whose codes are computed while a generator is trained on them; see `DataConfig`.

    online  true: said where it is meant, since each step then pays for the tokenizer too
    levels  one of the tokenizer's nested levels; 0: those that it was saved with
    """

    online: bool = False
    levels: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.online:
            raise ValueError("data.online=false: expected true, or codes of a cache in place of [data]")
        if self.levels < 0:
            raise ValueError(f"data.levels={self.levels}: expected at least 2, or 0 for those of the saved tokenizer")

    def images(self) -> DataConfig:
        """The images alone."""
        return DataConfig(**{one.name: getattr(self, one.name) for one in fields(DataConfig)})


@dataclass(frozen=True, kw_only=True)
class GeneratorExperiment:
    """One generator run: what all kinds have. Each kind adds the section of its model and its own ``sampling``.

    out        folder of the run
    tokenizer  folder of the tokenizer run; may be empty for latents that another project extracted, and then samples
               are not decoded
    codes      folder of the code cache that this tokenizer wrote
    data       in place of ``codes``, with ``online = true``: images that go through the frozen tokenizer at each step,
               cropped and flipped anew
    groups     sizes of the index groups; empty for the tokenizer's own. The digits are the same whatever the groups
    sampling   how it is sampled where nothing else is said
    alignment  to features of teachers, see `AlignmentConfig`; None: to none
    train      the training, see `TrainConfig`
    """

    kind: ClassVar[str]
    out: str
    tokenizer: str = ""
    codes: str = ""
    data: OnlineData | None = None
    groups: tuple[int, ...] = ()
    train: TrainConfig = field(default_factory=TrainConfig)
    sampling: Sampling = field(default_factory=Sampling)
    alignment: AlignmentConfig | None = None

    def __post_init__(self) -> None:
        if self.alignment is not None:
            own: Any = getattr(self, self.kind)
            self.alignment.check(own, Generator.kinds[self.kind].noisy, online=self.data is not None)
        if self.data is None and not self.codes:
            raise ValueError("codes='': expected the folder of a code cache, or [data] with online=true")
        if self.data is not None and self.codes:
            raise ValueError(f"codes={self.codes!r} beside data.online=true: expected one of the two")
        if self.data is not None and not self.tokenizer:
            raise ValueError("data.online=true: expected the tokenizer that the images go through")
        for name in ("sample_every", "evaluate_every"):
            if (every := getattr(self.train, name)) and not self.tokenizer:
                raise ValueError(f"train.{name}={every} without a tokenizer, which decodes the samples: expected 0")

    def make(self, layout: CodeSpec | LatentSpec, num_classes: int, code_dim: int | None = None) -> Generator:
        """The generator, with fresh weights. Raises InputError where the config fits neither the codes nor the memory.

        code_dim  channels of the tokenizer's codes, which the layout of a codebook's numbers does not say
        """
        cls: Any = Generator.kinds[self.kind]
        try:
            with within_memory(self.kind):
                model: Generator = cls(getattr(self, self.kind), self._grouped(layout), num_classes, code_dim)
            model.check_sampling(self.sampling)
            return model
        except ValueError as error:
            raise InputError(str(error)) from error

    def _grouped(self, layout: CodeSpec | LatentSpec) -> CodeSpec | LatentSpec:
        """The layout with this experiment's groups. Raises ValueError where it has no such groups."""
        if not self.groups:
            return layout
        if isinstance(layout, LatentSpec):
            raise ValueError(f"groups={list(self.groups)}: latents have no indices to group; expected none")
        return replace(layout, groups=self.groups)


@dataclass(frozen=True, kw_only=True)
class ARExperiment(GeneratorExperiment):
    """The run of an autoregressive generator.

    ar  the model, see `ARConfig`
    """

    kind = "ar"
    ar: ARConfig
    sampling: ARSampling = field(default_factory=lambda: ARSampling(GUIDANCE))


@dataclass(frozen=True, kw_only=True)
class DiffusionExperiment(GeneratorExperiment):
    """The run of a diffusion generator.

    diffusion  the model, see `DiTConfig`
    """

    kind = "diffusion"
    diffusion: DiTConfig
    sampling: DiffusionSampling = field(default_factory=lambda: DiffusionSampling(GUIDANCE))


@dataclass(frozen=True, kw_only=True)
class MaskedExperiment(GeneratorExperiment):
    """The run of a masked generator.

    masked  the model, see `MaskedConfig`
    """

    kind = "masked"
    masked: MaskedConfig
    sampling: MaskedSampling = field(default_factory=lambda: MaskedSampling(GUIDANCE))


GUIDANCE = 1.5
"""Of a generator whose experiment does not say how it is guided."""
AnyExperiment = ARExperiment | DiffusionExperiment | MaskedExperiment
EXPERIMENTS: tuple[type[AnyExperiment], ...] = (ARExperiment, DiffusionExperiment, MaskedExperiment)


def load_tokenizer_experiment(path: Path, overrides: Iterable[str] = ()) -> TokenizerExperiment:
    """Read an experiment file. Raises InputError in one line for whatever is wrong with it."""
    table = config.merge(config.read_toml(path), config.parse_overrides(overrides, TokenizerExperiment))
    return config.build(TokenizerExperiment, table, str(path))


@dataclass(frozen=True)
class Adaptation:
    """Another bottleneck for a tokenizer; see `adapted_experiment`.

    source         run, folder of a saved model or ``owner/name`` on the hub
    to             a bound, as ``ifsq``; ``fsq``, the first FSQ with ``tanh``; or another kind of bottleneck
    levels         of ``fsq`` and ``residual``; empty: the source's own, or 17 for each dimension of its codes
    bits           of every dimension, in place of levels: 2**bits + 1 of them
    data           as ``data.source``; empty: the source's own
    size           of the images; None: the source's own
    steps          0: a quarter of the source's own
    train_encoder  whether the encoder is trained as well
    out            folder of the run; empty: beside the source, named after it and ``to``
    """

    source: str
    to: str = "ifsq"
    levels: tuple[int, ...] = ()
    bits: tuple[int, ...] = ()
    data: str = ""
    size: Size | None = None
    steps: int = 0
    train_encoder: bool = False
    out: str = ""

    def __post_init__(self) -> None:
        if self.to not in (*BOUNDS, *KINDS):
            raise InputError(f"--to {self.to}: expected one of {', '.join((*BOUNDS, *KINDS))}")
        if self.levels and self.bits:
            raise InputError("--levels and --bits: expected one of them")
        if (self.levels or self.bits) and not self.scalar:
            raise InputError(f"--to {self.to}: has no levels; expected --tokenizer.quantizer.KEY options of its own")
        if any(not 1 <= bits <= 16 for bits in self.bits):
            raise InputError(f"--bits {' '.join(map(str, self.bits))}: expected 1 to 16 for each dimension")
        if self.steps < 0:
            raise InputError(f"--steps {self.steps}: expected at least 1")

    @property
    def scalar(self) -> bool:
        """Whether the new bottleneck has levels."""
        return self.to in BOUNDS or self.to in ("fsq", "residual")

    @property
    def folder(self) -> str:
        """Where the run is to lie."""
        if self.out:
            return self.out
        place = Path(self.source)
        place = place if place.name else place.resolve()  # "."
        return str((place.parent if place.exists() else Path("runs")) / f"{place.name}-{self.to}")

    def quantizer(self, old: QuantizerConfig) -> dict[str, Any]:
        """The table of the new bottleneck, by the old one."""
        with torch.device("meta"):
            dim = old.make().dim
        if not self.scalar:
            return {"kind": self.to, "dim": dim}
        levels = self.levels or tuple(2**bits + 1 for bits in self.bits) or old.scalar_levels or (17,) * dim
        if self.to == "residual":
            return {"kind": "residual", "levels": list(levels), "cells": "equal"}
        return {"kind": "fsq", "levels": list(levels), "bound": "tanh" if self.to == "fsq" else self.to}


def adapted_experiment(asked: Adaptation, overrides: Iterable[str] = ()) -> TokenizerExperiment:
    """The run that puts another bottleneck into a tokenizer: the source's own experiment, as far as it has one.

    The encoder is frozen unless it is to be trained. A run that is there already and goes on keeps its own options
    where nothing else is asked for, and its source may be gone. Raises InputError.
    """
    folder, given = Path(asked.folder), config.parse_overrides(overrides, TokenizerExperiment)
    if "init_parts" in given.get("train", {}):
        raise InputError("--train.init_parts: adapt takes encoder and decoder; expected it left out")
    if goes_on(folder):
        run = Run.open(folder)
        table = to_dict(run.experiment(TokenizerExperiment))
        table["train"]["init"] = asked.source
        old = run.experiment(TokenizerConfig, "tokenizer").quantizer
        if asked.levels or asked.bits or asked.to != _asked_for(old):
            table["tokenizer"]["quantizer"] = asked.quantizer(old)
        if asked.steps:
            table["train"]["steps"] = asked.steps
        if asked.train_encoder:
            table["train"]["freeze"] = []
    else:
        table = _table_of_source(asked, Run.open(asked.source))
    if asked.data:
        table["data"] = {**table["data"], "source": asked.data}
    if asked.size is not None:
        table["data"]["size"] = asked.size
    return build(TokenizerExperiment, config.merge({**table, "out": asked.folder}, given), f"adapt {asked.source}")


def _asked_for(old: QuantizerConfig) -> str:
    """What ``to`` a bottleneck came of."""
    return old.bound if old.kind == "fsq" else old.kind


def _table_of_source(asked: Adaptation, run: Run) -> dict[str, Any]:
    """The experiment of a new run from the source's."""
    described = config_of(run.weights().described, run.name)
    own = to_dict(run.experiment(TokenizerExperiment)) if run.trained else None
    if own is None and not (asked.data and asked.size):
        raise InputError(f"{run.name}: is not a training run and has no images of its own; give --data and --size")
    data = {} if own is None else own["data"]
    if asked.data and data.get("source") != asked.data:  # where that one keeps its labels and held-out images
        data = {key: value for key, value in data.items() if key not in ("val_source", "label_column", "stream")}
    train: dict[str, Any] = to_dict(TrainConfig()) if own is None else own["train"]
    steps = asked.steps or (max(1, train["steps"] // 4) if own is not None else train["steps"])
    optim = {**train["optim"], "warmup": min(train["optim"]["warmup"], steps // 10)}
    begin = {"init": asked.source, "init_parts": ["encoder", "decoder"]}
    freeze = [] if asked.train_encoder else ["encoder"]
    return {
        "data": data,
        "tokenizer": {
            "conv": to_dict(described.conv),
            "quantizer": asked.quantizer(described.quantizer),
        },
        "loss": {} if own is None else {key: value for key, value in own["loss"].items() if value is not None},
        "train": {**train, **begin, "freeze": freeze, "steps": steps, "optim": optim},
    }


def load_generator_experiment(path: Path, overrides: Iterable[str] = ()) -> AnyExperiment:
    """Read an experiment file, whose one section ``[ar]``, ``[diffusion]`` or ``[masked]`` says of which kind it is.

    Raises InputError in one line for whatever is wrong with it.
    """
    given, overrides = config.read_toml(path), list(overrides)
    named = given.keys() | config.parse_overrides(overrides).keys()
    kinds = [cls for cls in EXPERIMENTS if cls.kind in named]
    if len(kinds) != 1:
        raise InputError(f"{path}: expected exactly one of the sections [ar], [diffusion] and [masked]")
    table = config.merge(given, config.parse_overrides(overrides, kinds[0]))
    return config.build(kinds[0], config.merge({"sampling": {"guidance": GUIDANCE}}, table), str(path))
