"""What measurements share: the frame of a card, what it calls images, and which images of a source are taken."""

from collections.abc import Sequence
from dataclasses import replace

from ifsq.data import ImageSource, sample_order
from ifsq.data.images import DataConfig
from ifsq.data.transforms import RESIZE_KERNEL
from ifsq.metrics import ProtocolCard
from ifsq.tokenizer.model import Tokenizer
from ifsq.training.distributed import World


def sample_indices(images: ImageSource, n: int) -> list[int]:
    """At most ``n`` indices drawn over a source, always the same.

    A random subset: folders are sorted by class and bundled sources go round the classes, so a prefix or a stride would
    be biased.
    """
    return sample_order(0, 0, len(images))[:n].tolist()


def dealt(indices: Sequence[int], batch: int, world: World) -> list[Sequence[int]]:
    """This process's batches, whole ones: a network sees the same ones however many processes there are."""
    return [indices[at : at + batch] for at in range(0, len(indices), batch)][world.rank :: world.size]


def name_of(data: DataConfig, split: str) -> str:
    """The source of a split and the split, as cards name them."""
    return f"{(data.val_source if split == 'val' else '') or data.source} {split}"


def blank_card(data: DataConfig, name: str, fingerprint: str, n: int, tokenizer: Tokenizer) -> ProtocolCard:
    """The card of a measurement on these images, without metric and values yet."""
    return replace(
        images_card(data, name if tokenizer.channels == 3 else f"{name}, luminance", fingerprint, n),
        dtype=str(next(tokenizer.parameters()).dtype).removeprefix("torch."),
        tokenizer_hash=tokenizer.digest(),
    )


def images_card(data: DataConfig, name: str, fingerprint: str, n: int) -> ProtocolCard:
    """The card of a measurement on these images that no tokenizer takes part in, without metric and values yet."""
    bundled = data.source.startswith("bundled:")
    return ProtocolCard(
        metric="",
        values={},
        reference=name,
        reference_hash=fingerprint,
        n=n,
        size=data.size,
        crop="the bundled recipe" if bundled else data.crop,
        resize_kernel="bicubic (Pillow)" if bundled else RESIZE_KERNEL,
        dtype="float32",
    )
