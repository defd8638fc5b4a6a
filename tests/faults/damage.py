"""Row B1: every kind of file that a stage reads, in some sixty-five kinds of damage."""

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults.cases import Case
from tests.faults.surroundings import as_others
from tests.faults.trial import Ended
from tests.faults.world import LAST, tensors_of


@dataclass(frozen=True)
class Target:
    """A file, the command that reads it, and what the command makes.

    vouched  whether a checksum stands for its bytes, so that no other content may pass with another result
    made     folder whose weights, or file, the command makes
    """

    file: str
    line: str
    vouched: bool = False
    made: str = ""


ALIGNED = "generator train aligned.toml --out fresh"


def _run(run: str, verb: str) -> list[Target]:
    """Files of a run that goes on."""
    line, made, step = f"{verb} train {run}.toml", f"{run}/checkpoints/step_{LAST}", f"{run}/checkpoints/step_4"
    names = ("state.json", "model.safetensors", "ema.safetensors", "optimizer.safetensors")
    kept = [Target(f"{step}/{name}", line, name != "state.json", made) for name in names]
    return [Target(f"{run}/config.json", line), Target(f"{run}/metrics.jsonl", line), *kept]


TARGETS = (
    *_run("mid", "tokenizer"),
    Target("mid/skipped.txt", "tokenizer train mid.toml"),
    *_run("teacher", "teacher"),
    *_run("ar", "generator"),
    Target("diffusion/checkpoints/step_4/ema.safetensors", "sample diffusion --labels 0 1 --out p.png", True, "p.png"),
    Target("diffusion/checkpoints/step_4/state.json", "sample diffusion --labels 0 1 --out p.png"),
    Target("diffusion/config.json", "generator eval diffusion --samples 4 --features"),
    Target("codes/manifest.json", "generator train ar.toml --out fresh"),
    Target(
        "codes/train_00000.safetensors", "generator train ar.toml --out fresh", True, f"fresh/checkpoints/step_{LAST}"
    ),
    Target(
        "codes/val_00000.safetensors", "generator train ar.toml --out fresh", True, f"fresh/checkpoints/step_{LAST}"
    ),
    Target("codes/.checked.json", "generator train ar.toml --out fresh", True, f"fresh/checkpoints/step_{LAST}"),
    *(
        Target(f"codes-teacher/{name}", ALIGNED, name != "manifest.json", f"fresh/checkpoints/step_{LAST}")
        for name in ("manifest.json", "features_00000.safetensors", ".checked.json")
    ),
    Target(
        "aligned/checkpoints/step_4/companion.safetensors",
        "generator train aligned.toml",
        True,
        f"aligned/checkpoints/step_{LAST}",
    ),
    Target("saved/config.json", "reconstruct saved picture.png --out p"),
    Target("saved/model.safetensors", "reconstruct saved picture.png --out p", True, "p/picture.png"),
    Target("tok/evaluation.json", "report tok ar diffusion"),
    Target("tok/metrics.jsonl", "report tok ar diffusion"),
    Target("ar/config.json", "report tok ar diffusion"),
    Target("ar/samples/classes.png", "report tok ar diffusion"),
    Target("ar/evaluation.json", "report tok ar diffusion"),
    Target("samples.npz", "evaluate samples.npz --reference images --size 16 --features pixels --pairs 0 --no-cache"),
    Target("cards.json", "compare cards.json cards.json"),
    Target("alignment.json", "analyze alignment tok --neighbours 2 --split train --out alignment.json"),
    Target("mid.toml", "tokenizer train mid.toml"),
    Target("teacher.toml", "teacher train teacher.toml"),
    Target("ar.toml", "generator train ar.toml"),
    Target("list.txt", "encode tok list.txt out --size 16"),
    Target("list.csv", "encode tok list.csv out --size 16"),
    Target("list.jsonl", "encode tok list.jsonl out --size 16"),
    Target("shard.tar", "encode tok shard.tar out --size 16"),
    Target("picture.png", "reconstruct tok picture.png --out p"),
    Target("picture.jpg", "reconstruct tok picture.jpg --out p"),
    Target("official.ckpt", "import official official.ckpt --config official.json --out new", True, "new"),
    Target("llamagen.pt", "import official llamagen.pt --out new", True, "new"),
    Target("imported_ar/projectors.safetensors", "export official imported_ar --out new.pt", True, "new.pt"),
    Target("imported_ar/model.safetensors", "export official imported_ar --out new.pt", True, "new.pt"),
    Target("imported_ar/official.safetensors", "export official imported_ar --out new.pt"),
    Target("dit.pt", "import official dit.pt --multiplier 1.1 --out new", True, "new"),
    Target("imported_dit/official.safetensors", "export official imported_dit --out new.pt"),
    Target("latents/latents_rank00_shard000.safetensors", "import latents latents --out new"),
    Target("latents/latents_stats.pt", "import latents latents --out new"),
    Target("official.json", "import official official.ckpt --config official.json --out new"),
)


