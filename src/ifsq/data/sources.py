"""From a config to images: which splits a source has, and the images of one of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ifsq.data.bundled import Bundled, Digits, Photos, Shapes
from ifsq.data.containers import folder, hf, listed, shards
from ifsq.data.encoded import Catalogue, EncodedImages
from ifsq.data.images import SPLITS, DataConfig, DataError, ImageSource, check_channels
from ifsq.data.labels import NO_CLASSES
from ifsq.data.paths import at_home
from ifsq.data.splits import ALL, TRAIN, VAL, Part, alone_is_all, find_part, in_order, split_of
from ifsq.data.stream import Stream

MAKERS: dict[str, type[Bundled]] = {"bundled:photos": Photos, "bundled:digits": Digits, "bundled:shapes": Shapes}


def open_images(config: DataConfig, split: str, *, labels: bool = True, channels: int = 3) -> ImageSource:
    """The images of one split of the source that a config names.

    split     ``train``; ``val``, which is a twentieth of the training images where the source has none of its own; the
              name of any other split that it has (`splits_of`); ``all``, the whole of a source without splits
    labels    whether they matter: with False, images without a label or of a class that training has not are taken
              too, and get `labels.NO_LABEL`
    channels  3 for RGB; 1 for the luminance, Pillow's ``L``. It is the tokenizer that says which

    Raises DataError when there are none to read, no such split, and for other channels.
    """
    check_channels(channels)
    if config.source in MAKERS:
        if split not in SPLITS:
            raise DataError(f"{config.source}: has the splits {' and '.join(SPLITS)}; expected {split}")
        return MAKERS[config.source](config, split, channels)
    if config.stream:
        return Stream(config, find_part(config, split, _streams), labels, channels)
    part = find_part(config, split, partial(_catalogues, label_column=config.label_column))
    train = part.train()
    held = train if part.held is part.train else part.held()
    return EncodedImages(config, Part(part.split, held, train, part.drawn, part.untouched), labels, channels)


def splits_of(config: DataConfig) -> tuple[str, ...]:
    """Names of the splits that a source has of its own: train, val, test, others. Empty where names decide."""
    if config.source in MAKERS:
        return SPLITS
    found = _streams(config.source) if config.stream else _catalogues(config.source, config.label_column)
    given = {TRAIN, VAL} if config.val_source else set()
    return tuple(in_order({*found, *given} - {ALL}))


def split_called(config: DataConfig, name: str) -> str:
    """What `splits_of` calls a split that is given by any of its names: ``val`` for ``validation``."""
    return name if name in splits_of(config) else split_of(name) or name


def describe_images(train: ImageSource, val: ImageSource) -> str:
    """What will be read, in a line: ``640 images in 10 classes to train on, 64 held out``."""
    line = describe_counts(len(train), train.labels, train.classes, len(val))
    if train.untouched:
        line += f"; split{'s' if len(train.untouched) > 1 else ''} {', '.join(train.untouched)} left alone"
    return line + _left_out(train, val)


def describe_splits(sources: Mapping[str, ImageSource]) -> str:
    """What will be read of any splits, by their names: ``64 images in 10 classes of test``."""
    told = (f"{_counted(len(one), one.labels, one.classes)} of {split}" for split, one in sources.items())
    return ", ".join(told) + _left_out(*sources.values())


def describe_counts(train: int, labels: Iterable[int] | None, classes: Sequence[str], val: int) -> str:
    """What will be read, from numbers of images alone.

    labels  of the training images; None where they are not known
    """
    return f"{_counted(train, labels, classes)} to train on, {val} held out"


def _counted(images: int, labels: Iterable[int] | None, classes: Sequence[str]) -> str:
    occur = len(classes) if labels is None else len(set(labels))
    held = f"{occur} class{'es' if occur > 1 else ''}{f' of {len(classes)}' if occur < len(classes) else ''}"
    what = "without labels" if tuple(classes) == NO_CLASSES else f"in {held}"
    return f"{images} image{'s' if images > 1 else ''} {what}"


def _left_out(*sources: ImageSource) -> str:
    unread = list(dict.fromkeys(name for one in sources for name in one.unread))  # of one place, all see the same
    return f"; not read and left out: {len(unread)}, the first {unread[0]}" if unread else ""


def _streams(source: str) -> dict[str, tuple[str, Any]]:
    """What to call the stream of each split, and the stream."""
    return {split: (source, rows) for split, rows in hf.open_splits(source, stream=True).items()}


def _catalogues(source: str, label_column: str) -> dict[str, Callable[[], Catalogue]]:
    """What makes the catalogue of each split; of ``all`` alone for a source without splits."""
    if source.startswith("hf:"):
        tables = hf.open_splits(source)
        return {split: partial(hf.Table, source, split, rows, label_column) for split, rows in tables.items()}
    path = Path(at_home(source))
    if path.suffix.lower() in listed.LISTS and not path.is_dir():
        rows = listed.read_list(path, label_column)
        return alone_is_all({split: partial(listed.Listed, path, rows[split]) for split in in_order(rows)})
    if shards.are_shards(str(path)):
        return _shards(source, shards.expand(str(path)), label_column, named=True)
    places = folder.find_splits(path)
    if places:
        return alone_is_all({split: partial(_catalogue_in, place, label_column) for split, place in places.items()})
    if tars := shards.tars_in(path):
        return _shards(source, tars, label_column)
    return {ALL: partial(folder.Folder, path, label_column)}


def _shards(
    source: str, tars: list[Path], label_column: str, named: bool = False
) -> dict[str, Callable[[], Catalogue]]:
    """Shards by the splits in their names; of a single split, all that a person named themselves are the whole."""
    found = shards.split_shards(source, tars)
    if not found or (named and len(found) == 1):
        return {ALL: partial(shards.Shards, source, tars, label_column)}
    return alone_is_all({split: partial(shards.Shards, source, some, label_column) for split, some in found.items()})


def _catalogue_in(place: Path, label_column: str) -> Catalogue:
    tars = shards.tars_in(place)
    return shards.Shards(str(place), tars, label_column) if tars else folder.Folder(place, label_column)
