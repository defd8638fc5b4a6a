"""Shapes in signatures are checked in every test; golden vectors are read where they lie, or the test says it skips."""

import importlib.util
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
# Not in the quantizers and what `ifsq.calibrate` and `ifsq.convert` load: they import torch only, so that the shapes in
# their signatures are for the reader alone, and a compiler, which traces them, cannot trace the checks.
UNCHECKED = ("__init__", "__main__", "__pycache__", "quantizers", "calibration", "bottlenecks")
SOURCE = ROOT / "src/ifsq"
install_import_hook(
    sorted(
        ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
        for path in (*SOURCE.iterdir(), *(SOURCE / "interop").iterdir())
        if path.stem not in (*UNCHECKED, "interop")
    ),
    "beartype.beartype",
)
settings.register_profile("ifsq", deadline=None)  # a machine that has more to do is no defect
settings.load_profile("ifsq")
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the commands that tests start: sums are the same bits then


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is kept in the home of whoever runs the tests, nor read from there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IFSQ_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """What the official implementation computes on small models."""
    folder = Path(os.environ.get("IFSQ_GOLDEN", ROOT.parent / "shared" / "golden"))
    if not folder.is_dir():
        pytest.skip(f"golden vectors are not here: {folder} is absent; set IFSQ_GOLDEN to their folder")
    return folder


@pytest.fixture(scope="session")
def golden(golden_folder: Path) -> Callable[[str], Any]:
    """``golden("dit_tiny")``: one of its files, open."""
    return lambda name: safe_open(golden_folder / f"{name}.safetensors", "pt")


@pytest.fixture(scope="session")
def formula_weights(golden_folder: Path) -> Callable[[dict[str, list[int]]], dict[str, torch.Tensor]]:
    """Shapes by name -> the weights that the golden judges were given."""
    spec = importlib.util.spec_from_file_location("formula_weights", golden_folder / "formula_weights.py")
    assert spec is not None
    assert spec.loader is not None
    formula = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(formula)
    return lambda shapes: {
        key: torch.from_numpy(formula.formula_weight(key, tuple(shape))) for key, shape in shapes.items()
    }


@pytest.fixture(scope="session")
def weights_files(
    golden: Callable[[str], Any],
    formula_weights: Callable[[dict[str, list[int]]], dict[str, torch.Tensor]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Files of formula weights, of VGG16 (``lpips_vgg``) and of Inception (``inception``)."""
    folder = tmp_path_factory.mktemp("weights")
    files = {}
    for name, keys in (("lpips_vgg", "vgg_keys"), ("inception", "keys")):
        shapes = json.loads(golden(name).metadata()[keys])
        files[name] = folder / f"{name}.safetensors"
        save_file(formula_weights(shapes), files[name])
    return files


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Path]]:
    """``disk(64)``: a file system of its own, of so many KiB."""
    mounted: list[Path] = []

    def mount(kib: int) -> Path:
        place = tmp_path_factory.mktemp("disk")
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", place]
        if not hasattr(os, "geteuid") or os.geteuid() or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a small file system cannot be mounted here; expected root")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", place], check=True)


TRAINING = """
out = "{out}"
[train]
steps = 2
batch = 4
log_every = 1
save_every = 2
"""
TOKENIZER = """
[data]
source = "pictures"
size = 16
[tokenizer.conv]
width = 8
multipliers = [1]
blocks = 1
patch = 4
groups = 4
[tokenizer.quantizer]
levels = [5, 5]
"""
AR = """
[ar]
depth = 1
width = 16
heads = 2
mlp_multiple_of = 16
"""


def _quick_judge(patch: pytest.MonkeyPatch) -> None:
    from ifsq.evaluation import judge  # the import hook must be there before

    patch.setattr(judge, "JUDGE_TRAINING", replace(judge.JUDGE_TRAINING, steps=2, batch=4, save_every=2))


@pytest.fixture
def quick_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge of the images is trained for two steps, as on the `road`."""
    _quick_judge(monkeypatch)


@pytest.fixture
def few_bundled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundled sources of a few pictures: for what is true of any number of them. Other processes see them all."""
    from ifsq.data import bundled  # the import hook must be there before

    few = {"train": 16, "val": 8}
    monkeypatch.setattr(bundled, "CROPS_PER_PHOTO", few)
    monkeypatch.setattr(bundled, "SHAPES_PER_CLASS", few)


@pytest.fixture(scope="session")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``pictures``, a tokenizer ``tok``, its ``codes`` and a generator ``ar``: trained for two steps and evaluated."""
    root = tmp_path_factory.mktemp("road")
    from ifsq.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        _quick_judge(patch)
        for number in range(24):
            folder = Path("pictures", "ab"[number % 2])
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.full((16, 16, 3), 10 * number, np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
        Path("tok.toml").write_text(TRAINING.format(out="tok") + TOKENIZER)
        Path("ar.toml").write_text('tokenizer = "tok"\ncodes = "codes"\n' + TRAINING.format(out="ar") + AR)
        for line in (
            "tokenizer train tok.toml",
            "tokenizer eval tok",
            "encode tok pictures codes",
            "generator train ar.toml",
            "generator eval ar --samples 4 --features",
        ):
            assert main(line.split()) == 0
    return root
