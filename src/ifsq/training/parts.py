"""Parts of a model by name, as ``encoder`` or ``blocks.0``: modules or single tensors. `freeze` stops some of them."""

from collections.abc import Iterable, Sequence

from torch import nn

from ifsq.config import InputError


def under(names: Iterable[str], part: str) -> list[str]:
    """Those of these names that are a part's own or lie below it."""
    return [name for name in names if name == part or name.startswith(f"{part}.")]


def check_parts(model: nn.Module, parts: Sequence[str], option: str) -> None:
    """Raise InputError, which calls them by ``option``, unless each is a module or tensor of the model, named once."""
    modules = {name for name, _ in model.named_modules(remove_duplicate=False) if name}
    known = modules | model.state_dict().keys()
    for part in parts:
        if part not in known:
            owner = part.rpartition(".")[0]
            place = model.get_submodule(owner) if owner in modules else model
            there = [name for name, _ in (*place.named_children(), *place.named_parameters(recurse=False))]
            names = [f"{owner}.{name}" for name in there] if place is not model else there
            raise InputError(f"{option}: the model has no part {part!r}; expected one of {', '.join(names)}")
    if len(set(parts)) < len(parts):
        raise InputError(f"{option}={list(parts)}: expected each part once")


def check_frozen(model: nn.Module, parts: Sequence[str]) -> None:
    """Raise InputError unless the parts can be frozen: they exist, and leave something to train.

    A statistic, or a codebook that follows averages, stands still with its module alone.
    """
    check_parts(model, parts, "train.freeze")
    moving = dict(model.named_buffers(remove_duplicate=False))
    for part in parts:
        if part in moving:
            raise InputError(f"train.freeze: {part!r} is no parameter; expected the module that it is of")
    trained = {name: p for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    held = {id(trained[name]) for part in parts for name in under(trained, part)}  # a tied one has several names
    if parts and all(id(parameter) in held for parameter in trained.values()):
        raise InputError(f"train.freeze={list(parts)}: leaves no parameter to train; expected fewer parts")


def freeze(model: nn.Module, parts: Sequence[str]) -> tuple[nn.Module, ...]:
    """Take the gradient from all parameters of the parts, and return the modules that must stay in evaluation mode.

    In it no running statistic, bound or codebook moves, nothing is dropped out, and a variational bottleneck gives its
    mean. For before the model is replicated or sharded. Raises InputError, as `check_frozen`.
    """
    check_frozen(model, parts)
    tensors = dict(model.named_parameters(remove_duplicate=False))
    for part in parts:
        for name in under(tensors, part):
            tensors[name].requires_grad_(False)
    modules = dict(model.named_modules(remove_duplicate=False))
    return tuple(modules[part] for part in parts if part in modules)
