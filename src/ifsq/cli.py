"""The command: verbs are stages. The only room that prints and parses arguments.

``ifsq --help`` must answer at once, so nothing heavy is imported before a verb is chosen. Whatever a person got wrong
ends in one line on stderr and exit code 2; a run that was asked to stop exits with 130.
"""

import argparse
import io
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from ifsq.config import InputError, Interrupted, Remark, parse_overrides

DEMO = "runs/demo"
BOUNDS = "runs/bounds"
LONGEST = 500  # characters of a line about what went wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    # Threads that spin while they wait cost tenfold as soon as anything else needs a core (docs/log.md).
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not every terminal has every letter of every name
            stream.reconfigure(errors="backslashreplace")
    parser = _parser()
    options, extra = parser.parse_known_args(arguments)
    if not hasattr(options, "run"):
        if extra:
            return _refuse(f"{extra[0]!r}: no such argument; see ifsq --help")
        parser.print_help()
        return 0
    for word in extra:
        if not options.overrides or (word.startswith("--") and not word.startswith(options.overrides)):
            return _refuse(f"{word!r}: no such argument of {options.verb}; see {options.verb} --help")
    options.extra = extra
    try:
        if options.alone and os.environ.get("WORLD_SIZE", "1") != "1":
            raise InputError(f"{options.verb}: runs in one process; start it without torchrun")
        with _remarks():
            options.run(options)
    except InputError as error:
        return _refuse(str(error))
    except OSError as error:  # no room, no permission: the person's to mend
        if error.errno is None:
            raise
        return _refuse(f"{error.filename or 'the system'}: {error.strerror}")
    except KeyboardInterrupt:
        return _stopped("stopped; the same command starts again")
    except Interrupted as error:
        return _stopped(str(error))
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SystemExit(_refuse(f"{message}; see {self.prog} --help"))


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version")

    def __call__(self, *_: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"ifsq {version('ifsq')}")
        raise SystemExit(0)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ifsq", description="Image tokenizers with iFSQ, and generators of their codes.", allow_abbrev=False
    )
    parser.add_argument("--version", action=_Version)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", parser_class=_Parser)

    demo = _verb(verbs, "demo", "the whole road on bundled pictures; ends with a report", _demo, overrides="--")
    demo.add_argument("--out", default=DEMO, metavar="DIR", help=f"folder of the runs (default {DEMO})")

    tokenizer = verbs.add_parser("tokenizer", help="train or evaluate a tokenizer").add_subparsers(
        metavar="VERB", required=True
    )
    train = _verb(tokenizer, "train", "train a tokenizer", _tokenizer_train, overrides="--")
    train.add_argument("experiment", type=Path, metavar="EXPERIMENT.toml")
    evaluate = _verb(tokenizer, "eval", "measure a tokenizer on held-out images", _tokenizer_eval)
    evaluate.add_argument("folder", type=Path, metavar="RUN")
    evaluate.add_argument(
        "--data", type=_named, metavar="SOURCE", help="images, as data.source of an experiment (default: the run's)"
    )
    evaluate.add_argument(
        "--split",
        type=_named,
        metavar="NAME",
        help="val, train, another of the source, or all (default: val; of other images than the run's their val or"
        " test, or all where they have no splits)",
    )
    evaluate.add_argument("--size", type=_size, default=0, metavar="PX", help=_SIZE_HELP)
    evaluate.add_argument(
        "--count", type=int, default=0, metavar="N", help="images, drawn over the split (default: all)"
    )
    _add_reading(evaluate)
    evaluate.add_argument("--no-judge", action="store_true", help="leave out rFD(judge) and the training of its judge")
    for option, network in (
        ("--lpips", "LPIPS, with these VGG16 weights"),
        ("--fid", "rFID, with these Inception weights"),
    ):
        text = f"{network} or, without PATH, the published ones: found on this machine or fetched"
        evaluate.add_argument(option, nargs="?", const="official", default="", metavar="PATH", help=text)

    encode = _verb(verbs, "encode", "images -> code cache", _encode)
    encode.add_argument("folder", type=Path, metavar="RUN", help="tokenizer run")
    encode.add_argument(
        "data",
        metavar="DATA",
        help="as data.source: a folder, list, shards, hf:NAME, or bundled:photos, bundled:digits, bundled:shapes",
    )
    encode.add_argument("out", type=Path, metavar="OUT")
    encode.add_argument("--size", type=_size, default=None, metavar="PX", help=_SIZE_HELP)
    encode.add_argument("--flip", action="store_true", help="also the codes of the mirrored images")
    encode.add_argument(
        "--split",
        nargs="+",
        default=None,
        metavar="NAME",
        help="splits of the source, or all of one without splits (default: train val, which generators need)",
    )
    _add_reading(encode)

    generator = verbs.add_parser("generator", help="train or evaluate a generator").add_subparsers(
        metavar="VERB", required=True
    )
    train = _verb(
        generator, "train", "train an autoregressive or a diffusion generator", _generator_train, overrides="--"
    )
    train.add_argument("experiment", type=Path, metavar="EXPERIMENT.toml")
    evaluate = _verb(generator, "eval", "measure samples against real images", _generator_eval, overrides=_SAMPLING)
    evaluate.add_argument("folder", type=Path, metavar="RUN")
    evaluate.add_argument(
        "--samples",
        type=int,
        default=1000,
        metavar="N",
        help="images drawn, of the classes that the training images have and in their proportions (default 1000)",
    )
    evaluate.add_argument("--balanced", action="store_true", help="draw every one of these classes alike instead")
    evaluate.add_argument("--seed", type=int, default=0)

    sample = _verb(verbs, "sample", "draw images of given classes", _sample, overrides=_SAMPLING)
    sample.add_argument("folder", type=Path, metavar="RUN", help="generator run")
    sample.add_argument(
        "--labels", nargs="+", required=True, metavar="CLASS", help="numbers or names of classes: one image for each"
    )
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--out", type=Path, required=True, metavar="GRID.png")

    reconstruct = _verb(verbs, "reconstruct", "images through encoder and decoder", _reconstruct)
    reconstruct.add_argument("folder", type=Path, metavar="RUN", help="tokenizer run")
    reconstruct.add_argument("images", type=Path, nargs="+", metavar="PATH", help="images, and folders of them")
    reconstruct.add_argument("--out", type=Path, required=True, metavar="DIR")
    reconstruct.add_argument("--tile", type=int, default=None, metavar="PX", help="for large images: this much at once")
    reconstruct.add_argument("--alone", action="store_true", help="without the original beside it")

    report = _verb(verbs, "report", "one page about a tokenizer and its generators", _report)
    report.add_argument("folders", type=Path, nargs="+", metavar="RUN")
    report.add_argument(
        "--out", type=Path, default=None, metavar="PAGE.html", help="default: report.html in the first run's folder"
    )

    analyze = verbs.add_parser("analyze", help="what bounds and cells do to latents").add_subparsers(
        metavar="VERB", required=True
    )
    bounds = _verb(analyze, "bounds", "every bound and cell rule on latents of known distributions", _analyze_bounds)
    bounds.add_argument("--out", type=Path, default=Path(BOUNDS), metavar="DIR", help=f"default {BOUNDS}")
    bounds.add_argument("--levels", type=int, nargs="+", default=None, metavar="L", help="default: 2 to 65")
    bounds.add_argument(
        "--samples", type=int, default=100_000, metavar="N", help="that bounds are fitted to and integrals checked on"
    )
    bounds.add_argument("--seed", type=int, default=0)

    codes = _verb(analyze, "codes", "how a cache uses levels and indices", _analyze_codes)
    codes.add_argument("folder", type=Path, metavar="CACHE", help="code cache")
    codes.add_argument("--split", default="train", metavar="NAME", help="default train")

    other = verbs.add_parser("import", help="read a checkpoint of another project").add_subparsers(
        metavar="FORMAT", required=True
    )
    official = _verb(other, "official", "a tokenizer of the official repository", _import_official, alone=True)
    official.add_argument("checkpoint", type=Path, metavar="CKPT", help="checkpoint-N.ckpt of its trainer")
    official.add_argument("--config", type=Path, required=True, metavar="CONFIG.json", help="its model config")
    official.add_argument("--out", type=Path, required=True, metavar="DIR")
    official.add_argument("--weights", choices=("ema", "raw"), default="ema", help="averaged (default) or as trained")

    kl = _verb(
        other, "diffusers", "Stable Diffusion's autoencoder, as diffusers keeps it", _import_diffusers, alone=True
    )
    kl.add_argument("source", metavar="FOLDER_OR_ID", help="folder, or owner/name on the hub, of an AutoencoderKL")
    kl.add_argument("--revision", default=None, help="branch, tag or commit on the hub")
    kl.add_argument("--out", type=Path, required=True, metavar="DIR")

    latents = _verb(
        other, "latents", "latents that the official DiT extracted -> code cache", _import_latents, alone=True
    )
    latents.add_argument("folder", type=Path, metavar="FOLDER")
    latents.add_argument("--out", type=Path, required=True, metavar="DIR")

    other = verbs.add_parser("export", help="write a checkpoint for another project").add_subparsers(
        metavar="FORMAT", required=True
    )
    official = _verb(other, "official", "a tokenizer for the official repository", _export_official, alone=True)
    official.add_argument("folder", type=Path, metavar="RUN", help="tokenizer run")
    official.add_argument(
        "--out", type=Path, required=True, metavar="FILE.ckpt", help="its config is written beside it"
    )
    saved = _verb(
        other, "pretrained", "a run's averaged weights, for from_pretrained and the hub", _export_pretrained, alone=True
    )
    saved.add_argument("folder", type=Path, metavar="RUN", help="tokenizer or generator run")
    saved.add_argument("--out", type=Path, required=True, metavar="DIR")
    saved.add_argument("--license", default="unknown", metavar="ID", help="of the weights, by the hub's identifiers")
    return parser


