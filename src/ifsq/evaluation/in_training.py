"""What is looked at while a model trains: a picture, and figures cheap enough to be taken many times.

Always the same images, labels and random numbers, so that what changes from step to step is the model.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from ifsq.codes.cache import CodeCache
from ifsq.config import InputError, build
from ifsq.data import DataError, ImageBatch, ImageSource, iterate_once, open_images, to_float, to_uint8
from ifsq.data.images import DataConfig
from ifsq.data.sampler import max_batch
from ifsq.evaluation.collect import Look, collect
from ifsq.evaluation.given import DrawnImages, GivenImages, SourceImages
from ifsq.evaluation.labels import labels_like
from ifsq.evaluation.protocol import dealt, name_of, sample_indices
from ifsq.evaluation.reference import Reference, View, views_of
from ifsq.evaluation.samples import Part
from ifsq.evaluation.sheets import CLASS_COLUMNS, SHEET_CLASSES, class_sheet, pair_sheet, shown_pairs
from ifsq.generators import Generator
from ifsq.metrics import CodeCounts, FeatureStatistics, ImageScores, psnr, ssim
from ifsq.metrics.distribution import frechet_from_statistics
from ifsq.metrics.kernel import kernel_distance
from ifsq.nn.modes import exact_float32
from ifsq.pretrained.efficientnet_lite import EFFICIENTNET_LITE0
from ifsq.pretrained.features import load_features
from ifsq.pretrained.network import FeatureNetwork
from ifsq.tokenizer.model import Tokenizer
from ifsq.training.config import TrainConfig
from ifsq.training.distributed import World, from_first, gather_or_refuse, in_turn
from ifsq.training.log import Silent

SEED = 0  # of what generators draw
REAL_A_SAMPLE = 10  # training images at most that samples are held against, for each of them
SMALL = 128  # pixels: smaller images are enlarged to this side, not to 224, for a third of the time
FEATURES_AT_ONCE = 32  # images


def features_at_hand(size: tuple[int, int], world: World) -> FeatureNetwork:
    """A network for images of this height and width: EfficientNet-Lite0 where its extra is installed, else `Pixels`.

    Its name is a part of the name of every distance through it. Raises InputError in every process.
    """
    if not EFFICIENTNET_LITE0.installed:
        return load_features("pixels")
    name = "efficientnet-lite0" if min(size) > SMALL else f"efficientnet-lite0@{SMALL}"
    return in_turn(world, lambda: load_features(name)).to(world.device)


class TokenizerObserver:
    """Reconstructions of held-out images: PSNR, SSIM, a Fréchet distance to the originals, and the use of the levels.

    images   held-out ones
    count    of them, drawn over all, always the same, for the figures
    network  of the distance; None for no figures
    """

    def __init__(self, images: ImageSource, count: int, network: FeatureNetwork | None, workers: int = 0) -> None:
        self.images, self.network, self.workers = images, network, workers
        self.shown = sample_indices(images, len(images))
        self.measured = sorted(self.shown[:count])
        self._originals: FeatureStatistics | None = None  # of all processes; the same at every step

    def picture(self, model: Tokenizer, world: World) -> UInt8[np.ndarray, "H W c"]:
        """Originals in the odd rows, their reconstructions below them."""

        def draw() -> np.ndarray:
            with _finite("reconstructions"):
                return pair_sheet(shown_pairs(model, self.images, world.device, self.shown))

        return from_first(world, draw)

    def figures(self, model: Tokenizer, world: World) -> dict[str, float]:
        """See the class; ``images`` is how many could be read. A single one has no distance."""
        assert self.network is not None
        network, known = self.network, self._originals is not None

        def count() -> _Reconstructed:
            counted = _Reconstructed(model, network)
            batch = max_batch(*self.images.shape[:2])
            mine = [index for share in dealt(self.measured, batch, world) for index in share]
            with exact_float32(), closing(iterate_once(self.images, batch, 0, self.workers, mine)) as batches:
                for read in batches:
                    if len(read.images):
                        counted.add(read, world.device, originals=not known)
            return counted

        first, *others = gather_or_refuse(world, count)
        for other in others:
            first.merge(other)
        self._originals = self._originals or first.originals
        n = first.reconstructions.n
        if not n:
            raise DataError(f"held-out images: none of {len(self.measured)} could be read")
        if n < 2:
            return first.figures()
        distance = frechet_from_statistics(first.reconstructions, self._originals)
        return first.figures() | {f"rfd_{network.name}": distance}


class GeneratorObserver:
    """Samples of a generator: a sheet of classes, distances to training images, and the held-out loss.

    tokenizer  that decodes them
    labels     of the training images, whose classes and proportions the samples have
    count      of samples for the figures
    held_out   figures of a generator on held-out codes
    real       training images, as the other side of the distances; None for no figures
    network    of the distances; None for no figures
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        labels: Int[Tensor, "n"],
        count: int,
        held_out: Callable[[Generator, World], dict[str, float]],
        real: GivenImages | None,
        network: FeatureNetwork | None,
    ) -> None:
        self.tokenizer, self.held_out, self.real, self.network = tokenizer, held_out, real, network
        self.asked = labels_like(labels, count)
        self.classes = labels.unique().tolist()[:SHEET_CLASSES]
        self.shown = torch.tensor(self.classes).repeat_interleave(CLASS_COLUMNS)
        self._reference: View | None = None  # the same at every step

    def picture(self, model: Generator, world: World) -> UInt8[np.ndarray, "H W c"]:
        """The first classes, one a row."""
        drawn = self._drawn(model, self.shown)
        batches = dealt(range(len(drawn)), drawn.at_once, world)

        def draw() -> dict[int, np.ndarray]:
            return {part.numbers[0]: part.images for part in drawn.parts(batches)}

        shares = gather_or_refuse(world, draw)
        images = dict(sorted((first, part) for share in shares for first, part in share.items()))
        return class_sheet(np.concatenate(list(images.values())), self.shown.numpy(), self.classes)

    def figures(self, model: Generator, world: World) -> dict[str, float]:
        """See the class; ``images`` is how many were drawn."""
        network, real, count = self.network, self.real, len(self.asked)
        assert network is not None
        assert real is not None
        look = Look(network, pairs=count)
        if self._reference is None:
            (self._reference,) = views_of(Reference(real.name, real.fingerprint, real), [look], world, Silent())
        against = self._reference
        (seen,) = collect([look], self._drawn(model, self.asked), range(count), world).seen
        found = {
            "images": float(seen.n),
            f"fd_{network.name}": frechet_from_statistics(seen.statistics(network.pooled), against.pooled),
        }
        if against.rows is not None:
            found[f"kd_{network.name}"] = kernel_distance(seen.kept(), against.rows, draws=0, world=world).value
        return found | self.held_out(model, world)

    def _drawn(self, model: Generator, labels: Int[Tensor, "n"]) -> "_FiniteImages":
        return _FiniteImages(model, self.tokenizer, labels, SEED, model.sampling())


