"""Weights: read from a file, and given to a module where they are its tensors by name, shape and type, and finite.

One function does it for what is trained here, saved models, other projects' checkpoints and the frozen networks:
nothing is left out, left over or cast in silence, and no result is computed from what a diverged training left.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from ifsq.config import InputError
from ifsq.store.files import reason

Model = TypeVar("Model", bound=nn.Module)
HALVES = (torch.float16, torch.bfloat16)
"""Types whose every value float32 has as well."""
SERIAL = 2**14
"""Numbers that torch does not share over threads; it does from 2**15 on."""
FAR_MORE = 4
"""Times as many parameters as there are tensors, and no description is followed; below, the first missing is named."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises InputError where it is missing, damaged or another file."""
    if path.exists() and not path.is_file():  # a pipe would wait
        raise InputError(f"{path}: is no regular file; expected safetensors")
    try:
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error


def load_weights(model: nn.Module, table: Mapping[str, Tensor], where: str, *, halves: bool = False) -> None:
    """Give a module the tensors of a table, which are its own by name, shape and type, and finite.

    where   what to call the table in a message
    halves  whether float16 and bfloat16 may stand for float32, whose values they keep

    Copies of them, also where the module is on the meta device: what safetensors loads is a view of the file, and
    changes with it. Raises InputError naming the first tensor that is missing, left over, of another shape or type, or
    not finite.
    """
    _check_form(model, table, where, halves)
    refuse_infinite(table, where)
    own = model.state_dict()
    assign = any(value.is_meta for value in own.values())
    given = {key: value.to(own[key].dtype, copy=assign) for key, value in table.items()}
    if assign:
        model.load_state_dict(given, assign=True)
    else:
        model.load_state_dict(
            {key: like(value, own[key]) if isinstance(own[key], DTensor) else value for key, value in given.items()}
        )


def build_with(make: Callable[[], Model], table: Mapping[str, Tensor], where: str, *, halves: bool = False) -> Model:
    """The module that ``make`` builds, with the tensors of a table.

    It is built on the meta device first and compared there: a description that asks for other sizes than the tensors
    have, or for a thousand times as many, takes neither memory nor time. Raises InputError.
    """
    try:
        with torch.device("meta"), _at_most(FAR_MORE * len(table)):
            _check_form(make(), table, where, halves)
    except InputError:
        raise
    except (ValueError, TypeError, OverflowError, RuntimeError, MemoryError) as error:
        why = str(error).partition("\n")[0]
        raise InputError(f"{where}: its description is of no model that could be these tensors ({why})") from error
    model = make()
    load_weights(model, table, where, halves=halves)
    return model


def _check_form(model: nn.Module, table: Mapping[str, Tensor], where: str, halves: bool) -> None:
    """Raise InputError naming the first tensor of a table that is not the model's in name, shape and type."""
    own = model.state_dict()
    for key in sorted(own.keys() | table.keys()):
        if key not in table or key not in own:
            raise InputError(f"{where}: tensor {key!r} is {'missing' if key in own else 'not part of this model'}")
        given, expected = table[key], own[key]
        if given.shape != expected.shape:
            raise InputError(
                f"{where}: tensor {key!r} has shape {tuple(given.shape)}, expected {tuple(expected.shape)}"
            )
        widened = halves and given.dtype in HALVES and expected.dtype == torch.float32
        if given.dtype != expected.dtype and not widened:
            raise InputError(f"{where}: tensor {key!r} is {_name(given.dtype)}, expected {_name(expected.dtype)}")


def refuse_infinite(table: Mapping[str, Tensor], where: str, *, serial: bool = False) -> None:
    """Raise InputError naming the first tensor that holds a NaN or an infinity.

    serial  in parts that torch computes in the calling thread, of contiguous tensors: for a thread in the background,
            whose parallel operations would make OpenMP threads of its own. They stay, and because there are then more
            than processors, those of the first thread no longer wait by spinning: small operations take twice as long
    """
    for key, value in sorted(table.items()):
        if not value.is_floating_point() or not value.numel():
            continue
        for part in value.view(-1).split(SERIAL) if serial else (value,):
            least, most = part.aminmax()  # either is NaN where any value is; no copy, unlike isfinite
            if not bool(least.isfinite() & most.isfinite()):
                raise InputError(
                    f"{where}: tensor {key!r} holds values that are not finite, as where training diverged"
                )


def weights_digest(model: nn.Module) -> str:
    """SHA-256 (hex) over the names, shapes and bytes of all tensors of a model: its identity in manifests and cards."""
    return tensors_digest(model.state_dict())


def tensors_digest(table: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over the names, shapes and bytes of the tensors of a table, whatever their order."""
    sha = hashlib.sha256()
    for name, value in sorted(table.items()):
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def whole(value: Tensor) -> Tensor:
    """The tensor in one piece; of a sharded one every process must ask at once."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local(value: Tensor) -> Tensor:
    """This process's part."""
    return value.to_local() if isinstance(value, DTensor) else value


def like(value: Tensor, place: Tensor) -> Tensor:
    """A whole tensor, the same in every process, laid out as ``place``: sharded, or on its device in its strides.

    A fused optimizer walks a parameter and its momenta side by side in memory, hence the strides.
    """
    if isinstance(place, DTensor):
        moved = value.to(place.device)
        return distribute_tensor(moved, place.device_mesh, place.placements, src_data_rank=None)
    return torch.empty_like(place).copy_(value)


@contextmanager
def _at_most(count: int) -> Iterator[None]:
    """Raise ValueError when this thread builds modules of more parameters."""
    thread, made = threading.get_ident(), 0

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal made
        if parameter is not None and threading.get_ident() == thread:
            made += 1
            if made > count:
                raise ValueError(f"it has more than {count} tensors")

    hook = register_module_parameter_registration_hook(register)
    try:
        yield
    finally:
        hook.remove()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
