"""Experiments and grids that are shipped with the package."""

from importlib.resources import files
from pathlib import Path


def experiment_file(name: str) -> Path:
    """An experiment that is shipped: inside the installed package, or in the checkout of a development install."""
    installed = Path(str(files("ifsq"))) / "experiments" / name
    return installed if installed.is_file() else Path(__file__).resolve().parents[3] / "experiments" / name


def grid_name(file: Path) -> str:
    """What to ask ``ifsq bench`` for: a shipped grid by its name, any other by its path."""
    return file.stem if file == experiment_file(f"grids/{file.name}") else str(file)
