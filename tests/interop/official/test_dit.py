"""DiTs of the official trainer and SiTs: in, out again with the same tensors, and what is refused."""

import json
from argparse import Namespace

import pytest
import torch
from safetensors.torch import load_file
from tests.interop.official.test_llamagen import run_line, tensors_of, tokenizer_of
from tests.interop.official.test_official_tokenizer import assert_same_file, refused
from torch import nn

import ifsq
from ifsq.cli import interop as cli
from ifsq.codes import CodeSpec, LatentSpec
from ifsq.config import InputError
from ifsq.generators import DiffusionGenerator
from ifsq.generators.diffusion import DiTConfig
from ifsq.interop.official import dit_config
from ifsq.interop.official.dit import tables_of, to_official
from ifsq.interop.official.dit_config import Told, heads_of, mlp_ratio_of, sizes_of, told_by
from ifsq.interop.official.dit_generator import Scale, official_tensors
from ifsq.interop.official.importing import Asked, import_checkpoint
from ifsq.interop.official.llamagen_generator import Choices

PROJECTORS = {f"projectors.0.{i}.{end}" for i in (0, 2, 4) for end in ("weight", "bias")}
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
SCALED = Asked(scale=Scale(multiplier=1.092421))
PLAIN = {"mlp": "gelu", "norm": "layer", "rope": False, "qk_norm": False}
YAML = {
    "data": {"image_size": 256, "num_classes": 1000, "latent_norm": False, "latent_multiplier": 1.092421},
    "vae": {"vae_type": "fsq", "downsample_ratio": 16},
    "model": {"model_type": "DiT-L/1", "use_qknorm": True, "in_chans": 4},
    "wandb": {"key": "0123456789"},
    "scheduler": {"diffusion": False, "transport": True},
    "transport": {"path_type": "Linear", "prediction": "velocity", "use_cosine_loss": True, "use_lognorm": True},
    "sample": {"sampling_method": "heun2", "num_sampling_steps": [250], "cfg_scale": 1.5, "timestep_shift": 0.3,
               "cfg_interval_start": 0.1},
}  # fmt: skip


@pytest.mark.parametrize("weights", [None, "ema", "raw"])
def test_the_tiny_checkpoint_goes_in_and_comes_out_unchanged(weights, golden, golden_folder, tmp_path, capsys):
    path, run = golden_folder / "ckpt_dit_tiny.pt", tmp_path / "run"
    asked = () if weights is None else ("--weights", weights)
    assert run_line("import", "official", path, "--out", run, "--multiplier", "1.092421", *asked) == 0
    told = capsys.readouterr().out.replace("\n", " ")
    assert "a DiT of 2 blocks of width 64, 4 heads, patch 1, 4 channels on 4x4, 10 classes" in told
    assert "no tokenizer: samples are latents alone" in told
    before = torch.load(path, weights_only=True)
    state = before["ema"] if weights != "raw" else {k.removeprefix("module."): v for k, v in before["model"].items()}
    model = ifsq.Generator.from_pretrained(run)
    assert official_tensors(model).keys() | PROJECTORS == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in to_official(model.state_dict()).items())
    aside = load_file(run / "projectors.safetensors")
    assert aside.keys() == PROJECTORS
    assert all(torch.equal(value, state[key]) for key, value in aside.items())
    assert torch.allclose(model.code_std, torch.full((4,), 1 / 1.092421))
    assert model.config.guidance_channels == 3
    assert run_line("export", "official", run, "--out", tmp_path / "again.pt") == 0
    assert_same_file(path, tmp_path / "again.pt")
    file = golden("dit_tiny")  # of the same weights
    out = model.predict(*(file.get_tensor(f"in/{name}") for name in "xty"))
    assert torch.allclose(out, file.get_tensor("out/pred"), **CLOSE)


