"""What measurements share: the frame of a card, which images of a source are taken, and how processes agree."""

from ifsq.data import ImageSource, sample_order
from ifsq.data.images import DataConfig
from ifsq.data.transforms import RESIZE_KERNEL
from ifsq.metrics import ProtocolCard
from ifsq.tokenizer.model import Tokenizer

AT_ONCE = 128  # images that pass through a network together
PIXELS_AT_ONCE = 1 << 20


def at_once(height: int, width: int) -> int:
    """Images of this size that pass through a tokenizer together: fewer of large ones."""
    return max(1, min(AT_ONCE, PIXELS_AT_ONCE // (height * width)))


def spread(images: ImageSource, n: int) -> list[int]:
    """At most ``n`` indices drawn over a source, always the same: neither its first images nor every so-manieth are a
    sample, since a folder is sorted by class and the bundled sources go round the classes."""
    return sample_order(0, 0, len(images))[:n].tolist()


def blank_card(data: DataConfig, name: str, fingerprint: str, n: int, tokenizer: Tokenizer) -> ProtocolCard:
    """The card of a measurement on these images, without metric and values yet."""
    bundled = data.source.startswith("bundled:")
    return ProtocolCard(
        metric="",
        values={},
        reference=name if tokenizer.channels == 3 else f"{name}, luminance",
        reference_hash=fingerprint,
        n=n,
        size=data.size,
        crop="the bundled recipe" if bundled else data.crop,
        resize_kernel="bicubic (Pillow)" if bundled else RESIZE_KERNEL,
        dtype=str(next(tokenizer.parameters()).dtype).removeprefix("torch."),
        tokenizer_hash=tokenizer.digest(),
    )
