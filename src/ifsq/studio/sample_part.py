"""The part of the page where generators draw the same class with the same seed and guidance, side by side."""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from nicegui import ui

from ifsq.config import InputError
from ifsq.studio.draw import COUNTS, KEPT, Asked, State, draw_states, numbers
from ifsq.studio.line import Line
from ifsq.studio.markup import picture, shown
from ifsq.studio.page import Part, Tell
from ifsq.studio.runs import Drawer, Shown

WAITS = "waits for its turn"
MANY = 12
"""Classes from which one types the beginning of a name."""


class Column:
    """What one generator draws, on one visitor's page."""

    def __init__(self, drawer: Drawer) -> None:
        self.drawer = drawer
        self.kept: list[str] = []
        with ui.element("div").classes("result"):
            self.wanted = ui.checkbox(drawer.title, value=True)
            self.text = ui.label("nothing drawn yet").classes("soft")
            self.bar = ui.linear_progress(0, show_value=False).props("instant-feedback")
            self.bar.props["aria-label"] = f"progress of {drawer.name}"
            self.images, self.states = ui.html(sanitize=False), ui.html(sanitize=False)

    def clear(self, text: str) -> None:
        """Take away what was drawn before."""
        self.kept = []
        self.bar.set_value(0)
        self.text.set_text(text)
        self.text.classes(remove="refused")
        self.images.set_content("")
        self.states.set_content("")

    def show(self, state: State, images: str, thumb: str) -> None:
        """A state, as `images_of` and `thumb_of` draw it."""
        self.bar.set_value(state.share)
        self.text.set_text(state.text)
        self.images.set_content(images)
        if state.kept:
            self.kept = [*self.kept, thumb][-KEPT:]
            self.states.set_content(f'<div class="states">{"".join(self.kept)}</div>')

    def end(self) -> None:
        """Nothing more is drawn."""
        if self.text.text == WAITS:
            self.text.set_text("not drawn")

    def refuse(self, text: str) -> None:
        """Why nothing is drawn."""
        self.text.set_text(text)
        self.text.classes("refused")


class SamplePart(Part):
    """Of one visitor."""

    def __init__(self, shown: Shown, line: Line) -> None:
        super().__init__(line)
        ui.html("Sample", sanitize=False, tag="h2").classes("sample")
        names = list(shown.classes)
        with ui.element("div").classes("controls"):
            self.name = ui.select(names, value=names[0], label="class", with_input=len(names) >= MANY).classes("narrow")
            self.seed = ui.number("seed", value=0, min=0, precision=0).classes("narrow")
            self.guidance = ui.number("guidance, 1 is none", value=2.0, step=0.5).classes("narrow")
            self.count = ui.select({n: str(n) for n in COUNTS}, value=4, label="images").classes("narrow")
            ui.button("draw", on_click=self.draw).props("no-caps unelevated")
        self.add_status()
        with ui.element("div").classes("beside"):
            self.columns = [Column(drawer) for drawer in shown.drawers]

    async def draw(self) -> None:
        """Let each generator that is ticked draw, one after another."""
        columns = [column for column in self.columns if column.wanted.value]
        try:
            if not columns:
                raise InputError("no generator is ticked; expected at least one")
            asked = numbers(self.name.value or "", self.seed.value, self.guidance.value, self.count.value)
        except InputError as error:
            self.say(str(error), refused=True)
            return
        for column in columns:
            column.clear(WAITS)

        def work(tell: Tell) -> None:
            for done, column in enumerate(columns):
                tell(self.bar.set_value, done / len(columns))
                try:
                    draw_states(column.drawer, asked, partial(_tell, tell, column, asked))
                except InputError as error:
                    tell(column.refuse, str(error))

        told = f"{asked.name}, seed {asked.seed}, guidance {asked.guidance:g}"
        try:
            await self.do(work, f"drawing {told}", lambda: f"drawn: {told}")
        finally:
            if self.turn is None:  # else another draw has begun
                for column in columns:
                    column.end()


def _tell(tell: Tell, column: Column, asked: Asked, state: State) -> None:
    """Show a state; it is drawn here, in the thread that works."""
    name = f"{column.drawer.name}, {asked.name}"
    tell(column.show, state, images_of(name, state), thumb_of(name, state))


def images_of(name: str, state: State) -> str:
    """All images, and the maps of their tokens beside them."""
    images = _sheet(list(state.images), [f"{name}: image {i + 1}, {state.text}" for i in range(len(state.images))])
    maps = _sheet(state.tokens, [f"{name}: tokens of image {i + 1}, {state.text}" for i in range(len(state.tokens))])
    return f'<div class="two">{images}{maps}</div>'


def thumb_of(name: str, state: State) -> str:
    """The first image and its tokens, for the row of states."""
    tokens = "".join(shown(one, f"{name}: tokens of image 1 by then, {state.text}") for one in state.tokens[:1])
    return picture(state.images[0], state.text, f"{name}: image 1 by then, {state.text}", tokens)


def _sheet(images: Sequence[np.ndarray], alts: Sequence[str]) -> str:
    if not len(images):
        return ""
    columns = math.isqrt(len(images))
    inside = "".join(shown(image, alt) for image, alt in zip(images, alts, strict=True))
    return f'<figure class="sheet" style="grid-template-columns: repeat({columns}, minmax(0, 1fr))">{inside}</figure>'