FORMS = {
    "table": lambda state: state,
    "averaged": lambda state: {"model": {key: value / 2 for key, value in state.items()}, "ema": state},
    "twice": lambda state: {"model": {f"module.module.{key}": value for key, value in state.items()}},
    "compiled": lambda state: {"ema": {key.replace("s.0.", "s.0._orig_mod."): value for key, value in state.items()}},
    "bf16": lambda state: {"model": {key: value.bfloat16() for key, value in state.items()}, "steps": 3},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_goes_in_and_out(form, golden, tmp_path):
    _, state = tensors_of(golden, "dit_tiny")
    torch.save(FORMS[form](state), tmp_path / "x.pt")
    import_checkpoint(tmp_path / "x.pt", tmp_path / "run", SCALED)
    own = to_official(ifsq.Generator.from_pretrained(tmp_path / "run").state_dict())
    assert all(torch.equal(own[key], state[key].bfloat16().float() if form == "bf16" else state[key]) for key in own)
    assert run_line("export", "official", tmp_path / "run", "--out", tmp_path / "again.pt") == 0
    assert_same_file(tmp_path / "x.pt", tmp_path / "again.pt")


def test_what_the_trainers_config_tells(golden, tmp_path, capsys):
    told = told_by({"config": YAML}, "x")
    assert (told.trainer, told.heads, told.classes, told.grid) == ("official", 16, 1000, (16, 16))
    assert (told.multiplier, told.normalized) == (1.092421, False)
    assert told.options == {
        "label_dropout": 0.1, "cosine_weight": 1.0, "time_sampling": "lognorm", "path": "linear",
        "prediction": "velocity"
    }  # fmt: skip
    assert told.sampling == {
        "steps": 250, "solver": "heun", "guidance": 1.5, "timestep_shift": 0.3, "guidance_interval": [0.1, 1.0]
    }  # fmt: skip
    adaptive = {"sampling_method": "dopri5", "num_sampling_steps": 250, "atol": 1e-5, "rtol": 1e-3}
    assert told_by({"config": {"sample": adaptive}}, "x").sampling == {"solver": "dopri5", "atol": 1e-5, "rtol": 1e-3}
    assert told_by({"ema": {}}, "x") == Told()
    _, state = tensors_of(golden, "dit_tiny")
    config = {**YAML, "data": {**YAML["data"], "image_size": 64, "num_classes": 10}, "model": {"use_rope": True}}
    torch.save({"ema": state, "config": config}, tmp_path / "x.pt")
    assert run_line("import", "official", tmp_path / "x.pt", "--out", tmp_path / "run") == 0
    model = ifsq.Generator.from_pretrained(tmp_path / "run")
    sampling = model.sampling()
    assert (sampling.solver, sampling.steps, sampling.guidance_interval) == ("heun", 250, (0.1, 1.0))
    assert all(b"0123456789" not in file.read_bytes() for file in (tmp_path / "run").iterdir())


def test_normalised_latents_are_stored_with_the_weights(golden, golden_folder, tmp_path):
    """What the network sees is what the official data set gives: ``(latent - mean) / std * multiplier``."""
    _, state = tensors_of(golden, "dit_tiny")
    torch.save(state, tmp_path / "x.pt")
    stats = golden_folder / "offline_latents" / "latents_stats.pt"
    table = torch.load(stats, weights_only=True)
    import_checkpoint(tmp_path / "x.pt", tmp_path / "run", Asked(scale=Scale("official", 1.3, stats)))
    model = ifsq.Generator.from_pretrained(tmp_path / "run")
    latents = torch.randn(2, 4, 4, 4)
    seen = (latents - table["mean"]) / table["std"] * 1.3
    assert torch.allclose(model.normalize(latents), seen, **CLOSE)
    assert torch.allclose(model.denormalize(seen), latents, **CLOSE)


def test_full_size_names_and_shapes(golden_folder):
    official = json.loads((golden_folder / "state_dict_keys.json").read_text())["DiT-L_1"]
    with torch.device("meta"):
        table = {key: torch.zeros(shape, dtype=getattr(torch, dtype)) for key, (shape, dtype) in official.items()}
        sizes = sizes_of(table, "L")
        heads = heads_of(sizes, Told(), None, "L")
        assert mlp_ratio_of(sizes, "L") == 4.0
        config = DiTConfig(sizes.depth, sizes.width, heads, patch=sizes.patch)
        model = DiffusionGenerator(config, LatentSpec(sizes.channels, (16, 16)), sizes.classes)
    assert (config.depth, heads, sizes.patch, sizes.channels, sizes.tokens) == (24, 16, 1, 4, 256)
    model.dit.positions.to_empty(device="cpu")
    model.dit.rope.to_empty(device="cpu")
    tensors = {**to_official(model.state_dict()), **tables_of(model.dit)}
    ours = {key: [list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in tensors.items()}
    assert ours == {key: value for key, value in official.items() if key not in PROJECTORS}
    assert official.keys() >= PROJECTORS


def test_the_published_size():
    """DiT-XL/2 of 256 pixels has 675,129,632 numbers with its position table, the paper's 675 M, in 292 tensors."""
    config = DiTConfig(size="XL", patch=2, **PLAIN, path="ddpm", prediction="noise", learned_variance=True)
    with torch.device("meta"):
        model = DiffusionGenerator(config, LatentSpec(4, (32, 32)), 1000)
    tensors = to_official(model.state_dict())
    assert sum(value.numel() for value in tensors.values()) + 256 * 1152 == 675_129_632
    assert len(tensors) + 1 == 292


def small(spec=None, **options):
    """A generator with random weights everywhere."""
    torch.manual_seed(0)
    model = DiffusionGenerator(DiTConfig(2, 64, 4, **{"patch": 2, **options}), spec or LatentSpec(4, (8, 8)), 10)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def assert_alike(model, again):
    x, t, labels = torch.randn(3, 4, 8, 8), torch.rand(3), torch.tensor([0, 9, 10])
    assert torch.equal(again.predict(x, t, labels), model.predict(x, t, labels))
    assert torch.equal(again.sample(labels[:2], steps=2).codes, model.sample(labels[:2], steps=2).codes)


def sit(model):
    """The tensors of a SiT that computes what a model does; the second half of its output is of no use."""
    state = official_tensors(model)
    for key in ("final_layer.linear.weight", "final_layer.linear.bias"):
        value = state[key].unflatten(0, (4, 4))
        state[key] = torch.cat([value, torch.randn_like(value)], dim=1).flatten(0, 1)
    return state


@pytest.mark.parametrize("form", ["trained", "published", "one output"])
def test_a_sit_goes_in_and_out(form, tmp_path):
    """The published block; the second half of its output, which its own sampler drops, is left out."""
    way = {"path": "cosine", "prediction": "noise"} if form == "trained" else {}
    model = small(**PLAIN, **way, guidance_channels=3, time_sampling="uniform")
    model.set_statistics(torch.zeros(4), torch.full((4,), 1 / 0.18215))
    state = sit(model)
    arguments = Namespace(image_size=64, num_classes=10, path_type="GVP", prediction="noise", vae="ema")
    saved, name, asked = {
        "trained": ({"model": state, "ema": state, "opt": {}, "args": arguments}, "x.pt", ""),
        "published": (state, "SiT-XL-2-256x256.pt", ""),
        "one output": (official_tensors(model), "x.pt", "sit"),
    }[form]
    torch.save(saved, tmp_path / name)
    import_checkpoint(tmp_path / name, tmp_path / "run", Asked(choices=Choices(heads=4), scale=Scale(asked)))
    again = ifsq.Generator.from_pretrained(tmp_path / "run")
    assert again.config.guidance_channels == 3
    assert_alike(model, again)
    assert run_line("export", "official", tmp_path / "run", "--out", tmp_path / "again.pt") == 0
    assert_same_file(tmp_path / name, tmp_path / "again.pt")


@pytest.mark.parametrize("form", ["trained", "published"])
def test_a_dit_of_ddpm_goes_in_and_out(form, tmp_path, capsys):
    """Its network is told the step of noising, 999 at time 0, and gives noise and variance."""
    model = small(**PLAIN, path="ddpm", prediction="noise", learned_variance=True)
    state, name = official_tensors(model), {"trained": "x.pt", "published": "DiT-XL-2-256x256.pt"}[form]
    assert len(state["final_layer.linear.bias"]) == 2 * 2 * 8
    arguments = Namespace(image_size=64, num_classes=10, vae="ema", global_seed=0)
    torch.save({"ema": state, "opt": {}, "args": arguments} if form == "trained" else state, tmp_path / name)
    import_checkpoint(tmp_path / name, tmp_path / "run", Asked(choices=Choices(heads=4)))
    again = ifsq.Generator.from_pretrained(tmp_path / "run")
    assert torch.allclose(again.code_std, torch.full((4,), 1 / 0.18215))
    assert (again.config.path, again.config.prediction, again.config.learned_variance) == ("ddpm", "noise", True)
    x, labels = torch.randn(4, 4, 8, 8), torch.tensor([0, 9, 10, 3])
    steps = torch.tensor([999, 998, 500, 0])
    out = again.predict(x, 1 - (steps + 1) / 1000, labels)
    assert torch.equal(out, model.dit(x, steps.float(), labels))
    assert out.shape == (4, 8, 8, 8)
    assert (again.sampling().solver, again.sampling().respacing) == ("ddpm", "250")
    assert again.sample(labels[:2], again.sampling(), respacing="3", guidance=4.0).codes.isfinite().all()
    assert run_line("export", "official", tmp_path / "run", "--out", tmp_path / "again.pt") == 0
    assert_same_file(tmp_path / name, tmp_path / "again.pt")
    model.save_pretrained(tmp_path / "ours")
    told = refused(capsys, ["export", "official", tmp_path / "ours", "--out", tmp_path / "z.pt"])
    assert "z.pt: learned_variance=True: the official class has no such option; expected False" in told


@pytest.mark.parametrize(
    "options", [{}, PLAIN, {"mlp_ratio": 3.0, "qk_norm": False}, {"path": "vp", "prediction": "score"}]
)
def test_our_generator_goes_out_and_in(options, tmp_path):
    model = small(**options, guidance_channels=3, cosine_weight=1.0)
    model.set_statistics(torch.zeros(4), torch.full((4,), 1 / 1.092421))
    model.save_pretrained(tmp_path / "run")
    assert run_line("export", "official", tmp_path / "run", "--out", tmp_path / "x.pt") == 0
    saved = torch.load(tmp_path / "x.pt", weights_only=True)
    assert saved.keys() == {"model", "ema", "opt", "config"}
    assert saved["config"]["data"] == {"latent_norm": False, "latent_multiplier": 1.092421}
    assert all(key.startswith("module.") for key in saved["model"])
    import_checkpoint(tmp_path / "x.pt", tmp_path / "again")
    again = ifsq.Generator.from_pretrained(tmp_path / "again")
    assert again.describe() == model.describe()
    assert_alike(model, again)


def test_statistics_of_every_channel_go_out_beside_it(tmp_path):
    model = small()
    model.set_statistics(torch.tensor([0.0, 0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7, 0.8]))
    model.save_pretrained(tmp_path / "run")
    assert run_line("export", "official", tmp_path / "run", "--out", tmp_path / "x.pt") == 0
    stats = tmp_path / "x.latents_stats.pt"
    into = ["import", "official", tmp_path / "x.pt", "--out", tmp_path / "again"]
    assert run_line(*into, "--statistics", stats) == 0
    again = ifsq.Generator.from_pretrained(tmp_path / "again")
    assert torch.equal(again.code_mean, model.code_mean)
    assert torch.equal(again.code_std, model.code_std)


def test_another_scale_parts_it_from_what_was_kept_of_its_file(tmp_path, capsys):
    torch.save(official_tensors(small()), tmp_path / "x.pt")
    import_checkpoint(tmp_path / "x.pt", tmp_path / "run", SCALED)
    model = ifsq.Generator.from_pretrained(tmp_path / "run")
    model.set_statistics(torch.zeros(4), torch.ones(4))
    model.save_pretrained(tmp_path / "other")
    (tmp_path / "run" / "official.safetensors").rename(tmp_path / "other" / "official.safetensors")
    told = refused(capsys, ["export", "official", tmp_path / "other", "--out", tmp_path / "y.pt"])
    assert "official.safetensors: belongs to other weights" in told


OURS = {
    "shift": ({"adaln_shift": False}, "adaln_shift=False: the official class has no such option; expected True"),
    "norm": ({"norm": "layer"}, "norm='layer': the official class then normalises queries and keys otherwise"),
    "prediction": ({"prediction": "data"}, "prediction='data': the official trainer has no such prediction; expected"),
    "grid": ({"spec": LatentSpec(4, (4, 8))}, "grid=(4, 8): the official class has square grids; expected (4, 4)"),
}


@pytest.mark.parametrize("case", OURS)
def test_what_the_official_class_cannot_hold_is_not_written(case, tmp_path, capsys):
    options, message = OURS[case]
    small(**options).save_pretrained(tmp_path / "run")
    told = refused(capsys, ["export", "official", tmp_path / "run", "--out", tmp_path / "x.pt"])
    assert f"x.pt: {message}" in told
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_blocks_without_shift_are_read(tmp_path):
    model = small(adaln_shift=False, guidance_channels=3, time_sampling="uniform")
    torch.save(official_tensors(model), tmp_path / "x.pt")
    import_checkpoint(tmp_path / "x.pt", tmp_path / "run", Asked(scale=Scale(multiplier=1.0)))
    assert_alike(model, ifsq.Generator.from_pretrained(tmp_path / "run"))


def test_its_tokenizer_decodes_what_it_draws(tmp_path, capsys):
    torch.save(official_tensors(small()), tmp_path / "x.pt")
    into = ["import", "official", tmp_path / "x.pt", "--multiplier", "1", "--out", tmp_path / "run", "--tokenizer"]
    told = refused(capsys, [*into, tokenizer_of(tmp_path / "six", levels=(5,) * 6)])
    assert f"models 4 channels; {tmp_path / 'six'} has 6: expected the tokenizer of its training" in told
    kinds = ({"levels": (5, 5, 5, 5)}, {"kind": "kl", "dim": 4}, {"kind": "vq", "codebook_size": 8, "dim": 4})
    for number, quantizer in enumerate(kinds):
        tok, run = tokenizer_of(tmp_path / f"tok{number}", **quantizer), tmp_path / f"run{number}"
        assert run_line(*into[:-2], run, "--tokenizer", tok) == 0
        model = ifsq.Generator.from_pretrained(run)
        tokenizer = ifsq.Tokenizer.from_pretrained(tok)
        assert model.spec == tokenizer.layout(16, 16)
        drawn = model.sample(torch.tensor([0, 1]), steps=2)
        assert tokenizer.decode_sampled(drawn).shape == (2, 3, 16, 16)
        if isinstance(model.spec, CodeSpec) and not model.spec.on_lattice:
            assert torch.equal(model.codebook, tokenizer.codebook())


def test_a_sit_behind_an_autoencoder_of_another_scale_is_refused(tmp_path, capsys):
    torch.save(official_tensors(small(**PLAIN)), tmp_path / "x.pt")
    tok = tokenizer_of(tmp_path / "tok", kind="kl", dim=4)
    into = ["import", "official", tmp_path / "x.pt", "--trainer", "sit", "--heads", "4", "--out", tmp_path / "run"]
    (tok / "diffusers.json").write_text('{"scaling_factor": 0.13025}')
    told = refused(capsys, [*into, "--tokenizer", tok])
    assert f"sees latents times 0.18215; those of {tok} are scaled by 0.13025: expected the" in told
    (tok / "diffusers.json").write_text('{"scaling_factor": 0.18215}')
    assert run_line(*into, "--tokenizer", tok) == 0


def test_a_multiplier_of_another_tokenizer_is_refused(tmp_path, capsys):
    """Stable Diffusion's, which the official sampler takes by default, in front of codes of a lattice; and iFSQ's."""
    torch.save(official_tensors(small()), tmp_path / "x.pt")
    lattice = tokenizer_of(tmp_path / "lattice", levels=(5,) * 4)
    latents = tokenizer_of(tmp_path / "latents", kind="kl", dim=4)
    (latents / "diffusers.json").write_text('{"scaling_factor": 0.18215}')
    into = ["import", "official", tmp_path / "x.pt", "--out", tmp_path / "run", "--multiplier"]
    told = refused(capsys, [*into, "0.18215", "--tokenizer", lattice])
    assert "code_std [5.49, 5.49, 5.49, 5.49]: expected up to 1 and 4, as codes of -1 to 1 give" in told
    told = refused(capsys, [*into, "1.092421", "--tokenizer", latents])
    assert f"sees latents divided by 0.9154, 0.9154, 0.9154, 0.9154; those of {latents} are scaled by 0.18215" in told
    assert not (tmp_path / "run").exists()
    assert run_line(*into, "0.2", "--tokenizer", latents) == 0


def changed(state, **change):
    return {key: value for key, value in {**state, **change}.items() if value is not None}


LINEAR = "final_layer.linear.weight"
BAD = {
    "missing": ({"blocks.1.attn.proj.weight": None}, {}, "tensor 'blocks.1.attn.proj.weight' is missing"),
    "no classes": ({"y_embedder.embedding_table.weight": None}, {}, "is missing; expected those of a class-condit"),
    "one class": ({"y_embedder.embedding_table.weight": torch.zeros(1, 64)}, {}, "y_embedder of 1 row"),
    "no patches": ({"x_embedder.proj.weight": torch.zeros(64, 4)}, {}, "has shape (64, 4), expected 4 axes"),
    "oblong patches": ({"x_embedder.proj.weight": torch.zeros(64, 4, 1, 2)}, {}, "patches of 1x2; expected squares"),
    "outputs": ({LINEAR: torch.zeros(12, 64)}, {}, "gives 12 channels; expected 4 of --trainer official"),
    "modulation": ({"blocks.0.adaLN_modulation.1.weight": torch.zeros(9, 64)}, {}, "of 9 rows; expected 4 or 6 times"),
    "no MLP": ({"blocks.0.mlp.w12.weight": None}, {}, "tensor 'blocks.0.mlp.fc1.weight' is missing"),
    "MLP": ({"blocks.0.mlp.w12.weight": torch.zeros(0, 64)}, {}, "mlp of width 0; expected one by a ratio to 64"),
    "foreign": ({"head.weight": torch.zeros(2)}, {}, "tensor 'head.weight' is not part of this model"),
    "shape": ({"final_layer.linear.bias": torch.zeros(5)}, {}, "linear.bias' has shape (5,), expected (4,)"),
    "not finite": ({LINEAR: torch.full((4, 64), torch.nan)}, {}, "holds values that are not finite"),
    "type": ({LINEAR: torch.zeros(4, 64).long()}, {}, "final_layer.linear.weight' is int64, expected float32"),
    "learned positions": ({"pos_embed": torch.ones(1, 16, 64)}, {}, "'pos_embed' is not the fixed table of a grid of"),
    "turns": ({"feat_rope.freqs_cos": torch.ones(16, 16)}, {}, "'feat_rope.freqs_cos' is not the fixed table of a g"),
    "fewer turns": ({"feat_rope.freqs_cos": None}, {}, "tensor 'feat_rope.freqs_sin' is not part of this model"),
    "no square": ({"pos_embed": torch.ones(1, 15, 64)}, {}, "pos_embed of 15 tokens; expected a square"),
    "no grid": ({"pos_embed": None}, {}, "does not say its grid of codes; give --grid, as 16x16"),
    "grid": ({}, {"grid": "8x8"}, "--grid 8x8; expected 4x4, as the file says"),
    "oblong": ({"pos_embed": None}, {"grid": "2x8"}, "--grid 2x8; expected a square, as the official class has it"),
    "heads": ({}, {"heads": "8"}, "8 heads; expected 4, as its tensors say"),
    "trainer": ({}, {"trainer": "sit"}, "--trainer sit; expected official, as the file says"),
    "multiplier": ({}, {"multiplier": None}, "does not say what its latents were multiplied by; give --multiplier"),
    "zero": ({}, {"multiplier": "0"}, "--multiplier 0; expected a positive number"),
    "infinite": ({}, {"multiplier": "inf"}, "--multiplier inf; expected a positive number"),
    "statistics": ({}, {"statistics": "gone.pt"}, "gone.pt: no such file; expected a file of torch.save"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_line(case, golden, tmp_path, capsys):
    change, asked, message = BAD[case]
    torch.save({"model": changed(tensors_of(golden, "dit_tiny")[1], **change)}, tmp_path / "x.pt")
    line = ["import", "official", tmp_path / "x.pt", "--out", tmp_path / "deep" / "out"]
    for name, value in {"multiplier": "1.5", **asked}.items():
        line += [f"--{name}", value] if value else []
    assert message in refused(capsys, line)
    assert [file.name for file in tmp_path.iterdir()] == ["x.pt"]


CONFIGS = {
    "classes": ({"model": {"num_classes": 9}}, "y_embedder of 10 classes and the null class; its config says 9"),
    "type": ({"model": {"num_heads": "4"}}, "config: num_heads: '4'; expected a positive integer"),
    "heads": ({"model": {"num_heads": 8}}, "4 heads; expected 8, as its config says"),
    "grid": ({"model": {"input_size": 8}}, "pos_embed of 4x4; expected 8x8, as the file says"),
    "multiplier": ({"data": {"latent_multiplier": -1}}, "config: latent_multiplier: -1; expected a positive number"),
    "other": ({"data": {"latent_multiplier": 1.5}}, "--multiplier 2; expected 1.5, as its config says"),
    "norm": ({"data": {"latent_norm": True}}, "was trained on normalised latents (latent_norm); give --statistics"),
    "diffusion": ({"scheduler": {"diffusion": True}}, "scheduler.diffusion: true; expected transport"),
    "sampling": ({"sample": {"num_sampling_steps": [0]}}, "config: sample: steps=0: expected at least 1"),
    "dropout": ({"model": {"class_dropout_prob": 2}}, "label_dropout=2.0: expected a share"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_bad_configs_are_refused_in_one_line(case, golden_folder, tmp_path):
    change, message = CONFIGS[case]
    whole = torch.load(golden_folder / "ckpt_dit_tiny.pt", weights_only=True)
    for name, values in change.items():
        whole["config"][name] = {**whole["config"].get(name, {}), **values}
    torch.save(whole, tmp_path / "x.pt")
    with pytest.raises(InputError) as caught:
        import_checkpoint(tmp_path / "x.pt", tmp_path / "out", Asked(scale=Scale(multiplier=2.0)))
    assert message in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["x.pt"]


def test_other_files_and_choices_are_refused_in_one_line(golden_folder, tmp_path, capsys):
    path, out = golden_folder / "ckpt_dit_tiny.pt", tmp_path / "out"
    into = ["import", "official", path, "--out", out, "--multiplier", "1"]
    (tmp_path / "config.json").write_text("{}")
    whole = path.read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    assert "cut.pt: cannot be read" in refused(capsys, ["import", "official", tmp_path / "cut.pt", "--out", out])
    stats = golden_folder / "offline_latents" / "latents_stats.pt"
    torch.save({name: torch.ones(1, 8, 1, 1) for name in ("mean", "std")}, tmp_path / "eight.pt")
    told = refused(capsys, [*into, "--statistics", tmp_path / "eight.pt"])
    assert "eight.pt: 8 and 8 channels; expected 4" in told
    plain = official_tensors(small(**PLAIN))
    torch.save(plain, tmp_path / "plain.pt")
    other = ["import", "official", tmp_path / "plain.pt", "--out", out, "--heads", "4", "--multiplier", "1"]
    told = refused(capsys, other)
    assert "plain.pt: does not say what time and output mean to it; give --trainer official, sit or dit" in told
    assert cli.TRAINERS == dit_config.TRAINERS
    state = {**sit(small(**PLAIN)), "final_layer.linear.bias": torch.zeros(())}
    torch.save(state, tmp_path / "bias.pt")
    told = refused(capsys, ["import", "official", tmp_path / "bias.pt", *other[3:], "--trainer", "sit"])
    assert "tensor 'final_layer.linear.bias' has shape (), expected (16,)" in told
    torch.save({"ema": plain, "args": Namespace(image_size=64)}, tmp_path / "ddpm.pt")
    told = refused(capsys, ["import", "official", tmp_path / "ddpm.pt", "--out", out, "--heads", "4"])
    assert "ddpm.pt: gives 4 channels; expected 8 of --trainer dit" in told
    torch.save({"ema": plain, "args": Namespace(image_size=64, path_type="linear", proj_coeff=0.5)}, tmp_path / "r.pt")
    told = refused(capsys, ["import", "official", tmp_path / "r.pt", "--out", out])
    assert "is a SiT of REPA's trainer, whose time runs from data to noise; it is not read" in told
    torch.save({"ema": plain, "args": Namespace(image_size=64, path_type="EDM")}, tmp_path / "g.pt")
    told = refused(capsys, ["import", "official", tmp_path / "g.pt", "--out", out])
    assert "g.pt: config: path_type: 'EDM'; expected one of Linear, GVP, VP" in told
    llamagen = ["import", "official", golden_folder / "ckpt_llamagen_tiny.pt", "--out", out, "--multiplier", "1"]
    assert "holds no DiT; expected no --multiplier, which is of one" in refused(capsys, llamagen)
    torch.save({"ema": plain, "config": {"data": {"latent_norm": False, "latent_multiplier": 1.0}}}, tmp_path / "n.pt")
    told = refused(capsys, ["import", "official", tmp_path / "n.pt", "--out", out, "--heads", 4, "--statistics", stats])
    assert "--statistics; expected none, as its config says (latent_norm: false)" in told
    assert not out.exists()
