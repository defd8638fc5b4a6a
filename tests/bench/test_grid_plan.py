"""The grid file and its expansion: what is shared, what an address follows from, what is refused; one run of it all."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from toy_grid import SEARCH, SEEDS, SMALL, write_toy_grid

from ifsq.bench.grid import plan as plan_module
from ifsq.bench.grid.cells import Bases, cells
from ifsq.bench.grid.command import bench, grid_file, show_plan
from ifsq.bench.grid.config import load_grid
from ifsq.bench.grid.control import differing
from ifsq.bench.grid.cost import generator_flops, layout_of, tokenizer_flops
from ifsq.bench.grid.describe import summary, write_plan
from ifsq.bench.grid.plan import plan_grid
from ifsq.bench.grid.results import measurements
from ifsq.bench.grid.stages import marker_of
from ifsq.bench.measurement import MEASUREMENTS, read_measurements
from ifsq.bench.shipped import grid_name
from ifsq.cli import main
from ifsq.config import InputError
from ifsq.experiment import OnlineData, load_generator_experiment, load_tokenizer_experiment
from ifsq.generators import Generator
from ifsq.generators.train import training_flops
from ifsq.store.run import Run
from ifsq.training.log import Silent


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pictures, three experiments and the grid."""
    folder = tmp_path_factory.mktemp("grid")
    write_toy_grid(folder)
    return folder


def written(place, name, text):
    file = place / f"{name}.toml"
    file.write_text(text)
    return file


def test_cells_are_those_that_make_sense(place):
    found = cells(load_grid(place / "grid.toml"))
    of = [tuple(cell.values()) for cell in found]
    assert of[:4] == [("ifsq", 2, "ar"), ("ifsq", 2, "diffusion"), ("ifsq", 3, "ar"), ("ifsq", 3, "diffusion")]
    assert [cell for cell in found if cell["tokenizer"] == "ae"] == [{"tokenizer": "ae", "generator": "diffusion"}]
    assert len(found) == 9


def test_two_cells_of_one_name_are_refused(place):
    """By its name a cell's seeds are counted, and its figures told."""
    text = """
    tokenizer = "tok.toml"
    axes = { kind = ["x", "x y"], of = ["y z", "z"] }
    [[settings]]
    when = { kind = "x", of = "z" }
    tokenizer.train.steps = 3
    """
    with pytest.raises(InputError, match=r"axes: .* are both called 'x y z'; expected other values"):
        cells(load_grid(written(place, "names", text)))


def test_settings_lie_over_the_base_in_their_order(place):
    grid = load_grid(place / "grid.toml")
    bases = Bases.read(grid, place)
    quantizers = {
        (cell["tokenizer"], cell.get("bits")): bases.of(grid, cell, "tokenizer")["tokenizer"]["quantizer"]
        for cell in cells(grid)
    }
    assert quantizers["ifsq", 2] == {"levels": [5, 5]}
    assert quantizers["fsq", 3] == {"levels": [9, 9], "bound": "tanh"}
    assert quantizers["ae", None] == {"kind": "ae", "dim": 2}


def test_a_stage_of_several_cells_is_there_once(place):
    plan = plan_grid(place / "grid.toml", place / "out")
    kinds = [stage.kind for stage in plan.stages.values()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "tokenizer": 10, "tokenizer-eval": 10, "codes": 10, "ar": 8, "diffusion": 10, "generator-eval": 36,
    }  # fmt: skip
    done = set()
    for name, stage in plan.stages.items():  # each after what it needs
        assert set(stage.needs) <= done
        done.add(name)
    assert len(plan.figures) == 10 + 2 * 18
    tokenizers = [figures for figures in plan.figures if figures.of.startswith("tokenizer")]
    assert {frozenset(figures.cell) for figures in tokenizers} == {
        frozenset({"tokenizer", "bits"}),
        frozenset({"tokenizer"}),
    }
    few = [*SMALL, "--axes.tokenizer", '["ifsq", "ae"]', "--evaluation.forecast", "true"]
    foretold = plan_grid(place / "grid.toml", place / "out", few)
    (forecast,) = [stage for stage in foretold.stages.values() if stage.kind == "forecast"]  # latents have no tokens
    assert [name.rpartition("-")[0] for name in forecast.needs] == ["tokenizer", "codes"]
    shared = plan_grid(place / "grid.toml", place / "out", ["--seeds.tokenizer", "7"])
    kinds = [stage.kind for stage in shared.stages.values()]
    assert (kinds.count("tokenizer"), kinds.count("codes"), kinds.count("diffusion")) == (5, 5, 10)
    assert {figures.seed for figures in shared.figures if figures.of.startswith("tokenizer")} == {7}


