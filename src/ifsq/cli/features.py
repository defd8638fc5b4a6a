"""``ifsq features``."""

import argparse
from pathlib import Path
from typing import Any

from ifsq.cli.parser import named, size, verb
from ifsq.cli.terminal import Terminal, say


def add_features(verbs: Any) -> None:
    """``features``."""
    features = verb(verbs, "features", "cache what a teacher sees in the pictures of a code cache", _features)
    features.add_argument("codes", type=Path, metavar="CODES", help="a cache that ifsq encode wrote")
    features.add_argument(
        "--teacher",
        type=named,
        required=True,
        metavar="SOURCE",
        help="as source in [[alignment.teachers]]: efficientnet-lite0, dinov2-vit-b, a folder, or a hub's owner/name",
    )
    add_options(features)
    features.add_argument(
        "--grid", type=size, default=None, metavar="N", help="rows and columns of the features (default: the codes')"
    )
    features.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read images (default 0)")
    features.add_argument("--batch", type=int, default=0, metavar="N", help="pictures that the teacher sees together")
    features.add_argument("--out", type=Path, metavar="DIR", help="default: beside the codes, where training looks")


def add_options(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Add the options of a teacher.

    several  whether its layer may be several, each a teacher of its own
    """
    parser.add_argument(
        "--layer",
        type=int,
        nargs="+" if several else None,
        default=[0] if several else 0,
        metavar="N",
        help=f"of {'each' if several else 'the'} teacher (default: its own choice)",
    )
    parser.add_argument(
        "--side", type=int, default=0, metavar="PX", help="that pictures are resized to (default: one patch a token)"
    )
    parser.add_argument(
        "--positions", choices=("repa", "published"), default="repa", help="how a table of positions is resampled"
    )


def _features(options: argparse.Namespace) -> None:
    from ifsq import pipeline
    from ifsq.config import InputError, build
    from ifsq.pretrained.teachers import TeacherConfig

    asked = {"layer": options.layer, "side": options.side, "positions": options.positions}
    teacher = build(TeacherConfig, {"source": options.teacher, **asked}, "features")
    grid = (options.grid, options.grid) if isinstance(options.grid, int) else options.grid
    for name in ("workers", "batch"):
        if getattr(options, name) < 0:
            raise InputError(f"--{name} {getattr(options, name)}: expected at least 0")
    with Terminal() as terminal:
        found = pipeline.cache_features(
            options.codes, teacher, options.out, grid, options.device, terminal, options.workers, options.batch
        )
    height, width = found.about.grid
    say(f"features: {found.folder}, {found.about.rows} pictures, {height}x{width} of {found.about.width} numbers")
