"""What is measured of a tokenizer, each number with its protocol card. Called by ``pipeline``."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from ifsq.codes import CodeSpec
from ifsq.data import ImageSource, iterate_once
from ifsq.data.images import DataConfig
from ifsq.evaluation.levels import LevelUse, level_use
from ifsq.evaluation.protocol import AT_ONCE, blank_card
from ifsq.metrics import ProtocolCard, Reconstruction, code_statistics
from ifsq.tokenizer.model import Tokenizer


@dataclass(frozen=True)
class TokenizerMeasured:
    """Cards, the use of levels by several quantizers on the same latents, and the latents' mean and deviation."""

    cards: list[ProtocolCard]
    levels: dict[str, LevelUse]
    latent_mean: list[float]
    latent_std: list[float]


@torch.no_grad()
def measure_tokenizer(tokenizer: Tokenizer, images: ImageSource, data: DataConfig, name: str) -> TokenizerMeasured:
    """Reconstruction, codes and levels on every image of a source once, in float32."""
    device = next(tokenizer.parameters()).device
    quality = Reconstruction()
    digits, latents = [], []
    for batch in iterate_once(images, AT_ONCE):
        latent = tokenizer.latent(batch.images.to(device))
        quantized = tokenizer.quantizer(latent)
        quality.add(batch.images, tokenizer.decode(quantized.codes).cpu())
        if quantized.digits is not None:
            digits.append(quantized.digits.cpu())
        latents.append(latent.cpu())
    scores = quality.scores()
    blank = blank_card(data, name, images.fingerprint, scores.n, tokenizer)
    cards = [
        replace(blank, metric="PSNR, dB", values={"mean": scores.psnr, "std": scores.psnr_std}),
        replace(blank, metric="SSIM", values={"mean": scores.ssim, "std": scores.ssim_std}),
    ]
    if digits:
        cards += _code_cards(torch.cat(digits), tokenizer, data, blank)
    return TokenizerMeasured(cards, *level_use(torch.cat(latents), tokenizer))


def _code_cards(
    digits: Int[Tensor, "n h w d"], tokenizer: Tokenizer, data: DataConfig, blank: ProtocolCard
) -> list[ProtocolCard]:
    """How levels and indices are used."""
    quantizer, side = tokenizer.quantizer, data.size // tokenizer.factor
    levels = quantizer.levels
    assert levels is not None
    if tokenizer.kind == "residual":
        groups = (quantizer.dim,) * (len(levels) // quantizer.dim)
    else:
        groups = getattr(quantizer, "groups", (len(levels),))
    # The lattice plays no part in counting.
    use = code_statistics(digits, CodeSpec(levels, groups, "little", "equal", (side, side)))
    cards = [
        replace(blank, metric="level entropy / log2 L", values={"mean": use.mean_fraction}),
        replace(blank, metric="dead levels", values={"sum": float(sum(use.dead_levels)), "of": float(sum(levels))}),
    ]
    for number, group in enumerate(use.groups):
        which = f" of group {number}" if len(use.groups) > 1 else ""
        cards += [
            replace(
                blank, metric=f"index use{which}", values={"share": group.fraction, "at most": group.fraction_limit}
            ),
            replace(blank, metric=f"index perplexity{which}", values={"perplexity": group.perplexity}),
        ]
    return cards
