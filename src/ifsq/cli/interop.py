"""``ifsq import``, ``ifsq export``: models and latents of other projects, and graphs that run without this one."""

import argparse
from pathlib import Path
from typing import Any

from ifsq.cli.parser import named, size, verb
from ifsq.cli.terminal import Terminal, say
from ifsq.cli.tokenizer import add_levels

TRAINERS = ("official", "sit", "dit")  # of a plain DiT


def add_import(verbs: Any) -> None:
    """``import official``, ``diffusers`` and ``latents``."""
    other = verbs.add_parser("import", help="read a checkpoint of another project").add_subparsers(
        metavar="FORMAT", required=True
    )
    official = verb(
        other,
        "official",
        "a tokenizer, LlamaGen or DiT of the official repository, or as LlamaGen, DiT and SiT published them",
        _import_official,
        alone=True,
        device=False,
    )
    official.add_argument("checkpoint", type=Path, metavar="CKPT", help="file of the trainer, or as published")
    official.add_argument("--config", type=Path, metavar="CONFIG.json", help="of an official tokenizer: its config")
    official.add_argument("--out", type=Path, required=True, metavar="DIR")
    official.add_argument("--weights", choices=("ema", "raw"), help="averaged (default, where there are) or as trained")
    official.add_argument(
        "--grid", type=size, metavar="HxW", help="of a generator: codes, as 16x16, if it does not say"
    )
    official.add_argument(
        "--heads", type=int, metavar="N", help="of a generator of no official size: heads of attention"
    )
    official.add_argument(
        "--tokenizer", type=named, metavar="RUN", help="of a generator: the tokenizer of its training"
    )
    official.add_argument(
        "--trainer", choices=TRAINERS, help="of a plain DiT: whose meaning its time and output have, if it does not say"
    )
    official.add_argument(
        "--multiplier", type=float, metavar="X", help="of a DiT: what latents were multiplied by, if it does not say"
    )
    official.add_argument(
        "--statistics", type=Path, metavar="FILE", help="of a DiT on normalised latents: its latents_stats.pt"
    )

    kl = verb(
        other,
        "diffusers",
        "Stable Diffusion's autoencoder, as diffusers keeps it",
        _import_diffusers,
        alone=True,
        device=False,
    )
    kl.add_argument("source", metavar="FOLDER_OR_ID", help="folder, or owner/name on the hub, of an AutoencoderKL")
    kl.add_argument("--revision", default=None, help="branch, tag or commit on the hub")
    kl.add_argument("--out", type=Path, required=True, metavar="DIR")

    latents = verb(
        other,
        "latents",
        "make a code cache of latents that the official DiT extracted",
        _import_latents,
        alone=True,
        device=False,
    )
    latents.add_argument("folder", type=Path, metavar="FOLDER")
    latents.add_argument("--out", type=Path, required=True, metavar="DIR")


def add_export(verbs: Any) -> None:
    """``export official``, ``pretrained``, ``onnx`` and ``torch``."""
    other = verbs.add_parser("export", help="write a checkpoint for another project").add_subparsers(
        metavar="FORMAT", required=True
    )
    official = verb(
        other,
        "official",
        "a tokenizer, LlamaGen or DiT for the official repository",
        _export_official,
        alone=True,
        device=False,
    )
    official.add_argument("folder", type=Path, metavar="RUN", help="tokenizer or generator")
    official.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="x.ckpt, a config beside it; of a generator and of LlamaGen's tokenizer x.pt",
    )
    saved = verb(
        other,
        "pretrained",
        "a run's averaged weights, for from_pretrained and the hub",
        _export_pretrained,
        alone=True,
        device=False,
    )
    saved.add_argument("folder", type=Path, metavar="RUN", help="tokenizer or generator run")
    saved.add_argument("--out", type=Path, required=True, metavar="DIR")
    saved.add_argument("--license", default="unknown", metavar="ID", help="of the weights, by the hub's identifiers")
    onnx = verb(
        other,
        "onnx",
        "a tokenizer as ONNX files, for servers, phones and browsers",
        _export_onnx,
        alone=True,
        device=False,
    )
    onnx.add_argument("--half", action="store_true", help="weights in float16, computed in float32: half the size")
    program = verb(other, "torch", "a tokenizer as programs of torch.export", _export_torch, alone=True, device=False)
    for parser in (onnx, program):
        parser.add_argument("folder", type=Path, metavar="RUN", help="tokenizer run")
        parser.add_argument("--out", type=Path, required=True, metavar="DIR")
        add_levels(parser)


def _import_official(options: argparse.Namespace) -> None:
    from ifsq.interop.official.dit_generator import Scale
    from ifsq.interop.official.importing import Asked, import_checkpoint
    from ifsq.interop.official.llamagen_generator import Choices

    grid = (options.grid, options.grid) if isinstance(options.grid, int) else options.grid
    choices = Choices(grid, options.heads, options.tokenizer or "")
    scale = Scale(options.trainer or "", options.multiplier, options.statistics)
    asked = Asked(options.config, options.weights, choices, scale)
    for line in import_checkpoint(options.checkpoint, options.out, asked):
        say(line)


def _import_diffusers(options: argparse.Namespace) -> None:
    from ifsq.interop.diffusers_kl import import_diffusers

    import_diffusers(options.source, options.out, options.revision)
    say(f"tokenizer: {options.out}")


def _import_latents(options: argparse.Namespace) -> None:
    from ifsq.interop.official.latents import import_latents

    cache = import_latents(options.folder, options.out)
    say(f"codes: {cache.folder}, latents of {cache.count('train')} images and of their mirrors")


def _export_official(options: argparse.Namespace) -> None:
    from ifsq.interop.official.exporting import export_checkpoint

    for line in export_checkpoint(options.folder, options.out):
        say(line)


def _export_pretrained(options: argparse.Namespace) -> None:
    from ifsq.interop.pretrained import export_pretrained

    export_pretrained(options.folder, options.out, options.license)
    say(f"model: {options.out}")


def _export_onnx(options: argparse.Namespace) -> None:
    _export_graphs(options, "onnx", half=options.half)


def _export_torch(options: argparse.Namespace) -> None:
    _export_graphs(options, "torch")


def _export_graphs(options: argparse.Namespace, format: str, half: bool = False) -> None:
    from ifsq import pipeline

    with Terminal() as terminal:
        lines = pipeline.export(
            options.folder, options.out, format, levels=options.levels, half=half, reporter=terminal
        )
    for line in lines:
        say(line)