def test_an_address_follows_from_what_decides_the_weights(place):
    names = set(plan_grid(place / "grid.toml", place / "out", SMALL).stages)
    (place / "same.toml").write_text((place / "grid.toml").read_text())
    same = [
        plan_grid(place / "same.toml", place / "elsewhere", SMALL),
        plan_grid(place / "grid.toml", place / "out", [*SMALL, "--question", "another"]),
        plan_grid(place / "grid.toml", place / "out", [*SMALL, "--evaluation.metrics", '["bits per image"]']),
    ]
    for plan in same:
        assert set(plan.stages) == names
    logs = (place / "tok.toml").read_text().replace("log_every = 1", "log_every = 2\nengine.workers = 1")
    written(place, "tok2", logs)
    assert set(plan_grid(place / "grid.toml", place / "out", [*SMALL, "--tokenizer", "tok2.toml"]).stages) == names
    longer = plan_grid(place / "grid.toml", place / "out", [*SMALL, "--budget.tokenizer.images", "20"])
    assert not names & set(longer.stages)  # all of it stands on another tokenizer
    more = plan_grid(place / "grid.toml", place / "out", [*SMALL, "--budget.generator.images", "24"])
    kept = {name.rpartition("-")[0] for name in names & set(more.stages)}
    assert kept == {"tokenizer", "tokenizer-eval", "codes"}
    other = plan_grid(place / "grid.toml", place / "out", [*SMALL, "--evaluation.generator.samples", "6"])
    changed = {name.rpartition("-")[0] for name in names - set(other.stages)}
    assert changed == {"generator-eval"}


def test_a_folder_keeps_the_precision_that_auto_was_when_its_grid_began(place, monkeypatch):
    """Addresses are those of a grid that says it outright, and another processor does not change them."""
    for name in ("tok", "ar", "diffusion"):
        written(place, name, (place / f"{name}.toml").read_text().replace("[train]", '[train]\nprecision = "auto"'))

    def names(out: str, computes: bool, *more: str) -> set[str]:
        monkeypatch.setattr(plan_module, "computes_bfloat16", lambda kind: computes)
        return set(plan_grid(place / "grid.toml", place / out, [*SMALL, *more]).stages)

    half, full = names("a", True), names("a", False)
    assert not half & full
    for precision, expected in (("bf16", half), ("fp32", full)):
        train = f'{{train = {{precision = "{precision}"}}}}'
        written(place, precision, f'over = "grid.toml"\nsettings = [{{tokenizer = {train}, generator = {train}}}]\n')
        assert set(plan_grid(place / f"{precision}.toml", place / "a", SMALL).stages) == expected
    monkeypatch.setattr(plan_module, "computes_bfloat16", lambda kind: True)
    write_plan(plan_grid(place / "grid.toml", place / "a", SMALL))
    assert names("a", False) == half
    assert names("b", False) == full
    (place / "a" / "grid.json").write_text('{"auto": "fp8"}')
    with pytest.raises(InputError, match=r"grid\.json: is damaged"):
        names("a", False)


