"""Which devices compute in bfloat16: where one does not, half precision is a loss of time and of digits."""

import functools
from typing import Any

import torch


@functools.cache
def computes_bfloat16(device_type: str) -> bool:
    """Whether ``cpu``, ``cuda`` or another kind of device has instructions for products of bfloat16.

    False on a CPU of which nothing is known, as under a torch that does not tell.
    """
    if device_type == "cpu":
        told: dict[str, Any] = getattr(
            torch.cpu, "get_capabilities", dict
        )()  # not in every torch that the code runs on
        return any(has for name, has in told.items() if "bf16" in name)
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return True
