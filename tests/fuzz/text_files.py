"""Experiments, overrides, lists, logs and measurements."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image
from tests.fuzz import texts
from tests.fuzz.damaged import (
    Case,
    as_table,
    damaged_bytes,
    damaged_tables,
    json_of,
    toml_of,
)
from tests.fuzz.made import Made, as_list, files_in

from ifsq.bench.grid.config import load_grid
from ifsq.bench.measurement import read_measurements
from ifsq.config import InputError, build, merge, parse_overrides, read_toml
from ifsq.data.containers.listed import Listed, read_list
from ifsq.experiment import TokenizerExperiment, load_generator_experiment, load_tokenizer_experiment
from ifsq.training.log import MetricsLog, SkippedLog, read_metrics


def toml(folder: Path) -> Made:
    for name, text in texts.EXPERIMENTS.items():
        (folder / name).write_text(text)

    def read(name: str) -> None:
        load = {"tok.toml": load_tokenizer_experiment, "grid.toml": load_grid}.get(name, load_generator_experiment)
        load(folder / name)

    tables = {name: read_toml(folder / name) for name in texts.EXPERIMENTS}
    contents = {name: text.encode() for name, text in texts.EXPERIMENTS.items()}
    strategy = damaged_tables(tables, lambda _, table: toml_of(table)) | damaged_bytes(contents)
    return Made(strategy, files_in(folder, read), contents.items())


def overrides(folder: Path) -> Made:
    (folder / "tok.toml").write_text(texts.EXPERIMENTS["tok.toml"])
    base = read_toml(folder / "tok.toml")

    def parse(case: Case) -> None:
        words = case[1].decode(errors="surrogateescape").split("\n")
        given = parse_overrides(words, TokenizerExperiment)
        build(TokenizerExperiment, merge(base, given), "arguments")

    valid = {str(number): words.encode() for number, words in enumerate(texts.OVERRIDES)}
    return Made(damaged_bytes(valid), parse, valid.items())


def lists(folder: Path) -> Made:
    (folder / "a").mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8)).save(folder / f"a/{number}.png")

    def read(name: str) -> None:
        for rows in read_list(folder / name).values():
            Listed(folder / name, rows).classes()

    rows = [json.loads(line) for line in texts.LISTS["list.jsonl"].splitlines()]

    def write(_: str, table: Any) -> bytes:
        return b"\n".join(map(json_of, table if isinstance(table, list) else [table]))

    contents = {name: text.encode() for name, text in texts.LISTS.items()}
    strategy = damaged_bytes(contents) | damaged_tables({"list.jsonl": rows}, write)
    return Made(strategy, files_in(folder, read), contents.items())


def logs(folder: Path) -> Made:
    def read(name: str) -> None:
        if name == "skipped.txt":
            SkippedLog(folder / name).rewind(2)
            return
        with suppress(InputError):  # it is read for a report, and rewound by a run that goes on
            read_metrics(folder / name)
        MetricsLog(folder / name).rewind(2)
        read_metrics(folder / name)

    rows = [json.loads(line) for line in texts.METRICS.splitlines()]
    valid = {"metrics.jsonl": texts.METRICS.encode(), "skipped.txt": texts.SKIPPED.encode()}
    strategy = damaged_bytes(valid) | damaged_tables(
        {"metrics.jsonl": rows}, lambda _, table: b"".join(json_of(row) + b"\n" for row in as_list(table))
    )

    def parse(case: Case) -> None:
        try:
            files_in(folder, read)(case)
        finally:
            for path in folder.iterdir():
                path.unlink()

    return Made(strategy, parse, valid.items())


def measurements(folder: Path) -> Made:
    from ifsq.bench.summary import summary_of

    rows = [texts.measurement(seed) for seed in (0, 1)]
    content = b"".join(json_of(as_table(row)) + b"\n" for row in rows)
    (folder / "measurements.jsonl").write_bytes(content)
    (folder / "grid.json").write_text(json.dumps(texts.GRID_ABOUT))
    (folder / "failures.jsonl").write_text('{"stage": "x", "cells": ["a"], "error": "b"}\n')

    def read(name: str) -> None:
        read_measurements(folder / "measurements.jsonl")
        summary_of(folder)

    def write(name: str, table: Any) -> bytes:
        return json_of(table) if name == "grid.json" else b"".join(json_of(row) + b"\n" for row in as_list(table))

    tables = {
        "measurements.jsonl": rows,
        "grid.json": texts.GRID_ABOUT,
        "failures.jsonl": [{"stage": "x", "cells": ["a"]}],
    }
    valid = {"measurements.jsonl": content}
    return Made(damaged_tables(tables, write) | damaged_bytes(valid), files_in(folder, read), valid.items())
