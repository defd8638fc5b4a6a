"""The parser of the command line, and the arguments that several verbs have."""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ifsq.cli.terminal import refuse
from ifsq.config import Remark, parse_overrides

SAMPLING = "--sampling."
LIKELIHOOD = "--likelihood."
SIZE_HELP = "pixels a side, or HEIGHTxWIDTH as 256x384 (default: the tokenizer's)"


class Parser(argparse.ArgumentParser):
    """A parser whose refusals are one line."""

    def error(self, message: str) -> NoReturn:
        raise SystemExit(refuse(f"{message}; see {self.prog} --help"))


class Version(argparse.Action):
    """``--version``, which reads the package's metadata when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version")

    def __call__(self, *_: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"ifsq {version('ifsq')}")
        raise SystemExit(0)


def verb(
    verbs: Any,
    name: str,
    text: str,
    run: Any,
    *,
    overrides: str = "",
    of_them: str = "",
    alone: bool = False,
    device: bool = True,
) -> argparse.ArgumentParser:
    """Add a verb that calls ``run``.

    overrides  how the arguments begin that it takes beyond its own: ``--``, ``--sampling.``, ``--likelihood.`` or none
    of_them    what its help says of these, where that is not what most verbs say
    alone      whether it refuses to run in several processes
    device     whether it computes on one that a person may choose
    """
    epilog = {
        "": None,
        "--": "Any --section.key value of the experiment may follow, as --train.steps 100; --out DIR too.",
        SAMPLING: "Any --sampling.key value may follow, as --sampling.guidance 2, in place of the run's own.",
        LIKELIHOOD: "Of a bound any --likelihood.key value may follow, as --likelihood.steps 64 of a diffusion one,"
        " --likelihood.draws 64 of a masked one.",
    }[overrides]
    parser = verbs.add_parser(name, help=text, description=text, epilog=of_them or epilog, allow_abbrev=False)
    if device:
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    parser.set_defaults(run=run, overrides=overrides, alone=alone, verb=parser.prog)
    return parser


def sampling_of(options: argparse.Namespace) -> Any:
    """The options of sampling that follow a verb, as a table."""
    return parse_overrides(options.extra).get("sampling", {})


def experiment_named(path: Path) -> Path:
    """The experiment file that is there; or that is shipped, of a name as ``experiments/demo/tokenizer.toml``."""
    if path.exists() or path.is_absolute():
        return path
    from ifsq.bench.shipped import experiment_file

    shipped = experiment_file(str(path.relative_to("experiments") if path.is_relative_to("experiments") else path))
    if not shipped.is_file():
        return path
    warnings.warn(Remark(f"{path}: taken from those that are shipped with ifsq, {shipped}"), stacklevel=2)
    return shipped


def size(text: str) -> int | tuple[int, int]:
    """``256`` or ``256x384``: pixels a side, or height and width."""
    try:
        if "x" not in text.lower():
            if not (side := int(text)):
                raise ValueError(text)
            return side
        height, width = text.lower().split("x")
        return int(height), int(width)
    except ValueError:
        expected = "expected pixels a side as 256, or height and width as 256x384"
        raise argparse.ArgumentTypeError(f"{text!r}: {expected}") from None


def named(text: str) -> str:
    """A name; an unset variable of a shell is none, and no word for the default."""
    if not text:
        raise argparse.ArgumentTypeError("'': expected a name")
    return text


def add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say how images are read."""
    parser.add_argument("--broken", choices=("refuse", "skip"), help="what an image that cannot be read does")
    parser.add_argument("--max-pixels", type=int, metavar="N", help="above which an image is too large")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that read images (default: as the run's)")
    parser.add_argument("--val-source", metavar="SOURCE", help="where the images of the split val come from")
    parser.add_argument("--label-column", metavar="NAME", help="where labels are, if the source does not say it itself")


def reading_of(options: argparse.Namespace) -> Any:
    """The `Reading` that these arguments ask for."""
    from ifsq.data import Reading

    return Reading(
        options.val_source, options.label_column, options.broken, options.max_pixels, workers=options.workers
    )
