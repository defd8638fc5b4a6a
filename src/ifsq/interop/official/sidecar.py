"""What an official checkpoint holds beside a model's weights, kept so that its export is the imported file again.

``official.safetensors`` holds every other tensor, and in its header a digest of the weights, the config, the layout of
the checkpoint as JSON, and a checksum of these three and the tensors. A value of the layout is ``{kind: content}``:
``own`` and ``kept`` name a tensor, ``bfloat16`` and ``float16`` an own one that was as narrow in the file, ``dict``,
``list``, ``tuple`` and ``arguments`` (of a command) hold more values, ``plain`` is a number, text or nothing.
"""

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ifsq.config import InputError, parse_json
from ifsq.config import digest as plain_digest
from ifsq.store.files import write_tensors
from ifsq.store.weights import HALVES, tensors_digest

SIDECAR = "official.safetensors"
DEEPEST = 20
"""Tables and lists inside each other that a checkpoint may have; the official trainer's has six."""
MOST_VALUES = 100_000
_UNKNOWN = (torch.complex128, torch.complex32)  # to safetensors
NARROWED = {str(dtype).removeprefix("torch."): dtype for dtype in HALVES}
_PLAIN = (bool, int, float, str, type(None))


def write_sidecar(folder: Path, found: Any, config: Any, own: dict[str, Tensor], digest: str, size: int) -> None:
    """Keep all of a checkpoint that is not, bit for bit or widened to float32, among the model's own tensors.

    found   the unpickled file: dicts, lists, tuples, arguments of a command, numbers, text, tensors
    config  the JSON beside it; empty where there is none
    own     the model's state, by the names in the file
    digest  the model's, by which `read_sidecar` knows that the two still belong together
    size    bytes of the file, which no more than it can hold is kept of

    Raises InputError for other kinds of values, and for tensors or lists that repeat themselves beyond that size.
    """
    layout = _Layout(own, size)
    described = layout.of(found, "", 0)
    about = {"digest": digest, "config": json.dumps(config), "layout": json.dumps(described)}
    about["sum"] = _sum(about, layout.tensors)
    write_tensors(folder / SIDECAR, layout.tensors, about)


def read_sidecar(folder: Path, own: dict[str, Tensor], digest: str) -> tuple[Any, Any] | None:
    """The checkpoint and its config as they were; None without a sidecar.

    Raises InputError when it is damaged or belongs to other weights.
    """
    path = folder / SIDECAR
    if not path.is_file():
        if path.exists() or path.is_symlink():
            raise InputError(f"{path}: is no regular file; expected what import official wrote")
        return None
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected what import official wrote") from error
    missing = {"digest", "config", "layout", "sum"} - about.keys()
    if missing:
        raise InputError(f"{path}: has no {min(missing)}; expected what import official wrote")
    if about["digest"] != digest:
        raise InputError(f"{path}: belongs to other weights than model.safetensors holds now; remove it")
    if about["sum"] != _sum(about, tensors):
        raise InputError(f"{path}: damaged: its checksum is not that of its content; import the checkpoint again")
    layout, config = (parse_json(about[name], f"{path}: {name}") for name in ("layout", "config"))
    if not isinstance(config, dict):
        raise InputError(f"{path}: config: expected a JSON object, the config of an official tokenizer")
    tables = {"own": own, "kept": tensors, **dict.fromkeys(NARROWED, own)}
    return _value(layout, tables, f"{path}: layout"), config


def _sum(about: dict[str, str], tensors: dict[str, Tensor]) -> str:
    return plain_digest([about["digest"], about["config"], about["layout"], tensors_digest(tensors)])


