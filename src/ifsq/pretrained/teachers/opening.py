"""The one door to teachers: a name, a folder or a repository of the hub -> a teacher.

One more, from another package:

    register_teacher("mine", lambda config: ModuleTeacher(network, look, 384, "mine"))

The command finds it where the package names the loader among its entry points, in ``pyproject.toml``:

    [project.entry-points."ifsq.teachers"]
    mine = "my_package.networks:open_mine"
"""

import os
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

from ifsq.config import InputError, read_json
from ifsq.pretrained.efficientnet_lite import NAME as EFFICIENTNET
from ifsq.pretrained.teachers.config import TeacherConfig
from ifsq.pretrained.teachers.face import ImageTeacher
from ifsq.pretrained.teachers.families import SHORT_NAMES
from ifsq.pretrained.teachers.module import open_efficientnet
from ifsq.pretrained.teachers.trained import open_trained
from ifsq.pretrained.teachers.vision import CONFIG, INDEX, PIXELS, WHOLE, load_transformers, open_vision
from ifsq.pretrained.weights import FOLDER
from ifsq.store.files import first_line
from ifsq.store.hub import REPOSITORY, locate
from ifsq.store.run import Run

ENTRY_POINTS = "ifsq.teachers"
HUB = "https://huggingface.co"

Loader = Callable[[TeacherConfig], ImageTeacher]
"""Opens a teacher on the CPU. Raises InputError where it cannot, or has no use for one of the options."""


def open_teacher(config: TeacherConfig) -> ImageTeacher:
    """The teacher that ``config.source`` means, on the CPU.

    A repository ``owner/name`` is looked for as the folder ``name`` in ``$IFSQ_WEIGHTS``, then on the hub. Raises
    InputError, in one line that says what to install or where to put which files, where it is not to be had.
    """
    loader = _LOADERS.get(config.source) or _from_entry_points(config.source)
    if loader is not None:
        return loader(config)
    folder = _folder(config.source)
    if _is_run(folder):
        return open_trained(Run.open(folder), config)
    return open_vision(folder, config)


def check_teacher(source: str) -> None:
    """Raise InputError for a source that is no name, no folder and no repository's name, before anything is loaded."""
    if source in teacher_names() or Path(source).exists() or REPOSITORY.fullmatch(source):
        return
    raise InputError(
        f"teacher {source!r}: no such folder; expected one, a repository owner/name, or one of"
        f" {', '.join(teacher_names())}"
    )


def register_teacher(name: str, load: Loader) -> None:
    """Let `open_teacher` know ``name``. Raises ValueError for one that is taken or empty."""
    if not name or name in _LOADERS or name in SHORT_NAMES:
        raise ValueError(f"teacher {name!r}: expected a name other than {', '.join([*_LOADERS, *SHORT_NAMES])}")
    _LOADERS[name] = load


def teacher_names() -> list[str]:
    """What `open_teacher` knows by name, installed packages included."""
    return list(dict.fromkeys([*_LOADERS, *SHORT_NAMES, *sorted(entry_points(group=ENTRY_POINTS).names)]))


def _folder(source: str) -> Path:
    """Where the files of a source lie on this machine, fetched from the hub where they do not."""
    check_teacher(source)
    repository = SHORT_NAMES.get(source, source)
    if Path(source).exists():
        return Path(source)
    name = repository.split("/")[1]
    if os.environ.get(FOLDER) and (kept := Path(os.environ[FOLDER]) / name).is_dir():
        return kept
    load_transformers(source)  # before gigabytes are fetched for it
    try:
        return locate(repository, files=(CONFIG,), optional=(PIXELS, WHOLE, INDEX, "model-*.safetensors"))
    except InputError as error:
        raise InputError(
            f"teacher {source!r}: {error}; or put {CONFIG}, {PIXELS} and {WHOLE} from {HUB}/{repository} into a folder"
            f" {name!r} of the folder ${FOLDER} names"
        ) from error


def _is_run(folder: Path) -> bool:
    """Whether it holds something of ifsq, and not a network in the form of transformers."""
    if not (folder / CONFIG).is_file():
        return False
    said = read_json(folder / CONFIG)
    return isinstance(said, dict) and "kind" in said and "model_type" not in said


def _from_entry_points(name: str) -> Loader | None:
    for found in entry_points(group=ENTRY_POINTS, name=name):
        try:
            return found.load()
        except (ImportError, AttributeError) as error:
            raise InputError(f"teacher {name!r}: {found.value} could not be imported, {first_line(error)}") from error
    return None


_LOADERS: dict[str, Loader] = {EFFICIENTNET: open_efficientnet}
