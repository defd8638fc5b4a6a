"""Model folders: whole or not at all, with a card; fetched from the hub; written from a run."""

import json
import math
import os
import re
import subprocess
import sys
import time

import pytest
import torch

import ifsq
from ifsq.cli import main
from ifsq.codes.spec import CodeSpec
from ifsq.config import InputError, to_dict
from ifsq.generators import Generator, Origin
from ifsq.generators.ar import ARConfig, ARGenerator
from ifsq.store.model_card import Provenance
from ifsq.store.run import write_config
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig
from ifsq.training import checkpoint
from ifsq.training.distributed import World

yaml = pytest.importorskip("yaml")
huggingface_hub = pytest.importorskip("huggingface_hub")
SMALL = ConvConfig(width=8, multipliers=(1, 2), blocks=1, groups=4, latent=2)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def tiny(**quantizer):
    torch.manual_seed(0)
    return Tokenizer(TokenizerConfig(SMALL, QuantizerConfig(**quantizer))).eval()


def tiny_generator():
    torch.manual_seed(0)
    model = ARGenerator(ARConfig(depth=1, width=32, heads=2), CodeSpec((5, 5), (2,), "little", "paper", (2, 2)), 3)
    model.origin = Origin(("a", "b", "c"), "tokenizer", "0" * 64, "1" * 64, {"guidance": 1.0})
    return model.eval()


