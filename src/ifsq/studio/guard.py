"""What is refused before the page sees it: requests that are too large, and those that other pages send."""

from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

MOST_BYTES = 16 * 2**20
"""Of the body of a request: an image file and the lines around it."""
DIGITS = 20
"""Of a length, at most: more are no number of bytes, and Python refuses to read very many."""


class Guard:
    """An ASGI application around another.

    Refuses bodies of more than ``most`` bytes, said or sent; the page's own limit is one of the browser. And
    requests that name another host, or that a page of another origin sends: a site that somebody visits meanwhile could
    otherwise use this one, which has no password.

    hosts  by which the server is known, in small letters; None: any
    """

    def __init__(self, app: App, hosts: Collection[str] | None, most: int = MOST_BYTES) -> None:
        self.app, self.hosts, self.most = app, hosts, most

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(headers)
        if refusal is not None:
            await _refuse(scope, send, *refusal)
            return
        if scope["type"] == "websocket":
            await self.app(scope, receive, send)
            return
        await self._limited(scope, receive, send)

    def _refusal(self, headers: dict[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        asked = _split(f"//{host}")
        if self.hosts is not None and (asked is None or (asked.hostname or "") not in self.hosts):
            return 400, "another host is asked for"
        if "origin" in headers and ((origin := _split(headers["origin"])) is None or origin.netloc != host):
            return 403, "sent by a page of another origin"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > DIGITS or int(length) > self.most:
            return 413, f"{length[:DIGITS]} bytes, expected at most {self.most}"
        return None

    async def _limited(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """The application, until more bytes have come than the request may have."""
        came, begun = 0, False

        async def counted() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > self.most:
                raise _TooLargeError
            return message

        async def told(message: Message) -> None:
            nonlocal begun
            if came > self.most and not begun:  # what the application makes of it is not said
                return
            begun = True
            await send(message)

        try:
            await self.app(scope, counted, told)
        except _TooLargeError:
            if not begun:
                await _refuse(scope, send, 413, f"more than {self.most} bytes")


class _TooLargeError(Exception):
    """The body has more bytes than it may."""


def _split(address: str) -> SplitResult | None:
    """The parts of an address; None of what is none, as one of a single bracket."""
    try:
        return urlsplit(address)
    except ValueError:
        return None


async def _refuse(scope: MutableMapping[str, Any], send: Send, status: int, why: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": why})
        return
    body = f"{why}\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
