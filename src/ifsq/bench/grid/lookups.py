"""What the planning of a grid looks up, each once: images, layouts of codes, and what training on an image costs."""

from dataclasses import dataclass, replace

import torch

from ifsq.bench.grid import work
from ifsq.bench.grid.cost import generator_flops, layout_of, tokenizer_flops
from ifsq.bench.grid.foreseen import check_bits, check_scales, looked_at
from ifsq.bench.grid.stages import identity
from ifsq.codes import CodeSpec
from ifsq.codes.spec import LatentSpec
from ifsq.config import InputError, digest
from ifsq.data import open_images
from ifsq.data.images import DataConfig
from ifsq.evaluation import TokenizerEvaluation
from ifsq.experiment import GeneratorExperiment, TokenizerExperiment
from ifsq.sources import check_size
from ifsq.tokenizer.model import TokenizerConfig
from ifsq.training.config import TrainConfig


@dataclass(frozen=True)
class Coded:
    """What a generator is trained on: images, and the tokenizer at the levels that their codes have."""

    data: DataConfig
    tokenizer: TokenizerConfig

    @classmethod
    def of(cls, experiment: GeneratorExperiment, behind: TokenizerExperiment, how: work.Encoding) -> "Coded":
        """Of a generator's experiment and the tokenizer's behind it. Raises InputError."""
        data = behind.data if experiment.data is None else experiment.data.images()
        if how.size is not None and experiment.data is None:
            data = replace(data, size=how.size)
        tokenizer, levels = behind.tokenizer, how.levels if experiment.data is None else experiment.data.levels
        if levels:
            tokenizer = replace(tokenizer, quantizer=tokenizer.quantizer.at(levels))
        return cls(data, tokenizer)


class Lookups:
    """Finds each thing once.

    costs  FLOPs of training on an image, by what was counted; those that are counted are added
    """

    def __init__(self, costs: dict[str, int]) -> None:
        self.costs = costs
        self._images: dict[str, tuple[dict[str, str], int]] = {}
        self._layouts: dict[str, tuple[CodeSpec | LatentSpec, int | None]] = {}
        self._looks: dict[str, str] = {}
        self._checked: set[str] = set()

    def images(self, data: DataConfig, channels: int) -> tuple[dict[str, str], int]:
        """Fingerprints of the images of both splits, and the number of their classes."""
        key = digest([identity(data), channels])
        if key not in self._images:
            seen = {split: open_images(data, split, labels=False, channels=channels) for split in ("train", "val")}
            classes = len(open_images(data, "train", channels=channels).classes)
            self._images[key] = {f"images.{split}": images.fingerprint for split, images in seen.items()}, classes
        return self._images[key]

    def layout(self, coded: Coded) -> tuple[CodeSpec | LatentSpec, int | None]:
        """See `layout_of`."""
        key = digest([identity(coded.tokenizer), coded.data.sides])
        if key not in self._layouts:
            self._layouts[key] = layout_of(coded.tokenizer, coded.data.sides)
        return self._layouts[key]

    def codes(self, coded: Coded) -> tuple[CodeSpec | LatentSpec, int, int | None]:
        """Their layout, the classes of the images, and the channels of a codebook's vectors."""
        layout, code_dim = self.layout(coded)
        return layout, self.classes(coded), code_dim

    def classes(self, coded: Coded) -> int:
        """How many the images have."""
        return self.images(coded.data, coded.tokenizer.conv.in_channels)[1]

    def tokenizer_cost(self, experiment: TokenizerExperiment) -> int:
        """See `tokenizer_flops`."""
        key = digest(identity(replace(experiment, train=TrainConfig())))
        if key not in self.costs:
            self.costs[key] = tokenizer_flops(experiment.tokenizer, experiment.data.sides)
        return self.costs[key]

    def generator_cost(self, experiment: GeneratorExperiment, coded: Coded) -> int:
        """See `generator_flops`."""
        untrained = replace(experiment, train=TrainConfig())
        key = digest([identity(untrained), identity(coded.tokenizer), coded.data.sides])
        if key not in self.costs:
            self.costs[key] = generator_flops(experiment, *self.codes(coded))
        return self.costs[key]

    def check_encoding(self, behind: TokenizerExperiment, how: work.Encoding) -> None:
        """Raise InputError where images cannot be encoded so."""
        conv = behind.tokenizer.conv
        try:
            if how.size is not None:
                check_size(how.size, conv.factor)
            if how.crops is not None and self._first("crops", identity(behind.data), identity(how)):
                how.crops.sources(behind.data, conv.in_channels)
        except InputError as error:
            raise InputError(f"codes: {error}") from error

    def looked_at(self, behind: TokenizerExperiment, options: TokenizerEvaluation, where: str) -> str:
        """Fingerprint of the images that a tokenizer is measured on.

        Raises InputError where it cannot be measured so; as usual each can.
        """
        said = identity(replace(options, judge=True))
        if not said:
            return self.images(behind.data, behind.tokenizer.conv.in_channels)[0]["images.val"]
        key = digest([said, identity(behind.data), identity(behind.tokenizer)])
        if key not in self._looks:
            self._looks[key] = looked_at(behind, options, where)
        return self._looks[key]

    def check_sampled(
        self, experiment: GeneratorExperiment, coded: Coded, scales: tuple[float, ...], bits: int, where: str
    ) -> None:
        """Raise InputError where a generator's bits cannot be measured, or not each scale of guidance be searched."""
        if bits and experiment.kind == "diffusion":
            check_bits(self.layout(coded)[0], where)
        if scales and self._first("scales", identity(replace(experiment, train=TrainConfig()))):
            codes = self.codes(coded)
            with torch.device("meta"):
                model = experiment.make(*codes)
            check_scales(experiment, model, scales, where)

    def _first(self, *of: object) -> bool:
        """Whether this has not been asked before."""
        key = digest(of)
        new = key not in self._checked
        self._checked.add(key)
        return new