def front_matter(folder):
    text = (folder / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def rows(body):
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", body, flags=re.MULTILINE))


@pytest.mark.parametrize(
    ("quantizer", "facts"),
    [
        ({"levels": (17, 5), "groups": (1, 1)}, {"levels": "17 x 5", "bits a token": "3.205, on average"}),
        ({"levels": (9, 9)}, {"bits a position": "6.34", "bits a token": "6.34", "tokens a position": "1"}),
        ({"kind": "vq", "codebook_size": 64}, {"codebook": "64", "bits a position": "6"}),
        ({"kind": "kl"}, {"codes": "continuous", "bottleneck": "kl"}),
        ({"kind": "bsq", "dim": 3}, {"levels": "2 x 2 x 2", "bits a token": "3"}),
        ({"kind": "residual", "levels": (3, 3), "cells": "equal"}, {"bits a token": "3.17, on average"}),
    ],
)
def test_every_save_writes_a_card(quantizer, facts, tmp_path):
    tokenizer = tiny(**quantizer)
    tokenizer.save_pretrained(tmp_path / "saved")
    front, body = front_matter(tmp_path / "saved")
    assert front["license"] == "unknown"
    assert front["library_name"] == "ifsq"
    assert front["tags"] == ["ifsq", "image-tokenizer", tokenizer.kind]
    told = rows(body)
    assert facts.items() <= told.items()
    assert told["parameters"] == f"{sum(p.numel() for p in tokenizer.parameters()):,}"
    assert told["pixels a side of one code"] == "2"
    assert told["SHA-256 of the weights"] == tokenizer.digest()
    assert "Data and steps are not recorded" in body
    assert "## Evaluation" not in body
    assert Tokenizer.from_pretrained(tmp_path / "saved").digest() == tokenizer.digest()


def test_the_lines_of_use_run(tmp_path, monkeypatch):
    tiny().save_pretrained(tmp_path / "tokenizer")
    tiny_generator().save_pretrained(tmp_path / "generator")
    for name in ("tokenizer", "generator"):
        monkeypatch.chdir(tmp_path / name)
        code = re.search(r"```python\n(.*?)```", (tmp_path / name / "README.md").read_text(), flags=re.DOTALL)[1]
        told = {"images": torch.zeros(1, 3, 8, 8)}
        exec(code, told)
        assert told["images"].shape == (1, 3, 8, 8)
    assert told["drawn"].codes.shape == (1, 2, 2, 2)
    assert front_matter(tmp_path / "generator")[0]["tags"] == ["ifsq", "image-generation", "ar"]


def test_odd_words_stay_valid_yaml(tmp_path):
    made = Provenance(license='a: "b" #c', data="C:\\x | y", steps=3, notes=("Note.",))
    tiny().save_pretrained(tmp_path / "saved", made)
    front, body = front_matter(tmp_path / "saved")
    assert front["license"] == 'a: "b" #c'
    assert "3 steps" in body


def test_a_save_cut_short_leaves_no_half(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "model.safetensors")

    tiny().save_pretrained(tmp_path / "old")
    before = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    monkeypatch.setattr("ifsq.store.model.write_text", full)
    for name in ("old", "new"):
        with pytest.raises(OSError, match="No space left"):
            tiny(alpha=2.0).save_pretrained(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before


def test_an_older_save_is_replaced_and_other_files_stay(tmp_path):
    tiny().save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "notes.txt").write_text("mine")
    tiny(alpha=2.0).save_pretrained(tmp_path / "saved")
    assert Tokenizer.from_pretrained(tmp_path / "saved").config.quantizer.alpha == 2.0
    assert (tmp_path / "saved" / "notes.txt").read_text() == "mine"
    with pytest.raises(InputError, match="is a file"):
        tiny().save_pretrained(tmp_path / "saved" / "notes.txt")


SAVED = {
    "tokenizer": lambda folder: tiny().save_pretrained(folder),
    "generator": lambda folder: tiny_generator().save_pretrained(folder),
}
LOADED = {"tokenizer": ifsq.Tokenizer.from_pretrained, "generator": ifsq.Generator.from_pretrained}


@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize("place", [0.05, 0.5, 0.9999])
def test_a_flipped_bit_of_a_saved_model_is_found(kind, place, tmp_path):
    SAVED[kind](tmp_path)
    file = tmp_path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 4
    file.write_bytes(content)
    with pytest.raises(
        InputError, match=r"model\.safetensors: is damaged or of another model, its SHA-256 is not"
    ) as told:
        LOADED[kind](tmp_path)
    assert str(told.value).endswith("config.json; fetch or save it again")
    config = json.loads((tmp_path / "config.json").read_text())
    for files in ([], None, {}, {"model.safetensors": {}}, "x"):
        (tmp_path / "config.json").write_text(json.dumps({**config, "files": files}))
        with pytest.raises(InputError, match="is damaged or of another model"):
            LOADED[kind](tmp_path)


@pytest.mark.parametrize("kind", SAVED)
def test_a_model_that_was_saved_without_its_sha256_is_read(kind, tmp_path):
    SAVED[kind](tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["files"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert LOADED[kind](tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "model": []}))
    with pytest.raises(InputError, match="describes no model"):
        LOADED[kind](tmp_path)


@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(kind, value, tmp_path):
    SAVED[kind](tmp_path / "good")
    model = LOADED[kind](tmp_path / "good")
    name = sorted(model.state_dict())[3]
    with torch.no_grad():
        model.state_dict()[name].view(-1)[0] = value
    model.save_pretrained(tmp_path / "bad")
    with pytest.raises(InputError, match=rf"bad: tensor '{re.escape(name)}' holds values that are not finite"):
        LOADED[kind](tmp_path / "bad")


HUGE = 10**12
DESCRIPTIONS = {
    "tokenizer": {
        "config": [None, [], {}, {"conv": None}, {"conv": {"width": "8"}}, {"more": 1}],
        "kind": [None, "ar", 3],
        "config.conv.width": [HUGE, 2**63, 2**200, 0, -8, 8.5],
        "config.conv.blocks": [10**9, 2],
        "config.conv.multipliers": [[1] * 100, [1, HUGE], [2**70], []],
        "config.conv.patch": [2**40, 2**70, 3],
        "config.conv.latent": [HUGE, 2**63],
        "config.conv.in_channels": [HUGE, 2],
        "config.quantizer": [
            {"kind": "lfq", "dim": 10**9},
            {"kind": "lfq", "dim": 5},
            {"kind": "vq", "codebook_size": 2**31},
            {"kind": "vq", "codebook_size": 2**30, "dim": 2**30},
            {"kind": "vq", "codebook_size": HUGE},
            {"kind": "residual", "levels": [3, 3], "cells": "equal", "stages": 10**9},
            {"kind": "kl", "dim": 2**63},
            {"levels": [17] * 3},
            {"levels": [2**70 + 1] * 4},
        ],
    },
    "generator": {
        "config": [None, [], {}, {"depth": 1}],
        "config.depth": [10**9, 2, 0, True],
        "config.width": [HUGE, 2**63],
        "config.heads": [3, HUGE],
        "config.size": ["L", "M", None],
        "config.kv_heads": [1, 3, HUGE],
        "config.class_tokens": [2, HUGE],
        "config.adaln": [True, 1],
        "config.mlp_multiple_of": [HUGE, 2**63],
        "spec": [None, [], {}],
        "spec.grid": [[4], [2, 2, 2], [1025, 1024], [10**9, 10**9], [2**62, 2**62], [0, 2], "22"],
        "spec.levels": [[5, 7], [2**40, 3], [5.5, 5], None],
        "spec.groups": [[1, 1], []],
        "spec.cells": ["none", 3],
        "spec.scale": ["1", 1e400],
        "origin": [None, {}, {"classes": []}],
        "origin.classes": [[], ["a"], None, 3, [1, 2, 3]],
        "origin.tokenizer": [None, 3],
        "origin.sampling": [
            None,
            {"foo": 1},
            {"seed": 3},
            {"guidance": "2"},
            {"top_k": 0.5},
            {"guidance": None},
            {"steps": 3},
        ],
    },
}
CASES = [
    (kind, key, value) for kind, table in DESCRIPTIONS.items() for key, values in table.items() for value in values
]


@pytest.mark.parametrize(("kind", "key", "value"), CASES, ids=[f"{k}-{key}-{str(v)[:40]}" for k, key, v in CASES])
def test_a_description_is_compared_with_the_tensors_before_anything_is_made(kind, key, value, tmp_path):
    """What it asks for takes neither the memory nor the time that it would take."""
    SAVED[kind](tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    *inside, last = key.split(".")
    place = config["model"]
    for name in inside:
        place = place[name]
    place[last] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    before = time.process_time()
    with pytest.raises(InputError) as caught:
        LOADED[kind](tmp_path)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert time.process_time() - before < 5


def test_a_model_saved_in_halves_is_read_in_floats(tmp_path):
    tokenizer = tiny().optimize("bf16")
    tokenizer.save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    assert {value.dtype for value in again.state_dict().values() if value.is_floating_point()} == {torch.float32}
    for key, value in tokenizer.state_dict().items():
        assert torch.equal(again.state_dict()[key], value.to(again.state_dict()[key].dtype)), key


def cached(cache, model_folder, files=("config.json", "model.safetensors")):
    """The hub's own cache with one repository, owner/name."""
    repository = cache / "models--owner--name"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for name in files:
        (snapshot / name).write_bytes((model_folder / name).read_bytes())
    return snapshot


OFFLINE = """
import ifsq
for source, revision in (("owner/name", None), ("owner/name", "{commit}"), ("owner/other", None), ("owner/name", "v2")):
    try:
        print(ifsq.Tokenizer.from_pretrained(source, revision).digest())
    except ifsq.InputError as error:
        print(error)
"""


def test_from_the_cache_of_the_hub_without_a_network(tmp_path):
    tiny().save_pretrained(tmp_path / "saved")
    cached(tmp_path / "cache", tmp_path / "saved")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache")}
    code = OFFLINE.replace("{commit}", COMMIT)
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[:2] == [tiny().digest()] * 2, done.stderr
    assert lines[2].startswith("owner/other: no such folder here, no copy in the hub's cache")
    assert lines[3].startswith("owner/name at v2: no such folder here, no copy")


def test_without_a_network(tmp_path):
    away = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    code = OFFLINE.partition("for source")[0] + "ifsq.Tokenizer.from_pretrained('owner/name')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | away, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stderr.splitlines()[-1].startswith("ifsq.config.InputError: owner/name: no such folder here, no copy")


def test_a_repository_is_fetched_and_a_local_folder_wins(tmp_path, monkeypatch):
    asked = []

    def download(repo_id, *, revision, allow_patterns):
        asked.append((repo_id, revision, tuple(allow_patterns)))
        return str(tmp_path / "fetched")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    tiny().save_pretrained("fetched")
    assert ifsq.Tokenizer.from_pretrained("owner/name", "v1").digest() == tiny().digest()
    assert asked == [("owner/name", "v1", ("config.json", "model.safetensors"))]
    with pytest.raises(InputError, match="owner/name: holds a tokenizer model; expected a generator"):
        ifsq.Generator.from_pretrained("owner/name")
    (tmp_path / "fetched" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"owner/name: the repository holds no model\.safetensors"):
        ifsq.Tokenizer.from_pretrained("owner/name")
    tiny(alpha=2.0).save_pretrained("owner/name")
    assert ifsq.Tokenizer.from_pretrained("owner/name").config.quantizer.alpha == 2.0
    assert len(asked) == 3
    with pytest.raises(InputError, match="owner/name: revision 'v1' of a local folder"):
        ifsq.Tokenizer.from_pretrained("owner/name", "v1")
    with pytest.raises(InputError, match="deep/er/name: no such folder"):
        ifsq.Tokenizer.from_pretrained("deep/er/name")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("RepositoryNotFoundError", "o/n: neither a folder here nor a repository on the hub"),
        ("RevisionNotFoundError", "o/n: the repository has no such revision"),
        ("GatedRepoError", "o/n: the hub asks for a login"),
        ("LocalEntryNotFoundError", "o/n: no such folder here, no copy in the hub's cache"),
        ("HfHubHTTPError", "o/n: cannot be fetched from the hub: told"),
    ],
)
def test_what_the_hub_refuses_is_one_line(error, message, monkeypatch):
    kind = getattr(huggingface_hub.errors, error)

    class Told(kind):
        def __init__(self):
            Exception.__init__(self, "told\nmore")

    def fail(*_, **__):
        raise Told

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(InputError, match=message) as caught:
        ifsq.Tokenizer.from_pretrained("o/n")
    assert "\n" not in str(caught.value)


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"owner/name: no such folder here; .* pip install 'ifsq\[hub\]'"):
        ifsq.Tokenizer.from_pretrained("owner/name")


