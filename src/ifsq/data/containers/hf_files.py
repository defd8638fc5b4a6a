"""Which files a data set of Hugging Face's library may name: its own, never an address or a file elsewhere.

A row may hold a path in the place of an image, and a folder's README says which files belong to it; the library opens
whatever they say, over the network too. And it guesses the splits of loose images from any part of their paths.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ifsq.data.containers.folder import images_below
from ifsq.data.formats import is_image
from ifsq.data.images import DataError
from ifsq.data.paths import at_home, file_state, shown
from ifsq.data.splits import split_of, split_within

_ARCHIVES = ("zip", "tar", "gzip", "bz2", "xz", "zstd", "lz4", "7z", "rar")
_CARDS = ("README.md", ".huggingface.yaml")


def file_of(where: str, image: Any, source: str) -> Path | bytes:
    """The file of an undecoded image. Raises DataError where there is none, or it is not one of the source's own."""
    if image is None or (image["bytes"] is None and not image["path"]):
        raise DataError(f"{where}: expected an image, found none")
    if image["bytes"] is not None:
        return image["bytes"]
    path = _own(where, image["path"], source)
    if "://" not in path:
        file_state(Path(path), f"{where}: {path}", "an image")
        return Path(path)
    import fsspec

    with fsspec.open(path, "rb") as file:
        return file.read()


def refuse_addresses(source: str, folder: Path) -> None:
    """Raise DataError where the card in a folder says that some of its files are at an address."""
    from huggingface_hub.repocard import metadata_load

    for name in _CARDS:
        if (folder / name).is_file():
            for text in _texts((metadata_load(folder / name) or {}).get("configs")):
                if "://" in text:
                    raise DataError(f"{source}: {name} names the address {shown(text)}; expected files of the folder")


def check_files(source: str, folder: Path, files: Mapping[Any, Iterable[str]]) -> None:
    """Raise DataError where the library takes other files for the splits of a folder than lie there as such.

    files  paths by split, as the library has resolved them
    """
    of: dict[str, str] = {}  # of an image, relative to the folder
    for split, paths in files.items():
        for path in paths:
            inside = _inside(_own(source, path, source), folder)
            if not is_image(inside):
                continue
            said = {split_within(part) for part in Path(inside).parts[:-1]} - {None}
            own = split_of(str(split)) or str(split)
            if of.setdefault(inside, own) != own or (len(said) == 1 and said != {own}):
                raise DataError(f"{source}: the library takes {inside} for an image of {split}; {_advice(folder)}")
    if of and (left := [name for name in images_below(folder) if name not in of]):
        raise DataError(f"{source}: the library leaves out {len(left)} images, the first {left[0]}; {_advice(folder)}")


def _inside(path: str, folder: Path) -> str:
    """The path of a file relative to its folder, whose links the library has followed."""
    followed = os.path.realpath(folder)
    below = Path(path).is_relative_to(followed)
    return os.path.relpath(path, followed if below else os.path.abspath(folder))


def _advice(folder: Path) -> str:
    return f"it guesses splits from parts of names: give {folder} without hf:"


def _own(where: str, path: str, source: str) -> str:
    """The path, where it is the source's own: below its folder, in its repository, or in the library's cache."""
    *archives, place = path.split("::")
    inside_archives = all(archive.partition("://")[0] in _ARCHIVES for archive in archives)
    if inside_archives and (_in_repository(place, source) if "://" in place else _in_folder(place, source)):
        return path
    raise DataError(f"{where}: names {shown(path)}: expected a file of the data set itself, or the bytes of an image")


def _in_repository(place: str, source: str) -> bool:
    name = source.removeprefix("hf:")
    return place.startswith((f"hf://datasets/{name}@", f"hf://datasets/{name}/")) and ".." not in place.split("/")


def _in_folder(place: str, source: str) -> bool:
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    name = at_home(source).removeprefix("hf:")
    homes = [config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, config.EXTRACTED_DATASETS_PATH]
    homes += [os.path.abspath(name), os.path.realpath(name)] if Path(name).is_dir() else [HF_HUB_CACHE]
    plain = os.path.abspath(place)
    return any(Path(plain).is_relative_to(os.path.abspath(home)) for home in homes)


def _texts(value: Any) -> Iterator[str]:
    """Every text in a nested value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for part in value.values() for text in _texts(part))
    elif isinstance(value, list):
        yield from (text for part in value for text in _texts(part))