def test_a_grid_lies_over_another(place):
    text = """over = "grid.toml"
    axes.bits = [3]
    seeds.training = [4]
    left_out = []
    budget.generator.images = 8
    [[settings]]
    when = { bits = 3 }
    tokenizer.tokenizer.quantizer.levels = [7, 7]
    """
    below, above = load_grid(place / "grid.toml"), load_grid(written(place, "over", text))
    assert above.axes == {"tokenizer": below.axes["tokenizer"], "bits": (3,)}
    assert (above.seeds.training, above.seeds.sampling, above.left_out) == ((4,), below.seeds.sampling, ())
    assert above.settings[:-1] == below.settings
    bases = Bases.read(above, place)
    assert bases.of(above, {"tokenizer": "fsq", "bits": 3}, "tokenizer")["tokenizer"]["quantizer"] == {
        "levels": [7, 7],
        "bound": "tanh",
    }
    assert load_grid(place / "over.toml", ["--seeds.training", "[5]"]).seeds.training == (5,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("over = 3", "over 3: expected the name of a grid file beside it"),
        ('over = "none.toml"', "none.toml: no such file"),
        ('over = "first.toml"', "over 'first.toml', which lies over another itself"),
        ('over = "grid.toml"\nsettings = 3', "settings"),
        (
            'over = "grid.toml"\nbudget.generator.flops = 1e9',
            "budget.generator: flops and images: expected one of them",
        ),
    ],
)
def test_what_is_wrong_with_what_lies_below_is_said(place, text, message):
    written(place, "first", 'over = "grid.toml"')
    with pytest.raises(InputError) as caught:
        load_grid(written(place, "second", text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


SIZES = """
[[settings]]
when = { pixels = 16 }
tokenizer.data.size = 16

[[settings]]
when = { pixels = 32 }
tokenizer.data.size = 32
"""


def test_other_pictures_are_another_stage(place, tmp_path):
    text, copy = (place / "tok.toml").read_text(), tmp_path / "copy"
    for file in sorted((place / "pictures").rglob("*.png"))[:20]:
        target = copy / file.relative_to(place / "pictures")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    grid = 'tokenizer = "b.toml"\n[axes]\n'
    written(tmp_path, "b", text.replace(str(place / "pictures"), str(copy)))
    before = plan_grid(written(tmp_path, "g", grid), tmp_path / "out")
    assert before.stages.keys() == plan_grid(tmp_path / "g.toml", tmp_path / "out").stages.keys()
    (copy / "a" / "new.png").write_bytes((place / "pictures" / "a" / "0.png").read_bytes())
    assert not set(before.stages) & set(plan_grid(tmp_path / "g.toml", tmp_path / "out").stages)


def test_other_pictures_to_measure_on_are_another_measurement(place, tmp_path):
    """Of the same path; nothing else is done again. A tokenizer's own pictures are a part of its address already."""
    copy = shutil.copytree(place / "pictures", tmp_path / "copy")
    asked = [*SMALL, "--evaluation.tokenizer.source", str(copy), "--evaluation.forecast", "true"]
    before = plan_grid(place / "grid.toml", tmp_path / "out", asked).stages
    (copy / "a" / "new.png").write_bytes((place / "pictures" / "a" / "0.png").read_bytes())
    after = plan_grid(place / "grid.toml", tmp_path / "out", asked).stages
    changed = {"tokenizer-eval", "forecast"}
    assert {before[name].kind for name in before.keys() - after.keys()} == changed
    assert not any(before[name].kind in changed for name in before.keys() & after.keys())
    own = [*SMALL, "--evaluation.tokenizer.split", "train"]
    assert all("images" not in stage.inputs for stage in plan_grid(place / "grid.toml", tmp_path, own).stages.values())


@pytest.mark.parametrize(
    ("more", "bits"),
    [
        ([], True),
        (["--evaluation.likelihood", "4"], False),
        (["--evaluation.metrics", '["FD(judge)"]'], False),
        (["--evaluation.metrics", '["FD(judge)", "bits per image"]'], True),
    ],
)
def test_bits_are_counted_once(place, tmp_path, more, bits):
    """By a stage of their own, where there is one. A stage that leaves them out is another one: asked for later they
    are measured."""
    usual, plan = (plan_grid(place / "grid.toml", tmp_path, [*SMALL, *asked]) for asked in ([], more))
    drawn = {name: stage for name, stage in plan.stages.items() if stage.kind == "generator-eval"}
    known = {name for name, stage in usual.stages.items() if stage.kind == "generator-eval"}
    assert (drawn.keys() == known, drawn.keys().isdisjoint(known)) == (bits, not bits)
    assert {stage.work.asked.bits for stage in drawn.values()} == {bits}


def test_generators_of_other_training_seeds_draw_other_noise(place, tmp_path):
    """What one noise does to all cells alike would be in no spread over training seeds; kinds of one seed share it."""
    seeds = [*SMALL[:-2], "--seeds.training", "[0,1,2]", "--seeds.sampling", "[0,1]", "--seeds.apart", "true"]
    plan = plan_grid(place / "grid.toml", tmp_path, [*seeds, "--evaluation.likelihood", "4"])
    drawn: dict[tuple[str, int], set[int]] = {}
    for one in plan.figures:
        if one.sampling_seed is not None:
            behind = plan.stages[one.of].inputs["tokenizer"], one.sampling_seed
            drawn.setdefault(behind, set()).add(plan.stages[one.stage].work.asked.seed)
    assert all(len(each) == 1 for each in drawn.values()), "the generators of one tokenizer draw the same"
    assert len(set.union(*drawn.values())) == len(drawn) == 6 * len({one.cell["tokenizer"] for one in plan.figures})
    bounds = {
        plan.stages[one.of].inputs["tokenizer"]: plan.stages[one.stage].work.seed
        for one in plan.figures
        if plan.stages[one.stage].kind == "likelihood"
    }
    assert len(set(bounds.values())) == len(bounds) > 1


def test_cells_that_are_one_are_refused(place, tmp_path):
    """A value that no setting means with this rate: its cell would be the base's, and its figures a finding."""
    text = (
        (place / "grid.toml")
        .read_text()
        .replace('when = { tokenizer = "fsq" }', 'when = { tokenizer = "fsq", bits = 2 }')
    )
    with pytest.raises(InputError, match=r"ifsq bits 3 and fsq bits 3: are the same; expected settings that tell them"):
        plan_grid(written(place, "forgotten", text), tmp_path)


def test_a_comparison_of_tokenizers_that_is_open_trains_no_generator(place, tmp_path):
    asked = '[protocol]\nlooks = [2, 3]\n[[compare]]\naxis = "tokenizer"\nof = "tokenizer"\nmetric = "PSNR, dB"\n'
    asked += 'value = "mean"\n'
    file = written(place, "few", (place / "grid.toml").read_text().replace(SEEDS, asked))
    own = [*SMALL[:3], "[2, 3]", "--axes.tokenizer", '["ifsq", "fsq"]']
    first, more = (plan_grid(file, tmp_path, own, seeds) for seeds in ({}, {"ifsq bits 2": 3}))
    added = sorted(stage.kind for name, stage in more.stages.items() if name not in first.stages)
    assert added == ["tokenizer", "tokenizer-eval"]


def test_cells_are_measured_on_the_same_images(place, tmp_path):
    """Figures of others do not compare, and nobody should learn that when everything is trained."""
    text = (place / "grid.toml").read_text()
    sizes = written(place, "sizes", text.replace("[axes]", "[axes]\npixels = [16, 32]") + SIZES)
    with pytest.raises(InputError, match=r"pixels 16 .* and pixels 32 .*: the tokenizers are measured on other images"):
        plan_grid(sizes, tmp_path, SMALL)
    asked = [*SMALL, "--evaluation.tokenizer.size", "16"]
    with pytest.raises(InputError, match=r"pixels 16 .* and pixels 32 .*: the generators are measured on other images"):
        plan_grid(sizes, tmp_path, asked)
    alone = written(place, "alone", f'tokenizer = "tok.toml"\n[axes]\npixels = [16, 32]\n{SIZES}')
    assert plan_grid(alone, tmp_path, asked[-2:]).stages


def test_budgets_are_steps(place):
    text = (place / "grid.toml").read_text().replace("generator.images = 16", "generator.flops = 3e7")
    plan = plan_grid(written(place, "flops", text), place / "out", SMALL)
    behind = load_tokenizer_experiment(place / "tok.toml")
    layout, code_dim = layout_of(behind.tokenizer, (16, 16))
    for stage in plan.stages.values():
        if stage.kind in ("ar", "diffusion"):
            cost = generator_flops(load_generator_experiment(place / f"{stage.kind}.toml"), layout, 2, code_dim)
            assert stage.flops == cost * 4 * stage.steps
            assert stage.steps % 2 == 0  # two are kept, evenly
            assert abs(stage.flops - 3e7) <= 2 * 4 * cost
            assert stage.work.experiment.train.keep_every == stage.steps // 2
        elif stage.kind == "generator-eval":  # of these alone: an interruption saves another step
            trained = plan.stages[stage.needs[0]].steps
            assert stage.work.steps == (trained // 2, trained)
        elif stage.kind == "tokenizer":
            assert stage.steps == 16 // 4
            assert stage.flops == tokenizer_flops(behind.tokenizer, (16, 16)) * 16


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--axes.bits", "[]"], "axes.bits=[]: expected at least one value"),
        (["--axes.bits", "[2, 2]"], "axes.bits=[2, 2]: expected at least one value, each once"),
        (["--axes.bitz", "[2, 3]"], "axes.bitz: no setting says what 2, 3 mean; expected it of all but one"),
        (["--axes.bits", "[3, 4]"], "axes.bits: 4: expected one of 2, 3"),
        (["--left_out", "[{when = {bits = []}}]"], "axis 'bits' has no value; expected at least one"),
        (["--axes.generator", '["gan"]'], "axes.generator: 'gan': expected one of ar, diffusion"),
        (["--seeds.training", "[]"], "training=[]: expected at least one seed"),
        (["--seeds.sampling", "[1, 1]"], "sampling=[1, 1]: expected at least one seed, none negative, each once"),
        (["--budget.generator.flops", "1e9"], "budget.generator: flops and images: expected one of them"),
        (["--budget.tokenizer.images", "0"], "images=0: expected a number above 0"),
        (["--evaluation.kept", "0"], "kept=0, likelihood=0: expected at least 1"),
        ([*SMALL, "--evaluation.kept", "5"], "evaluation.kept=5: expected at most the 4 steps of a training"),
        (["--evaluation.generator.samples", "1"], "evaluation.generator: samples 1: expected 2 to 10000000"),
        (["--evaluation.generator.features", '["x"]'], "features 'x': expected one of "),
        ([*SMALL, "--seeds.sampling", f"[{2**63}]"], f"seed {2**63}: expected 0 to 2**63 - 1"),
        (
            [*SMALL, "--evaluation.forecast", "true", "--resources.forecast.processes", "2"],
            "resources.forecast.processes=2: expected 1, in which a forecast is made",
        ),
        (["--evaluation.generator.seed", "3"], "generator.seed=3: expected it in seeds.sampling"),
        (["--evaluation.sample", "3"], "evaluation.sample: unknown key"),
        (["--resources.gpu.gpus", "1"], "resources.gpu: expected one of tokenizer"),
        (["--resources.codes.processes", "0"], "expected at least 1 process"),
        (["--settings", "[{wen = {bits = 2}}]"], "settings.0.wen: unknown key; did you mean 'when'?"),
        (["--left_out", "[{when = {bit = 2}}]"], "when: axis 'bit': expected one of tokenizer, bits, generator"),
        (["--left_out", "[{when = {bits = 5}}]"], "when: bits 5: expected one of 2, 3"),
        (["--absent", '[{axis = "bit", when = {bits = 2}}]'], "absent: axis 'bit': expected one of tokenizer, bits"),
        (["--settings", '[{drop = ["codes"]}]'], "drop: 'codes': expected a name below tokenizer, teacher, generator"),
        (["--protocol", "{guidance = [1.5, -1.0]}"], "guidance=-1.0: expected a number of at least 0"),
        (["--evaluation.generator.samples", "1"], "samples 1: expected 2 to 10000000"),
        (["--evaluation.generator.features", '["pixel"]'], "features 'pixel': expected one of inception"),
        (["--evaluation.generator.features", '["pixels", "pixels"]'], "features pixels, pixels: expected each once"),
        (["--evaluation.kept", "5"], "evaluation.kept=5: expected at most the 4 steps of a training"),
        (["--evaluation.tokenizer.count", "24"], "evaluation of ifsq bits 2: count 24: expected 1 to"),
        (["--evaluation.tokenizer.size", "18"], "evaluation of ifsq bits 2: size 18: expected a multiple"),
        (["--evaluation.tokenizer.split", "test"], "evaluation of ifsq bits 2: "),
        (["--evaluation.tokenizer.levels", "7"], "levels 7: expected what the tokenizer was trained at, 5 x 5"),
        (["--resources.ar.processes", "3"], "ar: train.batch=4: expected a multiple of the 3 processes"),
        (["--resources.guidance.processes", "2"], "resources.guidance.processes=2: expected 1"),
        (["--seeds.sampling", f"[{2**63}]"], f"seed {2**63}: expected 0 to"),
        (["--tokenizer", "none.toml"], "none.toml: no such file, nor a shipped experiment of this name"),
    ],
)
def test_what_is_wrong_with_a_grid_is_said(place, given, message):
    with pytest.raises(InputError) as caught:
        plan_grid(place / "grid.toml", place / "out", given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


AR_ALONE = '[[settings]]\nwhen = { generator = "ar" }'
TAUGHT = '[[settings]]\ngenerator.alignment = {depth = 1, weight = 1, teachers = [{source = "grid"}]}\n[budget]'
CODEBOOK = """
[[settings]]
when = { tokenizer = "ae" }
drop = ["tokenizer.tokenizer.quantizer"]
tokenizer.tokenizer.quantizer = { kind = "vq", dim = 2, codebook_size = 9 }
"""
TOLD = f"""{SEARCH}
[[settings]]
when = {{ generator = "diffusion" }}
generator.diffusion = {{ objective = "mean_flow", trained_guidance = 2.0 }}
"""
UNEQUAL = (
    "ifsq bits 2 ar and ifsq bits 2 diffusion: train.optim.lr 0.5 against 0.001; make it equal by a setting, or say"
    ' that it is not: differ = ["train.optim.lr"]'
)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("levels = [9, 9]", "levels = [1, 9]", "of ifsq bits 3"),
        ('drop = ["tokenizer.', 'drop = ["tokenizer.x.', "drop tokenizer.x.tokenizer.quantizer: the experiment below"),
        ("when = { bits = 3 }", 'when = { bits = 3, generator = "ar" }', "a generator changes tokenizer"),
        ('when = { tokenizer = "ae", generator = "ar" }', "when = { }", "left_out: no cell is left"),
        ("[budget]", f"{AR_ALONE}\ngenerator.train.optim.lr = 0.5\n[budget]", UNEQUAL),
        (
            "[budget]",
            "[[settings]]\ncodes.size = 18\n[budget]",
            "codes: size 18: expected a multiple of the tokenizer's",
        ),
        ("[budget]", TAUGHT.replace("grid", "dino"), "teacher 'dino': no such folder; expected one, a repository"),
        (
            "[evaluation]",
            f"{CODEBOOK}[evaluation]\nlikelihood = 4",
            "likelihood of ae diffusion: codes of a codebook have",
        ),
        (
            SEEDS,
            TOLD,
            "protocol.guidance of ifsq bits 2 diffusion: guidance=2.5: expected 1 to 2.0",
        ),
        ("[budget]", TAUGHT, "source 'grid' without teacher; expected its experiment"),
    ],
)
def test_what_is_wrong_with_its_experiments_is_said(place, old, new, message):
    text = (place / "grid.toml").read_text()
    assert old in text
    file = written(place, "wrong", text.replace(old, new))
    with pytest.raises(InputError) as caught:
        plan_grid(file, place / "out")
    assert message in str(caught.value)


