"""Codes, runs, models, checkpoints of other projects, and what a report is made of."""

import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import save
from tests.fuzz import texts
from tests.fuzz.damaged import (
    Case,
    Table,
    as_plain,
    as_table,
    damaged_bytes,
    damaged_tables,
    json_of,
)
from tests.fuzz.made import Made, as_list, files_in

from ifsq.bench.report import runs_page
from ifsq.bench.runs import read_runs, refuse_unlike
from ifsq.codes.cache import CodeCache
from ifsq.codes.writer import Part, save_part, write_manifest
from ifsq.config import to_dict
from ifsq.data.images import DataConfig
from ifsq.experiment import TokenizerExperiment, load_tokenizer_experiment
from ifsq.generators import Generator
from ifsq.generators.ar import ARConfig, ARGenerator
from ifsq.generators.diffusion import DiffusionGenerator, DiTConfig
from ifsq.generators.masked import MaskedConfig, MaskedGenerator
from ifsq.interop.diffusers_kl import read_diffusers
from ifsq.interop.files import read_checkpoint
from ifsq.interop.official.checkpoint import choose_weights, kind_of
from ifsq.interop.official.sidecar import SIDECAR, read_sidecar, write_sidecar
from ifsq.interop.official.tokenizer import read_official, write_official
from ifsq.store.checkpoints import STATE, sealed
from ifsq.store.files import record, write_tensors
from ifsq.store.run import Run
from ifsq.store.weights import load_weights, read_tensors
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig
from ifsq.training.checkpoint import flatten_optimizer, restore_optimizer


def manifests(folder: Path) -> Made:
    tokenizer = _tokenizer()
    layout = tokenizer.layout(8, 8)
    names = {split: [f"{split}_00000.safetensors"] for split in ("train", "val")}
    for split in names:
        part = Part(torch.zeros(4, 2, 2, 2, dtype=torch.uint8), torch.arange(4) % 2, names=("a", "b", "c", "d"))
        save_part(folder / names[split][0], part, layout)
    about = {
        "tokenizer": tokenizer.digest(),
        "data": to_dict(DataConfig("images", 8)),
        "fingerprints": {},
        "flips": False,
    }
    write_manifest(folder, folder, layout, ("a", "b"), names, about)
    manifest = json.loads((folder / "manifest.json").read_text())
    shard = names["train"][0]
    valid = (folder / shard).read_bytes()

    def read(_: str) -> None:
        cache = CodeCache.open(folder)
        for split in cache.splits:
            cache.read(split).batch(torch.tensor([0]))

    def parse(case: Case) -> None:
        (folder / ".checked.json").unlink(missing_ok=True)
        name, content = case
        if name == shard and hashlib.sha256(content).digest()[0] % 4:  # behind the checksum
            told = json.loads((folder / "manifest.json").read_text())
            told["splits"]["train"][0]["sha256"] = hashlib.sha256(content).hexdigest()
            (folder / shard).write_bytes(content)
            try:
                files_in(folder, read)(("manifest.json", json.dumps(told).encode()))
            finally:
                (folder / shard).write_bytes(valid)
            return
        files_in(folder, read)(case)

    strategy = damaged_tables({"manifest.json": manifest}, lambda _, table: json_of(table)) | _damaged_tensors(
        {shard: valid}
    )
    return Made(strategy, parse, [(shard, valid), ("manifest.json", json_of(as_table(manifest)))])


def states(folder: Path) -> Made:
    files = {**_run(folder / "run"), **_saved(folder)}

    def read(name: str) -> None:
        run = Run.open((folder / name).parents[2 if name.endswith(STATE) else 0])
        if run.trained:
            run.experiment(TokenizerExperiment)
        described = run.weights().described
        (Tokenizer if described.get("kind") == "tokenizer" else Generator).from_run(run)

    def write(name: str, table: Any) -> bytes:
        plain = as_plain(table)
        if name.endswith(STATE) and isinstance(plain, dict) and len(json_of(table)) % 4:
            with suppress(TypeError, ValueError):
                return json.dumps(sealed({key: one for key, one in plain.items() if key != "digest"})).encode()
        return json_of(table)

    valid = [(name, json.dumps(table).encode()) for name, table in files.items()]
    return Made(damaged_tables(files, write), files_in(folder, read), valid)


