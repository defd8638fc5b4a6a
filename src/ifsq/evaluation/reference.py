"""What samples are held against: images, or the statistics of some that a file gives; and what networks see of them.

What they see is kept in a cache folder (``IFSQ_CACHE``), by the images' fingerprint and a glimpse of them, the network
and the protocol.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ifsq.config import InputError, digest, parse_json
from ifsq.data import DataError
from ifsq.data.images import Reading, Size
from ifsq.data.npz import Npz
from ifsq.evaluation.collect import Look, Seen, collect
from ifsq.evaluation.given import (
    IMAGES,
    ArrayImages,
    GivenImages,
    is_npz,
    open_source,
    refuse_other_size,
    refuse_split,
)
from ifsq.metrics import FeatureStatistics, Moments
from ifsq.metrics.distribution import INCEPTION_2015
from ifsq.store.files import CACHE, WriteError, cache_folder, first_line, make_folder, write_tensors
from ifsq.store.run import CONFIG
from ifsq.store.weights import tensors_digest, weights_digest
from ifsq.training.distributed import World, from_first
from ifsq.training.log import Reporter

FORMAT = 1
POOLED, SPATIAL = ("mu", "sigma"), ("mu_s", "sigma_s")
"""Arrays of statistics in an .npz: of pooled features, as pytorch-fid and ADM write them, and of spatial ones (ADM)."""


@dataclass(frozen=True)
class Reference:
    """What a person gave.

    name, fingerprint  for cards
    images             None: statistics alone
    pooled, spatial    statistics that the file gives, of Inception's features
    """

    name: str
    fingerprint: str
    images: GivenImages | None = None
    pooled: Moments | None = None
    spatial: Moments | None = None


@dataclass(frozen=True)
class View:
    """What one network sees of a reference.

    n               images behind the statistics; 0: the file does not say
    pooled, spatial statistics of features
    rows            pooled features of single images
    given           whether the statistics are those of the file
    skipped         a line about each image that could not be read
    """

    n: int
    pooled: FeatureStatistics | Moments
    spatial: FeatureStatistics | Moments | None = None
    rows: Float[Tensor, "m f"] | None = None
    given: bool = False
    skipped: tuple[str, ...] = ()


def open_reference(source: str, split: str, size: Size, own: Size, reading: Reading) -> Reference:
    """A reference by its path or name.

    source  an .npz of images (``arr_0``), of statistics (``mu``, ``sigma``, and ``mu_s``, ``sigma_s``) or of both, as
            ADM's are; else a data source
    split   of a data source; empty: ``train``, or all of one without splits
    size    that a data source is brought to; 0: as it is
    own     size for what has none of its own

    Raises DataError.
    """
    if (Path(source) / CONFIG).is_file():  # its pictures would be taken for images
        raise DataError(f"{source}: is a run; expected images, or their statistics, as a reference")
    if not is_npz(source):
        images: GivenImages = open_source(source, split, size, own, reading, prefer=("train",))
        return Reference(images.name, images.fingerprint, images)
    refuse_split(source, split)
    file = Npz(Path(source))
    pooled, spatial = _moments(file, *POOLED), _moments(file, *SPATIAL)
    if IMAGES not in file and pooled is None:
        held = ", ".join(sorted(file.members)) or "no arrays"
        raise DataError(f"{source}: holds {held}; expected images as {IMAGES}, or statistics as {' and '.join(POOLED)}")
    if IMAGES not in file:
        return Reference(source, file.fingerprint, None, pooled, spatial)
    images = ArrayImages(Path(source))
    refuse_other_size(images, size)
    return Reference(source, file.fingerprint, images, pooled, spatial)


def views_of(
    reference: Reference, looks: Sequence[Look], world: World, reporter: Reporter, keep: bool = True
) -> list[View]:
    """What the networks see of a reference: kept from an earlier time, or seen now by all processes.

    keep  read and write the cache

    Raises InputError in every process.
    """
    if reference.images is None:
        return [_given(reference, look) for look in looks]
    looks = [replace(look, score=False, agreement=False) for look in looks]
    images = reference.images

    def read() -> tuple[list[dict[str, Any]], list[View | None]]:
        if not keep:
            return [], [None] * len(looks)
        told = [_about(reference, images, look) for look in looks]
        kept = [_read(about, look, reporter.say) for about, look in zip(told, looks, strict=True)]
        # Of all images or none: which ones one lacks is not kept, and the next to ask may refuse what is broken.
        return told, [view if view is not None and view.n == len(images) else None for view in kept]

    told, known = from_first(world, read)
    lacking = [look for look, view in zip(looks, known, strict=True) if view is None]
    if lacking:
        found = collect(lacking, images, images.chosen(len(images)), world, reporter, "reference images")
        fresh = iter(
            [_seen(look, seen, reference, found.skipped) for look, seen in zip(lacking, found.seen, strict=True)]
        )
        views = [next(fresh) if view is None else view for view in known]
    else:
        views = [view for view in known if view is not None]

    def write() -> None:
        for view, before, about in zip(views, known, told, strict=True):
            if before is None and not view.skipped:
                _write(about, view, reporter.say)

    if keep:
        from_first(world, write)
    return [_with_given(view, reference, look) for view, look in zip(views, looks, strict=True)]


def _moments(file: Npz, mean: str, covariance: str) -> Moments | None:
    """Statistics under these names; None where the file has none. Raises DataError."""
    there = [name for name in (mean, covariance) if name in file]
    if not there:
        return None
    if len(there) == 1:
        raise DataError(f"{file.path}: holds {there[0]} without {covariance if there == [mean] else mean}")
    shapes = {name: file.members[name].shape for name in there}
    width = shapes[mean][0] if len(shapes[mean]) == 1 else 0
    if not width or shapes[covariance] != (width, width):
        raise DataError(
            f"{file.path}: {mean} {shapes[mean]} and {covariance} {shapes[covariance]}: expected (f,) and (f, f)"
        )
    for name in there:
        if file.members[name].dtype.kind != "f":
            raise DataError(f"{file.path}: {name}: is of {file.members[name].dtype}; expected floats")
    found = [torch.from_numpy(file.array(name).astype(np.float64)) for name in there]  # of any width and byte order
    for name, values in zip(there, found, strict=True):
        if not bool(values.isfinite().all()):
            raise DataError(f"{file.path}: {name}: expected finite values, found nan or infinity")
    if not torch.allclose(found[1], found[1].T, rtol=1e-5, atol=1e-6 * float(found[1].abs().max())):
        raise DataError(f"{file.path}: {covariance}: is not symmetric; expected a covariance")
    return Moments(found[0], (found[1] + found[1].T) / 2)


def _given(reference: Reference, look: Look) -> View:
    """The statistics of the file, for features that they can be of. Raises InputError."""
    assert reference.pooled is not None
    network = look.network
    width = network.widths[network.pooled]
    if not _could_be(reference.pooled, network.pooled, look):
        raise InputError(
            f"{reference.name}: holds statistics of {len(reference.pooled.mean)} features, and {network.name} has"
            f" {width}; expected a reference of images for these"
        )
    spatial = reference.spatial
    if spatial is not None and not (look.spatial and network.spatial and _could_be(spatial, network.spatial, look)):
        spatial = None
    return View(0, reference.pooled, spatial, None, True)


def _with_given(view: View, reference: Reference, look: Look) -> View:
    """Where a file has images and statistics, as ADM's have of a few images and of all, the statistics of all count."""
    network, pooled, spatial = look.network, reference.pooled, reference.spatial
    if pooled is None or network.name != INCEPTION_2015 or not _could_be(pooled, network.pooled, look):
        return view  # other weights see other things: of the images alone
    if spatial is None or not (look.spatial and network.spatial and _could_be(spatial, network.spatial, look)):
        spatial = None
    return View(0, pooled, spatial, view.rows, True, view.skipped)


