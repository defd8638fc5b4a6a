"""Random numbers of images: each image of a seed has a stream of its own, whatever is drawn beside or before it.

The stream is Philox4x64-10 (Salmon et al. 2011), which only counts, under the key (seed, image number): no two images
share one. `torch.Generator` on the CPU keeps 32 of a seed's 64 bits (``findings/torch_cpu_seed_32_bits.sh``): among
50000 of its streams two would be the same in one set of four.
"""

import numpy as np
import torch
from jaxtyping import Float, Int, UInt64
from torch import Tensor

WORDS = 4  # of a block, which is what the stream's counter counts


def uniforms(seed: int, first: int, images: int, count: int, place: int = 0) -> Float[Tensor, "b n"]:
    """``count`` numbers of [0, 1), float32 on the CPU, for each of the images numbered from ``first`` on.

    place  which of such rows of an image: rows 0, 1, 2, ..., all of one ``count``, share no number

    Raises ValueError on a seed or a number outside 0 to 2**63 - 1.
    """
    words = _words(seed, first, images, count, place * -(-count // WORDS))
    return torch.from_numpy((words >> np.uint64(40)).astype(np.float32) * 2.0**-24)


def normals(seed: int, first: int, images: int, count: int) -> Float[Tensor, "b n"]:
    """As `uniforms`, but of N(0, 1): the distribution inverted in float64, so that no processor's short cuts show."""
    return Normals(seed, first, images)(count)


def gumbels(seed: int, first: int, images: int, place: int, count: int) -> Float[Tensor, "b n"]:
    """``count`` numbers of the standard Gumbel distribution for each image, those of number ``place`` of such rows.

    Rows 0, 1, 2, ... of an image, all of one ``count``, share no number; a row costs the same wherever it lies. Float64
    inside, so that the greatest of a million codes is drawn as often as it should be; all are finite.

    Raises ValueError as `uniforms`.
    """
    start = place * -(-count // WORDS)
    # 52 bits: half a step above the greatest of 53 would round to 1, whose number is infinite.
    levels = ((_words(seed, first, images, count, start) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return torch.from_numpy(levels).log_().neg_().log_().neg_().to(torch.float32)


class Normals:
    """The numbers of `normals`, in parts: each call goes on in every image's stream where the last one ended."""

    def __init__(self, seed: int, first: int, images: int) -> None:
        """Raises ValueError, as `uniforms`."""
        self._streams = _streams(seed, first, images)

    def __call__(self, count: int) -> Float[Tensor, "b n"]:
        """The next ``count`` numbers of each image, float32 on the CPU."""
        return _normal(_read(self._streams, count))


def choices(seed: int, count: int, options: int) -> Int[Tensor, "n"]:
    """A number of 0..options-1 for each of the images 0..count-1: word i of a stream that no image has.

    options  at most 2**24: a number is as likely as any other but for one part in 2**16
    """
    words = np.random.Philox(key=np.array([seed, 2**63], np.uint64)).random_raw(count)
    return torch.from_numpy(((words >> np.uint64(24)) * np.uint64(options) >> np.uint64(40)).astype(np.int64))


def _words(seed: int, first: int, images: int, count: int, start: int = 0) -> UInt64[np.ndarray, "b n"]:
    """Numbers of the streams from block ``start`` on."""
    return _read(_streams(seed, first, images, start), count)


def _normal(words: UInt64[np.ndarray, "b n"]) -> Float[Tensor, "b n"]:
    levels = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return torch.special.ndtri(torch.from_numpy(levels)).to(torch.float32)


def _streams(seed: int, first: int, images: int, start: int = 0) -> list[np.random.Philox]:
    for name, value in (("seed", seed), ("first", first)):
        if not 0 <= value < 2**63:
            raise ValueError(f"{name}={value}: expected 0 to 2**63 - 1")
    streams = [np.random.Philox(key=np.array([seed, first + row], np.uint64)) for row in range(images)]
    return [stream.advance(start) for stream in streams] if start else streams


def _read(streams: list[np.random.Philox], count: int) -> UInt64[np.ndarray, "b n"]:
    words = np.empty((len(streams), count), np.uint64)
    for row, stream in enumerate(streams):
        words[row] = stream.random_raw(count)
    return words