def _verb(
    verbs: Any, name: str, text: str, run: Any, *, overrides: str = "", alone: bool = False
) -> argparse.ArgumentParser:
    epilog = {
        "": None,
        "--": "Any --section.key value of the experiment may follow, as --train.steps 100; --out DIR too.",
        _SAMPLING: "Any --sampling.key value may follow, as --sampling.guidance 2, in place of the run's own.",
    }[overrides]
    parser = verbs.add_parser(name, help=text, description=text, epilog=epilog, allow_abbrev=False)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default auto)")
    parser.set_defaults(run=run, overrides=overrides, alone=alone, verb=parser.prog)
    return parser


_SAMPLING = "--sampling."


def _sampling(options: argparse.Namespace) -> Any:
    """The options of sampling that follow a verb, as a table."""
    return parse_overrides(options.extra).get("sampling", {})


_SIZE_HELP = "pixels a side, or HEIGHTxWIDTH as 256x384 (default: the tokenizer's)"


def _size(text: str) -> int | tuple[int, int]:
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


def _named(text: str) -> str:
    """What is asked for by name. An unset variable of a shell names nothing, and is no word for the default."""
    if not text:
        raise argparse.ArgumentTypeError("'': expected a name")
    return text


def _add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--broken", choices=("refuse", "skip"), help="what an image that cannot be read does")
    parser.add_argument("--max-pixels", type=int, metavar="N", help="above which an image is too large")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that read images (default: as the run's)")
    parser.add_argument("--val-source", metavar="SOURCE", help="where the images of the split val come from")
    parser.add_argument("--label-column", metavar="NAME", help="where labels are, if the source does not say it itself")


def _reading(options: argparse.Namespace) -> Any:
    from ifsq.data import Reading

    return Reading(
        options.val_source, options.label_column, options.broken, options.max_pixels, workers=options.workers
    )


def _demo(options: argparse.Namespace) -> None:
    from ifsq.bench.demo import demo

    with Terminal() as terminal:
        page = demo(Path(options.out), options.extra, options.device, terminal)
    _print(f"report: {page}")


def _tokenizer_train(options: argparse.Namespace) -> None:
    from ifsq import pipeline
    from ifsq.experiment import load_tokenizer_experiment

    experiment = load_tokenizer_experiment(options.experiment, options.extra)
    with Terminal() as terminal:
        _print(f"run: {pipeline.train_tokenizer(experiment, options.device, terminal)}")


def _tokenizer_eval(options: argparse.Namespace) -> None:
    from ifsq import pipeline
    from ifsq.evaluation import TokenizerEvaluation

    asked = TokenizerEvaluation(
        source=options.data or "",
        split=options.split or "",
        size=options.size,
        count=options.count,
        judge=not options.no_judge,
        lpips=options.lpips,
        fid=options.fid,
        reading=_reading(options),
    )
    with Terminal() as terminal:
        cards = pipeline.evaluate_tokenizer(options.folder, options.device, terminal, asked)
    _table(cards)


def _encode(options: argparse.Namespace) -> None:
    from ifsq import pipeline

    with Terminal() as terminal:
        cache = pipeline.encode(
            options.folder,
            options.data,
            options.out,
            options.size,
            options.flip,
            options.device,
            terminal,
            options.split or ("train", "val"),
            _reading(options),
        )
    _print(f"codes: {cache.folder}, {', '.join(f'{cache.count(split)} of {split}' for split in cache.splits)}")


def _generator_train(options: argparse.Namespace) -> None:
    from ifsq import pipeline
    from ifsq.experiment import load_generator_experiment

    experiment = load_generator_experiment(options.experiment, options.extra)
    with Terminal() as terminal:
        _print(f"run: {pipeline.train_generator(experiment, options.device, terminal)}")


def _generator_eval(options: argparse.Namespace) -> None:
    from ifsq import pipeline

    with Terminal() as terminal:
        cards = pipeline.evaluate_generator(
            options.folder,
            options.samples,
            options.seed,
            options.device,
            terminal,
            options.balanced,
            _sampling(options),
        )
    _table(cards)


def _sample(options: argparse.Namespace) -> None:
    from ifsq import pipeline

    sampling = _sampling(options)
    pipeline.sample(options.folder, options.labels, options.seed, options.out, options.device, sampling)
    _print(f"picture: {options.out}")


def _reconstruct(options: argparse.Namespace) -> None:
    from ifsq import pipeline

    for line in pipeline.reconstruct(
        options.folder, options.images, options.out, options.tile, options.alone, options.device
    ):
        _print(line, everyone=True)  # each process tells of its own images


def _report(options: argparse.Namespace) -> None:
    from ifsq.bench.report import write_report

    _print(f"report: {write_report(options.folders, options.out)}")


def _analyze_bounds(options: argparse.Namespace) -> None:
    from ifsq.analysis.bounds import LEVELS, analyze_bounds

    report = analyze_bounds(options.out, options.levels or LEVELS, options.samples, options.seed)
    for table in report.tables:
        _grid(table.title, table.columns, table.rows)
    for line in (*report.verdict, report.check, f"table: {report.table}", f"picture: {report.picture}"):
        _print(line)


def _analyze_codes(options: argparse.Namespace) -> None:
    from ifsq.analysis.codes import analyze_codes

    for table in analyze_codes(options.folder, options.split):
        _grid(table.title, table.columns, table.rows)


def _import_official(options: argparse.Namespace) -> None:
    from ifsq.interop.official.tokenizer import import_official

    import_official(options.checkpoint, options.config, options.weights, options.out)
    _print(f"tokenizer: {options.out}")


def _import_diffusers(options: argparse.Namespace) -> None:
    from ifsq.interop.diffusers_kl import import_diffusers

    import_diffusers(options.source, options.out, options.revision)
    _print(f"tokenizer: {options.out}")


def _import_latents(options: argparse.Namespace) -> None:
    from ifsq.interop.official.latents import import_latents

    cache = import_latents(options.folder, options.out)
    _print(f"codes: {cache.folder}, latents of {cache.count('train')} images and of their mirrors")


def _export_official(options: argparse.Namespace) -> None:
    from ifsq.interop.official.tokenizer import export_official

    config = export_official(options.folder, options.out)
    _print(f"checkpoint: {options.out}, config: {config}")


def _export_pretrained(options: argparse.Namespace) -> None:
    from ifsq.interop.pretrained import export_pretrained

    export_pretrained(options.folder, options.out, options.license)
    _print(f"model: {options.out}")


class Terminal:
    """A `ifsq.training.log.Reporter` on stderr: bars with rate and time left on a terminal, plain lines elsewhere.

    Once stderr cannot be written (its disk is full, its reader is gone) nothing more is said there, and the run goes
    on: what it says is a copy of what its folder holds.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, quiet=not _first_process(), highlight=False, markup=False, emoji=False)
        self._bar: Any = None
        self._task: Any = None
        self._what, self._total, self._started = "", 0, 0.0

    def start(self, what: str, done: int, total: int) -> None:
        self._what, self._total, self._started = what, total, time.perf_counter()
        if done:
            self.say(f"{what}: continues at {done} of {total}")
        if self.console.is_terminal:
            self._bar = _progress(self.console)
            self._task = self._bar.add_task(what, completed=done, total=total, facts="")
            self._bar.start()

    def advance(self, done: int, facts: dict[str, float]) -> None:
        text = _facts(facts)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, **({"facts": text} if text else {}))
        elif text:
            self.say(f"{self._what} {done}/{self._total}  {text}")

    def finish(self, facts: dict[str, float]) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        text = _facts({name: value for name, value in facts.items() if name.startswith("val/")})
        self.say(f"{self._what}: done in {time.perf_counter() - self._started:.0f} s  {text}".rstrip())

    def say(self, line: str) -> None:
        try:
            self.console.print(_tidy(line), soft_wrap=True)
        except OSError:
            self.console.quiet = True

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:  # the run ended early: give the person's cursor back
            self._bar.stop()


def _progress(console: Any) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[facts]}"),
        console=console,
    )


def _facts(facts: dict[str, float]) -> str:
    shown = {name: value for name, value in facts.items() if name not in ("lr", "seconds", "grad_norm")}
    return "  ".join(f"{name.replace('steps_per_second', 'steps/s')} {value:.4g}" for name, value in shown.items())


def _table(measured: Sequence[Any]) -> None:
    if not _first_process():
        return
    from rich.console import Console
    from rich.table import Table

    from ifsq.data.images import size_text

    table = Table("metric", "value", "images", "on", box=None)
    for card in measured:
        values = ", ".join(f"{name} {_number(value)}" for name, value in card.values.items())
        table.add_row(card.metric, values, str(card.n), card.reference)
    with _standard_output():
        Console(highlight=False, markup=False, emoji=False).print(table)
    for card in measured[:1]:  # all were taken together
        size = size_text(card.size)
        _print(f"{size} px, crop {card.crop}, resize {card.resize_kernel}, {card.dtype}, ifsq {card.code_version}")
    for features in dict.fromkeys(card.features for card in measured if card.features):
        _print(f"features: {features}")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e12 else f"{value:.4g}"


def _grid(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not _first_process():
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None)
    for i, column in enumerate(columns):
        numbers = bool(rows) and rows[0][i].replace(".", "").isdecimal()
        table.add_column(column, justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*row)
    with _standard_output():
        console = Console(highlight=False, markup=False, emoji=False)
        console.print(table)
        console.print()


def _print(line: str, *, everyone: bool = False) -> None:
    if everyone or _first_process():
        with _standard_output():
            print(_tidy(line))


@contextmanager
def _standard_output() -> Iterator[None]:
    """Print, and know that it is printed. Raises InputError where it cannot be."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python will flush what is left
        raise InputError(f"standard output: cannot be written: {error.strerror}") from error


def _tidy(text: str) -> str:
    """One line without the codes that terminals obey, of which names may be full."""
    plain = " ".join(text.split())
    return plain if plain.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in plain)


def _tell(text: str) -> None:
    """A line on stderr, its middle left out where a name makes it long."""
    line = _tidy(text)
    with suppress(OSError):  # then nobody is left to tell, but for the exit code
        print(line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}", file=sys.stderr)


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _remarks() -> Iterator[None]:
    """Print every `Remark` once, in a line of the command's own; other warnings as ever."""
    told: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", Remark)
        as_ever = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if not issubclass(category, Remark):
                as_ever(message, category, *where, **more)
            elif str(message) not in told and _first_process():
                told.add(str(message))
                _tell(f"ifsq: {message}")

        warnings.showwarning = show
        yield


def _refuse(message: str) -> int:
    # What every process refuses, the first says; what only another one met (its image is broken), that one says.
    prefix = "ifsq" if _first_process() else f"ifsq (process {os.environ['RANK']})"
    _tell(f"{prefix}: {message}")
    return 2


def _stopped(message: str) -> int:
    if _first_process():
        _tell(f"ifsq: {message}")
    return 130
