"""A model over the processes: replicated (DDP) or sharded (FSDP2).

The sharding rule knows no model: every innermost element of a ``ModuleList`` (a block) is gathered by itself, the rest
with the whole.
"""

import copy
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from ifsq.config import InputError
from ifsq.store.weights import whole
from ifsq.training.distributed import World

# torch 2.13 warns in every process of the older name.
_KEEP_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


def replicate(module: nn.Module, world: World) -> nn.Module:
    """The module with its gradients averaged over the processes; itself where there is one process."""
    if world.size == 1:
        return module
    options: dict[str, Any] = {_KEEP_BUFFERS: False, "gradient_as_bucket_view": True}
    return DistributedDataParallel(module, **options)


def shard(model: nn.Module, world: World) -> None:
    """Spread parameters over the processes, in place.

    Methods ``forward`` and ``loss`` gather them while they run; of a generator, whose ``loss`` is one use of it,
    ``training_pass`` and ``hidden``.
    """
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # FSDP2 takes no other
    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for name in ("training_pass", "hidden") if hasattr(model, "training_pass") else ("loss",):
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)


def recompute(model: nn.Module) -> None:
    """Let the blocks of a model keep their inputs alone for the backward pass and run again there, in training.

    They are the modules that say whether they do, ``recompute``. Loss and gradients are the same, dropout's draws too.
    Raises InputError of a model without any.
    """
    able = [module for module in model.modules() if hasattr(module, "recompute")]
    if not able:
        raise InputError("engine.recompute=true: this model has no blocks that can run again; expected false")
    for module in able:
        module.recompute = True  # type: ignore[assignment]


def without_weights(model: nn.Module) -> nn.Module:
    """A copy of a model that is not sharded yet, whose parameters take no memory: what `gathered` fills."""
    bare: dict[int, Any] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        for parameter in model.parameters()
    }
    return copy.deepcopy(model, bare)


def gathered(bare: nn.Module, sharded: nn.Module) -> nn.Module:
    """A whole copy of a sharded model in every process, in eval mode; all processes must ask at once.

    bare  the model before it was sharded, `without_weights`
    """
    model = copy.deepcopy(bare)
    model.load_state_dict({name: whole(value) for name, value in sharded.state_dict().items()}, assign=True)
    return model.eval()


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Innermost elements of module lists that have parameters."""
    for module in model.modules():
        if not isinstance(module, nn.ModuleList):
            continue
        for element in module:
            nested = any(isinstance(inner, nn.ModuleList) for inner in element.modules())
            if not nested and next(element.parameters(), None) is not None:
                yield element


@torch.no_grad()
def average_buffers(module: nn.Module, world: World) -> None:
    """Floating-point buffers become their mean over the processes, so that all are alike."""
    floating = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    if world.size == 1 or not floating:
        return
    mean = world.mean(torch.cat([buffer.reshape(-1) for buffer in floating]))
    for buffer, part in zip(floating, mean.split([buffer.numel() for buffer in floating]), strict=True):
        buffer.copy_(part.view_as(buffer))
