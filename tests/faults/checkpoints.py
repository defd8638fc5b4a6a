"""Rows B3, B3b and B3c: checkpoints that were exchanged, edited state and optimizers, weights that are none.

Edited files are signed again: whatever names their SHA-256 names the new one, so that the check behind it is met.
"""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tests.faults.cases import Case
from tests.faults.damage import VALUES, result
from tests.faults.trial import Ended
from tests.faults.world import LAST, sha256, sign_again

TRAIN = ("tokenizer", "train", "mid.toml")
MADE = f"mid/checkpoints/step_{LAST}"
NOT_FINITE = ("nan", "inf", "-inf")


def exchanged(made: dict[str, str]) -> Iterator[Case]:
    """Row B3: right files in the wrong place, folders renamed, halves of a checkpoint."""

    def step(folder: Path, number: int = 4, run: str = "mid") -> Path:
        return folder / run / "checkpoints" / f"step_{number}"

    def swap(name: str) -> Callable[[Path], None]:
        def arrange(folder: Path) -> None:
            a, b, spare = step(folder) / name, step(folder, 2) / name, folder / "spare"
            a.rename(spare), b.rename(a), spare.rename(b)

        return arrange

    def foreign(name: str) -> Callable[[Path], None]:
        return lambda folder: os.replace(step(folder, 4, "other") / name, step(folder) / name)

    files = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")
    arranged: dict[str, Callable[[Path], Any]] = {
        **{f"{name} of step 2 and 4 exchanged": swap(name) for name in (*files, "state.json")},
        **{f"{name} of another seed": foreign(name) for name in (*files, "state.json")},
        "step_4 named step_5": lambda folder: step(folder).rename(step(folder, 5)),
        "step_2 named step_5": lambda folder: step(folder, 2).rename(step(folder, 5)),
        "step_2 and step_4 exchanged": lambda folder: (
            step(folder).rename(folder / "spare"),
            step(folder, 2).rename(step(folder)),
            (folder / "spare").rename(step(folder, 2)),
        ),
        "step_4 copied to step_999": lambda folder: shutil.copytree(step(folder), step(folder, 999)),
        "step_4 copied to step_6": lambda folder: shutil.copytree(step(folder), step(folder, 6)),
        "step_4 of another seed": lambda folder: (
            shutil.rmtree(step(folder)),
            shutil.copytree(step(folder, 4, "other"), step(folder)),
        ),
        "all checkpoints of another seed": lambda folder: (
            shutil.rmtree(folder / "mid/checkpoints"),
            shutil.copytree(folder / "other/checkpoints", folder / "mid/checkpoints"),
        ),
        "model.safetensors in the place of ema.safetensors": lambda folder: shutil.copyfile(
            step(folder) / "model.safetensors", _gone(step(folder) / "ema.safetensors")
        ),
        **{
            f"{name} missing": lambda folder, name=name: (step(folder) / name).unlink()
            for name in (*files, "state.json")
        },
        "step_5 empty": lambda folder: step(folder, 5).mkdir(),
        "step_5 with weights alone": lambda folder: (
            step(folder, 5).mkdir(),
            shutil.copyfile(step(folder) / "model.safetensors", step(folder, 5) / "model.safetensors"),
        ),
        "step_5 is a file": lambda folder: step(folder, 5).write_bytes(b""),
        "a stray folder": lambda folder: (folder / "mid/checkpoints/step_x").mkdir(),
        "a stray file": lambda folder: (folder / "mid/checkpoints/notes.txt").write_text("notes"),
        "a checkpoint of a generator": lambda folder: (
            shutil.rmtree(step(folder)),
            shutil.copytree(step(folder, 4, "ar"), step(folder)),
        ),
    }
    for name, arrange in arranged.items():
        yield Case("B3", name, arrange, TRAIN, lambda folder, ended: _same_or_refused(folder, ended, made))


