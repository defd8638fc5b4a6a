"""A port where processes of a test meet."""

import random
import socket


def free_port() -> int:
    """One that nothing listens at, below those that a system gives away by itself.

    Of those, a connection of another test could take it before the first process of this one does, and the second
    process would wait for ever for an answer from there.
    """
    while True:
        port = random.SystemRandom().randrange(20000, 30000)
        with socket.socket() as found:
            try:
                found.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
