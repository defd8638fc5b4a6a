"""Every code block of README and docs: Python is executed, commands go through the real parser and their overrides into
the real experiments, TOML becomes a config; what costs no training is run on toy data, the rest with ``make slow``.

A block that cannot be run anywhere says why in a comment above it, ``<!-- not run: needs eight GPUs -->``, and is
parsed all the same. TOML that is a piece of an experiment says of which: ``<!-- over: demo/ar.toml -->``.
"""

import argparse
import functools
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.docs.blocks import ALL, INLINE, PAGES, ROOT, Block, commands, of_ifsq

import ifsq
from ifsq.bench.grid.command import grid_file
from ifsq.bench.grid.config import Grid, load_grid
from ifsq.bench.shipped import experiment_file
from ifsq.cli import main
from ifsq.cli.main import parser as new_parser
from ifsq.config import build, merge, parse_overrides, read_toml
from ifsq.experiment import EXPERIMENTS, TokenizerExperiment, load_generator_experiment, load_tokenizer_experiment
from ifsq.generators import Generator
from ifsq.generators.diffusion.likelihood import LikelihoodOptions
from ifsq.generators.masked.bound import BoundOptions
from ifsq.pretraining.config import load_teacher_experiment

PYTHON = [block for block in ALL if block.language == "python"]
TOML = [block for block in ALL if block.language == "toml"]
SHELL = [block for block in ALL if block.language in ("", "bash", "sh") and any(commands(block.text))]
parser = functools.cache(new_parser)
LOADERS = {
    "tokenizer": ("demo/tokenizer.toml", load_tokenizer_experiment),
    "generator": ("demo/ar.toml", load_generator_experiment),
    "teacher": ("demo/teacher.toml", load_teacher_experiment),
}
"""By verb: the experiment that stands for one of somebody's own, and how it is read."""


def test_the_pages_are_found():
    assert {"README.md", "docs/evaluate.md"} <= {block.page for block in ALL}
    assert len(SHELL) >= 8
    assert len(PYTHON) >= 4


def test_a_language_is_one_of_those_that_are_looked_at():
    languages = {block.language for block in ALL if not block.language.startswith("{")}  # of the site: {toctree} ...
    assert languages <= {"", "bash", "sh", "python", "toml", "text"}


# ---- commands ----


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_are_what_the_command_takes(block):
    for words in commands(block.text):
        own = of_ifsq(words)
        if own is not None:
            check_ifsq(own, block)
        check_launcher(words, block)


def check_ifsq(words: list[str], block: Block) -> None:
    """The parser takes it, and its overrides are options of what it names."""
    words = [word for word in words if word != "..."]
    if words[-1:] == words[:2][-1:] and len(words) == 2:  # ``ifsq tokenizer train ...``: the verb alone
        assert exists(words), f"{block}: {words}"
        return
    try:
        options, extra = parser().parse_known_args(words)
    except SystemExit as end:
        raise AssertionError(f"{block}: ifsq {' '.join(words)}: refused by the parser") from end
    assert hasattr(options, "run"), f"{block}: {words}"
    for word in extra:
        assert options.overrides, f"{block}: {word}"
        assert not word.startswith("--") or word.startswith(options.overrides), f"{block}: {word}"
    check_overrides(options, extra, words)


def check_overrides(options: argparse.Namespace, extra: list[str], words: list[str]) -> None:
    """Raises InputError where an override is none."""
    if words[0] in LOADERS and words[1] == "train":
        usual, load = LOADERS[words[0]]
        named = ROOT / options.experiment
        if str(options.experiment).startswith("experiments/"):
            assert named.is_file(), options.experiment
        text = str(options.experiment)
        usual = next((f"demo/{kind}.toml" for kind in ("diffusion", "ar") if kind in text), usual)
        load(named if named.is_file() else experiment_file(usual), extra)
    elif words[0] == "bench":
        file = options.grid if options.grid.suffix else grid_file(options.grid)
        load_grid(file if file.is_file() else grid_file(Path("minutes")), extra)
    elif words[0] in ("adapt", "demo"):
        load_tokenizer_experiment(experiment_file("demo/tokenizer.toml"), extra)
    elif options.overrides == "--sampling." and extra:
        given = parse_overrides(extra)["sampling"]
        known = [kind.sampling_class for kind in Generator.kinds.values()]
        assert any(given.keys() <= kind.__dataclass_fields__.keys() for kind in known), given
    elif options.overrides == "--likelihood." and extra:
        given = parse_overrides(extra)["likelihood"]
        assert any(given.keys() <= kind.__dataclass_fields__.keys() for kind in (LikelihoodOptions, BoundOptions))


