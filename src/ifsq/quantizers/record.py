"""What every quantizer returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True, eq=False)
class Quantized:
    """What a quantizer returns; unpacks as ``codes, indices``, and ``out[0]`` is the codes.

    codes          like the input, float: what the decoder sees; the gradient is the quantizer's (straight through)
    indices        int64, the input's shape without its channel axis, then codebooks and groups where there are several;
                   None where a bottleneck has no index (AE, KL, a group of more than 2**63 codes, not asked for).
                   FSQ computes them where they are first read: training seldom reads them
    packed_digits  the digits in the smallest convenient integer type (uint8 up to 256 levels, else int32), channel
                   axis last; None where there are none. Use `digits`: arithmetic on uint8 wraps
    losses         auxiliary losses by name, scalars, already weighted: what training adds to the reconstruction loss
    """

    codes: Float[Tensor, "..."]
    indices: Int[Tensor, "..."] | None = None
    packed_digits: Int[Tensor, "..."] | None = None
    losses: dict[str, Float[Tensor, ""]] = field(default_factory=dict)

    @property
    def digits(self) -> Int[Tensor, "..."] | None:
        """Digits as int64, channel axis last, each 0..L-1; None where there are none."""
        return None if self.packed_digits is None else self.packed_digits.to(torch.int64)

    @property
    def loss(self) -> Float[Tensor, ""]:
        """Sum of the auxiliary losses, a scalar; zero where there are none."""
        zero = self.codes.new_zeros((), dtype=torch.float32)
        return sum(self.losses.values(), zero)

    def __iter__(self) -> Iterator[Tensor | None]:
        return iter((self.codes, self.indices))

    def __getitem__(self, item: int) -> Tensor | None:
        return self.codes if item in (0, -2) else (self.codes, self.indices)[item]

    def __len__(self) -> int:
        return 2


class Deferred(Quantized):
    """A record whose indices are a function without arguments until they are read, and then what it returns."""

    @property
    def indices(self) -> Int[Tensor, "..."] | None:
        """As of every record."""
        found = vars(self)["indices"]
        if not isinstance(found, Tensor):
            found = vars(self)["indices"] = found()
        return found

    @indices.setter
    def indices(self, value: Any) -> None:  # by the initialisation alone: fields are frozen
        vars(self)["indices"] = value

    def __reduce__(self) -> tuple[type[Quantized], tuple[Any, ...]]:
        return Quantized, (self.codes, self.indices, self.packed_digits, self.losses)


def _flatten(record: Quantized) -> tuple[list[Any], None]:
    return [record.codes, record.indices, record.packed_digits, record.losses], None


def _unflatten(values: Any, _: Any) -> Quantized:
    return Quantized(*values)


# So that torch.export and torch.func see the tensors inside.
for _record in (Quantized, Deferred):
    _pytree.register_pytree_node(
        _record,
        _flatten,
        _unflatten,
        serialized_type_name=f"ifsq.quantizers.{_record.__name__}",
        to_dumpable_context=lambda _: "",
        from_dumpable_context=lambda _: None,
    )
