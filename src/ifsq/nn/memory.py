"""Networks whose sizes no memory holds."""

from collections.abc import Iterator
from contextlib import contextmanager

from ifsq.config import InputError


@contextmanager
def within_memory(what: str) -> Iterator[None]:
    """Raise InputError, naming ``what`` is made in the block, where torch finds no memory for its weights."""
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error) for word in ("allocate memory", "overflow")):
            raise
        raise InputError(f"{what}: a network of these sizes does not fit in memory; expected smaller ones") from error
