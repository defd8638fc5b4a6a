"""Files of official weights in every form they come in, and damaged, endless and hostile ones."""

import json
import os
import random

import pytest
import torch
from safetensors.torch import save_file
from tests.interop.official.test_official_tokenizer import refused, saved, tiny
from tests.store.test_pickles import flip
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from ifsq.cli import main
from ifsq.config import InputError
from ifsq.interop.files import bare_name
from ifsq.interop.official.importing import Asked, import_checkpoint
from ifsq.interop.official.tokenizer import official_tensors, read_official
from ifsq.tokenizer.model import Tokenizer


def named(change):
    """A change of every raw name."""

    def rename(file):
        table = file["state_dict"]["gen_model"]
        file["state_dict"]["gen_model"] = {change(key): value for key, value in table.items()}

    return rename


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "module.module.", "_orig_mod.module."]
)
def test_prefixes_of_wrappers_are_taken_off(prefix, tmp_path):
    paths = saved(tmp_path, named(lambda key: prefix + key))
    assert read_official(*paths, "raw").digest() == tiny().digest()


WRAPPED = {
    "compiled encoder": lambda key: key.replace("encoder.", "encoder._orig_mod."),
    "compiled blocks": lambda key: key.replace(".block.0.", ".block.0._orig_mod."),
    "FSDP": lambda key: f"_fsdp_wrapped_module.{key}".replace(".block.", "._fsdp_wrapped_module.block."),
    "FSDP of compiled": lambda key: f"module.{key}".replace("decoder.", "decoder._fsdp_wrapped_module._orig_mod."),
    "recomputed": lambda key: key.replace(".block.0.", ".block.0._checkpoint_wrapped_module."),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_wrappers_of_modules_inside(case, tmp_path):
    assert {WRAPPED[case](key) for key in official_tensors(tiny())} != official_tensors(tiny()).keys()
    paths = saved(tmp_path, named(WRAPPED[case]))
    assert read_official(*paths, "raw").digest() == tiny().digest()


def test_the_names_are_those_that_torch_gives():
    model = tiny()
    plain = set(model.state_dict())
    model.encoder.conv_in = torch.compile(model.encoder.conv_in)
    model.decoder = torch.compile(checkpoint_wrapper(model.decoder))
    wrapped = set(torch.compile(model).state_dict())
    assert not wrapped & plain
    assert {bare_name(key) for key in wrapped} == plain


def test_a_prefix_inside_a_name_stays(tmp_path):
    def change(file):
        table = file["state_dict"]["gen_model"]
        table["encoder.module.conv_in.weight"] = table.pop("encoder.conv_in.weight")

    with pytest.raises(InputError, match=r"'encoder\.conv_in\.weight' is missing"):
        read_official(*saved(tmp_path, change), "raw")


@pytest.mark.parametrize("form", ["table", "state_dict", "safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_a_plain_state_dict(form, prefix, tmp_path, capsys):
    _, config = saved(tmp_path)
    table = {prefix + key: value for key, value in official_tensors(tiny()).items()}
    path = tmp_path / ("plain.safetensors" if form == "safetensors" else "plain.pt")
    if form == "safetensors":
        save_file(table, path)
    else:
        torch.save(table if form == "table" else {"state_dict": table, "epoch": 3}, path)
    assert main(["import", "official", str(path), "--config", str(config), "--out", str(tmp_path / "run")]) == 0
    assert Tokenizer.from_pretrained(tmp_path / "run").digest() == tiny().digest()
    assert "Imported from `plain" in (tmp_path / "run" / "README.md").read_text()
    assert main(["export", "official", str(tmp_path / "run"), "--out", str(tmp_path / "again.ckpt")]) == 0
    again = torch.load(tmp_path / "again.ckpt", weights_only=True)
    assert again["state_dict"]["gen_model"].keys() == official_tensors(tiny()).keys()


def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(tmp_path):
    path, config = saved(tmp_path)
    whole, expected, draws = path.read_bytes(), read_official(path, config).digest(), random.Random(1)
    told = 0
    for _ in range(60):
        path.write_bytes(flip(whole, draws.randrange(8 * len(whole))))
        try:
            digest = read_official(path, config).digest()
        except InputError:
            told += 1
        else:
            assert digest == expected
    assert told > 30


def test_folders_and_pipes(tmp_path):
    _, config = saved(tmp_path)
    os.mkfifo(tmp_path / "pipe.ckpt")
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name, told in (
        ("", "is a folder; expected one file"),
        ("pipe.ckpt", "is no regular file"),
        ("pipe.safetensors", "is no regular file"),
        ("gone.safetensors", "no such file"),
    ):
        with pytest.raises(InputError, match=told):
            read_official(tmp_path / name, config)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_weights_that_are_not_finite_are_refused_by_name(value, weights, tmp_path, capsys):
    def change(file):
        for table, prefix in ((file["ema_state_dict"], "module."), (file["state_dict"]["gen_model"], "")):
            table[f"{prefix}decoder.conv_out.bias"][1] = value

    path, config = saved(tmp_path, change)
    told = refused(
        capsys, ["import", "official", path, "--config", config, "--out", tmp_path / "out", "--weights", weights]
    )
    assert "tensor 'decoder.conv_out.bias' holds values that are not finite" in told
    assert not (tmp_path / "out").exists()


def test_a_config_of_absurd_depth_is_refused_at_once(tmp_path, capsys):
    path, config = saved(tmp_path, num_res_blocks=10**9)
    told = refused(capsys, ["import", "official", path, "--config", config, "--out", tmp_path / "out"])
    assert "run.json: its description is of no model that could be these tensors (it has more than" in told


def test_random_numbers_go_on_and_no_memory_is_left_as_it_was(tmp_path):
    path, config = saved(tmp_path)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    read_official(path, config)
    assert torch.equal(torch.rand(3), expected)
    state = json.loads(config.read_text())
    vq = {"_class_name": "ImageVQVAEModel", "n_e": 8} | {
        k: v for k, v in state.items() if k not in ("_class_name", "levels", "do_simple_bound", "act_fun")
    }
    config.write_text(json.dumps(vq))
    table = {k: v for k, v in official_tensors(tiny()).items() if not k.startswith("quantize.")}
    torch.save({**table, "quantize.embedding.weight": torch.randn(8, 4)}, path)
    import_checkpoint(path, tmp_path / "run", Asked(config, "raw"))
    tokenizer = Tokenizer.from_pretrained(tmp_path / "run")
    fresh = Tokenizer(tokenizer.config).state_dict().keys()
    unsaved = {key: value for key, value in tokenizer.named_buffers() if key not in fresh}
    assert unsaved
    assert all(not value.any() for value in unsaved.values())
