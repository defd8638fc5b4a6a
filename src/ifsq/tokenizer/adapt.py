"""Another bottleneck in a trained tokenizer, which keeps what its encoder and decoder have learned.

The decoder knows the codes of the old bottleneck, and the new one gives others. So the latents of real images are
scaled to what the new bound expects, the bound or the codebook is fitted to them, and what stands in front of the
decoder begins as the linear map that brings the new codes nearest to the old ones. Training does the rest.
"""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ifsq.data.images import ImageSource
from ifsq.data.sampler import ImageBatches, StepSampler, max_batch
from ifsq.store.run import Run
from ifsq.tokenizer.bottleneck import expected_deviation, fit_quantizer, widened
from ifsq.tokenizer.model import Tokenizer
from ifsq.training.config import TrainConfig
from ifsq.training.distributed import World, from_first
from ifsq.training.warm_start import Start, goes_on, warm_start

LATENTS, IMAGES = 2**15, 64
"""What is measured at least."""
A_LEVEL = 12  # latents
MOST_LATENTS = 2**18
FLATTEST = 1e-3  # deviation of a latent that is scaled up, over the largest: a collapsed one holds rounding errors
RIDGE = 1e-6  # of the codes' variance
BOTTLENECK = ("quant_conv", "quantizer", "post_quant_conv")


class Activations(NamedTuple):
    """What a tokenizer makes of images, a row a position.

    features  of the encoder
    latents   before the quantizer; of a variational one the means
    codes     behind it, as its decoder knows them
    """

    features: Float[Tensor, "n z"]
    latents: Float[Tensor, "n d"]
    codes: Float[Tensor, "n d"]


class Fit(NamedTuple):
    """How the new bottleneck stands to the old one.

    explained  part of the variance of the old codes that a linear map of the new ones gives back
    bits       a position carries by the entropy of its levels; None of other kinds than ``fsq``
    """

    explained: float
    bits: float | None


def adapted_start(model: Tokenizer, images: ImageSource, config: TrainConfig, folder: Path, world: World) -> Start:
    """Begin with the encoder and the decoder of the tokenizer ``train.init``, and fit the bottleneck to them.

    model   with fresh weights and a bottleneck of any kind
    images  to train on, of which as many are looked at as give `LATENTS` positions, and at least `IMAGES`
    folder  of the run; where it goes on, nothing is done

    The first process measures for all. Raises InputError as `warm_start`.
    """
    if goes_on(folder):
        return Start()
    begun = warm_start(model, model.describe(), replace(config, init_parts=("encoder", "decoder")), folder, world)

    def fit() -> tuple[dict[str, Tensor], str, Fit]:
        source = Tokenizer.from_run(Run.open(config.init))
        wanted = max(LATENTS, A_LEVEL * max(model.quantizer.levels or (0,)))
        seen = activations(source.to(world.device), images, config, min(wanted, MOST_LATENTS))
        told = fit_bottleneck(source.cpu(), model, seen)
        fitted = {name: value for name, value in model.state_dict().items() if name.startswith(BOTTLENECK)}
        return fitted, f"{source.kind} of {source.quantizer.dim} dimensions", told

    fitted, old, told = from_first(world, fit)
    model.load_state_dict({**model.state_dict(), **fitted})
    assert begun.record is not None
    record = {**begun.record, "fresh": {}, "fitted": begun.record["fresh"], "how": f"Adapted from {old},"}
    rate = "" if told.bits is None else f"; its levels carry {told.bits:.2f} bits a position"
    note = (
        f"adapted: {old} to {model.kind} of {model.quantizer.dim}{rate}; a linear map of its codes gives back"
        f" {100 * told.explained:.1f} % of the variance of the old ones"
    )
    return Start(record, (begun.notes[0], note))