def test_push(monkeypatch):
    told = {}
    monkeypatch.setattr(huggingface_hub, "create_repo", lambda repo_id, **options: told.update(made=repo_id, **options))

    def upload(*, repo_id, folder_path, commit_message):
        told["files"] = {path.name for path in folder_path.iterdir()}
        return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "upload_folder", upload)
    assert tiny().push_to_hub("owner/name", private=True) == "https://hub/owner/name"
    assert told == {
        "made": "owner/name",
        "private": True,
        "exist_ok": True,
        "files": {"README.md", "config.json", "model.safetensors"},
    }
    with pytest.raises(InputError, match="name: expected a repository owner/name"):
        tiny().push_to_hub("name")

    def fail(**_):
        raise OSError("no way\nout")

    monkeypatch.setattr(huggingface_hub, "upload_folder", fail)
    with pytest.raises(InputError, match=r"owner/name: cannot be written on the hub: no way$"):
        tiny().push_to_hub("owner/name")


CARD = {"metric": "PSNR", "values": {"mean": 21.5}, "reference": "bundled:photos val", "n": 64, "sampler": ""}


def run_of(folder, kind, model, described, experiment, evaluated=7):
    write_config(folder, {"kind": kind, "experiment": experiment, "data": "x", "run": "this"})
    halved = {key: value / 2 for key, value in model.state_dict().items()}
    tables = {"model": model.state_dict(), "ema": halved}
    writer = checkpoint.Writer(folder / "checkpoints", World(0, 1, torch.device("cpu")), keep=1, run="this")
    writer.save(7, tables, {"model": described})
    writer.wait()
    writer.close()
    (folder / "evaluation.json").write_text(json.dumps({"step": evaluated, "cards": [CARD]}))
    return folder


