"""The server of the page: on one address, for as long as nobody stops it; it asks nothing of the network."""

import socket
import warnings
from collections.abc import Callable
from ipaddress import ip_address

import torch
import uvicorn
from fastapi import FastAPI
from nicegui import app as pages
from nicegui import ui

from ifsq.config import InputError
from ifsq.studio.guard import Guard
from ifsq.studio.line import Line
from ifsq.studio.page import add_page
from ifsq.studio.reconstruct_part import ReconstructPart
from ifsq.studio.runs import Shown
from ifsq.studio.sample_part import SamplePart

LOCAL = ("localhost", "127.0.0.1", "::1")
PATIENCE = 30.0
"""Seconds for which a page that is not connected, as of a phone that sleeps, is kept."""
SILENT = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""FastAPI would tell a collector of OpenTelemetry that variables of the environment name."""


def serve(
    shown: Shown, host: str, listening: socket.socket, device: torch.device, started: Callable[[str], None]
) -> None:
    """Serve until interrupted; raises KeyboardInterrupt then.

    host       as it was asked for
    listening  see `listen`
    started    is told the page's address, where connections are taken already
    """
    line = Line()
    parts = [part for part, any_are in ((ReconstructPart, shown.rates), (SamplePart, shown.drawers)) if any_are]
    add_page(shown, line, f"{_count(shown)}, on {device}", parts)
    around = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, telemetry=SILENT)
    ui.run_with(
        around,
        title="ifsq studio",
        dark=None,  # as the browser is
        language="en-US",
        favicon="🧩",
        tailwind=False,
        show_welcome_message=False,
        reconnect_timeout=PATIENCE,
    )
    pages.on_shutdown(line.stop)
    loopback = is_loopback(listening.getsockname()[0])
    guarded = Guard(around, (*LOCAL, host.lower()) if loopback else None)
    config = uvicorn.Config(guarded, log_level="warning", ws_max_size=2**20, timeout_graceful_shutdown=1)
    started(f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/")
    with warnings.catch_warnings():
        # It asks every object that there is for its class, and torch.distributed has one that warns when it is asked.
        warnings.filterwarnings("ignore", category=FutureWarning, module="nicegui")
        uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address of this machine that takes connections already; port 0: any that is free.

    Raises InputError.
    """
    if not 0 <= port < 2**16:
        raise InputError(f"port {port}: expected 0 (any that is free) to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise InputError(f"host {host!r}: expected a name or address of this machine") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(128)
    except OSError as error:
        made.close()
        raise InputError(f"{host}:{port}: cannot be served at: {error.strerror}; give another --port") from error
    return made


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the address."""
    return ip_address(address.partition("%")[0]).is_loopback


def _count(shown: Shown) -> str:
    rates, drawers = len(shown.rates), len(shown.drawers)
    told = [f"{rates} tokenizer rate{'s' * (rates != 1)}"] * bool(rates)
    return ", ".join([*told, *([f"{drawers} generator{'s' * (drawers != 1)}"] * bool(drawers))])