@torch.no_grad()
def activations(tokenizer: Tokenizer, images: ImageSource, config: TrainConfig, wanted: int) -> Activations:
    """What a tokenizer in evaluation mode makes of training images: of at least `IMAGES`, and ``wanted`` positions."""
    height, width, _ = images.shape
    positions = (height // tokenizer.factor) * (width // tokenizer.factor)
    batch = max_batch(height, width)
    steps = -(-max(IMAGES, -(-wanted // positions)) // batch)
    device = next(tokenizer.parameters()).device
    sampler = StepSampler(len(images), batch, config.seed)
    rows: list[Activations] = []
    with closing(iter(ImageBatches(images, sampler, 0, config.engine.workers, config.engine.prefetch, device))) as seen:
        for _ in range(steps):
            features = tokenizer.encoder(next(seen).images)
            latents = tokenizer.quant_conv(features)
            codes = tokenizer.quantizer(latents).codes
            means = latents[:, : tokenizer.quantizer.dim]
            rows.append(Activations(*(_rows(value) for value in (features, means, codes))))
    return Activations(*(torch.cat(parts) for parts in zip(*rows, strict=True)))


@torch.no_grad()
def fit_bottleneck(source: Tokenizer, model: Tokenizer, seen: Activations) -> Fit:
    """Fit the bottleneck of ``model``, between the encoder and the decoder of ``source``, to its activations.

    ``quant_conv`` gives latents of mean 0 and deviation 1: those of the source where there are as many; the principal
    axes of them where there are fewer; these and random features of the encoder where there are more. A bound that can
    be fitted and a codebook follow them. ``post_quant_conv`` gives the source's decoder the nearest linear map of the
    new codes to the old ones. Raises InputError.
    """
    weight, bias = _projection(source, model, seen)
    latents = seen.features.double() @ weight.T + bias
    mean, deviation = latents.mean(0), latents.std(0)
    deviation = deviation.clamp(min=FLATTEST * float(deviation.max().clamp(min=1e-6)))
    if (expected := expected_deviation(model.quantizer)) is not None:
        weight, bias = weight * (expected / deviation)[:, None], (bias - mean) * (expected / deviation)
    weight, bias = widened(model.quantizer, weight, bias)
    _give(model.quant_conv, weight, bias)
    latents = (seen.features.double() @ weight.T + bias).float()[..., None, None]
    bits = fit_quantizer(model.quantizer, latents)
    codes = model.quantizer.eval()(latents).codes.flatten(1)
    model.quantizer.train()
    # Least squares: old = new A + b, through the convolution that the source's decoder has learned.
    mean, target = codes.double().mean(0), seen.codes.double().mean(0)
    new, old = codes.double() - mean, seen.codes.double() - target
    square = new.T @ new
    ridge = RIDGE * square.diagonal().mean().clamp(min=1e-12) * torch.eye(len(square), dtype=square.dtype)
    A = torch.linalg.solve(square + ridge, new.T @ old)
    learned = source.post_quant_conv.weight[..., 0, 0].double()  # z d
    _give(model.post_quant_conv, learned @ A.T, _bias(source.post_quant_conv) + learned @ (target - mean @ A))
    left = (old - new @ A).square().sum() / old.square().sum().clamp(min=1e-12)
    return Fit(1 - left.item(), bits)


def _projection(source: Tokenizer, model: Tokenizer, seen: Activations) -> tuple[Tensor, Tensor]:
    """Weight (d, z) and bias (d) of the latents by the encoder's features, before they are scaled; float64."""
    have, wanted = source.quantizer.dim, model.quantizer.dim
    weight = source.quant_conv.weight[:have, :, 0, 0].double()
    bias = _bias(source.quant_conv)[:have]
    if wanted < have:
        latents = seen.latents.double() - seen.latents.double().mean(0)
        axes = torch.linalg.eigh(latents.T @ latents).eigenvectors.flip(1)[:, :wanted].T  # by falling variance
        return axes @ weight, axes @ bias
    if wanted > have:
        more = model.quant_conv.weight[have:wanted, :, 0, 0].double()  # as it was drawn
        return torch.cat([weight, more]), torch.cat([bias, bias.new_zeros(wanted - have)])
    return weight, bias


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias.double()


def _give(conv: nn.Conv2d, weight: Float[Tensor, "o i"], bias: Float[Tensor, "o"]) -> None:
    """Set a 1x1 convolution."""
    assert conv.bias is not None
    conv.weight.copy_(weight[..., None, None])
    conv.bias.copy_(bias)


def _rows(maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "n c"]:
    return maps.movedim(1, -1).flatten(0, 2).float().cpu()
