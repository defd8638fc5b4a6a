"""Splits of a source by the names that people give them: what is for training is never mixed with the rest.

``train``, ``val`` and ``test`` are also called Training, trainset, validation, valid, dev, testing, eval ..., in any
case, with a number or ``images`` beside (``train2017``, ``test_images``). A ``test`` split is never trained on and
never validated on; it is opened where it is asked for by name.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Generic, TypeVar

from ifsq.data.images import DataConfig, DataError

Held = TypeVar("Held")

TRAIN, VAL, TEST = "train", "val", "test"
ALL = "all"
"""The split that is a whole source, where it has no splits of its own or only one."""
_WORDS = {
    **dict.fromkeys(("train", "training", "trainset", "trainval"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "valset", "dev", "devset"), VAL),
    **dict.fromkeys(("test", "testing", "testset", "eval", "evaluation", "holdout", "heldout"), TEST),
}
_BESIDE = frozenset({"set", "split", "data", "dataset", "image", "images", "img", "imgs", "photos", "pictures"})
_PARTS = re.compile(r"[\W\d_]+")


@dataclass(frozen=True)
class Part(Generic[Held]):
    """What a split is read from.

    split      its name
    held       what holds its images
    train      what holds those of training, which number the classes; ``held`` where there are none
    drawn      whether the split is only a part of ``held``, which names decide
    untouched  the source's splits that are neither trained on nor held out
    """

    split: str
    held: Held
    train: Held
    drawn: bool
    untouched: tuple[str, ...]


def find_part(config: DataConfig, split: str, read: Callable[[str], Mapping[str, Held]]) -> Part[Held]:
    """Where the images of a split are, in what ``read`` says of the splits of a source: ``all`` alone, or others.

    Raises DataError when there is no such split.
    """
    found = read(config.source)
    name = split if split in found else split_of(split) or split
    train = found.get(TRAIN, found.get(ALL))
    used = (TRAIN, ALL) if config.val_source else (TRAIN, VAL, ALL)
    untouched = tuple(other for other in in_order(found) if other not in used)
    drawn = False
    if name == VAL and config.val_source:
        held: Held | None = _to_validate(config.val_source, read(config.val_source))
    elif name == ALL and len(found) == 1:
        held = next(iter(found.values()))
    elif name in (TRAIN, VAL) and not (name == VAL and VAL in found):
        held, drawn = train, VAL not in found and not config.val_source
    else:
        held = found.get(name)
    if held is None:
        has = "no splits of its own" if ALL in found else f"the splits {', '.join(in_order(found))}"
        raise DataError(f"{config.source}: has {has}; expected {name}")
    return Part(name, held, held if train is None else train, drawn, untouched)


def _to_validate(source: str, found: Mapping[str, Held]) -> Held:
    """The images of a source that is named for validation: its ``val``, or all where it has no others."""
    if VAL not in found and len(found) > 1:
        raise DataError(f"val_source {source}: has the splits {', '.join(in_order(found))}; expected val or no splits")
    return found[VAL] if VAL in found else next(iter(found.values()))


def split_of(name: str) -> str | None:
    """``train``, ``val`` or ``test`` where a name says one of them and nothing else."""
    words = _words(name)
    found = [_WORDS[word] for word in words if word in _WORDS]
    return found[0] if len(found) == 1 and all(word in _WORDS or word in _BESIDE for word in words) else None


def split_within(name: str) -> str | None:
    """``train``, ``val`` or ``test`` where one of the words in a name says so, and no other says otherwise."""
    found = {_WORDS[word] for word in _words(name) if word in _WORDS}
    return found.pop() if len(found) == 1 else None


def _words(name: str) -> list[str]:
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)  # trainA
    return [word for word in _PARTS.split(apart.casefold()) if word]


def in_order(names: Iterable[str]) -> list[str]:
    """Names of splits: train, val, test, then the others sorted."""
    known = [TRAIN, VAL, TEST]
    return sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))


def alone_is_all(found: dict[str, Held]) -> dict[str, Held]:
    """A source that holds images for training only has no splits."""
    return {ALL: found[TRAIN]} if set(found) == {TRAIN} else found


def folders_by_split(place: str, folders: Sequence[str]) -> dict[str, str]:
    """Which folder holds which split; nothing where the folders are classes.

    folders  those with images in them, that lie side by side

    One folder ``train`` among others is a class; beside another split every folder is a split, by its own name if it
    says none. Raises DataError where splits and classes lie side by side, or a split lies in two folders.
    """
    said = {folder: split_of(folder) for folder in folders}
    kinds = {split for split in said.values() if split}
    loosely = {folder: split_within(folder) for folder in folders}
    if None in said.values() and None not in loosely.values() and {TRAIN} < set(loosely.values()):
        said = loosely  # seg_train and seg_test; but not test_tube among other classes
    elif None in said.values() and kinds <= {TRAIN}:
        return {}
    elif None in said.values() and TRAIN not in kinds:
        split, other = (next(name for name in folders if (said[name] is None) == which) for which in (False, True))
        raise DataError(
            f"{place}: holds {split} beside {other}; expected splits (train, val, test) or classes, not both"
        )
    found: dict[str, str] = {}
    for folder in folders:
        split = said[folder] or folder
        if split in found:
            raise DataError(f"{place}: holds {found[split]} and {folder} for the split {split}; expected one of them")
        found[split] = folder
    return found


def names_by_split(place: str, names: Sequence[str]) -> dict[str, list[str]]:
    """Which files belong to which split by the words in their names; nothing where they say none.

    Raises DataError where some names say a split that is not ``train`` and others say none.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(split_within(PurePath(name).name) or "", []).append(name)
    if set(found) <= {"", TRAIN} and "" in found:
        return {}
    if "" in found:
        split = next(split for split in found if split not in ("", TRAIN))
        raise DataError(f"{place}: {found[split][0]} says a split and {found[''][0]} none; expected it of all or none")
    return found


def refuse_splits_below(place: str, names: Iterable[str], deepest: int = 0) -> None:
    """Raise DataError where a folder in the paths ``names`` holds training and other images of one class.

    deepest  levels of folders at the top that are not looked at
    """
    below: dict[str, dict[str, str]] = {}
    for folder in sorted({name.rpartition("/")[0] for name in names}):
        parts = folder.split("/")
        for level in range(deepest, len(parts)):
            split = split_of(parts[level])
            if split:
                below.setdefault("/".join(parts[:level]), {})[split] = parts[level]
    for parent, found in sorted(below.items()):
        if TRAIN in found and len(found) > 1:
            held = " and ".join(found[split] for split in in_order(found))
            raise DataError(f"{place}: {parent or 'the top'} holds {held}; expected splits above everything else")
