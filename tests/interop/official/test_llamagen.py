"""LlamaGens, of the official trainer and as published: in, out again with the same tensors, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.interop.official.test_official_tokenizer import assert_same_file, refused
from torch import nn

import ifsq
from ifsq.cli import main
from ifsq.codes import CodeSpec
from ifsq.config import InputError
from ifsq.generators.ar import ARConfig, ARGenerator, HeadConfig
from ifsq.interop.official.importing import Asked, import_checkpoint
from ifsq.interop.official.llamagen import to_official
from ifsq.interop.official.llamagen_config import HEADS, Told, heads_of, sizes_of, told_by
from ifsq.interop.official.llamagen_generator import Choices, groups_of, official_tensors, read_llamagen
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig

PROJECTORS = {f"projectors.0.{i}.{end}" for i in (0, 2, 4) for end in ("weight", "bias")}
GRID = Choices((4, 4), 4)


def tensors_of(golden, name):
    """The state dict of a golden file by its official names."""
    file = golden(name)
    return file, {key[3:]: file.get_tensor(key) for key in file.keys() if key.startswith("sd/")}  # noqa: SIM118


def run_line(*words):
    return main([str(word) for word in words])


@pytest.mark.parametrize("weights", [None, "ema", "raw"])
def test_the_tiny_checkpoint_goes_in_and_comes_out_unchanged(weights, golden_folder, tmp_path, capsys):
    path, run = golden_folder / "ckpt_llamagen_tiny.pt", tmp_path / "run"
    asked = () if weights is None else ("--weights", weights)
    assert run_line("import", "official", path, "--out", run, *asked) == 0
    told = capsys.readouterr().out.replace("\n", " ")
    assert "a LlamaGen of 2 layers of width 64, 4 heads, 32 codes on 4x4, 10 classes" in told
    assert "no tokenizer: samples are indices alone" in told
    assert {file.name for file in run.iterdir()} == {
        *("README.md", "config.json", "model.safetensors", "official.safetensors", "projectors.safetensors"),
    }
    before = torch.load(path, weights_only=True)
    state = before["model" if weights == "raw" else "ema"]
    model = ifsq.Generator.from_pretrained(run)
    official = official_tensors(model)
    assert official.keys() | PROJECTORS == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in official.items())
    aside = load_file(run / "projectors.safetensors")
    assert aside.keys() == PROJECTORS
    assert all(torch.equal(value, state[key]) for key, value in aside.items())
    assert (model.config.rope_class, model.config.dropout, model.config.label_dropout) == ("zero", 0.0, 0.1)
    assert run_line("export", "official", run, "--out", tmp_path / "again.pt") == 0
    assert_same_file(path, tmp_path / "again.pt")
    kept = load_file(run / "official.safetensors")
    other = "ema" if weights == "raw" else "model"
    assert all(key.startswith(f".{other}.") for key in kept)  # what the model holds is not kept twice


@pytest.mark.parametrize("name", ["llamagen_tiny", "llamagen_tiny_factorized2"])
@pytest.mark.parametrize("case", ["cfg1", "cfg2"])
def test_it_draws_the_official_tokens(name, case, golden, tmp_path):
    file, state = tensors_of(golden, name)
    torch.save({"model": state}, tmp_path / "x.pt")
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    import_checkpoint(tmp_path / "x.pt", tmp_path / "run", Asked(choices=GRID))
    assert torch.equal(torch.rand(3), expected)  # no random weights are drawn on the way
    model = ifsq.Generator.from_pretrained(tmp_path / "run")
    drawn = model.sample(file.get_tensor("gen/cond"), greedy=True, guidance=float(case[3:]))
    assert drawn.codes is None
    expected = file.get_tensor(f"gen/{case}/tokens")
    assert torch.equal(drawn.indices.flatten(1, 2), expected if expected.ndim == 3 else expected[..., None])


FORMS = {
    "table": lambda state: state,
    "model": lambda state: {"model": state},
    "module": lambda state: {"module": state, "steps": 3},
    "averaged": lambda state: {"model": {key: value / 2 for key, value in state.items()}, "ema": state},
    "ema alone": lambda state: {"ema": state},
    "compiled": lambda state: {"model": {f"_orig_mod.{key}": value for key, value in state.items()}},
    "distributed": lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
    "blocks": lambda state: {"model": {key.replace("s.0.", "s.0._orig_mod."): value for key, value in state.items()}},
    "bf16": lambda state: {"model": {key: value.bfloat16() for key, value in state.items()}},
}


@pytest.mark.parametrize("name", ["llamagen_tiny", "llamagen_tiny_factorized2"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_goes_in_and_out(form, name, golden, tmp_path):
    _, state = tensors_of(golden, name)
    saved = FORMS[form]({**state, "freqs_cis": torch.zeros(17, 8, 2)})
    torch.save(saved, tmp_path / "x.pt")
    import_checkpoint(tmp_path / "x.pt", tmp_path / "run", Asked(choices=Choices(heads=4)))
    model = ifsq.Generator.from_pretrained(tmp_path / "run")
    own = official_tensors(model)
    assert all(torch.equal(own[key], state[key].bfloat16().float() if form == "bf16" else state[key]) for key in own)
    assert run_line("export", "official", tmp_path / "run", "--out", tmp_path / "again.pt") == 0
    assert_same_file(tmp_path / "x.pt", tmp_path / "again.pt")


def test_a_file_of_another_device_is_read(golden, tmp_path, monkeypatch):
    _, state = tensors_of(golden, "llamagen_tiny")
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda _: "cuda:99")
        torch.save({"model": state}, tmp_path / "x.pt")
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(tmp_path / "x.pt", weights_only=True)  # where there is no such device
    import_checkpoint(tmp_path / "x.pt", tmp_path / "run", Asked(choices=GRID))
    assert run_line("export", "official", tmp_path / "run", "--out", tmp_path / "again.pt") == 0
    assert_same_file(tmp_path / "x.pt", tmp_path / "again.pt")


def test_safetensors_and_caches_that_decoding_left(golden, tmp_path):
    _, state = tensors_of(golden, "llamagen_tiny")
    left = {f"layers.{i}.attention.kv_cache.{k}_cache": torch.zeros(2, 4, 24, 16) for i in range(2) for k in "kv"}
    save_file({**state, **left}, tmp_path / "x.safetensors")
    import_checkpoint(tmp_path / "x.safetensors", tmp_path / "run", Asked(choices=GRID))
    assert run_line("export", "official", tmp_path / "run", "--out", tmp_path / "again.pt") == 0
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], value) for key, value in state.items())


def test_an_optimizer_is_kept_and_the_key_of_a_service_is_not(golden_folder, tmp_path):
    whole = torch.load(golden_folder / "ckpt_llamagen_tiny.pt", weights_only=True)
    whole["config"]["wandb"] = {"proj_name": "llamagen", "key": "0123456789"}
    parameter = nn.Parameter(torch.ones(64))
    optimizer = torch.optim.AdamW([parameter])
    parameter.square().sum().backward()
    optimizer.step()
    whole["opt"] = optimizer.state_dict()
    torch.save(whole, tmp_path / "x.pt")
    import_checkpoint(tmp_path / "x.pt", tmp_path / "run")
    assert all(b"0123456789" not in file.read_bytes() for file in (tmp_path / "run").iterdir())
    assert run_line("export", "official", tmp_path / "run", "--out", tmp_path / "again.pt") == 0
    del whole["config"]["wandb"]["key"]
    torch.save(whole, tmp_path / "expected.pt")
    assert_same_file(tmp_path / "expected.pt", tmp_path / "again.pt")


def test_a_model_that_drops_no_labels_has_a_null_class_there_too(tmp_path):
    small(label_dropout=0.0).save_pretrained(tmp_path / "run")
    assert run_line("export", "official", tmp_path / "run", "--out", tmp_path / "x.pt") == 0
    saved = torch.load(tmp_path / "x.pt", weights_only=True)
    assert saved["config"]["model"]["class_dropout_prob"] == 0.1
    assert len(saved["model"]["cls_embedding.embedding_table.weight"]) == 11


def test_shared_heads_of_keys_and_values_go_in_and_out(tmp_path):
    model = small(kv_heads=2)
    torch.save({"model": to_official(model.state_dict())}, tmp_path / "x.pt")
    import_checkpoint(tmp_path / "x.pt", tmp_path / "run", Asked(choices=GRID))
    again = ifsq.Generator.from_pretrained(tmp_path / "run")
    assert again.config.kv_heads == 2
    assert torch.equal(again.sample(torch.arange(3)).indices, model.sample(torch.arange(3)).indices)
    assert run_line("export", "official", tmp_path / "run", "--out", tmp_path / "again.pt") == 0
    assert_same_file(tmp_path / "x.pt", tmp_path / "again.pt")


def test_what_the_trainers_config_tells():
    config = {
        "data": {"image_size": 384, "num_classes": 1000},
        "fsq": {"factorized_bits": [2, 2], "downsample_ratio": 16},
        "model": {"model_type": "LlamaGen-L", "drop_path_rate": 0.0, "dropout_p": 0.2, "token_dropout_p": 0.2},
        "sample": {"cfg_scale": 2.0, "cfg_interval": 5, "top_k": 0, "top_p": 1.0, "temperature": 1.0},
    }
    told = told_by({"config": config}, "x")
    assert (told.heads, told.classes, told.grid) == (None, 1000, (24, 24))
    assert told.options["dropout"] == 0.2
    assert told.sampling["guidance_interval"] == 7
    config["model"] = {"drop_path_rate": 0.1}
    config["sample"] |= {"cfg_scale": [2.0, 3.0], "temperature": 0}
    sampling = told_by({"config": config}, "x").sampling
    assert (sampling["guidance"], sampling["temperature"]) == ([2.0, 3.0], 1e-5)
    shares = told_by({"config": config}, "x").options
    assert [shares[f"{name}_dropout"] for name in ("token", "residual", "mlp")] == [0.1, 0.0, 0.0]
    assert shares["drop_path"] == 0.1
    assert told_by({"model": {}}, "x") == Told()


FULL_SIZE = {"LlamaGen-L_vq16384": (16384,), "LlamaGen-L_fsq17x4": (83521,), "LlamaGen-L_fsq_f2x2": (289, 289)}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_names_and_shapes(name, golden_folder):
    official = json.loads((golden_folder / "state_dict_keys.json").read_text())[name]
    with torch.device("meta"):
        table = {key: torch.zeros(shape, dtype=getattr(torch, dtype)) for key, (shape, dtype) in official.items()}
        sizes = sizes_of(table, name)
        heads, _ = heads_of(sizes, Told(), None, name)
        spec = CodeSpec(sizes.vocab, (1,) * len(sizes.vocab), "little", "codebook", (16, 16))
        config = ARConfig(sizes.depth, sizes.width, heads, head=HeadConfig("transformer", sizes.factorized or 2))
        tensors = to_official(ARGenerator(config, spec, sizes.classes).state_dict())
    assert (sizes.vocab, heads, sizes.classes) == (FULL_SIZE[name], 16, 1000)
    assert all(value.dtype == torch.float32 for value in tensors.values())
    ours = {key: [list(value.shape), "float32"] for key, value in tensors.items()}
    assert ours == {key: value for key, value in official.items() if key not in PROJECTORS}
    assert official.keys() >= PROJECTORS


def small(vocab=(32,), grid=(4, 4), **options):
    """A generator that the official class can hold, with random weights."""
    torch.manual_seed(0)
    spec = CodeSpec(vocab, (1,) * len(vocab), "little", "codebook", grid)
    head = {"head": HeadConfig("transformer")} if len(vocab) > 1 else {}
    config = ARConfig(2, 64, 4, **{"rope_class": "zero", **head, **options})
    model = ARGenerator(config, spec, 10)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.mark.parametrize("vocab", [(32,), (5, 7, 3)])
def test_our_generator_goes_out_and_in(vocab, tmp_path):
    model = small(vocab, mlp_multiple_of=16, dropout=0.2, rope_base=5000.0)
    model.save_pretrained(tmp_path / "run")
    assert run_line("export", "official", tmp_path / "run", "--out", tmp_path / "x.pt") == 0
    saved = torch.load(tmp_path / "x.pt", weights_only=True)
    assert saved.keys() == {"model", "ema", "opt", "config"}
    import_checkpoint(tmp_path / "x.pt", tmp_path / "again")
    again = ifsq.Generator.from_pretrained(tmp_path / "again")
    assert again.describe() == model.describe()
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    labels = torch.arange(3)
    assert torch.equal(again.sample(labels, guidance=2.0).indices, model.sample(labels, guidance=2.0).indices)


OURS = {
    "rope_class": ({"rope_class": "identity"}, "rope_class='identity': the official class multiplies the class tok"),
    "qk_norm": ({"qk_norm": True}, "qk_norm=True: the official class has no such option; expected False"),
    "order": ({"order": "random"}, "order='random': the official class has no embeddings of the position to predict"),
    "kv_heads": ({"kv_heads": 2}, "kv_heads=2: the official sampler allocates its cache for as many heads of keys"),
    "grid": ({"grid": (2, 8)}, "grid=(2, 8): the official class has square grids; expected (2, 2)"),
    "adaln": ({"adaln": True}, "adaln=True: the official class has no such option; expected False"),
    "class_tokens": ({"class_tokens": 2}, "class_tokens=2: the official class has no such option; expected 1"),
    "chain": ({"head": HeadConfig("chain"), "vocab": (5, 5)}, "head.kind='chain': the official class predicts the gr"),
}  # fmt: skip


@pytest.mark.parametrize("case", OURS)
def test_what_the_official_class_cannot_hold_is_not_written(case, tmp_path, capsys):
    options, message = OURS[case]
    small(**options).save_pretrained(tmp_path / "run")
    told = refused(capsys, ["export", "official", tmp_path / "run", "--out", tmp_path / "x.pt"])
    assert f"x.pt: {message}" in told
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def tokenizer_of(folder, **quantizer):
    config = TokenizerConfig(ConvConfig(8, multipliers=(1, 1), blocks=1, groups=4), QuantizerConfig(**quantizer))
    Tokenizer(config).save_pretrained(folder)
    return folder


def test_its_tokenizer_decodes_what_it_draws(tmp_path, capsys):
    torch.save({"model": to_official(small((25, 25)).state_dict())}, tmp_path / "x.pt")
    tok = tokenizer_of(tmp_path / "tok", levels=(5, 5, 5, 5))
    into = ["import", "official", tmp_path / "x.pt", "--grid", "4x4", "--heads", "4", "--out"]
    assert run_line(*into, tmp_path / "run", "--tokenizer", tok) == 0
    model = ifsq.Generator.from_pretrained(tmp_path / "run")
    assert (model.spec.levels, model.spec.groups) == ((5, 5, 5, 5), (2, 2))
    assert model.origin.tokenizer_digest == Tokenizer.from_pretrained(tok).digest()
    capsys.readouterr()
    assert run_line("sample", tmp_path / "run", "--labels", "0", "1", "--out", tmp_path / "p.png") == 0
    assert (tmp_path / "p.png").is_file()
    drawn = ["sample", tmp_path / "run", "--count", "8", "--out", tmp_path / "s.npz"]
    assert run_line(*drawn) == 0
    measured = ["--features", "pixels", "--pairs", "0", "--no-cache", "--count", "8", "--out", tmp_path / "cards.json"]
    assert run_line("evaluate", tmp_path / "run", "--reference", tmp_path / "s.npz", *measured) == 0
    assert json.loads((tmp_path / "cards.json").read_text())["cards"]
    assert run_line(*into, tmp_path / "bare") == 0
    capsys.readouterr()
    told = refused(capsys, ["sample", tmp_path / "bare", "--labels", "0", "--out", tmp_path / "q.png"])
    assert "bare: names no tokenizer to decode its codes with; expected one of 25 + 25 codes on 4x4" in told
    told = refused(capsys, ["generator", "eval", tmp_path / "bare"])
    assert "bare: names no tokenizer" in told


def test_a_codebook_decodes_what_it_draws(golden_folder, tmp_path):
    vq = tokenizer_of(tmp_path / "vq", kind="vq", codebook_size=32)
    path = golden_folder / "ckpt_llamagen_tiny.pt"
    lines = import_checkpoint(path, tmp_path / "run", Asked(choices=Choices(tokenizer=str(vq))))
    assert not any("no tokenizer" in line for line in lines)
    drawn = ifsq.Generator.from_pretrained(tmp_path / "run").sample(torch.tensor([3, 9]))
    assert ifsq.Tokenizer.from_pretrained(vq).decode_sampled(drawn).shape == (2, 3, 8, 8)
    assert "| codebook | 32 |" in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.parametrize(
    ("levels", "groups", "vocab", "expected"),
    [
        ((17,) * 4, (4,), (289, 289), (2, 2)),
        ((17,) * 4, (2, 2), (83521,), (4,)),
        ((8, 5, 5), (3,), (8, 25), (1, 2)),
        ((17,) * 4, (4,), (289,), None),
        ((17,) * 4, (4,), (300, 289), None),
        ((17,) * 4, (4,), (289, 289, 17), None),
    ],
)
def test_groups_by_their_codes(levels, groups, vocab, expected):
    assert groups_of(CodeSpec(levels, groups, "little", "paper", (2, 2)), vocab) == expected


def changed(state, **change):
    return {key: value for key, value in {**state, **change}.items() if value is not None}


BAD = {
    "missing": ({"layers.1.attention.wo.weight": None}, {}, "tensor 'layers.1.attention.wo.weight' is missing"),
    "half an MLP": ({"layers.0.feed_forward.w3.weight": None}, {}, "'layers.0.feed_forward.w3.weight' is missing"),
    "no output": ({"output.weight": None}, {}, "tensor 'output.weight' is missing"),
    "no classes": ({"cls_embedding.embedding_table.weight": torch.zeros(1, 64)}, {}, "cls_embedding of 1 row"),
    "no layer": ({"layers.0.attention.wqkv.weight": None}, {}, "'layers.0.attention.wqkv.weight' is missing"),
    "foreign": ({"lm_head.weight": torch.zeros(2)}, {}, "tensor 'lm_head.weight' is not part of this model"),
    "shape": ({"norm.weight": torch.zeros(32)}, {}, "tensor 'norm.weight' has shape (32,), expected (64,)"),
    "axes": ({"tok_embeddings.weight": torch.zeros(32)}, {}, "'tok_embeddings.weight' has shape (32,), expected two"),
    "vocab": ({"output.weight": torch.zeros(31, 64)}, {}, "'output.weight' has shape (31, 64), expected (32, 64)"),
    "not finite": ({"norm.weight": torch.full((64,), torch.inf)}, {}, "'head.norm.weight' holds values that are not"),
    "type": ({"norm.weight": torch.zeros(64).long()}, {}, "'head.norm.weight' is int64, expected float32"),
    "qkv": ({"layers.0.attention.wqkv.weight": torch.zeros(200, 64)}, {}, "has 200 rows, which 4 heads cannot have"),
    "mlp": ({"layers.0.feed_forward.w1.weight": torch.zeros(100, 64)}, {}, "feed_forward of width 100; expected 8/3"),
    "heads": ({}, {"heads": 5}, "5 heads; expected a divisor of its width 64"),
    "zero heads": ({}, {"heads": "0"}, "0 heads; expected a divisor of its width 64"),
    "oblong": ({}, {"grid": (2, 8)}, "--grid 2x8; expected a square, as the official class has it"),
    "other grid": ({"freqs_cis": torch.zeros(65, 8, 2)}, {}, "--grid 4x4; expected 8x8, as the file says"),
    "odd heads": ({}, {"heads": 32}, "head width 2: two-dimensional rotary positions need a multiple of 4"),
    "no heads": ({}, {"heads": None}, "2 layers of width 64 are no official size, so that its heads are not known"),
    "no grid": ({}, {"grid": None}, "x.pt: does not say its grid of codes; give --grid, as 16x16"),
    "large grid": ({}, {"grid": (2048, 2048)}, "a grid of 2048 x 2048 codes: expected at most"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_line(case, golden, tmp_path, capsys):
    change, choices, message = BAD[case]
    torch.save({"model": changed(tensors_of(golden, "llamagen_tiny")[1], **change)}, tmp_path / "x.pt")
    choices = {"grid": (4, 4), "heads": 4, **choices}
    line = ["import", "official", tmp_path / "x.pt", "--out", tmp_path / "deep" / "out"]
    line += ["--grid", "{}x{}".format(*choices["grid"])] if choices["grid"] else []
    line += ["--heads", choices["heads"]] if choices["heads"] else []
    told = refused(capsys, line)
    assert told.startswith(f"ifsq: {tmp_path / 'x.pt'}: ")
    assert message in told
    assert [file.name for file in tmp_path.iterdir()] == ["x.pt"]


CONFIGS = {
    "classes": ({"num_classes": 9}, "cls_embedding of 10 classes and the null class; its config says 9"),
    "class tokens": ({"cls_token_num": 120}, "cls_token_num: 120; expected 1, as the official class has it"),
    "no null class": ({"class_dropout_prob": 0}, "class_dropout_prob: 0; expected a model with a null class"),
    "norm": ({"norm_eps": 1e-6}, "norm_eps: 1e-06; expected 1e-05"),
    "type": ({"n_head": "4"}, "config: n_head: '4'; expected a positive integer"),
    "number": ({"rope_base": float("nan")}, "config: rope_base: nan; expected a number"),
    "sampling": (None, "config: sample: top_p"),
    "block": ({"block_size": 17}, "config: block_size: 17; expected a square"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_bad_configs_are_refused_in_one_line(case, golden_folder, tmp_path):
    change, message = CONFIGS[case]
    whole = torch.load(golden_folder / "ckpt_llamagen_tiny.pt", weights_only=True)
    whole["config"]["model"].update(change or {})
    whole["config"]["sample"] = {"top_p": 1 if change else 3, "cfg_scale": 2}  # as a YAML has them
    torch.save(whole, tmp_path / "x.pt")
    with pytest.raises(InputError) as caught:
        import_checkpoint(tmp_path / "x.pt", tmp_path / "out")
    assert message in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["x.pt"]


def test_what_is_asked_for_and_what_the_file_says(golden_folder, tmp_path, capsys):
    path, out = golden_folder / "ckpt_llamagen_tiny.pt", tmp_path / "out"
    into = ["import", "official", path, "--out", out]
    assert "--grid 8x8; expected 4x4, as the file says" in refused(capsys, [*into, "--grid", "8"])
    assert "--heads 8; expected 4, as its config says" in refused(capsys, [*into, "--heads", "8"])
    vq = tokenizer_of(tmp_path / "vq", kind="vq", codebook_size=64)
    told = refused(capsys, [*into, "--tokenizer", vq])
    assert f"predicts 32 codes; {vq} has 64: expected the tokenizer of its training" in told
    kl = tokenizer_of(tmp_path / "kl", kind="kl")
    assert "its codes are continuous; expected a tokenizer with digits" in refused(capsys, [*into, "--tokenizer", kl])
    assert "gone: no such folder" in refused(capsys, [*into, "--tokenizer", tmp_path / "gone"])
    torch.save({"model": {"encoder.conv_blocks.0.res.0.conv1.weight": torch.zeros(3)}}, tmp_path / "vq.pt")
    other = ["import", "official", tmp_path / "vq.pt", "--out", out, "--heads", "3"]
    assert "holds no LlamaGen or DiT; expected no --heads, which is of one" in refused(capsys, other)
    whole = path.read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    cut = ["import", "official", tmp_path / "cut.pt", "--out", out]
    assert "cut.pt: cannot be read" in refused(capsys, cut)
    assert not out.exists()


def test_published_names_say_the_grid_and_official_sizes_the_heads(golden, tmp_path):
    _, state = tensors_of(golden, "llamagen_tiny")
    told = Told(heads=4)
    file = golden("llamagen_tiny")
    dropping = Told(heads=4, options={"drop_path": 0.1})
    fresh = read_llamagen(state, dropping, Choices((4, 4)), tmp_path / "x.pt")  # as it is before it is saved
    assert all(value.device.type == "cpu" for value in (*fresh.parameters(), *fresh.buffers()))
    assert all(value.requires_grad for value in fresh.parameters())
    built = ARGenerator(fresh.config, fresh.spec, 10)
    for (name, value), expected in zip(fresh.named_buffers(), built.buffers(), strict=True):
        assert torch.equal(value, expected), name
    logits = fresh.logits(file.get_tensor("in/idx")[..., None], file.get_tensor("in/y"))
    torch.testing.assert_close(logits[0], file.get_tensor("out/logits"), atol=2e-5, rtol=1e-4)
    for name, side in (("c2i_B_256.pt", 16), ("c2i_XXL_384.pt", 24), ("c2i_3B_384.pt", 24)):
        assert read_llamagen(state, told, Choices(), tmp_path / name).spec.grid == (side, side)
    sizes = sizes_of(state, "x")
    assert HEADS[24, 3200] == 32
    with pytest.raises(InputError, match="give --heads"):
        heads_of(sizes, Told(), None, "x")