def test_what_generators_read_is_compared(place):
    of_codes = load_generator_experiment(place / "ar.toml")
    plain = replace(of_codes, codes="", data=OnlineData("pictures", 16, online=True))
    flipped = replace(plain, data=replace(plain.data, flip=True))
    assert differing(of_codes, plain) == {"reads": ("codes of a cache", "images")}
    assert differing(plain, flipped) == {"data.flip": (False, True)}


def test_what_is_compared_is_measured(place):
    file = written(place, "compared", (place / "grid.toml").read_text().replace(SEEDS, SEARCH))
    with pytest.raises(InputError, match=r"compare: metric 'FD\(judge\)': is not measured; expected one of eval"):
        plan_grid(file, place / "out", ["--evaluation.metrics", '["PSNR, dB"]'])


def test_a_difference_that_is_said_is_allowed(place):
    text = (
        (place / "grid.toml").read_text().replace("[budget]", f"{AR_ALONE}\ngenerator.train.optim.lr = 0.5\n[budget]")
    )
    for said in ('["train.optim.lr"]', '["train.optim"]'):
        plan_grid(written(place, "said", text), place / "out", [*SMALL, "--differ", said])


def test_a_teacher_of_the_grid_is_a_stage(place):
    teacher = f"""
out = "unused"
[data]
source = "{place / "pictures"}"
size = 16
[network]
patch = 4
[train]
steps = 2
"""
    written(place, "teacher", teacher)
    arms = """
[[settings]]
when = { alignment = "own" }
generator.alignment = { depth = 1, weight = 1, teachers = [{ source = "grid" }] }
[budget]"""
    text = (place / "grid.toml").read_text().replace("[budget]", arms, 1)
    text = text.replace("bits = [2, 3]", 'bits = [2, 3]\nalignment = ["none", "own"]').replace(
        "question", 'teacher = "teacher.toml"\nquestion', 1
    )
    plan = plan_grid(written(place, "arms", text), place / "out", SMALL)
    kinds = [stage.kind for stage in plan.stages.values()]
    assert {kind: kinds.count(kind) for kind in ("tokenizer", "teacher", "features", "ar", "diffusion")} == {
        "tokenizer": 1, "teacher": 1, "features": 1, "ar": 2, "diffusion": 2,
    }  # fmt: skip
    taught = next(stage for stage in plan.stages.values() if stage.kind == "ar" and len(stage.inputs) > 2)
    own = {stage.kind: stage for stage in plan.stages.values()}
    assert {own["teacher"].name, own["features"].name} < set(taught.needs)
    assert taught.work.experiment.alignment.features == (str(own["features"].folder(place / "out")),)
    assert own["teacher"].name in own["features"].needs


