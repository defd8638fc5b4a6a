"""The shipped grids: three forms of each, two of `nested`; headers that say how they are run; all of them plan.

That they load is in ``test_surface``.
"""

from itertools import count

import numpy as np
import pytest
from PIL import Image

from ifsq.bench.grid import lookups
from ifsq.bench.grid.cells import cells
from ifsq.bench.grid.config import load_grid
from ifsq.bench.grid.plan import plan_grid
from ifsq.bench.grid.verdicts import comparisons_of
from ifsq.bench.shipped import experiment_file
from ifsq.generators import Generator

FOLDER = experiment_file("grids")
LAPTOP = ("bits", "compute", "alignment")
FORMS = [f"{name}{form}" for name in LAPTOP for form in ("", "_minutes", "_imagenet")]
FORMS += ["nested", "nested_minutes"]
MORE = {
    "bits": {("vq", 4, "ar"), ("vq", 4, "diffusion")},
    "compute": set(),
    "alignment": {("dinov2", "ar"), ("dinov2", "diffusion")},
}
"""Cells that a grid has at ImageNet's size alone."""
FEW = {"bits": ["--axes.bits", "[3, 8]", "--axes.tokenizer", '["calibrated", "vq", "ae"]']}


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder with a little ImageNet in it, where grids are planned."""
    number = count()
    for split in ("train", "val"):
        for name in ("a", "b"):
            place = tmp_path / "data" / "imagenet" / split / name
            place.mkdir(parents=True)
            Image.fromarray(np.full((8, 8, 3), next(number), np.uint8)).save(place / "picture.png")
    monkeypatch.chdir(tmp_path)


def of(name):
    return {tuple(cell.values()) for cell in cells(load_grid(FOLDER / f"{name}.toml"))}


@pytest.mark.parametrize("name", LAPTOP)
def test_all_forms_have_the_same_cells(name):
    assert of(f"{name}_minutes") == of(name)
    assert of(f"{name}_imagenet") == of(name) | MORE[name]
    for form in ("", "_imagenet"):
        grid = load_grid(FOLDER / f"{name}{form}.toml")
        assert grid.protocol.looks[0] >= 3
        assert comparisons_of(grid)
    assert len(load_grid(FOLDER / f"{name}_minutes.toml").seeds.training) < 3


def test_nested_rates_are_asked_in_minutes_too():
    assert of("nested_minutes") == of("nested")
    assert load_grid(FOLDER / "nested.toml").protocol.looks[0] >= 3
    assert len(comparisons_of(load_grid(FOLDER / "nested.toml"))) == 10


@pytest.mark.parametrize("name", FORMS)
def test_the_header_says_what_a_run_needs_to_know(name):
    header = (FOLDER / f"{name}.toml").read_text().partition("\nquestion =")[0].partition("\nover =")[0]
    assert f"#   ifsq bench {name} --plan\n" in header
    assert f"#   ifsq bench {name} --jobs 2\n" in header or f"#   ifsq bench {name} --engine snakemake" in header
    for word in ("Cost: ", "Held equal: ", "Expected"):
        assert word in header, word
    if name in LAPTOP:
        assert "uidance" in header, "it is found for each cell, or said to be that of the base"
    assert all(line.startswith("# ") for line in header.splitlines())


@pytest.mark.parametrize("name", FORMS)
def test_every_form_plans(name, pictures, monkeypatch):
    """All cells; what a training costs is not counted here."""
    monkeypatch.setattr(lookups, "tokenizer_flops", lambda config, sides: 10**9)
    monkeypatch.setattr(lookups, "generator_flops", lambda experiment, layout, classes, code_dim: 10**8)
    plan = plan_grid(FOLDER / f"{name}.toml", FOLDER.parent / "nowhere", ["--seeds.training", "[0]"])
    trained = [stage.kind for stage in plan.stages.values() if stage.kind in Generator.kinds]
    assert len(trained) == len(cells(plan.grid))


@pytest.mark.parametrize("name", LAPTOP)
def test_generators_of_a_laptop_take_the_same_operations(name, pictures):
    plan = plan_grid(
        FOLDER / f"{name}.toml", FOLDER.parent / "nowhere", ["--seeds.training", "[0]", *FEW.get(name, [])]
    )
    budget, kept = plan.grid.budget.generator.flops, plan.grid.evaluation.kept
    for stage in plan.stages.values():
        if stage.kind in Generator.kinds:
            assert stage.flops == pytest.approx(budget, rel=kept / stage.steps)
            assert stage.work.experiment.train.optim.warmup <= 0.25 * stage.steps, "else it is the training"


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"{name}_imagenet" for name in LAPTOP])
def test_full_sizes_build(name, pictures):
    """On the meta device: every network of every cell."""
    assert plan_grid(FOLDER / f"{name}.toml", FOLDER.parent / "nowhere", ["--seeds.training", "[0]"]).stages
