"""Writing a tokenizer as graphs: a folder of files and ``tokenizer.json``, compared, whole or not at all."""

import json
from collections.abc import Mapping
from copy import deepcopy
from importlib.metadata import version
from math import isfinite, log2
from pathlib import Path
from typing import Any

import torch

from ifsq.config import InputError
from ifsq.interop.graphs.agree import Agreement, check_network
from ifsq.interop.graphs.formats import FORMATS, OPSET
from ifsq.interop.graphs.parts import Part, Quantizing, network_parts, rate_parts
from ifsq.store.files import check_free, record, write_text
from ifsq.store.folders import whole_folder
from ifsq.tokenizer.model import Tokenizer
from ifsq.training.log import Reporter, Silent

MANIFEST = "tokenizer.json"
LISTED = 257
"""Levels of a dimension up to which the thresholds stand in ``tokenizer.json`` too."""


def export_graphs(
    tokenizer: Tokenizer,
    out: Path,
    format: str,
    made: Mapping[str, Any],
    half: bool = False,
    reporter: Reporter | None = None,
) -> list[str]:
    """Write encoder, decoder and, where codes are digits, a quantizer and a dequantizer; returns lines about them.

    tokenizer  on the CPU, in eval mode; of one with nested levels each level count gets a pair of its own
    out        a new folder
    format     ``onnx`` or ``torch``
    made       what is known of its making, for ``tokenizer.json``
    half       the weights of encoder and decoder rounded to float16, which halves the files; they are computed in
               float32. Of ``onnx``
    reporter   is told of each part that is written, and of the comparison

    What was written is opened again, by ONNX Runtime or torch, and compared with the tokenizer, see `check_network`;
    where it disagrees nothing is left. Raises InputError.
    """
    kind, reporter = FORMATS[format], reporter or Silent()
    kind.check()
    check_free(out)
    if half and kind.halve is None:
        raise InputError(f"half with {format}: expected onnx, whose files alone are halved")
    original = tokenizer
    if half:
        tokenizer = rounded(tokenizer)
    with torch.no_grad(), whole_folder(out, MANIFEST) as folder:
        rates = _rates(tokenizer)
        networks = network_parts(kind.prepare(tokenizer))
        pairs = {suffix: rate_parts(at.quantizer, suffix) for suffix, at in rates.items()}
        about = {"ifsq": version("ifsq"), "tokenizer": tokenizer.digest()}
        parts = [*networks, *(part for pair in pairs.values() for part in pair)]
        reporter.start("export", 0, len(parts) + 1)
        for done, part in enumerate(parts, start=1):
            file = folder / f"{part.name}{kind.suffix}"
            kind.write(part, file, {**about, "part": part.name})
            if half and part in networks and kind.halve is not None:
                kind.halve(file)
            reporter.advance(done, {})
        opened = {part.name: kind.open(folder / f"{part.name}{kind.suffix}") for part in parts}
        quantizers = {suffix: at.quantizer for suffix, at in rates.items()}
        found = check_network(tokenizer, opened, quantizers, kind.least)
        reporter.advance(len(parts) + 1, {})
        files = [_file(part, folder / f"{part.name}{kind.suffix}") for part in parts]
        table = {
            "format": format,
            **({"opset": OPSET} if format == "onnx" else {}),
            "ifsq": version("ifsq"),
            "torch": torch.__version__,
            **made,
            "tokenizer": tokenizer.digest(),
            "weights": "float16, computed in float32" if half else "float32",
            **({"rounded_from": original.digest()} if half else {}),
            "config": tokenizer.describe()["config"],
            "images": {**_images(tokenizer), "smallest": kind.least * tokenizer.factor},
            "files": files,
            "rates": [_rate(at, pairs[suffix], kind.suffix) for suffix, at in rates.items()],
            "checked": found.to_dict(),
        }
        write_text(folder / MANIFEST, json.dumps(table, indent=1) + "\n")
    reporter.finish({})
    return _lines(out, files, found)


def rounded(tokenizer: Tokenizer) -> Tokenizer:
    """A copy whose encoder and decoder have weights that are float16 numbers, in float32. Raises InputError."""
    copied = deepcopy(tokenizer)
    for module in (copied.encoder, copied.quant_conv, copied.post_quant_conv, copied.decoder):
        for name, value in module.named_parameters():
            value.data = value.data.half().float()
            if not bool(torch.isfinite(value.data).all()):
                raise InputError(f"half: {name} has values beyond float16's 65504; expected an export without it")
    return copied


def _rates(tokenizer: Tokenizer) -> dict[str, Tokenizer]:
    """The tokenizer at its levels and at its other nested ones, by their files' suffix; none of continuous codes."""
    if tokenizer.quantizer.lattice is None:
        return {}
    config = tokenizer.config.quantizer
    others = [levels for levels in config.nested_levels if levels != config.levels[0]]
    return {"": tokenizer, **{f"_{levels}": tokenizer.at_levels(levels) for levels in others}}


def _images(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "channels": tokenizer.channels,
        "order": "RGB" if tokenizer.channels == 3 else "as in training",
        "range": [-1, 1],
        "multiple": tokenizer.factor,
        "from_bytes": "byte / 127.5 - 1",
        "to_bytes": "round(clamp(value, -1, 1) * 127.5 + 127.5)",
    }


def _file(part: Part, path: Path) -> dict[str, Any]:
    gives = [port.to_dict() for port in part.gives]
    return {"part": part.name, "file": path.name, **record(path), "takes": part.takes.to_dict(), "gives": gives}


def _rate(tokenizer: Tokenizer, pair: tuple[Part, ...], suffix: str) -> dict[str, Any]:
    lattice = tokenizer.quantizer.lattice
    assert lattice is not None
    module = pair[0].module
    assert isinstance(module, Quantizing)
    table = module.table.tolist() if module.table is not None and max(lattice.levels) <= LISTED else []
    return {
        "levels": list(lattice.levels),
        "bits_a_position": sum(map(log2, lattice.levels)),
        "groups": list(lattice.groups),
        "codes_a_group": list(lattice.group_sizes),
        "digit_order": lattice.digit_order,
        "cells": lattice.cells,
        "scale": lattice.scale,
        "tokenizer": tokenizer.digest(),
        "quantizer": f"{pair[0].name}{suffix}",
        "dequantizer": f"{pair[1].name}{suffix}",
        # A digit is how many of them a latent is not below.
        **({"thresholds": [[step for step in row if isfinite(step)] for row in table]} if table else {}),
    }


def _lines(out: Path, files: list[dict[str, Any]], found: Agreement) -> list[str]:
    told = ", ".join(f"{file['file']} {file['bytes'] / 1e6:.3g} MB" for file in files)
    return [f"graphs: {out}, {told}, {MANIFEST}", f"checked on {found}"]