def official_configs(folder: Path) -> Made:
    write_official(_official(), folder / "model.ckpt")
    (folder / "config.json").write_text(json.dumps(texts.DIFFUSERS))
    tables = {name: json.loads((folder / name).read_text()) for name in ("model.config.json", "config.json")}

    def read(name: str) -> None:
        if name == "config.json":
            read_diffusers(folder)
        else:
            read_official(folder / "model.ckpt", folder / name)

    valid = [("model.config.json", json_of(as_table(tables["model.config.json"])))]  # of the other are no weights here
    return Made(damaged_tables(tables, lambda _, table: json_of(table)), files_in(folder, read), valid)


def checkpoints(folder: Path) -> Made:
    write_official(_official(), folder / "model.ckpt")
    whole = (folder / "model.ckpt").read_bytes()
    saved = torch.load(folder / "model.ckpt", weights_only=True)
    config = folder / "model.config.json"

    def read(name: str) -> None:
        found = read_checkpoint(folder / name)
        kind = kind_of(found)
        if kind != "tokenizer":
            choose_weights(found, None, folder / name)
        read_official(folder / name, config)

    def write(_: str, table: Any) -> bytes:
        made = io.BytesIO()
        torch.save(_hashable(as_plain(table)), made)
        return made.getvalue()

    def zipped(case: Case) -> Case:
        """The pickle inside damaged, under a right checksum."""
        made = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(made, "w") as new:
            for part in old.infolist():
                new.writestr(part.filename, case[1] if part.filename.endswith("data.pkl") else old.read(part))
        return "model.ckpt", made.getvalue()

    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        pickled = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    strategy = (
        damaged_tables({"model.ckpt": saved}, write)
        | damaged_bytes({"data.pkl": pickled}).map(zipped)
        | damaged_bytes({"model.ckpt": whole})
    )
    return Made(strategy, files_in(folder, read), [("model.ckpt", whole), zipped(("", pickled))])


def sidecars(folder: Path) -> Made:
    own = {"a.weight": torch.ones(2, 2), "b.bias": torch.zeros(2)}
    found = {
        "epoch": 3,
        "state": {"a.weight": own["a.weight"], "more": torch.arange(3)},
        "list": [1, (2.5, None)],
        "x": "y",
    }
    write_sidecar(folder, found, {"levels": [5, 5]}, own, "digest", 10_000)
    file = folder / SIDECAR
    tensors, header = read_tensors(file), _header(file.read_bytes())["__metadata__"]
    about = {key: json.loads(header[key]) for key in ("layout", "config")} | {"digest": "digest"}

    def write(_: str, table: Any) -> bytes:
        told = dict(table) if isinstance(table, Table) else {}
        metadata = {name: json_of(told[name]).decode(errors="replace") for name in ("layout", "config") if name in told}
        metadata["digest"] = str(told.get("digest", "digest"))
        if len(metadata) == 3:
            from ifsq.interop.official.sidecar import _sum

            metadata["sum"] = _sum(metadata, tensors)
        return save(tensors, metadata)

    def read(_: str) -> None:
        read_sidecar(folder, own, "digest")

    valid = {SIDECAR: file.read_bytes()}
    strategy = damaged_tables({SIDECAR: about}, write) | damaged_bytes(valid)
    return Made(strategy, files_in(folder, read), [*valid.items(), (SIDECAR, write("", as_table(about)))])


def weights(folder: Path) -> Made:
    tokenizer = _tokenizer()
    write_tensors(folder / "model.safetensors", tokenizer.state_dict())

    def read(name: str) -> None:
        load_weights(tokenizer, read_tensors(folder / name), "model", halves=True)

    valid = {"model.safetensors": (folder / "model.safetensors").read_bytes()}
    return Made(_damaged_tensors(valid), files_in(folder, read), valid.items())


def optimizers(folder: Path) -> Made:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    forms = {
        key: {"type": str(value.dtype).removeprefix("torch."), "shape": list(value.shape), "fill": 0.5}
        for key, value in flatten_optimizer(optimizer).items()
    }

    def parse(case: Case) -> None:
        table = {}
        try:
            told = json.loads(case[1])
        except (ValueError, RecursionError):  # no table at all, as an empty file
            told = {}
        for key, form in told.items() if isinstance(told, dict) else ():
            with suppress(TypeError, ValueError, RuntimeError, AttributeError, KeyError, OverflowError):
                if np.prod(form["shape"], dtype=float) < 10**6:
                    table[key] = torch.full(form["shape"], form["fill"], dtype=getattr(torch, form["type"]))
        restore_optimizer(optimizer, table, "optimizer", 3)
        optimizer.step()

    strategy = damaged_tables({"optimizer": forms}, lambda _, table: json_of(table))
    return Made(strategy, parse, [("optimizer", json_of(as_table(forms)))])