def _could_be(given: Moments, output: str, look: Look) -> bool:
    """Whether statistics, which are Inception's by custom, have the width of these features."""
    return look.network.name.startswith("inception") and len(given.mean) == look.network.widths[output]


def _seen(look: Look, seen: Seen, reference: Reference, skipped: Sequence[str]) -> View:
    network = look.network
    if seen.n < 2:
        raise DataError(f"{reference.name}: {seen.n} images could be read; expected two at least")
    return View(
        seen.n,
        seen.statistics(network.pooled),
        seen.statistics(network.spatial) if look.spatial and network.spatial else None,
        seen.kept() if look.pairs else None,
        skipped=tuple(skipped),
    )


def told_of(look: Look) -> str:
    """The features of a network, with the hash of its weights, as cards have it."""
    return f"{look.network.name} {weights_digest(look.network)[:12]}"


def _about(reference: Reference, images: GivenImages, look: Look) -> dict[str, Any]:
    """What decides a view."""
    return {
        "format": FORMAT,
        "reference": reference.fingerprint,
        "glimpse": images.glimpse(),
        "features": told_of(look),
        "spatial": bool(look.spatial and look.network.spatial),
        "pairs": look.pairs,
    }


def _file(about: Mapping[str, Any]) -> Path:
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return cache_folder("references") / f"{name}.safetensors"


def _read(about: Mapping[str, Any], look: Look, say: Callable[[str], None]) -> View | None:
    """The view that is kept; None where there is none, or it is damaged, which is said."""
    path = _file(about)
    try:
        if not path.is_file():
            return None
        with safe_open(path, "pt") as file:
            told = parse_json((file.metadata() or {}).get("about", "{}"), "about")
            table = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        summed = told.pop("sum", None)  # those of before have none
        if told != {**about, "n": told.get("n"), "digest": tensors_digest(table)} or summed not in (None, digest(told)):
            raise ValueError("its content is not what it says")
        n = int(told["n"])
        pooled = Moments(table["mean"], table["covariance"])
        spatial = Moments(table["spatial_mean"], table["spatial_covariance"]) if about["spatial"] else None
        return View(n, pooled, spatial, table["rows"] if look.pairs else None)
    except (OSError, SafetensorError, ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:
        say(f"{path}: kept statistics are damaged ({first_line(error)}); made anew")
        return None


def _write(about: Mapping[str, Any], view: View, say: Callable[[str], None]) -> None:
    """Keep a view; where that cannot be it is said, since no figure depends on it."""
    table = {"mean": view.pooled.mean, "covariance": view.pooled.covariance}
    if view.spatial is not None:
        table |= {"spatial_mean": view.spatial.mean, "spatial_covariance": view.spatial.covariance}
    if view.rows is not None:
        table["rows"] = view.rows
    table = {name: value.contiguous() for name, value in table.items()}
    path = _file(about)
    told = {**about, "n": view.n, "digest": tensors_digest(table)}
    told["sum"] = digest(told)
    try:
        make_folder(path.parent)
        write_tensors(path, table, {"about": json.dumps(told)})
    except WriteError as error:
        say(f"{path.parent}: statistics of the reference cannot be kept ({error.why}); set {CACHE} to another folder")