class _FiniteImages(DrawnImages):
    """Images of a generator in training, whose weights may have diverged."""

    def parts(self, batches: Sequence[Sequence[int]]) -> Iterator[Part]:
        """See `GivenImages.parts`."""
        with _finite("samples"):
            yield from super().parts(batches)


class SomeImages(SourceImages):
    """Images of a data source, drawn over it, always the same: at most ``most``; see `SourceImages`."""

    def __init__(self, images: ImageSource, name: str, config: DataConfig, workers: int, most: int) -> None:
        super().__init__(images, name, config, workers)
        self.most = most
        if most < len(images):
            self.fingerprint = f"{images.fingerprint} {most}"

    def chosen(self, count: int) -> list[int]:
        """See `GivenImages.chosen`."""
        return super().chosen(min(count, self.most))


def observe_tokenizer(config: TrainConfig, held_out: ImageSource, world: World) -> TokenizerObserver | None:
    """The observer that an experiment asks for; None where it asks for none. Raises InputError in every process."""
    if not (config.sample_every or config.evaluate_every):
        return None
    network = features_at_hand(held_out.shape[:2], world) if config.evaluate_every else None
    return TokenizerObserver(held_out, config.evaluate_images, network, config.engine.workers)


def observe_generator(
    config: TrainConfig,
    tokenizer: Tokenizer | None,
    cache: CodeCache,
    labels: Int[Tensor, "n"],
    held_out: Callable[[Generator, World], dict[str, float]],
    world: World,
) -> GeneratorObserver | None:
    """The observer that an experiment asks for; None where it asks for none.

    labels  of the training codes

    Raises InputError in every process: where figures are asked for and the images of the codes are not known, are gone
    or have changed.
    """
    if tokenizer is None or not (config.sample_every or config.evaluate_every):
        return None
    real = network = None
    if config.evaluate_every:
        real = _training_images(cache, tokenizer.channels, config)
        network = features_at_hand(real.shape[:2], world)
    tokenizer = tokenizer.to(world.device)
    return GeneratorObserver(tokenizer, labels, config.evaluate_images, held_out, real, network)


