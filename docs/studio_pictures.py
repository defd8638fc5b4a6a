"""The pictures of docs/howto/studio.md: the page of ``ifsq studio`` on a desk and on a phone, light and dark.

    ifsq demo
    python docs/studio_pictures.py runs/demo docs/studio

Needs Chromium. The photograph that is dropped comes with scikit-image; colours are reduced to 256, so that the files
stay small.
"""

import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from skimage import data

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from browser import Browser, browsing

MODELS = ("tokenizer", "ar", "diffusion")
DRAW = "[...document.querySelectorAll('button')].find(each => each.textContent.trim() === 'draw').click()"
STATUS = "[...document.querySelectorAll('.status')].at(-1).textContent"
HALFWAY = (
    "[...document.querySelectorAll('.result .soft')].some(each => /^token (2[5-9]|3[0-9]) of/.test(each.textContent))"
)


def taken(browser: Browser, path: Path, top: str = "") -> None:
    """Write the page, or what of it begins with the element that ``top`` selects, in few colours."""
    browser.picture(path)
    page = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    if top:
        place = browser.ask(f"document.querySelector('{top}').getBoundingClientRect().top + scrollY")
        page = page.crop((0, max(0, int(place) - 24), page.width, page.height))
    page.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path, f"{page.width} x {page.height}, {path.stat().st_size // 1000} kB")


def opened(browser: Browser, address: str, photo: Path, width: int, scheme: str) -> None:
    """The page with a photograph on it."""
    browser.open(address, width, scheme)
    browser.wait("!!document.querySelector('input[type=file]')")
    browser.give("input[type=file]", photo)
    browser.wait(f"document.querySelector('.status').textContent === '{photo.name}: 1 of 1 rates'")


def visit(browser: Browser, address: str, photo: Path, out: Path) -> None:
    for width, scheme, name in ((1280, "light", "desk"), (390, "dark", "phone")):
        opened(browser, address, photo, width, scheme)
        browser.ask(DRAW)
        browser.wait(f"{STATUS}.startsWith('drawn')")
        time.sleep(1)  # bars move to their places
        taken(browser, out / f"{name}_{scheme}.png")
    browser.open(address, 1280, "dark")
    browser.wait("!!document.querySelector('input[type=file]')")
    browser.ask(DRAW)
    browser.wait(HALFWAY)
    taken(browser, out / "drawing_dark.png", ".sample")


def main(runs: Path, out: Path) -> None:
    command = [sys.executable, "-m", "ifsq", "studio", *(str(runs / name) for name in MODELS), "--port", "0"]
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder, "astronaut.png")
        Image.fromarray(data.astronaut()).save(photo)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            try:
                address = server.stdout.readline().split()[1]
                with browsing(Path(folder, "profile")) as browser:
                    visit(browser, address, photo, out)
            finally:
                server.terminate()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
