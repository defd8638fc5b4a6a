"""Parts of the page as HTML; whatever text is given is escaped."""

import base64
from html import escape

import numpy as np
from jaxtyping import UInt8

from ifsq.bench.charts import bar_chart
from ifsq.data.transforms import png_bytes
from ifsq.quantizers.usage import LevelUse

LARGE = 128
"""Pixels of a side from which an image is shown as smoothly as the browser likes."""


def picture(image: UInt8[np.ndarray, "H W c"], title: str, alt: str, below: str = "") -> str:
    """A figure with its caption; ``below`` the image may stand another one, see `shown`."""
    return f"<figure>{shown(image, alt)}{below}<figcaption>{escape(title)}</figcaption></figure>"


def shown(image: UInt8[np.ndarray, "H W c"], alt: str) -> str:
    """An image, whose pixels can be seen where it is small."""
    address = f"data:image/png;base64,{base64.b64encode(png_bytes(image)).decode()}"
    height, width = image.shape[:2]
    small = ' class="pixels"' if max(height, width) < LARGE else ""
    return f'<img src="{address}" alt="{escape(alt)}" width="{width}" height="{height}"{small}>'


def histogram(use: LevelUse, of: str, number: int) -> str:
    """How often each level is used, as a figure."""
    title = f"entropy {use.fraction:.3f} of log2 {use.levels}"
    chart = bar_chart(title, use.share, number, of, 1 / use.levels)
    told = f'<figure class="chart" role="img" aria-label="{escape(chart.alt)}">{chart.svg}'
    return f"{told}<figcaption>{escape(title)}; dashed: even use</figcaption></figure>"


def heading(title: str, text: str) -> str:
    """Of a part of the results."""
    return f"<h3>{escape(title)}</h3><p class='soft'>{escape(text)}</p>"