def _training_images(cache: CodeCache, channels: int, config: TrainConfig) -> GivenImages:
    if not cache.about.get("data"):
        raise InputError(
            f"{cache.folder}: does not say of which images its codes are; expected train.evaluate_every=0 with it"
        )
    data = build(DataConfig, cache.about["data"], str(cache.folder))
    real = open_images(data, "train", channels=channels)
    if real.fingerprint != cache.about["fingerprints"]["train"]:
        raise InputError(
            f"{data.source}: has changed since {cache.folder} was written, or another build read it otherwise;"
            " encode it again"
        )
    most = REAL_A_SAMPLE * config.evaluate_images
    return SomeImages(real, name_of(data, "train"), data, config.engine.workers, most)


class _Reconstructed:
    """What has been counted of some images and their reconstructions, small enough to send."""

    def __init__(self, tokenizer: Tokenizer, network: FeatureNetwork) -> None:
        self._tokenizer, self._network = tokenizer, network
        quantizer = tokenizer.quantizer
        self.scores = ImageScores()
        self.codes = CodeCounts(quantizer.levels, quantizer.groups) if quantizer.levels and quantizer.groups else None
        width = network.widths[network.pooled]
        self.originals, self.reconstructions = FeatureStatistics(width), FeatureStatistics(width)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name not in ("_tokenizer", "_network")}

    @torch.no_grad()
    def add(self, batch: ImageBatch, device: torch.device, *, originals: bool) -> None:
        """Count a batch; of the ``originals`` features too."""
        images = batch.images.to(device)
        with _finite("latents"):
            quantized = self._tokenizer.quantizer(self._tokenizer.latent(images))
        again = to_uint8(self._tokenizer.decode(quantized.codes))
        if self.codes is not None:
            self.codes.add(quantized.digits.cpu())
        a, b = batch.images.cpu(), to_float(again)
        self.scores.add({"psnr": psnr(a, b), "ssim": ssim(a, b)})
        _add(self.reconstructions, self._network, again, device)
        if originals:
            _add(self.originals, self._network, to_uint8(batch.images), device)

    def merge(self, other: "_Reconstructed") -> None:
        """Count what ``other``, of other images, has counted."""
        self.scores.merge(other.scores)
        if self.codes is not None and other.codes is not None:
            self.codes.merge(other.codes)
        self.originals.merge(other.originals)
        self.reconstructions.merge(other.reconstructions)

    def figures(self) -> dict[str, float]:
        """By name. At least one image must have been counted."""
        found = {"images": float(self.reconstructions.n)}
        found |= {name: summary.mean for name, summary in self.scores.summary().items()}
        if self.codes is not None:
            use = self.codes.statistics()
            found |= {
                "level_entropy": use.mean_fraction,
                "dead_levels": float(sum(use.dead_levels)),
                "index_use": float(np.mean([group.fraction / group.fraction_limit for group in use.groups])),
            }
        return found


def _add(
    seen: FeatureStatistics, network: FeatureNetwork, images: UInt8[np.ndarray, "b H W c"], device: torch.device
) -> None:
    pixels = torch.from_numpy(images).movedim(-1, 1)
    for part in pixels.split(FEATURES_AT_ONCE):
        seen.add(network(part.to(device), [network.pooled])[network.pooled])


@contextmanager
def _finite(what: str) -> Iterator[None]:
    """Models refuse what is not finite as ValueError: the weights have diverged, which a person must be told."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{what} in training: {error}; lower train.optim.lr, in a new folder") from error