def exists(words: list[str]) -> bool:
    """Whether there is such a verb."""
    action = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    for word in words:
        if action is None or word not in action.choices:
            return False
        below = action.choices[word]
        action = next((a for a in below._actions if isinstance(a, argparse._SubParsersAction)), None)
    return True


def check_launcher(words: list[str], block: Block) -> None:
    """What is not ifsq's own: torchrun's options, make's targets, extras, files that are named."""
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        options = get_args_parser().parse_args(words[1:])
        assert options.module, f"{block}: torchrun starts ifsq as -m ifsq"
    elif words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert set(words[1:]) <= set(targets), f"{block}: {words}"
    elif words[:2] == ["pip", "install"]:
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for extras in re.findall(r"ifsq\[([\w,]+)\]", " ".join(words)):
            assert set(extras.split(",")) <= known.keys(), f"{block}: {extras}"
    elif words[0] in ("python", "bash") and len(words) > 1 and words[1].endswith((".py", ".sh")):
        assert "NAME" in words[1] or (ROOT / words[1]).is_file(), f"{block}: {words[1]}"


@pytest.mark.parametrize("block", [block for block in ALL if block.language in ("bash", "sh")], ids=str)
def test_scripts_are_scripts(block):
    done = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_text_name_verbs_and_options_that_are_there(page):
    for said in INLINE.findall(page.read_text()):
        check_said(said.split(), f"{page.name}: {said}")


def check_said(words: list[str], where: str) -> None:
    """``ifsq sample RUN --count N``, as a sentence has it: not all that it needs, but nothing that there is not."""
    verb = [word for word in words[1:3] if re.fullmatch(r"[a-z|]+", word)]
    candidates = [[word] for word in (verb[0].split("|") if verb else [])]
    if len(verb) > 1 and has_verbs(verb[0]):
        candidates = [[verb[0], word] for word in verb[1].split("|")]
    for candidate in candidates:
        assert exists(candidate), where
        known = options_of(candidate)
        for word in words:
            name = word.partition("=")[0].rstrip(".,;:")
            if name.startswith("--") and "." not in name and known is not None:
                assert name in known or open_to_others(candidate), f"{where}: {name}"


def has_verbs(word: str) -> bool:
    return isinstance(below(word), dict)


def below(word: str):
    action = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    inner = action.choices.get(word)
    found = next((a for a in inner._actions if isinstance(a, argparse._SubParsersAction)), None) if inner else None
    return found.choices if found else inner


def options_of(words: list[str]) -> set[str] | None:
    found = below(words[0])
    if isinstance(found, dict):
        found = found.get(words[1]) if len(words) > 1 else None
    return None if found is None else set(found._option_string_actions)


def open_to_others(words: list[str]) -> bool:
    found = below(words[0])
    if isinstance(found, dict):
        found = found[words[1]]
    return bool(found.get_default("overrides"))


# ---- TOML ----


@pytest.mark.parametrize("block", TOML, ids=str)
def test_toml_is_of_the_options_that_there_are(block):
    table = tomllib.loads(block.text)
    if "question" in table:
        assert build(Grid, table, str(block)).question
        return
    assert block.over, f"{block}: say above it of which experiment it is a piece, <!-- over: demo/ar.toml -->"
    base = read_toml(experiment_file(block.over))
    if table.get("data", {}).get("online"):
        del base["codes"]
    of = next((kind for kind in EXPERIMENTS if kind.kind in base), TokenizerExperiment)
    build(of, merge(base, table), str(block))


# ---- Python ----

SETUP = {
    "README.md": "images = torch.rand(2, 3, 16, 16) * 2 - 1",
    "docs/convert.md": """
from vector_quantize_pytorch import FSQ
class Model(torch.nn.Sequential):
    pass
model = Model(torch.nn.Conv2d(3, 4, 4, 4), FSQ([17] * 4, channel_first=True))
model.forward = lambda images: model[1](model[0](images))
batches = [torch.randn(8, 3, 64, 64) for _ in range(4)]
""",
}
"""By page: what its reader has already, ``model`` or ``images``."""


@pytest.fixture
def toy(road, tmp_path, monkeypatch, quick_judge):
    """A folder in which the names of the pages are: images, and runs that were trained for two steps."""
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "demo"):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        for made, called in (("tok", "tokenizer"), ("ar", "ar"), ("codes", "codes")):
            (folder / called).symlink_to(road / made)
    (tmp_path / "pictures").symlink_to(road / "pictures")
    (tmp_path / "tok").symlink_to(road / "tok")
    (tmp_path / "codes").symlink_to(road / "codes")
    (tmp_path / "my-images").symlink_to(road / "pictures")
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    Image.new("RGB", (20, 18), "teal").save(tmp_path / "picture.jpg")
    return tmp_path


