"""What is kept of an official checkpoint beside the weights: all of it, once, and no more than the file can hold."""

import json
import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.interop.official.test_official_tokenizer import refused, saved
from tests.store.test_pickles import flip

from ifsq.config import InputError
from ifsq.interop.official import sidecar as official_sidecar
from ifsq.interop.official.exporting import export_checkpoint
from ifsq.interop.official.importing import Asked, import_checkpoint
from ifsq.interop.official.sidecar import SIDECAR
from ifsq.tokenizer.model import Tokenizer


def added(**values):
    return lambda file: file["state_dict"].update(values)


def test_what_is_shared_is_kept_once_and_comes_out_shared(tmp_path):
    one = torch.arange(6.0)
    path, config = saved(tmp_path, added(first=one, again=one, row=one.view(2, 3)[1], pair=[(one, 1)] * 2))
    import_checkpoint(path, tmp_path / "run", Asked(config, "raw"))
    kept = load_file(tmp_path / "run" / SIDECAR)
    assert [key for key in kept if key.startswith(".state_dict.") and "dics_model" not in key and "gen" not in key] == [
        ".state_dict.first",
        ".state_dict.row",
    ]
    export_checkpoint(tmp_path / "run", tmp_path / "again.ckpt")
    state = torch.load(tmp_path / "again.ckpt", weights_only=True)["state_dict"]
    assert state["first"].data_ptr() == state["again"].data_ptr() == state["pair"][1][0].data_ptr()
    assert torch.equal(state["row"], one[3:])


def endless():
    lists = [0]
    for _ in range(9):
        lists = [lists] * 10
    return lists


def ring():
    ring = []
    ring.append(ring)
    return ring


HOSTILE = {
    "one number seen as many": (
        lambda: torch.zeros(1).expand(10**9),
        "state_dict.it: the checkpoint repeats values beyond",
    ),
    "windows": (lambda: list(torch.zeros(10**5).unfold(0, 10**4, 10)), "the checkpoint repeats values beyond its size"),
    "lists that share": (endless, "more than 100000 values, or it holds itself"),
    "a list in itself": (ring, "nested more than 20 deep, or it holds itself"),
    "sparse": (lambda: torch.eye(3).to_sparse(), "a torch.sparse_coo tensor of torch.float32; expected plain numbers"),
    "complex": (lambda: torch.zeros(2, dtype=torch.complex128), "tensor of torch.complex128; expected plain numbers"),
    "a long number": (lambda: 10**50, "state_dict.it: a number of more than 64 bits in the checkpoint"),
    "a set": (lambda: {1, 2}, "state_dict.it: a set in the checkpoint; expected tensors and numbers"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_small_file_does_not_become_a_large_one(case, tmp_path, capsys):
    made, message = HOSTILE[case]
    path, config = saved(tmp_path, added(it=made()))
    told = refused(
        capsys, ["import", "official", path, "--config", config, "--out", tmp_path / "out", "--weights", "raw"]
    )
    assert message in told
    assert not (tmp_path / "out").exists()


def test_a_sidecar_of_other_weights_is_refused(tmp_path, capsys):
    path, config = saved(tmp_path)
    import_checkpoint(path, tmp_path / "run", Asked(config, "raw"))
    other = Tokenizer.from_pretrained(tmp_path / "run")
    torch.nn.init.zeros_(other.quant_conv.bias)
    other.save_pretrained(tmp_path / "run")
    told = refused(capsys, ["export", "official", tmp_path / "run", "--out", tmp_path / "out.ckpt"])
    assert "official.safetensors: belongs to other weights" in told
    (tmp_path / "run" / "official.safetensors").write_bytes(b"{}")
    told = refused(capsys, ["export", "official", tmp_path / "run", "--out", tmp_path / "out.ckpt"])
    assert "official.safetensors: cannot be read" in told


def test_what_is_no_file_is_no_missing_one(tmp_path, capsys):
    path, config = saved(tmp_path)
    import_checkpoint(path, tmp_path / "run", Asked(config, "raw"))
    (tmp_path / "run" / SIDECAR).unlink()
    (tmp_path / "run" / SIDECAR).symlink_to("nowhere")
    told = refused(capsys, ["export", "official", tmp_path / "run", "--out", tmp_path / "out.ckpt"])
    assert "official.safetensors: is no regular file; expected what import official wrote" in told


def test_no_byte_of_it_may_have_changed(tmp_path):
    path, config = saved(tmp_path)
    import_checkpoint(path, tmp_path / "run", Asked(config, "raw"))
    sidecar = tmp_path / "run" / SIDECAR
    whole, draws, told = sidecar.read_bytes(), random.Random(0), set()
    for _ in range(40):
        sidecar.write_bytes(flip(whole, draws.randrange(64, 8 * len(whole))))
        with pytest.raises(InputError, match=r"official\.safetensors: ") as error:
            export_checkpoint(tmp_path / "run", tmp_path / "out.ckpt")
        told.add("damaged: its checksum is not that of its content" in str(error.value))
    assert True in told
    assert not (tmp_path / "out.ckpt").exists()


PLAIN = {"plain": 1}
DAMAGED = {
    "no digest": ({"digest": None}, "has no digest; expected what import official wrote"),
    "no layout": ({"layout": None}, "has no layout"),
    "no JSON": ({"layout": "{"}, "layout: cannot be read as JSON"),
    "config": ({"config": "[]"}, "config: expected a JSON object"),
    "deep": ({"layout": "[" * 10**5 + "]" * 10**5}, "layout: cannot be read as JSON: nested more than 64 deep"),
    **{
        f"layout {value!r}": ({"layout": json.dumps(value)}, "layout: ")
        for value in (
            [],
            {},
            3,
            {**PLAIN, "own": "x"},
            {"plain": [1]},
            {"kept": "nowhere"},
            {"kept": ["x"]},
            {"own": "nowhere"},
            {"list": 3},
            {"list": [3]},
            {"tuple": PLAIN},
            {"dict": [PLAIN]},
            {"dict": [[PLAIN]]},
            {"dict": [[{"list": []}, PLAIN]]},
            {"dict": [[{"dict": []}, PLAIN]]},
            {"code": "x"},
            {"arguments": PLAIN},
            {"arguments": {"dict": [[PLAIN, PLAIN]]}},
        )
    },
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_layout_that_was_not_written_here_is_refused_in_one_line(case, tmp_path, capsys):
    change, message = DAMAGED[case]
    path, config = saved(tmp_path)
    import_checkpoint(path, tmp_path / "run", Asked(config, "raw"))
    sidecar = tmp_path / "run" / SIDECAR
    with safe_open(sidecar, "pt") as file:
        about = file.metadata()
    changed = {**about, **change}
    if None not in changed.values():
        changed["sum"] = official_sidecar._sum(changed, load_file(sidecar))
    kept = {key: value for key, value in changed.items() if value is not None}
    save_file(load_file(sidecar), sidecar, kept)
    told = refused(capsys, ["export", "official", tmp_path / "run", "--out", tmp_path / "out.ckpt"])
    assert f"official.safetensors: {message}" in told
    assert not (tmp_path / "out.ckpt").exists()