def states(world: Path, made: dict[str, str]) -> Iterator[Case]:
    """Row B3b: state.json with other values, and optimizer tables that a hand has written."""
    place = "mid/checkpoints/step_4"
    state = json.loads((world / place / "state.json").read_text())
    draw = random.Random(0)
    keys = [key for key in state if key != "seconds"]
    for number, value in enumerate(VALUES):
        key = keys[number % len(keys)]
        yield Case(
            "B3b",
            f"state.json: {key} is {value[:12]}",
            lambda folder, key=key, value=value: _edit(folder / place / "state.json", key, value),
            TRAIN,
            lambda folder, ended: _same_or_refused(folder, ended, made),
        )
    for key in keys:
        yield Case(
            "B3b",
            f"state.json: without {key}",
            lambda folder, key=key: _edit(folder / place / "state.json", key, None),
            TRAIN,
            lambda folder, ended: _same_or_refused(folder, ended, made),
        )

    def odd(table: dict[str, torch.Tensor]) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        names = sorted(table)
        moments = [name for name in names if table[name].ndim]
        for name in draw.sample(moments, 4):
            yield f"{name} is shorter", table | {name: table[name].flatten()[:-1].clone()}
            yield f"{name} is longer", table | {name: torch.cat([table[name].flatten()] * 2)}
        name = moments[0]
        yield f"{name} is missing", {key: value for key, value in table.items() if key != name}
        yield f"{name} is of integers", table | {name: table[name].to(torch.int64)}
        yield f"{name} has another name", {f"{key}x" if key == name else key: value for key, value in table.items()}
        yield "one more entry", table | {"more": torch.zeros(3)}
        yield "an empty table", {}
        yield f"{name} is NaN", table | {name: torch.full_like(table[name], float("nan"))}

    file = f"{place}/optimizer.safetensors"
    for name, table in odd(load_file(world / file)):
        yield Case(
            "B3b",
            f"optimizer: {name}",
            lambda folder, table=table: _rewrite(folder, file, table),
            TRAIN,
            lambda folder, ended: _same_or_refused(folder, ended, made),
        )


def weights(world: Path) -> Iterator[Case]:
    """Row B3c: NaN, infinities, huge numbers, zeros and other types in the place of weights, and who reads them."""
    readers = {
        "mid": ("tokenizer train mid.toml", "reconstruct mid picture.png --out p", "export pretrained mid --out new"),
        "ar": (
            "generator train ar.toml",
            "sample ar --labels 0 --out p.png",
            "generator eval ar --samples 4 --features",
        ),
        "diffusion": (
            "generator train diffusion.toml",
            "sample diffusion --labels 0 --out p.png",
            "generator eval diffusion --samples 4 --features",
        ),
    }
    values = ("nan", "inf", "-inf", "1e38", "0", "int64", "bool", "complex64", "float16")
    for run, lines in readers.items():
        for line in lines:
            file = f"{run}/checkpoints/step_4/{'model' if 'train' in line else 'ema'}.safetensors"
            table = load_file(world / file)
            name = max(table, key=lambda key: table[key].numel())
            for value in values:
                damaged = table | {name: _with(table[name], value)}
                yield Case(
                    "B3c",
                    f"{run}: {name} with {value}, {line.rpartition(' ')[0]}",
                    lambda folder, file=file, damaged=damaged: _rewrite(folder, file, damaged),
                    tuple(line.split()),
                    lambda folder, ended, value=value: _must_refuse(
                        ended, value in (*NOT_FINITE, "int64", "bool", "complex64")
                    ),
                )


def _with(tensor: torch.Tensor, value: str) -> torch.Tensor:
    if hasattr(torch, value):
        return tensor.to(getattr(torch, value))
    changed = tensor.clone()
    changed.view(-1)[tensor.numel() // 2] = float(value)
    return changed if value in NOT_FINITE else torch.full_like(tensor, float(value))


def _must_refuse(ended: Ended, wanted: bool) -> str:
    return f"{ended.kind}, expected a refusal" if wanted and ended.kind != "refused" else ""


def _same_or_refused(folder: Path, ended: Ended, made: dict[str, str]) -> str:
    if ended.kind == "accepted" and result(folder, MADE) != made[" ".join(TRAIN)]:
        return "went on, and ended with other bits"
    return ""


def _gone(path: Path) -> Path:
    path.unlink()
    return path


def _edit(path: Path, key: str, value: str | None) -> None:
    state = json.loads(path.read_text())
    del state[key]
    text = json.dumps(state)
    path.write_text(text if value is None else f"{text[:-1]}, {json.dumps(key)}: {value}}}")


def _rewrite(folder: Path, file: str, table: dict[str, torch.Tensor]) -> None:
    path = folder / file
    before = sha256(path)
    path.unlink()
    save_file({name: value.contiguous() for name, value in table.items()}, path)
    sign_again(folder, path, before)