def cases(world: Path, made: dict[str, str]) -> Iterator[Case]:
    """All of them; ``made`` says what each command makes of undamaged files."""
    for target in TARGETS:
        if (world / target.file).exists():
            for name, harm in damages(world, target.file):
                yield Case(
                    "B1",
                    f"{target.file}: {name}",
                    lambda folder, harm=harm, file=target.file: harm(folder / file),
                    tuple(target.line.split()),
                    lambda folder, ended, target=target: _judge(folder, ended, target, made),
                    as_others if name == "unreadable" else None,
                )


def result(folder: Path, made: str) -> str:
    """What a command made: the digest of a folder's weights, or a file's bytes."""
    path = folder / made
    return tensors_of(path) if path.is_dir() else path.read_bytes().hex() if path.is_file() else ""


def _judge(folder: Path, ended: Ended, target: Target, made: dict[str, str]) -> str:
    if ended.kind != "accepted" or not target.vouched or result(folder, target.made) == made[target.line]:
        return ""
    return "damaged bytes were accepted, and the result is another"


Harm = Callable[[Path], None]
VALUES = (
    *("null", "true", "-1", "0", "1e308", "10000000000000", "9" * 5000, '""', '"x"', "[]", "{}", "[[]]", "NaN"),
    *('"\\ud800"', '"/dev/zero"', "[" * 3000 + "]" * 3000),
)
"""In the place of a value of a JSON file."""
TEXTS = (
    *(b"null", b"[]", b"{}", b'"text"', b"\xff\xfe\x00", b"\x00", b"[" * 100_000, b'{"a":' * 100_000),
    *(b"9" * 5000, b"a" * (1 << 20), b'{"kind": ' + b"9" * 5000 + b"}", b"\xef\xbb\xbf{}", b"\n" * 1000),
)
"""In the place of a whole file."""


def damages(world: Path, file: str) -> Iterator[tuple[str, Harm]]:
    """Named kinds of damage to a file; what they do is decided by its name alone."""
    content, draw = (world / file).read_bytes(), random.Random(file)
    n = len(content)
    yield "missing", lambda path: path.unlink()
    yield "a folder", lambda path: (path.unlink(), path.mkdir())[0]
    yield "a dangling link", lambda path: _linked(path, "nowhere")
    yield "a link to itself", lambda path: _linked(path, path.name)
    yield "a FIFO", lambda path: (path.unlink(), os.mkfifo(path))[0]
    yield "/dev/zero", lambda path: _linked(path, "/dev/zero")
    yield "/dev/null", lambda path: _linked(path, "/dev/null")
    yield "unreadable", lambda path: (path.write_bytes(_take(path)), path.chmod(0))[1]
    for length in (0, 1, 8, n // 4, n // 2, n - 9, n - 1):
        if length < n:
            yield f"cut to {length} bytes", _becomes(content[:length])
    for _ in range(12):
        at, bit = draw.randrange(n), draw.randrange(8)
        yield f"bit {bit} of byte {at}", _becomes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
    for at in (0, n // 3, n - 16):
        yield (
            f"16 random bytes at {max(0, at)}",
            _becomes(content[: max(0, at)] + draw.randbytes(16) + content[at + 16 :]),
        )
    for at in (0, n // 2, n):
        yield f"inserted zeros at {at}", _becomes(content[:at] + bytes(8) + content[at:])
    yield "junk behind", _becomes(content + draw.randbytes(100))
    yield "twice", _becomes(content * 2)
    yield "backwards", _becomes(content[::-1])
    for other in ("picture.png", "ar.toml", "codes/manifest.json", "ar/checkpoints/step_2/ema.safetensors"):
        if other != file:
            yield f"in its place {other}", _becomes((world / other).read_bytes())
    for text in TEXTS:
        yield f"in its place {text[:12]!r} ({len(text)} bytes)", _becomes(text)
    yield from _values(content, draw) if file.endswith((".json", ".jsonl")) else ()


def _values(content: bytes, draw: random.Random) -> Iterator[tuple[str, Harm]]:
    """A value of a JSON text by another, wherever one follows a colon."""
    places = [at for at in range(len(content)) if content[at : at + 2] == b": "]
    for value in VALUES:
        at = draw.choice(places) + 2
        end = min(place for stop in (b",", b"}", b"\n") if (place := content.find(stop, at)) > 0)
        yield f"{value[:12]} for byte {at}", _becomes(content[:at] + value.encode() + content[end:])


def _becomes(content: bytes) -> Harm:
    def harm(path: Path) -> None:
        path.unlink()
        path.write_bytes(content)

    return harm


def _take(path: Path) -> bytes:
    content = path.read_bytes()
    path.unlink()
    return content


def _linked(path: Path, to: str) -> None:
    path.unlink()
    path.symlink_to(to)