class _Layout:
    """Takes a checkpoint apart.

    own      tensors that need not be kept
    room     bytes that are left for the others
    tensors  these, by the name of the place where each is met first
    """

    def __init__(self, own: dict[str, Tensor], room: int) -> None:
        self.own, self.room, self.left = own, room, MOST_VALUES
        self.tensors: dict[str, Tensor] = {}
        self.names: dict[Any, str] = {}

    def of(self, value: Any, name: str, depth: int) -> dict[str, Any]:
        """JSON of a value; tensors are named by where they are."""
        self.left -= 1
        where = name.lstrip(".") or "checkpoint"
        if self.left < 0 or depth > DEEPEST:
            told = f"nested more than {DEEPEST} deep" if depth > DEEPEST else f"more than {MOST_VALUES} values"
            raise InputError(f"{where}: {told}, or it holds itself; expected a checkpoint of the official trainer")
        if isinstance(value, Tensor):
            return self._tensor(value, name, where)
        if isinstance(value, dict):
            pairs = [[self.of(k, "", depth + 1), self.of(v, f"{name}.{k}", depth + 1)] for k, v in value.items()]
            return {"dict": pairs}
        if isinstance(value, Namespace):
            return {"arguments": self.of(vars(value), name, depth + 1)}
        if isinstance(value, (list, tuple)):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [self.of(item, f"{name}.{i}", depth + 1) for i, item in enumerate(value)]}
        if not isinstance(value, _PLAIN) or (isinstance(value, int) and value.bit_length() > 64):
            told = "number of more than 64 bits" if isinstance(value, int) else type(value).__name__
            raise InputError(f"{where}: a {told} in the checkpoint; expected tensors and numbers")
        return {"plain": value}

    def _tensor(self, value: Tensor, name: str, where: str) -> dict[str, Any]:
        if value.layout != torch.strided or value.is_quantized or value.is_meta or value.dtype in _UNKNOWN:
            raise InputError(f"{where}: a {value.layout} tensor of {value.dtype}; expected plain numbers")
        for key in (key for key in self.own if name.endswith(f".{key}")):
            own = self.own[key]
            if value.dtype in (own.dtype, *HALVES) and torch.equal(value.to(own.dtype), own):
                return {"own" if value.dtype == own.dtype else str(value.dtype).removeprefix("torch."): key}
        place = value.untyped_storage().data_ptr(), value.storage_offset(), value.shape, value.stride(), value.dtype
        if place not in self.names:
            self.room -= value.numel() * value.element_size()
            if self.room < 0:
                raise InputError(f"{where}: the checkpoint repeats values beyond its size; expected each tensor once")
            self.tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
            self.names[place] = name
        return {"kept": self.names[place]}


def _value(layout: Any, tables: Mapping[str, Mapping[str, Tensor]], where: str) -> Any:
    """Put together what `_Layout` took apart. Raises InputError for what it cannot have written."""
    kind, content = next(iter(layout.items())) if isinstance(layout, dict) and len(layout) == 1 else ("", None)
    if kind in tables and isinstance(content, str) and content in tables[kind]:
        value = tables[kind][content]
        if kind in NARROWED:
            return value.detach().to(NARROWED[kind])
        return value.detach().clone() if kind == "own" else value
    if kind == "plain" and isinstance(content, _PLAIN):
        return content
    if kind == "arguments":
        arguments = _value(content, tables, where)
        if not isinstance(arguments, dict) or not all(isinstance(name, str) for name in arguments):
            raise InputError(f"{where}: arguments without names; expected what import official wrote")
        made = Namespace()
        vars(made).update(arguments)
        return made
    if kind in ("list", "tuple") and isinstance(content, list):
        items = [_value(item, tables, where) for item in content]
        return items if kind == "list" else tuple(items)
    if kind == "dict" and isinstance(content, list):
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in content):
            raise InputError(f"{where}: a table that is none; expected what import official wrote")
        pairs = [[_value(part, tables, where) for part in pair] for pair in content]
        if not all(_is_key(key) for key, _ in pairs):
            raise InputError(
                f"{where}: a table with other keys than text and numbers; expected what import official wrote"
            )
        return dict(pairs)
    raise InputError(f"{where}: {kind or type(layout).__name__!r} is no value; expected what import official wrote")


def _is_key(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(_is_key(part) for part in value))
