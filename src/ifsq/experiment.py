"""The rooms' configs together, as one experiment file gives them, and the checks across rooms."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from ifsq import config
from ifsq.codes.cache import CodeCache
from ifsq.codes.spec import CodeSpec
from ifsq.config import InputError
from ifsq.data.images import DataConfig, check_channels, size_text
from ifsq.generators import Generator, Sampling
from ifsq.generators.ar import ARConfig, ARSampling
from ifsq.generators.diffusion import DiffusionSampling, DiTConfig
from ifsq.tokenizer.losses import LossConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig
from ifsq.training.config import TrainConfig


@dataclass(frozen=True)
class TokenizerExperiment:
    """One tokenizer run.

    out   folder of the run
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
        least = 16 if self.loss.lpips else 1  # four poolings
        if self.loss.adversarial is not None:
            least = max(least, self.loss.adversarial.discriminator().smallest)
        if min(self.data.sides) < least:
            raise ValueError(f"data.size={size}: expected at least {least} pixels for the judges of the loss")


@dataclass(frozen=True, kw_only=True)
class GeneratorExperiment:
    """One generator run: what both kinds have. Each kind adds the section of its model and its own ``sampling``.

    out        folder of the run
    tokenizer  folder of the tokenizer run
    codes      folder of the code cache that this tokenizer wrote
    groups     sizes of the index groups; empty for the tokenizer's own. The digits are the same whatever the groups
    """

    kind: ClassVar[str]
    out: str
    tokenizer: str
    codes: str
    groups: tuple[int, ...] = ()
    train: TrainConfig = field(default_factory=TrainConfig)
    sampling: Sampling = field(default_factory=Sampling)

    def make(self, spec: CodeSpec, num_classes: int) -> Generator:
        """The generator, with fresh weights. Raises InputError when the config does not fit the codes."""
        cls: Any = Generator.kinds[self.kind]
        try:
            return cls(getattr(self, self.kind), spec, num_classes)
        except ValueError as error:
            raise InputError(str(error)) from error

    def view(self, spec: CodeSpec) -> CodeSpec:
        """The layout with this experiment's groups."""
        try:
            return replace(spec, groups=self.groups or spec.groups)
        except ValueError as error:
            raise InputError(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class ARExperiment(GeneratorExperiment):
    """The run of an autoregressive generator."""

    kind = "ar"
    ar: ARConfig
    sampling: ARSampling = field(default_factory=lambda: ARSampling(GUIDANCE))


@dataclass(frozen=True, kw_only=True)
class DiffusionExperiment(GeneratorExperiment):
    """The run of a diffusion generator."""

    kind = "diffusion"
    diffusion: DiTConfig
    sampling: DiffusionSampling = field(default_factory=lambda: DiffusionSampling(GUIDANCE))


GUIDANCE = 1.5
"""Of a generator whose experiment does not say how it is guided."""
EXPERIMENTS: tuple[type[ARExperiment] | type[DiffusionExperiment], ...] = (ARExperiment, DiffusionExperiment)


def load_tokenizer_experiment(path: Path, overrides: Iterable[str] = ()) -> TokenizerExperiment:
    """Read an experiment file. Raises InputError in one line for whatever is wrong with it."""
    table = config.merge(config.read_toml(path), config.parse_overrides(overrides, TokenizerExperiment))
    return config.build(TokenizerExperiment, table, str(path))


def load_generator_experiment(path: Path, overrides: Iterable[str] = ()) -> ARExperiment | DiffusionExperiment:
    """Read an experiment file, whose one section ``[ar]`` or ``[diffusion]`` says of which kind it is.

    Raises InputError in one line for whatever is wrong with it.
    """
    given, overrides = config.read_toml(path), list(overrides)
    named = given.keys() | config.parse_overrides(overrides).keys()
    kinds = [cls for cls in EXPERIMENTS if cls.kind in named]
    if len(kinds) != 1:
        raise InputError(f"{path}: expected exactly one of the sections [ar] and [diffusion]")
    table = config.merge(given, config.parse_overrides(overrides, kinds[0]))
    return config.build(kinds[0], config.merge({"sampling": {"guidance": GUIDANCE}}, table), str(path))


def check_cache(cache: CodeCache, tokenizer: Tokenizer, where: str) -> None:
    """Refuse a cache that another tokenizer wrote. Raises InputError naming both."""
    own = tokenizer.spec(cache.spec.grid[0] * tokenizer.factor, cache.spec.grid[1] * tokenizer.factor)
    different = cache.spec.differs_from(own)
    if different:
        raise InputError(f"{cache.folder}: does not fit the tokenizer {where}: {different}")
    if cache.about["tokenizer"] != tokenizer.digest():
        raise InputError(
            f"{cache.folder}: was written by tokenizer {cache.about['tokenizer'][:12]}, "
            f"but {where} is {tokenizer.digest()[:12]}; encode again"
        )
