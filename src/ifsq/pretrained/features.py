"""The networks that distances look through, by name: ``inception``, ``efficientnet-lite0``, ``pixels``, and more.

One more, from another package:

    class Mine(FeatureNetwork):                     # ifsq.pretrained.network
        name, pooled, widths = "mine", "512", {"512": 512}
        def forward(self, images, wanted): ...      # uint8 (b, c, H, W) -> {"512": (b, 512)}

    register_features("mine", lambda path, side: Mine(path))

The command finds it where the package names the loader among its entry points, in ``pyproject.toml``:

    [project.entry-points."ifsq.features"]
    mine = "my_package.networks:load_mine"
"""

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

from ifsq.config import InputError
from ifsq.pretrained.efficientnet_lite import LARGEST_SIDE, SMALLEST_SIDE, load_efficientnet_lite
from ifsq.pretrained.efficientnet_lite import NAME as EFFICIENTNET
from ifsq.pretrained.inception import load_inception
from ifsq.pretrained.network import FeatureNetwork
from ifsq.pretrained.pixels import Pixels
from ifsq.store.files import first_line

ENTRY_POINTS = "ifsq.features"

Loader = Callable[[str | Path | None, int | None], FeatureNetwork]
"""(file of weights or None, pixels a side that images are resized to or None: as the network has it) -> the network.

Raises InputError where it has no use for one of them.
"""


def load_features(name: str, path: str | Path | None = None) -> FeatureNetwork:
    """A network by its registered name, on the CPU.

    name  as ``inception``, or with the pixels a side that images are resized to, as ``efficientnet-lite0@128``
    path  file of its weights; None: found on this machine or at their official address (`weights.find_weights`)

    Raises InputError for an unknown name and for weights that are missing or do not fit.
    """
    base, at, size = check_features(name)
    loader = _LOADERS.get(base) or _from_entry_points(base)
    assert loader is not None  # as the name is known
    return loader(path, int(size) if at else None)


def check_features(name: str) -> tuple[str, str, str]:
    """A name of `load_features` in parts: what is registered, ``@``, and pixels a side. Raises InputError."""
    base, at, size = name.partition("@")
    if at and not (size.isascii() and size.isdigit()):
        raise InputError(f"features {name!r}: expected pixels a side behind the @, as {EFFICIENTNET}@128")
    if base not in feature_names():
        raise InputError(f"features {name!r}: expected one of {', '.join(feature_names())}")
    return base, at, size


def register_features(name: str, load: Loader) -> None:
    """Let `load_features` know ``name``. Raises ValueError for one that is taken, empty or has an ``@`` in it."""
    if not name or "@" in name or name in _LOADERS:
        raise ValueError(f"features {name!r}: expected a name without @ other than {', '.join(_LOADERS)}")
    _LOADERS[name] = load


def feature_names() -> list[str]:
    """What `load_features` knows, installed packages included."""
    return list(dict.fromkeys([*_LOADERS, *sorted(entry_points(group=ENTRY_POINTS).names)]))


def _from_entry_points(name: str) -> Loader | None:
    for found in entry_points(group=ENTRY_POINTS, name=name):
        try:
            return found.load()
        except (ImportError, AttributeError) as error:
            raise InputError(f"features {name!r}: {found.value} could not be imported, {first_line(error)}") from error
    return None


def _inception(path: str | Path | None, side: int | None) -> FeatureNetwork:
    if side is not None:
        raise InputError(f"features inception@{side}: expected no side, its images are resized to 299 pixels")
    return load_inception(path)


def _efficientnet(path: str | Path | None, side: int | None) -> FeatureNetwork:
    if side is None:
        return load_efficientnet_lite(path)
    if not SMALLEST_SIDE <= side <= LARGEST_SIDE:
        raise InputError(f"features {EFFICIENTNET}@{side}: expected {SMALLEST_SIDE} to {LARGEST_SIDE} pixels a side")
    return load_efficientnet_lite(path, side)


def _pixels(path: str | Path | None, side: int | None) -> FeatureNetwork:
    if path is not None or side is not None:
        given = f"file {path}" if path is not None else f"side {side}"
        raise InputError(f"features pixels: {given} given, expected none: it has no weights and one size")
    return Pixels()


_LOADERS: dict[str, Loader] = {"inception": _inception, EFFICIENTNET: _efficientnet, "pixels": _pixels}