def test_the_whole_of_a_grid(place, quick_judge, capsys):
    """Through the command: trained, measured at both kept steps, done once, and one cell alone found as it was."""
    out = place / "whole"
    given = [*SMALL, "--evaluation.forecast", "true"]
    line = ["bench", str(place / "grid.toml"), "--out", str(out), "--device", "cpu", *given]
    assert main(line) == 0
    assert str(out / MEASUREMENTS) in capsys.readouterr().out
    found = read_measurements(out / MEASUREMENTS)
    plan = plan_grid(place / "grid.toml", out, given)
    assert found == measurements(plan)
    metrics = {one.metric for one in found if "generator" not in one.cell}
    assert {"PSNR, dB", "index entropy, bits a position", "digit entropy, bits a position"} <= metrics
    whose = {(tuple(one.cell.values()), one.seed, one.sampling_seed, one.step) for one in found}
    sampled = {(("ifsq", 2, kind), 0, seed, step) for kind in ("ar", "diffusion") for seed in (0, 5) for step in (2, 4)}
    assert whose == {(("ifsq", 2), 0, None, 4), *sampled}
    for one in found:
        run = Run.open(out / one.run)
        assert one.card["seed"] == (one.sampling_seed or 0)
        assert one.run.endswith(one.stage)
        if "generator" in one.cell:
            cost = training_flops(Generator.from_run(run))
            assert one.flops == cost * 4 * one.step
            assert (run.folder / "evaluations" / f"step_{one.step}.json").is_file()  # of the first seed, for a report
    before = {name: marker_of(out, name).read_text() for name in plan.stages}
    assert main(line) == 0
    assert {name: marker_of(out, name).read_text() for name in plan.stages} == before
    name = next(name for name in plan.stages if name.startswith("generator-eval"))
    marker_of(out, name).unlink()
    assert main([*line, "--only", name]) == 0
    assert json.loads(marker_of(out, name).read_text())["config"] == json.loads(before[name])["config"]
    assert measurements(plan) == found


