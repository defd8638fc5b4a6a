"""Latents that reach the quantizers of a model: a uniform sample of them, in the order of the stream."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ifsq.quantizers import FSQ

LEAST_SAMPLES, LEAST_PER_LEVEL = 512, 10  # fewer say little about 64 quantiles, or about the entropy of L levels
MOST_VALUES = 2**25  # latents kept of all channels together: 128 MiB


class Sampler:
    """A uniform sample of the latents that reach one quantizer: those with the smallest of random keys.

    The keys come from a generator of its own, one a latent: the sample does not depend on how the stream is cut.
    """

    def __init__(self, name: str, q: FSQ, limit: int) -> None:
        self.name, self.q = name, q
        self.width, self.device = q.effective_codebook_dim, torch.device("cpu")
        self.limit = max(LEAST_SAMPLES, min(limit, MOST_VALUES // self.width))
        self.rng, self.seen, self.bar = torch.Generator().manual_seed(0), 0, 1.0
        self.keys, self.rows = torch.empty(0, dtype=torch.float64), torch.empty(0, self.width)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        z = (args or tuple(kwargs.values()))[0]
        latents, axis = self.q.entered(z.detach())
        rows = latents.movedim(axis, -1).flatten(0, -2)
        self.device = rows.device
        if not bool(torch.isfinite(rows).all()):
            worst = rows[~torch.isfinite(rows)][0].item()
            raise ValueError(f"latents of {self.name} hold {worst}: expected finite values")
        keys = torch.rand(len(rows), dtype=torch.float64, generator=self.rng)
        keep = keys < self.bar
        self.seen += len(rows)
        self.keys = torch.cat([self.keys, keys[keep]])
        self.rows = torch.cat([self.rows, rows[keep.to(rows.device)].to("cpu", torch.float32)])
        if len(self.keys) > 2 * self.limit:
            self._trim()

    def sample(self) -> Tensor:
        """Latents (n, channels), float32, in the order of the stream. Raises ValueError where they are too few."""
        needed = max(LEAST_SAMPLES, LEAST_PER_LEVEL * max(self.q.levels))
        if self.seen < needed:
            raise ValueError(
                f"{self.seen} latents reached {self.name}: expected at least {needed} for {max(self.q.levels)} levels"
            )
        self._trim()
        return self.rows

    def _trim(self) -> None:
        if len(self.keys) > self.limit:
            self.bar = self.keys.kthvalue(self.limit).values.item()
            keep = self.keys <= self.bar
            self.keys, self.rows = self.keys[keep], self.rows[keep]


def collect(
    module: nn.Module, call: Callable[[Any], object] | None, batches: Iterable[Any], samplers: dict[str, Sampler]
) -> None:
    """Call the module on every batch, the samplers listening."""
    state = next((t for t in (*module.parameters(), *module.buffers())), None)
    device = torch.device("cpu") if state is None else state.device
    count = 0
    with torch.no_grad(), _evaluating(module):
        hooks = [sampler.q.register_forward_pre_hook(sampler, with_kwargs=True) for sampler in samplers.values()]
        try:
            # A tensor is iterable too: without its batch axis, its channels would be elsewhere.
            for batch in [batches] if isinstance(batches, Tensor) else batches:
                count += 1
                batch = _move(batch, device)
                if call is not None:
                    call(batch)
                elif isinstance(batch, dict):
                    module(**batch)
                else:
                    module(*batch) if isinstance(batch, tuple | list) else module(batch)
        finally:
            for hook in hooks:
                hook.remove()
    if count == 0:
        raise ValueError("no batches: expected at least one (an iterator that was read before has none left)")


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, by the flags alone: a module's own ``train`` may do more than set them."""
    flags = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in flags:
            part.training = False
        yield
    finally:
        for part, training in flags:
            part.training = training


def _move(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, dict):
        return {name: _move(part, device) for name, part in batch.items()}
    if isinstance(batch, tuple | list):
        return [_move(part, device) for part in batch]
    return batch.to(device) if isinstance(batch, Tensor) else batch
