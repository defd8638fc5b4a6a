"""The protocol card: what a number was measured with. Two numbers compare only where their protocols agree.

Written beside every metric by ``pipeline``; read by the report and ``bench``.
"""

import subprocess
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ProtocolCard:
    """Values and how they came about. Fields left at "" or 0 do not apply to this metric.

    metric               name, as ``PSNR`` or ``FD(judge)``
    values               named results
    method               how they follow from the images, where the metric's name leaves it open
    reference            reference set, as ``bundled:photos val``
    reference_hash       fingerprint of it
    n                    images measured
    size                 pixels a side, or height and width
    crop, resize_kernel  how images reached that size
    dtype                arithmetic of the measured model
    seed                 of the sampling
    labels               which classes were asked for, as ``in the reference's proportions``
    guidance             classifier-free guidance scale, or one a group
    sampler              as ``euler`` or ``top-k 0, temperature 1``
    function_evaluations of the generator for one image
    features             feature extractor with the hash of its weights
    samples, samples_hash
                         whose images these are, and their fingerprint, where no run drew them
    tokenizer_hash, generator_hash
                         of the measured weights: what is compared, so they may differ
    code_version         of ifsq, with its commit where that is known
    """

    metric: str
    values: Mapping[str, float]
    reference: str
    reference_hash: str
    n: int
    size: int | tuple[int, int]
    crop: str
    resize_kernel: str
    dtype: str
    seed: int = 0
    guidance: float | Sequence[float] = 0.0
    sampler: str = ""
    function_evaluations: int = 0
    features: str = ""
    tokenizer_hash: str = ""
    generator_hash: str = ""
    method: str = ""
    labels: str = ""
    samples: str = ""
    samples_hash: str = ""
    code_version: str = field(default_factory=lambda: code_version())

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**asdict(self), "values": dict(self.values)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "ProtocolCard":
        """Inverse of `to_dict`; a field that came later than the card plays no part in it, which is its default.

        Raises ValueError, as `check_fields`.
        """
        cls.check_fields(raw)
        several = {name: tuple(raw[name]) for name in ("size", "guidance") if isinstance(raw.get(name), list)}
        return cls(**{**raw, **several})

    @classmethod
    def check_fields(cls, raw: Mapping[str, Any]) -> None:
        """Raise ValueError naming a field that is unknown, or missing without a default."""
        names = {entry.name for entry in fields(cls)}
        needed = {entry.name for entry in fields(cls) if entry.default is MISSING}  # a version is not guessed
        odd = sorted((raw.keys() - names) | (needed - raw.keys()))
        if odd:
            raise ValueError(f"protocol card: field {odd[0]!r} is {'missing' if odd[0] in names else 'unknown'}")


COMPARED = ("values", "samples", "samples_hash", "tokenizer_hash", "generator_hash")
"""What a comparison is about: the results, and the images or models that they are of."""


def compare(a: ProtocolCard, b: ProtocolCard, allow: Collection[str] = ()) -> dict[str, float]:
    """``b - a`` of every value that both have. Raises ValueError naming the protocol fields that differ.

    allow  fields that are the question asked, as ``("sampler", "function_evaluations")`` between two generators
    """
    names = [entry.name for entry in fields(ProtocolCard) if entry.name not in (*COMPARED, *allow)]
    pairs = [(name, getattr(a, name), getattr(b, name)) for name in names]
    if unlike := [f"{name} {mine!r} against {theirs!r}" for name, mine, theirs in pairs if mine != theirs]:
        raise ValueError(f"cards do not compare: {'; '.join(unlike)}, expected equal")
    return {name: b.values[name] - value for name, value in a.values.items() if name in b.values}


def code_version() -> str:
    """Version of ifsq, with the commit where the code runs from a checkout that git can read."""
    version = metadata.version("ifsq")
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return version
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return version
    return f"{version}+{done.stdout.strip()}"
