"""``ifsq studio``."""

import argparse
import warnings
from pathlib import Path
from typing import Any

from ifsq.cli.parser import named, verb
from ifsq.cli.terminal import say

HOST, PORT = "127.0.0.1", 8501


def add_studio(verbs: Any) -> None:
    """``studio``."""
    text = "serve a page that shows what tokenizers make of an image, and generators drawing (extra studio)"
    studio = verb(verbs, "studio", text, _studio, alone=True)
    studio.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="tokenizers and generators")
    studio.add_argument(
        "--host", type=named, default=HOST, help=f"address to serve at (default {HOST}: this machine alone)"
    )
    studio.add_argument("--port", type=int, default=PORT, help=f"0: any that is free (default {PORT})")


def _studio(options: argparse.Namespace) -> None:
    from ifsq.config import InputError, Remark
    from ifsq.studio.runs import open_shown
    from ifsq.training.distributed import pick_device

    try:
        from ifsq.studio.serve import is_loopback, listen, serve
    except ModuleNotFoundError as error:
        raise InputError(f"studio: needs the package {error.name}: pip install 'ifsq[studio]'") from error
    with listen(options.host, options.port) as listening:  # before models are read
        if not is_loopback(listening.getsockname()[0]):
            told = f"--host {options.host}: whoever reaches this machine can use the page, which has no password"
            warnings.warn(Remark(told), stacklevel=2)
        device = pick_device(options.device)
        shown = open_shown(options.folders, device)
        serve(shown, options.host, listening, device, lambda address: say(f"studio: {address} (Ctrl-C stops it)"))
