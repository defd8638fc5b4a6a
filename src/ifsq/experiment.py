"""The rooms' configs together, as one experiment file gives them, and the checks across rooms.

Called by ``pipeline``.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ifsq import config
from ifsq.codes.cache import CodeCache
from ifsq.codes.spec import CodeSpec
from ifsq.config import InputError
from ifsq.data.images import DataConfig, check_channels, size_text
from ifsq.generators.ar import ARConfig, ARGenerator
from ifsq.generators.diffusion import DiffusionGenerator, DiTConfig
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


@dataclass(frozen=True)
class SamplingConfig:
    """How a generator is sampled where nothing else is said; a kind ignores what is not its own.

    guidance     classifier-free guidance; 1 is none
    temperature  (ar) divides the logits
    top_k        (ar) keeps the k likeliest; 0 keeps all
    top_p        (ar) keeps the likeliest that together reach p
    steps        (diffusion) solver steps
    solver       (diffusion) ``euler`` or ``heun``
    """

    guidance: float = 1.5
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    steps: int = 25
    solver: str = "euler"

    def __post_init__(self) -> None:
        if self.guidance < 0 or not self.temperature > 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                "expected guidance and top_k of at least 0, a positive temperature and top_p in (0, 1], "
                f"got guidance={self.guidance}, top_k={self.top_k}, temperature={self.temperature}, top_p={self.top_p}"
            )
        if self.steps < 1 or self.solver not in ("euler", "heun"):
            raise ValueError(f"steps={self.steps}, solver={self.solver!r}: expected at least 1 and euler or heun")

    def options(self, kind: str) -> dict[str, Any]:
        """Keyword arguments of the kind's ``sample``."""
        if kind == "ar":
            return {
                "guidance": self.guidance,
                "temperature": self.temperature,
                "top_k": self.top_k,
                "top_p": self.top_p,
            }
        return {"guidance": self.guidance, "steps": self.steps, "solver": self.solver}


@dataclass(frozen=True)
class GeneratorExperiment:
    """One generator run; exactly one of ``ar`` and ``diffusion`` is given.

    out        folder of the run
    tokenizer  folder of the tokenizer run
    codes      folder of the code cache that this tokenizer wrote
    groups     sizes of the index groups; empty for the tokenizer's own. The digits are the same whatever the groups
    """

    out: str
    tokenizer: str
    codes: str
    groups: tuple[int, ...] = ()
    ar: ARConfig | None = None
    diffusion: DiTConfig | None = None
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if (self.ar is None) == (self.diffusion is None):
            raise ValueError("expected exactly one of the sections [ar] and [diffusion]")

    @property
    def kind(self) -> str:
        """``ar`` or ``diffusion``."""
        return "ar" if self.ar is not None else "diffusion"

    def make(self, spec: CodeSpec, num_classes: int) -> ARGenerator | DiffusionGenerator:
        """The generator, with fresh weights. Raises InputError when the config does not fit the codes."""
        try:
            if self.ar is not None:
                return ARGenerator(self.ar, spec, num_classes)
            assert self.diffusion is not None
            return DiffusionGenerator(self.diffusion, spec, num_classes)
        except ValueError as error:
            raise InputError(str(error)) from error

    def view(self, spec: CodeSpec) -> CodeSpec:
        """The layout with this experiment's groups."""
        try:
            return replace(spec, groups=self.groups or spec.groups)
        except ValueError as error:
            raise InputError(str(error)) from error


def load_tokenizer_experiment(path: Path, overrides: Iterable[str] = ()) -> TokenizerExperiment:
    """Read an experiment file. Raises InputError in one line for whatever is wrong with it."""
    return config.build(TokenizerExperiment, _table(path, overrides, TokenizerExperiment), str(path))


def load_generator_experiment(path: Path, overrides: Iterable[str] = ()) -> GeneratorExperiment:
    """Read an experiment file. Raises InputError in one line for whatever is wrong with it."""
    return config.build(GeneratorExperiment, _table(path, overrides, GeneratorExperiment), str(path))


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


def _table(path: Path, overrides: Iterable[str], cls: type) -> dict[str, Any]:
    return config.merge(config.read_toml(path), config.parse_overrides(overrides, cls))