def reports(folder: Path) -> Made:
    run = folder / "run"
    tables = {name.removeprefix("run/"): table for name, table in _run(run).items() if not name.endswith(STATE)}
    tables["evaluation.json"] = texts.EVALUATION
    (run / "evaluation.json").write_text(json.dumps(texts.EVALUATION))
    (run / "metrics.jsonl").write_text(texts.METRICS)
    (run / "samples").mkdir()
    (run / "samples" / "reconstructions.png").write_bytes(texts.image("PNG"))
    tables["metrics.jsonl"] = [json.loads(line) for line in texts.METRICS.splitlines()]

    def read(_: str) -> None:
        runs = read_runs([run])
        refuse_unlike(runs)
        runs_page(runs, "title")

    def write(name: str, table: Any) -> bytes:
        lines = name.endswith(".jsonl")
        return b"".join(json_of(row) + b"\n" for row in as_list(table)) if lines else json_of(table)

    valid = {"samples/reconstructions.png": texts.image("PNG")}
    return Made(damaged_tables(tables, write) | damaged_bytes(valid), files_in(run, read), valid.items())


def _damaged_tensors(valid: Mapping[str, bytes]) -> st.SearchStrategy[Case]:
    """Files of safetensors: bytes, and headers that say anything, in their right length."""
    headers = {name: _header(content) for name, content in valid.items()}

    def write(name: str, table: Any) -> bytes:
        header, content = json_of(table), valid[name]
        (length,) = struct.unpack_from("<Q", content)
        return struct.pack("<Q", len(header)) + header + content[8 + length :]

    return damaged_tables(headers, write) | damaged_bytes(valid)


def _header(content: bytes) -> dict[str, Any]:
    (length,) = struct.unpack_from("<Q", content)
    return json.loads(content[8 : 8 + length])


def _tokenizer() -> Tokenizer:
    return _of(QuantizerConfig(levels=(5, 5)))


def _of(quantizer: QuantizerConfig) -> Tokenizer:
    torch.manual_seed(0)
    conv = ConvConfig(width=8, multipliers=(1,), blocks=1, patch=4, groups=4)
    return Tokenizer(TokenizerConfig(conv, quantizer)).eval()


def _official() -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(TokenizerConfig(ConvConfig(32, multipliers=(1,), blocks=1), QuantizerConfig(levels=(5, 5)))).eval()


def _run(folder: Path) -> dict[str, Any]:
    """A run of a tokenizer with a checkpoint; the tables in it by name."""
    place, tokenizer = folder / "checkpoints" / "step_4", _tokenizer()
    place.mkdir(parents=True)
    for name in ("model", "ema"):
        write_tensors(place / f"{name}.safetensors", tokenizer.state_dict())
    (folder / "tok.toml").write_text(texts.EXPERIMENTS["tok.toml"])
    experiment = to_dict(load_tokenizer_experiment(folder / "tok.toml"))
    config = {"kind": "tokenizer", "experiment": experiment, "data": "fingerprint", "run": "abc"}
    vouched = {file.name: record(file) for file in place.iterdir()}
    state = sealed(
        {"step": 4, "run": "abc", "steps": 4, "seconds": 1.5, "model": tokenizer.describe(), "files": vouched}
    )
    (folder / "config.json").write_text(json.dumps(config))
    (place / STATE).write_text(json.dumps(state))
    return {f"{folder.name}/config.json": config, f"{folder.name}/checkpoints/step_4/{STATE}": state}


def _saved(folder: Path) -> dict[str, Any]:
    """Saved models of several kinds."""
    tokenizer, ar = _tokenizer(), ARConfig(depth=1, width=16, heads=2, mlp_multiple_of=16)
    spec = tokenizer.spec(8, 8)
    models = {
        "tokenizer": tokenizer,
        "ar": ARGenerator(ar, spec, 3),
        "masked": MaskedGenerator(MaskedConfig(depth=1, width=16, heads=2, mlp_multiple_of=16), spec, 3),
        "residual": _of(QuantizerConfig("residual", levels=(5, 5), cells="equal")),
        "vq": _of(QuantizerConfig("vq", dim=2, codebook_size=8)),
        "kl": _of(QuantizerConfig("kl", dim=2)),
        "diffusion": DiffusionGenerator(DiTConfig(depth=1, width=16, heads=2, patch=1), spec, 3),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return {f"{name}/config.json": json.loads((folder / name / "config.json").read_text()) for name in models}


def _hashable(value: Any) -> Any:
    """What pickles: no `Raw` in it."""
    if isinstance(value, dict):
        return {name: _hashable(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_hashable(one) for one in value]
    return value if isinstance(value, (torch.Tensor, int, float, str, type(None))) else str(value)
