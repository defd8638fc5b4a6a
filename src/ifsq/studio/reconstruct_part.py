"""The part of the page where one drops an image and sees what each tokenizer keeps of it, at each of its rates."""

from html import escape

import numpy as np
from jaxtyping import UInt8
from nicegui import events, ui

from ifsq.data.formats import EXTENSIONS
from ifsq.studio.guard import MOST_BYTES
from ifsq.studio.line import Line
from ifsq.studio.markup import heading, histogram, picture
from ifsq.studio.page import Part, Tell
from ifsq.studio.reconstruct import SIDES, Reconstruction, read_upload, reconstruct_at
from ifsq.studio.runs import Shown

LARGEST_FILE = MOST_BYTES - 2**16  # the lines of the form around a file are part of the request
EXPECTED = f"expected one image file of at most {LARGEST_FILE / 2**20:.0f} MB"


class ReconstructPart(Part):
    """Of one visitor."""

    def __init__(self, shown: Shown, line: Line) -> None:
        super().__init__(line)
        self.shown = shown
        self.file: tuple[str, bytes] | None = None
        self.done = 0
        ui.html("Reconstruct", sanitize=False, tag="h2")
        with ui.element("div").classes("controls"):
            with ui.element("div").classes("wide"):
                self.upload = ui.upload(
                    label="Drop an image here, or press +",
                    auto_upload=True,
                    max_file_size=LARGEST_FILE,
                    on_upload=self.dropped,
                    on_rejected=self.refused,
                ).props(f'accept="{",".join(EXTENSIONS)}" flat hide-upload-btn')
                # Not where a file has come: to the browser it may be on its way yet, and a reset would break that off.
                self.upload.on("uploaded", self.upload.reset, args=[])
                self.upload.on("failed", self.refused, args=[])
            self.side = ui.select(
                {side: f"{side} px" for side in SIDES}, value=256, label="longest side", on_change=self.again
            ).classes("narrow")
        self.add_status()
        self.results = ui.element("div")

    async def dropped(self, event: events.UploadEventArguments) -> None:
        """An image has come."""
        self.file = event.file.name, await event.file.read()
        await self.again()

    def refused(self) -> None:
        """The browser or the server did not take a file."""
        self.upload.reset()
        self.say(f"that was not taken: {EXPECTED}", refused=True)

    async def again(self) -> None:
        """Reconstruct the image that is here."""
        if self.file is None:
            return
        (name, content), side, self.done = self.file, self.side.value, 0

        def work(tell: Tell) -> None:  # pictures and charts too: in the server's loop all visitors would wait for them
            image = read_upload(name, content, side)
            tell(self._begin, original_of(name, image))
            for number, rate in enumerate(self.shown.rates):
                tell(self._add, result_of(reconstruct_at(rate, image), number))

        count = len(self.shown.rates)
        await self.do(work, f"reconstructing {name}", lambda: f"{name}: {self.done} of {count} rates")

    def _begin(self, original: str) -> None:
        self.results.clear()
        with self.results:
            ui.html(original, sanitize=False)

    def _add(self, result: str) -> None:
        self.done += 1
        self.bar.set_value(self.done / len(self.shown.rates))
        with self.results:
            ui.html(result, sanitize=False)


def original_of(name: str, image: UInt8[np.ndarray, "H W 3"]) -> str:
    """The image as it passes through the tokenizers."""
    height, width = image.shape[:2]
    shown = picture(image, f"{name}, {width} x {height}", f"the image {name}")
    return f'<div class="original">{shown}</div>'


def result_of(found: Reconstruction, number: int) -> str:
    """What a rate keeps: three pictures and how its levels are used."""
    name, tokens = found.rate.name, found.tokens
    rate = "" if found.bits is None else f", {found.bits:.3g} bits a pixel"
    times = f"difference, {found.scale} times larger" if found.scale > 1 else "difference"
    parts = [
        picture(found.image, f"{found.psnr:.2f} dB PSNR", f"{name}: reconstruction, {found.psnr:.2f} dB"),
        picture(found.difference, times, f"{name}: {times}, black where there is none"),
    ]
    if tokens is None:
        parts.append(f"<p class='soft'>{escape('continuous codes: no tokens')}</p>")
    else:
        of = f"{tokens.used} different of {tokens.count} tokens"
        parts.append(picture(tokens.picture, of, f"{name}: token map, {of}"))
        parts.append(histogram(tokens.use, "level", number))
    inside = heading(name, f"{found.rate.text}{rate}") + f'<div class="four">{"".join(parts)}</div>'
    return f'<div class="result">{inside}</div>'