@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON}))
def test_python_runs(page, toy):
    """The blocks of a page one after another, as a reader would."""
    torch.manual_seed(0)
    names = {"torch": torch, "ifsq": ifsq}
    exec(SETUP.get(page, ""), names)
    for block in (block for block in PYTHON if block.page == page):
        code = compile("\n" * block.line + block.text, str(ROOT / page), "exec")
        if not block.why_not:
            exec(code, names)


# ---- commands that are run ----

QUICK = ("analyze codes", "export pretrained", "reconstruct", "sample")
"""Verbs that are run in every test, on runs that are there; the others train, or measure, and are for ``make slow``."""
TINY_TRAINING = "--train.steps 2 --train.batch 4 --train.log_every 1 --train.engine.workers 0 --train.optim.warmup 1"
TINY_TOKENIZER = """
    --data.size 16 --tokenizer.conv.width 8 --tokenizer.conv.groups 4 --tokenizer.conv.blocks 1
    --tokenizer.conv.multipliers [1] --tokenizer.conv.patch 4 --loss.lpips 0
"""
TINY_GENERATOR = "--{kind}.depth 2 --{kind}.width 16 --{kind}.heads 2"
SHRUNKEN = {
    "generator eval": "--samples 8 --features",
    "evaluate": "--count 8 --size 16",
    "analyze alignment": "--split train --neighbours 3",
    "demo": "--train.steps 2 --train.batch 4 --train.optim.warmup 1",
    "adapt": "--steps 2 --size 16 --train.batch 4 --train.log_every 1 --train.engine.workers 0",
    "analyze bounds": "--levels 3 --samples 1000",
    "analyze forecast": "--no-judge",
}
"""What is said behind a command so that it is of toy size."""
PICTURES = {"cat": "grey", "dog": "brown", "fox": "red"}  # class and colour


def verb_of(words: list[str]) -> str:
    return " ".join(words[:2]) if has_verbs(words[0]) else words[0]


def shrunken(words: list[str]) -> list[str]:
    """The same command at toy size."""
    verb, more = verb_of(words), ""
    if verb == "tokenizer train":
        more = TINY_TRAINING + TINY_TOKENIZER + ("" if "--data.source" in words else "--data.source my-images")
    elif verb == "generator train":
        kind = next(kind for kind in ("diffusion", "masked", "ar") if kind in words[2])
        more = f"{TINY_TRAINING} {TINY_GENERATOR.format(kind=kind)}"
    elif verb == "sample" and "--count" in words:
        more = "--count 8"
    return [*words, *(SHRUNKEN.get(verb, more) or more).split()]


def run(words: list[str], where: object) -> None:
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code
    assert code == 0, f"{where}: ifsq {' '.join(words)}: ended with {code}"


def run_blocks(page: str) -> list[tuple[Block, list[str]]]:
    told = [(block, of_ifsq(words)) for block in SHELL if block.page == page for words in commands(block.text)]
    return [(block, words) for block, words in told if words and not block.why_not]


@pytest.mark.parametrize("verb", QUICK)
def test_quick_commands_run_on_toy_data(verb, toy, capsys):
    found = [told for page in {block.page for block in SHELL} for told in run_blocks(page) if verb_of(told[1]) == verb]
    assert found, f"no command of {verb} is documented and run"
    block, words = min(found, key=lambda told: len(told[1]))
    run(shrunken(["a" if word == "cat" else word for word in words]), block)
    assert "Traceback" not in capsys.readouterr().err


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What README's commands made of images of our own, whose sizes differ: the other pages go on with it."""
    folder = tmp_path_factory.mktemp("made")
    for name, colour in PICTURES.items():
        (folder / "my-images" / name).mkdir(parents=True)
        for number in range(8):
            size = (20 + number, 24)
            noise = Image.effect_noise(size, 20 + 8 * number).convert("RGB")
            picture = Image.blend(noise, Image.new("RGB", size, colour), 0.5)
            picture.save(folder / "my-images" / name / f"{number}.png")
    Image.new("RGB", (20, 18), "teal").save(folder / "picture.jpg")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted({block.page for block in SHELL}, key=lambda page: (page != "README.md", page)))
def test_every_command_runs_on_toy_data(page, made, tmp_path, monkeypatch, quick_judge):
    """README first; another page finds its images and ``runs/mine``."""
    if page == "README.md":
        monkeypatch.chdir(made)
    else:
        monkeypatch.chdir(tmp_path)
        for name in ("my-images", "experiments", "picture.jpg"):
            (tmp_path / name).symlink_to(made / name)
        if page != "docs/howto/own_images.md" and (made / "runs/mine").is_dir():
            shutil.copytree(made / "runs/mine", tmp_path / "runs/mine", symlinks=True)
    for block, words in run_blocks(page):
        run(shrunken(words), block)
