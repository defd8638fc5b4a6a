"""A headless Chromium that opens a page on a screen of given width and colour scheme, and tells what it saw.

Spoken to over a pair of pipes (``--remote-debugging-pipe``): one process for all pages, and nothing to install but the
browser itself.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 60.0  # seconds for an answer: other work may run beside
WIDE = """(() => {
  const wide = [], screenWide = document.documentElement.clientWidth;  // a phone zooms out of what is wider
  for (const each of document.querySelectorAll('body *')) {
    if (each.closest('.scroll, pre, svg')) continue;
    const box = each.getBoundingClientRect();
    if (box.width && box.right > screenWide + 0.5) wide.push(each.tagName + '.' + each.className + ' ' + box.right);
  }
  return [document.documentElement.scrollWidth - screenWide, wide];
})()"""
"""How much wider a page is than the screen, and what of it reaches beyond."""
CONTRAST = """(() => {
  const shade = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
  const behind = each => { for (; each; each = each.parentElement) {
      const found = getComputedStyle(each).backgroundColor; if (!found.endsWith(', 0)')) return found } };
  const texts = 'h1, h2, h3, p, th, td, dt, dd, figcaption, summary, pre, svg text, .soft, .status, button';
  return [...document.querySelectorAll(texts)].map(each => {
    const style = getComputedStyle(each), ink = shade(each.closest('svg') ? style.fill : style.color);
    const paper = shade(behind(each));
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    return [ratio, each.tagName + ': ' + each.textContent.slice(0, 40)];
  }).sort((a, b) => a[0] - b[0])[0];
})()"""
"""The least contrast of text and what is behind it, and the text."""


def executable() -> str | None:
    """The browser, or None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


@dataclass
class Browser:
    """One tab.

    told  what pages wrote to the console, raised, or could not load, and what they asked of the network
    """

    into: int
    out: int
    session: str = ""
    told: list[str] = field(default_factory=list)
    _number: int = 0
    _rest: bytes = b""
    _loaded: bool = False

    def call(self, method: str, **given: Any) -> Any:
        """A command of the DevTools protocol, and its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": given}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.into, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def open(self, page: Path | str, width: int, scheme: str = "light", height: int = 844) -> None:
        """Load a file, or an address, on a screen of so many CSS pixels; ``scheme`` is ``light`` or ``dark``."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **screen)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self._loaded = False
        self.call("Page.navigate", url=page if isinstance(page, str) else page.absolute().as_uri())
        while not self._loaded:
            self._next()

    def ask(self, script: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, script: str) -> Any:
        """The value of an expression once it is true, or something."""
        until = time.monotonic() + PATIENCE
        while not (value := self.ask(script)):
            assert time.monotonic() < until, f"not within {PATIENCE:.0f} seconds: {script}"
            time.sleep(0.05)
        return value

    def give(self, selector: str, file: Path) -> None:
        """Choose a file for an input of the page, once it is there, as a person would in the window that it opens."""
        self.wait(f"!!document.querySelector({json.dumps(selector)})")
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        found = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=found, files=[str(file.absolute())])

    def picture(self, path: Path, whole: bool = True) -> None:
        """Write a PNG of the page."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **self._clip(whole))
        path.write_bytes(base64.b64decode(shot["data"]))

    def _clip(self, whole: bool) -> dict[str, Any]:
        if not whole:
            return {}
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self.out], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"the browser says nothing for {PATIENCE:.0f} seconds"
            read = os.read(self.out, 1 << 20)
            assert read, "the browser has ended"
            self._rest += read
        first, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        self._hear(message.get("method", ""), message.get("params", {}))
        return message

    def _hear(self, method: str, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Runtime.exceptionThrown":
            self.told.append(f"raised: {params['exceptionDetails'].get('text')}")
        elif method == "Runtime.consoleAPICalled":
            self.told.append(f"console: {params['type']}: {params['args']}")
        elif method == "Log.entryAdded":
            self.told.append(f"log: {params['entry'].get('text')}")
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("file:", "data:", "about:")):
                self.told.append(f"network: {url}")
        elif method == "Network.webSocketCreated":
            self.told.append(f"network: {params['url']}")
        elif method == "Network.loadingFailed":
            self.told.append(f"not loaded: {params.get('errorText')}")


@contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    """Start the browser with a profile of its own; it has ended afterwards."""
    program = executable()
    assert program is not None
    theirs_in, into = os.pipe()
    out, theirs_out = os.pipe()
    # The protocol is spoken on the descriptors 3 and 4.
    command = 'exec "$0" "$@" 3<&"$IFSQ_IN" 4>&"$IFSQ_OUT"'
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    flags += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "--hide-scrollbars", "about:blank"]
    process = subprocess.Popen(
        ["bash", "-c", command, program, *flags],
        pass_fds=(theirs_in, theirs_out),
        env={**os.environ, "IFSQ_IN": str(theirs_in), "IFSQ_OUT": str(theirs_out)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        browser = Browser(into, out)
        tabs = browser.call("Target.getTargets")["targetInfos"]
        tab = next(target["targetId"] for target in tabs if target["type"] == "page")
        browser.session = browser.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            browser.call(f"{domain}.enable")
        yield browser
    finally:
        os.close(into)
        os.close(out)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