@pytest.mark.parametrize("evaluated", [7, 3])
def test_export_of_a_tokenizer_run(evaluated, tmp_path, capsys):
    model = tiny()
    experiment = {"data": {"source": "bundled:photos", "size": 64}, "tokenizer": to_dict(model.config)}
    run = run_of(tmp_path / "run", "tokenizer", model, model.describe(), experiment, evaluated)
    out = tmp_path / "deep" / "out"
    assert main(["export", "pretrained", str(run), "--out", str(out), "--license", "cc0-1.0"]) == 0
    assert f"model: {out}" in capsys.readouterr().out
    saved = Tokenizer.from_pretrained(out)
    assert torch.equal(saved.quant_conv.weight, model.quant_conv.weight / 2)
    front, body = front_matter(out)
    assert front["license"] == "cc0-1.0"
    assert "data `bundled:photos`, 7 steps" in body
    told = "| PSNR | mean 21.5 | reference bundled:photos val, n 64 |"
    assert (told in body) == (evaluated == 7)  # figures of other weights are not these weights' figures
    for folder, target, message in (
        (run, out, "exists; expected a new folder"),
        (out, tmp_path / "again", "is not a training run"),
        (tmp_path / "gone", tmp_path / "again", "no such folder"),
    ):
        assert main(["export", "pretrained", str(folder), "--out", str(target)]) == 2
        assert message in capsys.readouterr().err
    (run / "evaluation.json").write_text("[]")
    assert main(["export", "pretrained", str(run), "--out", str(tmp_path / "again")]) == 2
    assert "holds no cards" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_export_of_a_generator_run(tmp_path, capsys):
    model = tiny_generator()
    run = run_of(tmp_path / "run", "ar", model, model.describe(), {"codes": "runs/codes"})
    assert main(["export", "pretrained", str(run), "--out", str(tmp_path / "out")]) == 0
    saved = Generator.from_pretrained(tmp_path / "out")
    assert saved.origin == model.origin
    assert all(torch.equal(value, model.state_dict()[key] / 2) for key, value in saved.state_dict().items())
    assert "data `runs/codes`, 7 steps" in front_matter(tmp_path / "out")[1]
