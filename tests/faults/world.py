"""What is damaged: tiny runs of every kind, made once, copied for every attempt. All paths in them are relative."""

import hashlib
import io
import os
import random
import shutil
import tarfile
from pathlib import Path

from PIL import Image
from safetensors import safe_open
from tests.faults.trial import forked

TOKENIZER = """
out = "{out}"
[data]
source = "images"
size = 16
broken = "skip"
[tokenizer.conv]
width = 8
multipliers = [1, 1]
blocks = 1
patch = 2
groups = 4
[tokenizer.quantizer]
levels = [5, 5]
[train]
steps = 6
batch = 4
log_every = 1
save_every = 2
keep = 3
validate_every = 0
optim.warmup = 2
{more}
"""
GENERATOR = """
out = "{out}"
tokenizer = "tok"
codes = "codes"
[{kind}]
depth = 1
width = 16
heads = 2
{own}
[train]
steps = 6
batch = 4
log_every = 1
save_every = 2
keep = 3
optim.warmup = 2
"""
TEACHER = """
out = "teacher"
[data]
source = "images"
size = 16
broken = "skip"
[network]
width = 8
depth = 1
[train]
steps = 6
batch = 4
log_every = 1
save_every = 2
keep = 3
optim.warmup = 2
"""
ALIGNMENT = """
[alignment]
depth = 1
weight = 0.5
hidden = 8
[[alignment.teachers]]
source = "teacher"
"""
LAST, HERE = 6, 4
"""Steps of a run, and the step after which it was interrupted."""


def make(folder: Path, golden: Path | None) -> None:
    """Everything that an attempt may damage, in a new folder.

    ``mid``, ``teacher``, ``ar``, ``aligned`` and ``diffusion`` stand at step `HERE` of `LAST`, the other runs are done.
    """
    folder.mkdir(parents=True)
    _pictures(folder)
    (folder / "tok.toml").write_text(TOKENIZER.format(out="tok", more=""))
    (folder / "mid.toml").write_text(TOKENIZER.format(out="mid", more=""))
    (folder / "other.toml").write_text(TOKENIZER.format(out="other", more="seed = 7"))
    (folder / "teacher.toml").write_text(TEACHER)
    ar = {"kind": "ar", "own": "mlp_multiple_of = 16"}
    (folder / "ar.toml").write_text(GENERATOR.format(out="ar", **ar))
    (folder / "aligned.toml").write_text(GENERATOR.format(out="aligned", **ar) + ALIGNMENT)
    diffusion = {"kind": "diffusion", "own": "patch = 2\n[sampling]\nsteps = 2"}
    (folder / "diffusion.toml").write_text(GENERATOR.format(out="diffusion", **diffusion))
    for line in (
        "tokenizer train tok.toml",
        "tokenizer train mid.toml",
        "tokenizer train other.toml",
        "teacher train teacher.toml",
        "encode tok images codes",
        "encode tok shard.tar others --size 16",
        "features codes --teacher teacher",
        "features codes --teacher teacher --layer 1 --out features-layer",
        "features codes --teacher teacher --grid 2 --out features-grid",
        "features others --teacher teacher --out features-others",
        "generator train ar.toml",
        "generator train aligned.toml",
        "generator train diffusion.toml",
        "tokenizer eval tok",
        "generator eval ar --samples 4 --features",
        "generator eval diffusion --samples 4 --features",
        "export pretrained tok --out saved",
        "sample ar --labels 0 1 --out good.png",
        "sample ar --count 8 --out samples.npz",
        "evaluate samples.npz --reference samples.npz --features pixels --no-cache --out cards.json",
        "analyze alignment tok --neighbours 2 --split train --out alignment.json",
    ):
        command(folder, line)
    for run in ("mid", "teacher", "ar", "aligned", "diffusion"):
        shutil.rmtree(folder / run / "checkpoints" / f"step_{LAST}")
    if golden is not None:
        shutil.copy(golden / "ckpt_tokenizer_tiny.ckpt", folder / "official.ckpt")
        shutil.copy(golden / "ckpt_tokenizer_tiny.config.json", folder / "official.json")
        command(folder, "import official official.ckpt --config official.json --out imported")
        shutil.copy(golden / "ckpt_llamagen_tiny.pt", folder / "llamagen.pt")
        command(folder, "import official llamagen.pt --out imported_ar")
        shutil.copytree(golden / "offline_latents", folder / "latents")
        shutil.copy(golden / "ckpt_dit_tiny.pt", folder / "dit.pt")
        command(folder, "import official dit.pt --multiplier 1.1 --out imported_dit")
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def copy(world: Path, to: Path) -> Path:
    """A copy to damage. Large files are linked: replace one, never write into it."""

    def link(source: str, target: str) -> None:
        if source.endswith((".safetensors", ".ckpt", ".pt", ".png", ".tar")):
            os.link(source, target)
        else:
            shutil.copyfile(source, target)

    shutil.copytree(world, to, copy_function=link)
    return to


