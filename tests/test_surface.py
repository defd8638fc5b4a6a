"""What is shipped is exercised: public names, experiment files, the cost of an import. Commands: `tests/docs`."""

import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from typing import get_args, get_type_hints

import pytest
import torch
from tests.test_generator_experiments import tokenizer_file

import ifsq
from ifsq.bench.grid.cells import Bases, cells
from ifsq.bench.grid.config import load_grid
from ifsq.bench.shipped import experiment_file
from ifsq.experiment import EXPERIMENTS as GENERATORS
from ifsq.experiment import TokenizerExperiment, load_generator_experiment, load_tokenizer_experiment
from ifsq.pretrained.teachers.trained import PatchNet
from ifsq.pretraining.config import TeacherExperiment, load_teacher_experiment
from ifsq.tokenizer.model import Tokenizer

HEAVY = ("torch", "matplotlib", "sklearn", "skimage", "torchmetrics", "pydantic", "rich", "PIL", "pandas", "scipy")


def test_public_names():
    assert ifsq.__all__ == sorted(ifsq.__all__, key=lambda name: (not name.isupper(), name))
    for name in ifsq.__all__:
        assert getattr(ifsq, name).__module__.startswith("ifsq.")
    with pytest.raises(AttributeError, match="has no attribute 'fsq_'"):
        _ = ifsq.fsq_


def imported_by(code):
    out = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sorted(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.partition(".")[0] for name in out.stdout.split()}


def test_the_quantizer_pulls_in_torch_and_nothing_heavier():
    beyond = imported_by("import ifsq; ifsq.FSQ([17])") - imported_by("import torch")
    assert {name for name in beyond if name not in sys.stdlib_module_names} == {"ifsq"}


def test_help_does_not_wait_for_torch():
    code = "from ifsq.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert not imported_by(code) & set(HEAVY)


def configs(cls):
    """A config and all configs below it."""
    yield cls
    for hint in get_type_hints(cls).values():
        for part in (hint, *get_args(hint)):
            if is_dataclass(part):
                yield from configs(part)


@pytest.mark.parametrize(
    "config", sorted({c for e in (TokenizerExperiment, TeacherExperiment, *GENERATORS) for c in configs(e)}, key=str)
)
def test_the_table_of_a_config_lists_every_field(config):
    told = "\n".join(cls.__doc__ or "" for cls in config.__mro__)
    for field in fields(config):
        assert re.search(rf"^    (\w+, +)*{field.name}\b", told, flags=re.MULTILINE), (
            f"{field.name} is not in the table"
        )


GRIDS = sorted(experiment_file("grids").glob("*.toml"))
EXPERIMENTS = sorted(set(experiment_file(".").rglob("*.toml")) - set(GRIDS), key=str)


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_grid_loads(path):
    assert path.read_text().startswith("# "), "the header says the command, the cost and the result"
    grid = load_grid(path)
    bases = Bases.read(grid, path.parent)
    for cell in cells(grid):
        assert bases.of(grid, cell, "tokenizer")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_experiment_loads_and_builds(path):
    """At full size on the meta device: nothing is allocated."""
    assert path.read_text().startswith("# "), "the header says the command, the cost and the result"
    if "teacher" in path.stem:
        with torch.device("meta"):
            model = PatchNet(load_teacher_experiment(path).network)
    elif "tokenizer" in path.stem:
        experiment = load_tokenizer_experiment(path)
        with torch.device("meta"):
            model = Tokenizer(experiment.tokenizer)
    else:
        experiment = load_generator_experiment(path)
        named = load_tokenizer_experiment(tokenizer_file(path))
        with torch.device("meta"):
            tokenizer = Tokenizer(named.tokenizer)
            layout = tokenizer.layout(*named.data.sides)
            model = experiment.make(layout, 1000 if path.parent.name == "imagenet" else 10, tokenizer.quantizer.dim)
    told = re.search(r"([\d.]+) M parameters", path.read_text())
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert told, "the header states the size"
    assert count == pytest.approx(float(told[1]), abs=0.06)


def test_readme_names_the_test_command_that_ci_runs(root):
    assert "make test" in (root / "README.md").read_text()
    assert "make test" in (root / ".ci" / "run").read_text()
