"""Shapes in signatures are checked in every test; golden vectors are read where they lie, or the test says it skips."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import install_import_hook
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[1]
# The quantizers have no shapes in their signatures (they import torch only), and a compiler cannot trace the checks.
install_import_hook(
    sorted(
        f"ifsq.{path.stem}"
        for path in (ROOT / "src/ifsq").iterdir()
        if path.stem not in ("__init__", "__main__", "__pycache__", "quantizers")
    ),
    "beartype.beartype",
)
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Any]:
    """``golden("dit_tiny")``: what the official implementation computes on small models, as an open file."""
    folder = Path(os.environ.get("IFSQ_GOLDEN", ROOT.parent / "shared" / "golden"))

    def open_file(name: str) -> Any:
        path = folder / f"{name}.safetensors"
        if not path.is_file():
            pytest.skip(f"golden vectors are not here: {path} is absent; set IFSQ_GOLDEN to their folder")
        return safe_open(path, "pt")

    return open_file


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT
