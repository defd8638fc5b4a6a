"""Codes that are computed while a generator is trained, where a cache of them would be too large.

Images go through a frozen tokenizer on the device, in float32 whatever the training's precision, so that their digits
are those that `encode` would have stored of the same pictures, but for what a batch of another shape rounds otherwise.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from ifsq.codes import CodeBatch, CodeCache, CodeSet
from ifsq.codes.cache import CPU, SUMMED_AT_ONCE
from ifsq.codes.spec import CodeSpec
from ifsq.config import InputError, digest, to_dict
from ifsq.data import DataConfig, ImageBatches, ImageSource, StepSampler, iterate_once, open_images, sample_order
from ifsq.data.draws import mix
from ifsq.data.images import SPLITS, DataError
from ifsq.data.sampler import iterate_items, max_batch
from ifsq.pretrained.teachers import ImageTeacher
from ifsq.tokenizer.model import Tokenizer


@dataclass(frozen=True, kw_only=True)
class OnlineCodes(CodeSet):
    """One split, whose codes are computed as they are asked for; ``content`` has no rows.

    tokenizer  in eval mode; it goes to the device that codes are asked for on
    images     those of training cropped and flipped as their config says
    teachers   who look at each picture of `batches`, on the device that it is on, see `CodeSet.seen_by`
    grid       rows and columns of their features
    """

    online = True
    tokenizer: Tokenizer
    images: ImageSource
    teachers: tuple[ImageTeacher, ...] = ()
    grid: tuple[int, int] = (1, 1)

    def seen_by(self, teachers: Sequence[ImageTeacher], grid: tuple[int, int]) -> "OnlineCodes":
        return replace(self, teachers=tuple(teachers), grid=grid)

    def without_features(self) -> "OnlineCodes":
        return replace(self, teachers=())

    def batch(
        self,
        rows: Int[Tensor, "b"],
        device: torch.device = CPU,
        mirrored: Bool[Tensor, "b"] | None = None,
        crops: Int[Tensor, "b"] | None = None,
    ) -> CodeBatch:
        """The images of these rows, on a device; those of training with a crop that follows from the row alone."""
        items = [(row, mix(0, 0, row)) for row in rows.tolist()]
        (read,) = iterate_items(self.images, items, len(items))
        return self.coded(read.images, read.labels, device)

    def batches(
        self, sampler: StepSampler, start: int, device: torch.device, workers: int = 0, prefetch: int = 2
    ) -> Generator[CodeBatch, None, None]:
        """See `CodeSet.batches`; crops and flips follow from the seeds of the items."""
        read = iter(ImageBatches(self.images, sampler, start, workers, prefetch, device))
        with closing(read) as pictures:
            for batch in pictures:
                coded, images = self.coded(batch.images, batch.labels, device), batch.images.to(device)
                yield replace(coded, features=tuple(one.features(images, self.grid) for one in self.teachers))

    def moments(self) -> tuple[Float[Tensor, "d"], Float[Tensor, "d"]]:
        """Mean and variance of every channel over `SUMMED_AT_ONCE` images, always the same; float64 (d,)."""
        drawn = torch.from_numpy(sample_order(0, 0, len(self))[:SUMMED_AT_ONCE].copy()).sort().values
        device = next(self.tokenizer.parameters()).device
        count, total, squares = 0, torch.zeros(()).double(), torch.zeros(()).double()
        for rows in drawn.split(max_batch(*self.images.shape[:2])):
            part = self.batch(rows, device).codes().cpu().double()  # some devices have no float64
            count += part[:, 0].numel()
            total = total + part.sum(dim=(0, 2, 3))
            squares = squares + part.square().sum(dim=(0, 2, 3))
        mean = total / count
        return mean, squares / count - mean.square()

    @torch.no_grad()
    def coded(self, images: Float[Tensor, "b c H W"], labels: Int[Tensor, "b"], device: torch.device) -> CodeBatch:
        """The codes of these images, on a device."""
        self.tokenizer.to(device)
        with torch.autocast(device.type, enabled=False):
            content = torch.cat([self._content(part.to(device)) for part in images.split(max_batch(*images.shape[2:]))])
        codebook = None if self.codebook is None else self.codebook.to(device)
        return CodeBatch(self.layout, content, labels.to(device), codebook)

    def _content(self, images: Float[Tensor, "b c H W"]) -> Num[Tensor, "b _ _ _"]:
        encoded = self.tokenizer.encode(images)
        if isinstance(self.layout, CodeSpec):
            return self.tokenizer.digits(encoded, self.layout).to(torch.int64)
        half = encoded.codes.to(torch.float16)  # as a cache stores them
        if not bool(half.isfinite().all()):
            raise InputError(
                f"latents up to {float(encoded.codes.abs().max()):.3g}: expected values that float16 holds"
            )
        return half.to(torch.float32)


class OnlineCache(CodeCache):
    """What takes the place of a cache: codes of images that are computed as they are asked for.

    tokenizer  whose codes they are
    data       the images; training crops and flips as it says

    ``about`` names the images as a cache of them has them, at their middle and not mirrored: evaluation measures by
    these. ``digest`` also follows from crop and flip. Raises InputError.
    """

    def __init__(self, tokenizer: Tokenizer, data: DataConfig) -> None:
        if data.broken == "skip":
            raise DataError("data.broken='skip' with data.online: expected 'refuse', or a cache, which leaves them out")
        plain = replace(data, flip=False, crop="center")
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.images = {split: open_images(data, split, channels=tokenizer.channels) for split in SPLITS}
        middle = open_images(plain, "train", channels=tokenizer.channels)
        self.folder, self.layout, self.classes = Path(data.source), tokenizer.layout(*data.sides), middle.classes
        self.statistics, self.crops = {}, 1
        self.about = {
            "tokenizer": tokenizer.digest(),
            "data": to_dict(plain),
            "fingerprints": {"train": middle.fingerprint, "val": self.images["val"].fingerprint},
        }
        seen = {split: images.fingerprint for split, images in self.images.items()}
        self.digest = digest({"online": seen, "tokenizer": self.about["tokenizer"], "spec": self.layout.to_dict()})

    def read(self, split: str, codebook: Float[Tensor, "v c"] | None = None) -> OnlineCodes:
        """The images of a split, to be encoded. Raises InputError for any other than ``train`` and ``val``."""
        if split not in self.images:
            raise InputError(f"{self.folder}: has no split {split!r}; expected one of {', '.join(self.images)}")
        images, nothing = self.images[split], torch.empty(0, *self.layout.shape)
        return OnlineCodes(
            self.layout, nothing, _labels(images), codebook=codebook, tokenizer=self.tokenizer, images=images
        )

    def names(self, split: str) -> list[str]:
        """See `CodeCache.names`."""
        return [self.images[split].name(index) for index in range(self.count(split))]

    @property
    def skipped(self) -> list[str]:
        """None: an image that cannot be read ends the run."""
        return []

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.images)

    def count(self, split: str) -> int:
        """Images of a split."""
        return len(self.images[split]) if split in self.images else 0


def _labels(images: ImageSource) -> Int[Tensor, "n"]:
    if images.labels is not None:
        return torch.tensor(images.labels, dtype=torch.int64)
    if images.block:
        raise DataError("data.stream=true with data.online: labels are not known beforehand; expected stream=false")
    return torch.cat([batch.labels for batch in iterate_once(images, 1024)])
