"""Keys and values that attention has seen, in buffers of a fixed shape with a position."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class KVCache:
    """Keys and values of the positions so far, in buffers for ``length`` positions that the first `append` makes.

    position  how many positions are filled
    whole     False: `append` hands out views of the filled prefix, and nothing is copied. True: it hands out the whole
              buffers, `mask` says which of their positions count, and ``position`` is a tensor on their device: no
              shape and no number of the host changes from one step to the next, which a CUDA graph needs
    """

    def __init__(self, length: int, *, whole: bool = False) -> None:
        self.length = length
        self.whole = whole
        self.position: int | Tensor = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(
        self, k: Float[Tensor, "b n t e"], v: Float[Tensor, "b n t e"]
    ) -> tuple[Float[Tensor, "b n s e"], Float[Tensor, "b n s e"]]:
        """Store the keys and values of the next t positions; returns those of all positions so far.

        Raises ValueError where they are more than ``length`` (with ``whole`` torch does, on a CPU).
        """
        if self._keys is None or self._values is None:
            shape = (*k.shape[:2], self.length, k.shape[3])
            self._keys, self._values = k.new_zeros(shape), v.new_zeros(shape)
            if self.whole:
                self.position = torch.zeros((), dtype=torch.int64, device=k.device)
        new = k.shape[2]
        if isinstance(self.position, Tensor):
            places = self.position + torch.arange(new, device=k.device)
            self._keys.index_copy_(2, places, k)
            self._values.index_copy_(2, places, v)
            self.position.add_(new)
            return self._keys, self._values
        start, end = self.position, self.position + new
        if end > self.length:
            raise ValueError(f"position {end} of a cache of length {self.length}")
        self._keys[:, :, start:end] = k
        self._values[:, :, start:end] = v
        self.position = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def mask(self, new: int) -> Bool[Tensor, "t s"] | None:
        """What each of the ``new`` last positions may see of what `append` handed out.

        None where a view was handed out that the new positions fill alone, or that one position sees whole.
        """
        if self._keys is None or (not isinstance(self.position, Tensor) and new in (1, self.position)):
            return None
        device = self._keys.device
        last = self.position - new + torch.arange(new, device=device)
        seen = self.length if isinstance(self.position, Tensor) else self.position
        return torch.arange(seen, device=device) <= last[:, None]

    def rewind(self, position: int) -> None:
        """Forget the positions from ``position`` on; the next ones take their places."""
        if isinstance(self.position, Tensor):
            self.position.fill_(position)
            return
        if not 0 <= position <= self.position:
            raise ValueError(f"position {position}: expected 0 to {self.position}, those of the cache that are filled")
        self.position = position

    def keep_first(self, rows: int) -> None:
        """Go on with the first ``rows`` sequences of the batch alone."""
        if self._keys is not None and self._values is not None:
            self._keys, self._values = self._keys[:rows], self._values[:rows]
