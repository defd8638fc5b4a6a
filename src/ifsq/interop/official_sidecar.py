"""What an official checkpoint holds beyond the tokenizer, kept beside it: ``official.safetensors`` of its folder.

Its other weights, running statistics, discriminator, optimizers and counters have no place in a `Tokenizer`. With the
sidecar, export writes the file again as it was. Remove it, and export writes the tokenizer's weights alone.
Called by ``official_tokenizer``.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ifsq.config import InputError
from ifsq.store.files import write_tensors

SIDECAR = "official.safetensors"


def write_sidecar(folder: Path, found: Any, config: Any, own: dict[str, Tensor], digest: str) -> None:
    """Keep all of a checkpoint that is not, bit for bit, among the tokenizer's own tensors.

    found   the unpickled file: dicts, lists, tuples, numbers, text, tensors
    config  the JSON beside it
    own     the tokenizer's state
    digest  the tokenizer's, by which `read_sidecar` knows that the two still belong together
    """
    tensors: dict[str, Tensor] = {}
    layout = _take(found, own, tensors, "")
    about = {"digest": digest, "config": json.dumps(config), "layout": json.dumps(layout)}
    write_tensors(folder / SIDECAR, tensors, about)


def read_sidecar(folder: Path, own: dict[str, Tensor], digest: str) -> tuple[Any, Any] | None:
    """The checkpoint and its config as they were; None without a sidecar.

    Raises InputError when it is damaged or belongs to other weights.
    """
    path = folder / SIDECAR
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        layout, config = json.loads(about["layout"]), json.loads(about["config"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error!r}); expected what import official wrote") from error
    if about["digest"] != digest:
        raise InputError(f"{path}: belongs to other weights than model.safetensors holds now; remove it")
    return _give(layout, own, tensors), config


def _take(value: Any, own: dict[str, Tensor], tensors: dict[str, Tensor], name: str) -> Any:
    """JSON of ``value``: each container with its type, each tensor by the name it is kept under."""
    if isinstance(value, Tensor):
        for key in (key for key in own if name.endswith(f".{key}")):
            if value.dtype == own[key].dtype and torch.equal(value, own[key]):
                return {"own": key}
        tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
        return {"kept": name}
    if isinstance(value, dict):
        return {"dict": [[_take(k, own, tensors, ""), _take(v, own, tensors, f"{name}.{k}")] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_take(item, own, tensors, f"{name}.{i}") for i, item in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"plain": value}
    raise InputError(f"{name.lstrip('.')}: a {type(value).__name__} in the checkpoint; expected tensors and numbers")


def _give(layout: Any, own: dict[str, Tensor], tensors: dict[str, Tensor]) -> Any:
    kind, content = next(iter(layout.items()))
    if kind == "own":
        return own[content].detach().clone()
    if kind == "kept":
        return tensors[content]
    if kind == "dict":
        return {_give(key, own, tensors): _give(value, own, tensors) for key, value in content}
    if kind in ("list", "tuple"):
        items = [_give(item, own, tensors) for item in content]
        return items if kind == "list" else tuple(items)
    return content