def test_a_failed_stage_is_told_and_the_rest_is_done(place, monkeypatch, capsys):
    from ifsq import pipeline

    def refuse(*_, **__):
        raise InputError("no room")

    file = written(
        place,
        "two",
        'tokenizer = "tok.toml"\n[axes]\n[seeds]\ntraining = [0, 1]\n[evaluation.tokenizer]\njudge = false\n',
    )
    out, own = place / "failed", pipeline.evaluate_tokenizer
    with monkeypatch.context() as patch:
        first = plan_grid(file, out).figures[0].of
        patch.setattr(
            pipeline,
            "evaluate_tokenizer",
            lambda folder, *more: (refuse if folder.name == first else own)(folder, *more),
        )
        assert main(["bench", str(file), "--out", str(out), "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "failed: no room" in said
    assert "1 stages failed and 0 that need them were skipped" in said
    assert json.loads((out / "failures.jsonl").read_text())["error"] == "no room"
    assert {one.seed for one in read_measurements(out / MEASUREMENTS)} == {1}
    path = bench(file, out, [], "cpu", Silent())
    assert {one.seed for one in read_measurements(path)} == {0, 1}


def test_seeds_apart_are_a_tokenizers_own_and_those_of_all_that_stands_on_it(place):
    file = written(place, "nested", NESTED.replace("LEVELS", "5"))
    plan = plan_grid(file, place / "out", ["--seeds.apart", "true", "--seeds.training", "[0, 1]"])
    trained = [stage for stage in plan.stages.values() if stage.kind in ("tokenizer", "diffusion")]
    tokenizers = {stage.name: stage.seed for stage in trained if stage.kind == "tokenizer"}
    assert len(set(tokenizers.values())) == len(tokenizers) == 6
    assert {seed % 1000 for seed in tokenizers.values()} == {0, 1}
    for stage in trained:
        if stage.kind == "diffusion":
            assert stage.seed == tokenizers[stage.inputs["tokenizer"]]
    assert {figures.seed for figures in plan.figures} == {0, 1}
    with pytest.raises(InputError, match="apart with tokenizer=3: expected one of them"):
        plan_grid(file, place / "out", ["--seeds.apart", "true", "--seeds.tokenizer", "3"])


INDEPENDENT = """
[seeds]
apart = true
[protocol]
looks = [2]
[[compare]]
axis = "tokenizer"
metric = "FD(judge)"
value = "distance"
mean_over = ["bits"]
independent = true
"""


def test_cells_of_one_tokenizer_are_not_independent(place):
    file = written(place, "dependent", NESTED.replace("LEVELS", "5") + INDEPENDENT)
    with pytest.raises(InputError, match="independent: nested diffusion bits 2 and nested diffusion bits 3 have a tok"):
        plan_grid(file, place / "out")


def test_a_grid_is_found_by_name(place, capsys):
    assert grid_file(place / "grid.toml") == place / "grid.toml"
    assert grid_name(grid_file(Path("bits"))) == "bits"
    assert grid_name(place / "grid.toml") == str(place / "grid.toml")
    with pytest.raises(InputError, match="nowhere: no such file, nor a shipped grid of this name"):
        grid_file(Path("nowhere"))
    out = place / "planned"
    assert main(["bench", str(place / "grid.toml"), "--out", str(out), "--plan", *SMALL]) == 0
    assert "to do" in capsys.readouterr().out
    assert not out.exists()
    lines, rows = show_plan(place / "grid.toml", place / "out", SMALL)
    assert any(line.startswith("equal of all generators: train.batch 4") for line in lines)
    assert len(rows) == 9
    # Tokenizer and codes stand behind both generators, the tokenizer behind its own evaluation too: 2 + 5 + 5.
    assert "2 stages are shared by several cells; each cell for itself would do 12" in lines


NESTED = """
tokenizer = "tok.toml"
generators = { diffusion = "diffusion.toml" }
[axes]
tokenizer = ["fixed", "nested"]
bits = [2, 3]
[[settings]]
when = { tokenizer = "fixed", bits = 3 }
tokenizer.tokenizer.quantizer.levels = [9, 9]
[[settings]]
when = { tokenizer = "nested" }
tokenizer.tokenizer.quantizer = { levels = [9, 9], nested_levels = [5, 9] }
[[settings]]
when = { tokenizer = "nested", bits = 2 }
codes.levels = LEVELS
"""


def test_a_tokenizer_of_several_rates_is_trained_once_and_measured_and_encoded_at_each(place):
    plan = plan_grid(written(place, "nested", NESTED.replace("LEVELS", "5")), place / "out")
    kinds = [stage.kind for stage in plan.stages.values()]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "tokenizer": 3, "tokenizer-eval": 4, "codes": 4, "diffusion": 4, "generator-eval": 4,
    }  # fmt: skip
    (nested,) = (name for name, users in plan.users.items() if users == ["nested bits 2", "nested bits 3"])
    behind = [stage for stage in plan.stages.values() if stage.inputs.get("tokenizer") == nested]
    levels = {(stage.kind, stage.config.get("levels", 0)) for stage in behind}
    assert levels >= {("tokenizer-eval", 5), ("tokenizer-eval", 0), ("codes", 5), ("codes", 0)}
    of = [figures.cell for figures in plan.figures if figures.of == nested]
    assert of == [{"tokenizer": "nested", "bits": 2}, {"tokenizer": "nested", "bits": 3}]
    # Four cells of tokenizers of two stages each, four of generators of four; all of them share their tokenizers alone.
    assert f"3 stages are shared by several cells; each cell for itself would do {4 * 2 + 4 * 4}" in summary(plan)
    images = f'{{ source = "{place / "pictures"}", size = 16, online = true }}'
    online = f"{NESTED.replace('LEVELS', '5')}drop = ['generator.codes']\ngenerator.data = {images}\n"
    with pytest.raises(InputError, match=r"data\.levels=0 and codes.levels=5, at which the tokenizer is measured"):
        plan_grid(written(place, "nested", online), place / "out")
    with pytest.raises(InputError, match="levels 7: expected what the tokenizer was trained at, 5, 9"):
        plan_grid(written(place, "nested", NESTED.replace("LEVELS", "7")), place / "out")
