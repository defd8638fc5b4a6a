"""Whether the tensors of a file are those of a model, by the names that the file has for them; the model of them."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from ifsq.config import InputError
from ifsq.store.weights import load_weights

Model = TypeVar("Model", bound=nn.Module)


def check_form(
    make: Callable[[], nn.Module],
    rename: Callable[[dict[str, Tensor]], Mapping[str, Tensor]],
    table: Mapping[str, Tensor],
    where: str,
) -> None:
    """Raise InputError naming the first tensor that is missing, left over or of another shape, as the file calls it.

    Raises it too for sizes that no model can have.

    make    builds the model; it is built on the meta device, without memory
    rename  its state -> the same by the file's names and in the file's shapes
    """
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            expected = rename(make().state_dict())
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    for key in sorted(expected.keys() | table.keys()):
        if key not in table or key not in expected:
            raise InputError(f"{where}: tensor {key!r} is {'missing' if key in expected else 'not part of this model'}")
        given, wanted = tuple(table[key].shape), tuple(expected[key].shape)
        if given != wanted:
            raise InputError(f"{where}: tensor {key!r} has shape {given}, expected {wanted}")


def made_of(make: Callable[[], Model], table: Mapping[str, Tensor], where: str) -> Model:
    """The model with the tensors of a table, by its own names, widened to float32; on the CPU, in eval mode.

    No random weights are drawn for it. Raises InputError as `load_weights`.
    """
    with torch.device("meta"):
        model = make().eval()
    load_weights(model, table, where, halves=True)
    for part in model.modules():
        if any(value.is_meta for value in part.buffers(recurse=False)):
            part.to_empty(device="cpu")  # it computes its table anew, which is no weight
    return model
