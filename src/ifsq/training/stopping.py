"""Requests to stop, SIGINT and SIGTERM: a training looks at them between steps."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ifsq.config import Interrupted

SAME_REQUEST = 2.0
"""Seconds: a terminal and torchrun both tell the same process to stop, a scheduler tells one process after another."""


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """Turn the first SIGINT or SIGTERM into a flag that is looked at between steps; a later one acts as usual.

    All that come within `SAME_REQUEST` seconds are one. A run that was interrupted, perhaps because another process was
    asked, still waits for its own: the handlers stay until a later one has come.
    """
    request, since = threading.Event(), 0.0
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may handle signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, _: Any) -> None:
        nonlocal since
        if not request.is_set():
            since = time.monotonic()
            request.set()
        elif time.monotonic() - since > SAME_REQUEST:
            restore()
            signal.raise_signal(number)

    for number in before:
        signal.signal(number, ask)
    try:
        yield request
    except Interrupted:
        raise
    except BaseException:
        restore()
        raise
    else:
        restore()
