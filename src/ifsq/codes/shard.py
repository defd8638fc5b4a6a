"""One safetensors file of a cache: the tensors it holds, told by its header before any memory is taken for them."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ifsq.codes.spec import CodeSpec, LatentSpec
from ifsq.config import InputError, parse_json
from ifsq.store.files import reason

FLIPPED = "_flipped"
LABELS = "labels"
SKIPPED = "skipped"  # in the metadata: JSON, a line about each image that is missing
DTYPES = {"U8": torch.uint8, "U16": torch.uint16, "I64": torch.int64, "F16": torch.float16}


@dataclass(frozen=True)
class ShardHeader:
    """What a shard says it holds.

    count    images
    skipped  a line about each that is missing
    starts   where each tensor begins, in bytes from the beginning of the file
    """

    count: int
    skipped: tuple[str, ...]
    starts: dict[str, int]


def names_of(path: Path) -> Path:
    """The file beside a shard that names its images, a list in JSON."""
    return path.with_suffix(".names.json")


def content_of(layout: CodeSpec | LatentSpec) -> str:
    """Name of the tensor of codes: ``digits`` or ``latents``."""
    return "latents" if isinstance(layout, LatentSpec) else "digits"


def stored_dtype(layout: CodeSpec | LatentSpec) -> torch.dtype:
    """Type in which digits or latents are stored."""
    return torch.float16 if isinstance(layout, LatentSpec) else layout.digit_dtype


def read_header(path: Path, layout: CodeSpec | LatentSpec, flips: bool, crops: int = 1) -> ShardHeader:
    """What a shard says it holds, which is what its size has room for.

    flips  whether it holds the codes of the mirrored images too
    crops  of each image, one behind the other

    Raises InputError when it is damaged or its tensors are not of this layout.
    """
    if not path.is_file():
        raise InputError(f"{path}: {'is no regular file' if path.exists() else 'no such file'}; expected a shard")
    try:
        with safe_open(path, "pt") as shard:
            names = sorted(shard.keys())
            slices = {name: shard.get_slice(name) for name in names}
            found = {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
            about = shard.metadata() or {}
        starts = starts_of(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error
    count = next(iter(found.get(LABELS, ("", ()))[1]), 0)
    content = content_of(layout)
    expected = {LABELS: (torch.int64, (count,)), content: (stored_dtype(layout), (count * crops, *layout.shape))}
    if flips:
        expected[content + FLIPPED] = expected[content]
    for name, (dtype, shape) in expected.items():
        stored = found.get(name)
        if stored is None or DTYPES.get(stored[0]) != dtype or stored[1] != shape:
            what = "nothing" if stored is None else f"{DTYPES.get(stored[0], stored[0])} {stored[1]}"
            raise InputError(f"{path}: {name} is {what}; expected {dtype} {shape}")
    skipped = parse_json(about.get(SKIPPED, "[]"), f"{path}: {SKIPPED}")
    if not isinstance(skipped, list) or not all(isinstance(line, str) for line in skipped):
        raise InputError(f"{path}: {SKIPPED} in its metadata: expected a list of lines")
    return ShardHeader(count, tuple(skipped), starts)


def starts_of(path: Path) -> dict[str, int]:
    """Offsets that the header of a file that safetensors has accepted gives its tensors."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {name: 8 + length + int(told["data_offsets"][0]) for name, told in header.items() if name != "__metadata__"}
