"""What training costs before it is done: floating-point operations, and the steps that a budget of them allows.

As torch counts them (`torch.utils.flop_counter`): those of matrices and convolutions, a multiplication and an addition
being two; the backward pass counts as two forward passes. Networks that only judge a tokenizer's images in training
(perceptual losses, a discriminator) and what a generator is aligned by are not counted.
"""

from dataclasses import replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ifsq.codes import CodeSpec
from ifsq.codes.spec import LatentSpec
from ifsq.experiment import GeneratorExperiment
from ifsq.generators.train import training_flops
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig
from ifsq.training.config import TrainConfig


def tokenizer_flops(config: TokenizerConfig, sides: tuple[int, int]) -> int:
    """Operations of training a tokenizer on an image: encoder, bottleneck, decoder, forward and backward."""
    with torch.device("meta"):
        model: Any = Tokenizer(config).train()
        images = torch.empty(1, config.conv.in_channels, *sides)
    quantizer = config.quantizer.make().train()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        latents = model.quant_conv(model.encoder(images))
        model.decoder(model.post_quant_conv(torch.empty(1, quantizer.dim, *latents.shape[2:], device="meta")))
        # The bottleneck looks at the numbers, which the meta device has none of; it is small.
        quantizer(torch.linspace(-1, 1, latents.numel()).view(latents.shape))
    return 3 * counter.get_total_flops()


def layout_of(config: TokenizerConfig, sides: tuple[int, int]) -> tuple[CodeSpec | LatentSpec, int | None]:
    """The codes of an untrained tokenizer, and the channels of its codebook's vectors where it has one."""
    with torch.device("meta"):
        layout = Tokenizer(config).layout(*sides)
    return layout, config.quantizer.dim if config.quantizer.kind == "vq" else None


def generator_flops(
    experiment: GeneratorExperiment, layout: CodeSpec | LatentSpec, classes: int, code_dim: int | None
) -> int:
    """Operations of training a generator on an image, forward and backward. Raises InputError, as `make`."""
    with torch.device("meta"):
        return training_flops(experiment.make(layout, classes, code_dim))


def steps_for(amount: int | float, a_step: int | float) -> int:
    """Steps that an amount allows: the nearest number, at least one."""
    return max(1, round(amount / a_step))


def lasting(train: TrainConfig, steps: int, kept: int) -> TrainConfig:
    """A training of as many steps, or a few fewer, of which ``kept`` are kept: evenly spaced, the last included."""
    if kept == 1:
        return replace(train, steps=steps)
    spacing = max(1, steps // kept)
    return replace(train, steps=kept * spacing, save_every=spacing, keep_every=spacing)
