"""Rows A9 and B5: a cache of a teacher's features that is killed while it is written, that lies, or is of others."""

import json
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tests.faults.cases import Case, Found
from tests.faults.damage import ALIGNED, result
from tests.faults.manifests import LIES, NAMES, leaves, must_refuse, rewrite, set_value
from tests.faults.processes import LIMIT, found, start
from tests.faults.trial import Ended, wait_until
from tests.faults.world import LAST, copy

CACHE = "codes-teacher"
SHARD = f"{CACHE}/features_00000.safetensors"
MADE = f"fresh/checkpoints/step_{LAST}"
SMALL = """
import ifsq.codes.feature_writer as writer
from ifsq.cli import main
writer.SHARD_BYTES = 512
raise SystemExit(main())
"""
"""Two pictures a shard, so that there are many."""


def killed_writers(world: Path, place: Path, times: int = 8) -> Iterator[Found]:
    """Row A9: SIGKILL at random moments while features are written; then the same command, to its end."""
    draw, how = random.Random(0), [sys.executable, "-c", SMALL]
    folder = copy(world, place)
    line = "features codes --teacher teacher --batch 1 --out {}"
    start(folder, line.format("whole"), how=how).end(LIMIT)
    killed, left = 0, True
    while left and killed < times:
        before, run = _files(folder / "seen"), start(folder, line.format("seen"), how=how)
        left = wait_until(lambda before=before: _files(folder / "seen") > before, run)
        time.sleep(draw.random() * 0.02)
        run.kill()
        killed += left
    ended = start(folder, line.format("seen"), how=how).end(LIMIT)
    whole, seen = ({path.name: path.read_bytes() for path in (folder / name).iterdir()} for name in ("whole", "seen"))
    shutil.rmtree(folder)
    one = found("A9", f"features, {killed} kills", ended, ("accepted",))
    wrong = "" if whole == seen else "other bytes than unbroken"
    yield (
        one
        if one.bad
        else Found("A9", one.name, one.kind, wrong or ("" if killed > 1 else "too few kills"), one.detail)
    )


def _files(folder: Path) -> int:
    return sum(1 for _ in folder.rglob("*")) if folder.is_dir() else 0


def lies(world: Path, made: dict[str, str]) -> Iterator[Case]:
    """Row B5: every value of the manifest by every lie."""
    for path in leaves(json.loads((world / CACHE / "manifest.json").read_text())):
        for lie in NAMES if path[-1] == "file" else LIES:
            yield _case(
                f"manifest: {'.'.join(map(str, path))} is {json.dumps(lie)[:20]}",
                lambda folder, path=path, lie=lie: set_value(folder / CACHE / "manifest.json", path, lie),
                lambda folder, ended: _same_or_refused(folder, ended, made),
            )


def shards(world: Path) -> Iterator[Case]:
    """Row B5: shards that hold something else, signed again."""
    table = load_file(world / SHARD)
    features = table["features"]
    odd = features.clone()
    odd.view(-1)[7] = float("nan")
    changes: dict[str, dict[str, torch.Tensor]] = {
        "not finite": {"features": odd},
        "float32": {"features": features.float()},
        "int16": {"features": features.view(torch.int16)},
        "of another shape": {"features": features.flatten(1)},
        "fewer": {"features": features[:-1].clone()},
        "more": {"features": torch.cat([features, features[:1]])},
        "narrower": {"features": features[..., :-1].clone()},
        "under another name": {"feature": features},
        "none": {},
        "empty": {"features": features[:0].clone()},
    }
    for what, damaged in changes.items():
        yield _case(f"features {what}", lambda folder, damaged=damaged: rewrite(folder, SHARD, damaged), _refused)


def others(made: dict[str, str]) -> Iterator[Case]:
    """Row B5: caches of other codes, another layer, another grid, and of codes in the place of features."""
    for name in ("features-others", "features-layer", "codes"):
        yield _case(f"{name} in its place", _put(name), _refused)
    # Another grid is right, but another teaching: it is resampled.
    yield _case("features-grid in its place", _put("features-grid"), lambda folder, ended: "")
    yield _case(
        "codes of other pictures",
        lambda folder: (shutil.rmtree(folder / "codes"), (folder / "others").rename(folder / "codes"))[0],
        _refused,
    )
    yield _case(
        "a shard of another cache",
        lambda folder: (folder / "features-others/features_00000.safetensors").replace(folder / SHARD),
        _refused,
    )
    again = ("features", "codes", "--teacher", "teacher", "--out", "features-layer")
    yield Case("B5", "features over those of a layer", lambda folder: None, again, _refused)
    write = ("features", "codes", "--teacher", "teacher", "--out", "seen")
    for name, content in (("about.json", b""), ("about.json", b"[]"), ("features_00000.sha256", b"\xff"),
                          ("features_00000.safetensors", b"x"), ("manifest.json", b"{}")):  # fmt: skip
        yield Case("B5", f"hidden folder: {name} {content!r}", _hidden(name, content), write)


def cases(world: Path, made: dict[str, str]) -> Iterator[Case]:
    """All of row B5."""
    yield from lies(world, made)
    yield from shards(world)
    yield from others(made)


def _put(name: str) -> Callable[[Path], None]:
    def arrange(folder: Path) -> None:
        shutil.rmtree(folder / CACHE)
        shutil.copytree(folder / name, folder / CACHE)

    return arrange


def _hidden(name: str, content: bytes) -> Callable[[Path], None]:
    def arrange(folder: Path) -> None:
        partial = folder / "seen/.partial_features"
        partial.mkdir(parents=True)
        (partial / "about.json").write_text("{}")
        (partial / name).unlink(missing_ok=True)
        (partial / name).write_bytes(content)

    return arrange


def _case(name: str, arrange: Callable[[Path], Any], judge: Callable[[Path, Ended], str]) -> Case:
    return Case("B5", name, arrange, tuple(ALIGNED.split()), judge)


def _same_or_refused(folder: Path, ended: Ended, made: dict[str, str]) -> str:
    """Training on what a lying manifest leaves gives the weights of the true one, or does not begin."""
    if ended.kind == "accepted" and result(folder, MADE) != made[ALIGNED]:
        return "trained, and ended with other bits"
    return ""


def _refused(folder: Path, ended: Ended) -> str:
    return must_refuse(ended)