def replace(path: Path, content: bytes) -> None:
    """New content under a name; other links keep the old one."""
    path.unlink()
    path.write_bytes(content)


def command(folder: Path, line: str) -> None:
    """A command that must succeed."""
    ended = forked(line.split(), folder, limit=120)
    if ended.kind != "accepted":
        raise RuntimeError(f"ifsq {line}: {ended.kind}: {ended.err}")


def _pictures(folder: Path) -> None:
    draw = random.Random(0)
    for name in "ab":
        (folder / "images" / name).mkdir(parents=True)
        for number in range(20):
            shade = tuple(draw.randrange(256) for _ in range(3))
            Image.new("RGB", (20, 16), shade).save(folder / "images" / name / f"{number}.png")
    (folder / "images" / "a" / "broken.png").write_bytes(b"no picture")  # so that runs have a skipped.txt
    noise = Image.frombytes("RGB", (24, 24), draw.randbytes(24 * 24 * 3))
    noise.save(folder / "picture.png")
    noise.save(folder / "picture.jpg")
    names = [f"images/{name}/{number}.png" for name in "ab" for number in range(20)]
    (folder / "list.txt").write_text("".join(f"{name} {name[7]}\n" for name in names))
    (folder / "list.csv").write_text("path,label\n" + "".join(f"{name},{name[7]}\n" for name in names))
    (folder / "list.jsonl").write_text("".join(f'{{"path": "{name}", "label": "{name[7]}"}}\n' for name in names))
    with tarfile.open(folder / "shard.tar", "w") as shard:
        for number, name in enumerate(names):
            for ending, content in ((".png", (folder / name).read_bytes()), (".cls", b"%d" % (number % 2))):
                member = tarfile.TarInfo(f"{number:03d}{ending}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))


def sign_again(folder: Path, file: Path, before: str) -> None:
    """Put the SHA-256 that a damaged file has now wherever a text beside it named the one it had ``before``."""
    now = hashlib.sha256(file.read_bytes()).hexdigest()
    for path in (*folder.rglob("*.json"), *folder.rglob("*.sha256")):
        text = path.read_text(errors="replace")
        if before in text:
            path.write_text(text.replace(before, now))


def sha256(file: Path) -> str:
    """Hex digest of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def weights_of(folder: Path) -> str:
    """Digest of the files of weights that lie in a checkpoint or a saved model; empty where there are none."""
    digest = hashlib.sha256()
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest() if files else ""


def tensors_of(folder: Path) -> str:
    """Digest of the tensors in a folder of weights, whatever the headers of its files tell of where they come from."""
    digest = hashlib.sha256()
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        with safe_open(file, "np") as table:
            for name in sorted(table.keys()):
                tensor = table.get_tensor(name)
                digest.update(f"{file.name} {name} {tensor.dtype} {tensor.shape}".encode() + tensor.tobytes())
    return digest.hexdigest() if files else ""
