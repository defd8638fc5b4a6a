"""Row B4: what a manifest, a shard and the hidden folder of an encode may say that is not so."""

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
from tests.faults.damage import result
from tests.faults.trial import Ended
from tests.faults.world import LAST, sha256, sign_again

TRAIN = "generator train ar.toml --out fresh"
MADE = f"fresh/checkpoints/step_{LAST}"
LIES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    3,
    10**12,
    2**64,
    0.5,
    20.0,
    "",
    "20",
    "x",
    [],
    [4],
    {},
    [-1, 4],
    "/dev/zero",
)
NAMES = (
    "/dev/zero",
    "../codes/train_00000.safetensors",
    "/etc/passwd",
    "",
    ".",
    "..",
    "val_00000.safetensors",
    "nowhere",
)


def manifests(world: Path, made: dict[str, str]) -> Iterator[Case]:
    """Every value of the manifest by every lie."""
    manifest = json.loads((world / "codes/manifest.json").read_text())
    for path in leaves(manifest):
        lies = NAMES if path[-1] == "file" else LIES
        for number, lie in enumerate(lies):
            # Which lies about what is only told to people passes; the digits may not become others.
            yield Case(
                "B4",
                f"manifest: {'.'.join(map(str, path))} is {json.dumps(lie)[:20]}",
                lambda folder, path=path, lie=lie: set_value(folder / "codes/manifest.json", path, lie),
                tuple((TRAIN if number % 2 else "analyze codes codes").split()),
                lambda folder, ended, path=path: _judge(folder, ended, made, path),
            )
    yield _case("manifest: a shard a thousand times", lambda folder: _repeat(folder, 1000), made)
    yield _case("manifest: a shard twice", lambda folder: _repeat(folder, 2), made)
    yield _case("manifest: a link out of the folder", _link_out, made)
    yield _case("manifest: a FIFO for a shard", _fifo, made)


def shards(world: Path, made: dict[str, str]) -> Iterator[Case]:
    """Shards that hold something else, signed again."""
    for split in ("train", "val"):
        name = f"codes/{split}_00000.safetensors"
        table, draw = load_file(world / name), random.Random(split)
        digits, labels = table["digits"], table["labels"]
        changes: dict[str, dict[str, torch.Tensor]] = {
            "a digit too large": table | {"digits": digits | 0x7F},
            "digits of int64": table | {"digits": digits.long()},
            "digits of float": table | {"digits": digits.float()},
            "digits of another shape": table | {"digits": digits.flatten(1)},
            "fewer digits": table | {"digits": digits[:-1].clone()},
            "more digits": table | {"digits": torch.cat([digits, digits[:1]])},
            "no digits": {"labels": labels},
            "no labels": {"digits": digits},
            "nothing": {},
            "empty tables": {key: value[:0].clone() for key, value in table.items()},
            "labels of float": table | {"labels": labels.float()},
            "labels of int8": table | {"labels": labels.to(torch.int8)},
            "labels of two axes": table | {"labels": labels[:, None].clone()},
            "fewer labels": table | {"labels": labels[:-1].clone()},
        }
        for wrong in (2, 3, -1, 1000, 2**40, -(2**40)):  # two classes: 2 is the null class of guidance
            changed = labels.clone()
            changed[draw.randrange(len(labels))] = wrong
            changes[f"a label {wrong}"] = table | {"labels": changed}
        for what, damaged in changes.items():
            yield Case(
                "B4",
                f"{split} shard: {what}",
                lambda folder, name=name, damaged=damaged: rewrite(folder, name, damaged),
                tuple(TRAIN.split()),
                lambda folder, ended, what=what: must_refuse(ended) if what != "labels of int8" else "",
            )


def hidden(world: Path) -> Iterator[Case]:
    """The hidden folder in which an encode is written may hold anything."""
    encode = ("encode", "tok", "images", "codes2")

    def put(name: str, content: bytes) -> Callable[[Path], None]:
        def arrange(folder: Path) -> None:
            partial = folder / ".partial_codes2"
            partial.mkdir()
            (partial / "about.json").write_text("{}")
            (partial / name).unlink(missing_ok=True)
            (partial / name).write_bytes(content)

        return arrange

    contents = (b"", b"{}", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"data": 3}')
    for content in contents:
        yield Case("B4", f"hidden folder: about.json {content[:8]!r}", put("about.json", content), encode)
    for name in ("train_00000.sha256", "train_00000.safetensors", "manifest.json"):
        for content in (b"", b"\xff\xfe"):
            yield Case("B4", f"hidden folder: {name} {content!r}", put(name, content), encode)
    yield Case("B4", "hidden folder: is a file", lambda folder: (folder / ".partial_codes2").write_bytes(b""), encode)


def _case(name: str, arrange: Callable[[Path], None], made: dict[str, str]) -> Case:
    return Case("B4", name, arrange, tuple(TRAIN.split()), lambda folder, ended: _judge(folder, ended, made, ()))


def _judge(folder: Path, ended: Ended, made: dict[str, str], path: tuple[Any, ...]) -> str:
    """Training on what a lying manifest leaves gives the weights of the true one, or does not begin."""
    if ended.kind == "accepted" and (folder / "fresh").exists() and result(folder, MADE) != made[TRAIN]:
        return "trained, and ended with other bits"
    return ""


def must_refuse(ended: Ended) -> str:
    return "" if ended.kind == "refused" else f"{ended.kind}, expected a refusal"


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every value of a nested table, of lists the first element alone, and to the tables themselves."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, inside in items:
        yield from leaves(inside, (*path, key))


def set_value(file: Path, path: tuple[Any, ...], value: Any) -> None:
    table = place = json.loads(file.read_text())
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(json.dumps(table))


def _repeat(folder: Path, times: int) -> None:
    file = folder / "codes/manifest.json"
    table = json.loads(file.read_text())
    table["splits"]["train"] *= times
    file.write_text(json.dumps(table))


def _link_out(folder: Path) -> None:
    shard = folder / "codes/train_00000.safetensors"
    shutil.move(shard, folder / "elsewhere.safetensors")
    shard.symlink_to(folder / "elsewhere.safetensors")


def _fifo(folder: Path) -> None:
    shard = folder / "codes/train_00000.safetensors"
    shard.unlink()
    os.mkfifo(shard)


def rewrite(folder: Path, name: str, table: dict[str, torch.Tensor]) -> None:
    path = folder / name
    before = sha256(path)
    path.unlink()
    save_file({key: value.contiguous() for key, value in table.items()}, path, {"skipped": "[]"})
    sign_again(folder, path, before)
