"""The page: its frame, and what its parts have in common. Built on NiceGUI, which pyproject.toml gives reasons for."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from importlib import resources
from typing import Any

from nicegui import ui

from ifsq.config import InputError
from ifsq.studio.line import Line, Stopped, Turn
from ifsq.studio.runs import Shown

BLUE = "#2f6fde"
"""Of buttons; white on it can be read."""
Tell = Callable[..., None]
"""Called in the thread that works; what it calls runs in the server's loop. Raises Stopped where nobody wants more."""


class Part:
    """A part of one visitor's page that has work done: a line that says how it stands, and a button that stops it."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.turn: Turn | None = None

    def add_status(self) -> None:
        """The button and the line, where they are to stand."""
        with ui.element("div").classes("controls"):
            self.bar = (
                ui.linear_progress(0, show_value=False).classes("wide").props('aria-label="progress" instant-feedback')
            )
            self.button = ui.button("stop", on_click=self.stop, color=None).props("outline no-caps")
        self.status = ui.label().classes("status").props('role="status"')
        self._busy(False)
        ui.context.client.on_delete(self.stop)

    def say(self, text: str, *, refused: bool = False) -> None:
        """Put a sentence on the line."""
        self.status.set_text(text)
        self.status.classes(**({"add": "refused"} if refused else {"remove": "refused"}))

    def stop(self) -> None:
        """Ask the work that goes on to end."""
        if self.turn is not None:
            self.turn.stop()

    async def do(self, work: Callable[[Tell], None], doing: str, done: Callable[[], str]) -> None:
        """Have work done in this visitor's turn; what it was at before ends.

        work   is handed what it tells the page by
        doing  what the line says meanwhile
        done   what it says afterwards
        """
        self.stop()
        turn = self.turn = Turn(partial(self._moved, doing))
        self._busy(True)
        text, refused = "this failed; the terminal of ifsq studio says why", True
        try:
            await self.line.run(turn, partial(work, self._telling(turn)))
            text, refused = done(), False
        except InputError as error:
            text = str(error)
        except Stopped:
            text, refused = "stopped", False
        finally:
            if turn is self.turn:  # else another piece of work has taken its place
                self.turn = None
                self._busy(False)
                self.say(text, refused=refused)

    def _telling(self, turn: Turn) -> Tell:
        loop = asyncio.get_running_loop()

        def show(what: Callable[..., None], given: Sequence[Any]) -> None:
            if not turn.stopped:
                what(*given)

        def tell(what: Callable[..., None], *given: Any) -> None:
            turn.check()
            loop.call_soon_threadsafe(show, what, given)

        return tell

    def _moved(self, doing: str, ahead: int) -> None:
        self.say(f"waiting for {ahead} before you" if ahead else doing)

    def _busy(self, busy: bool) -> None:
        self.bar.set_value(0)
        self.bar.set_visibility(busy)
        self.button.set_visibility(busy)


def add_page(shown: Shown, line: Line, about: str, parts: Sequence[Callable[[Shown, Line], Part]]) -> None:
    """Register the page at ``/``.

    about  of all that it shows, a sentence
    parts  add what the page consists of, for each visitor anew
    """
    style = "".join(f"<style>{text}</style>" for text in _styles())

    @ui.page("/", title="ifsq studio")
    def page() -> None:
        ui.add_head_html(style)
        ui.colors(primary=BLUE)
        with ui.element("div").classes("studio"):  # in the one element ``main`` that NiceGUI makes
            ui.html("ifsq studio", sanitize=False, tag="h1")
            ui.label(about).classes("soft")
            for add in parts:
                add(shown, line)


def _styles() -> list[str]:
    return [
        resources.files("ifsq.bench").joinpath("palette.css").read_text(),
        resources.files("ifsq.studio").joinpath("studio.css").read_text(),
    ]
