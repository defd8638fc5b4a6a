"""The diffusion generator: what the official model computes, and what must hold of any."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from ifsq.codes import CodeBatch, CodeSet, CodeSpec
from ifsq.config import InputError, build, to_dict
from ifsq.generators.diffusion import DiffusionGenerator, DiffusionSampling, DiTConfig
from ifsq.generators.diffusion.network import DiT
from ifsq.generators.diffusion.solvers import euler, time_grid
from ifsq.generators.repa import Alignment, AlignmentConfig
from ifsq.generators.taps import Taps
from ifsq.interop.official.dit import from_official
from ifsq.pretrained.teachers import TeacherConfig

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
OFFICIAL = CodeSpec((17,) * 4, (4,), "little", "paper", (4, 4))
SPEC = CodeSpec((5, 9, 17), (1, 2), "little", "equal", (4, 6))  # a grid that is not square
LABELS = torch.tensor([0, 2])


@pytest.fixture
def official(golden):
    """The golden file's model under our names, and its tensors."""
    tensors = golden("dit_tiny")
    config = DiTConfig(2, 64, 4, patch=1, label_dropout=0.0, cosine_weight=1.0, guidance_channels=3)
    model = DiffusionGenerator(config, OFFICIAL, num_classes=10)
    state = {key[3:]: tensors.get_tensor(key) for key in tensors.keys() if key.startswith("sd/")}  # noqa: SIM118
    model.dit.load_state_dict(from_official({f"module.{key}": value for key, value in state.items()}))
    return model, tensors.get_tensor, state


def make(**options):
    """A small model with random weights everywhere, the zero-initialised ones too."""
    torch.manual_seed(0)
    model = DiffusionGenerator(DiTConfig(**{"depth": 2, "width": 32, "heads": 4, "patch": 2, **options}), SPEC, 3)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    return model


def make_batch(count, seed=0):
    rng = torch.Generator().manual_seed(seed)
    columns = [torch.randint(L, (count, *SPEC.grid), generator=rng) for L in SPEC.levels]
    return CodeBatch(SPEC, torch.stack(columns, dim=-1), torch.randint(3, (count,), generator=rng))


def test_official_prediction(official):
    model, tensor, state = official
    dit = model.dit
    assert torch.allclose(dit.positions.table, state["pos_embed"][0], **CLOSE)
    assert torch.allclose(dit.rope.table[..., 0].repeat_interleave(2, dim=1), state["feat_rope.freqs_cos"], **CLOSE)
    assert torch.allclose(dit.rope.table[..., 1].repeat_interleave(2, dim=1), state["feat_rope.freqs_sin"], **CLOSE)
    assert torch.allclose(dit.t_embedder(tensor("in/t")), tensor("out/t_embed"), **CLOSE)
    tokens = dit.positions(dit.x_embedder(tensor("in/x")))
    assert torch.allclose(tokens, tensor("out/patch_tokens_plus_pos"), **CLOSE)
    assert torch.allclose(dit(tensor("in/x"), tensor("in/t"), tensor("in/y")), tensor("out/pred"), **CLOSE)


def test_official_losses_and_gradients(official):
    model, tensor, state = official
    alignment = Alignment(AlignmentConfig((TeacherConfig("dinov2-vit-b"),), 1, 0.5, hidden=48), 64, (4, 4), (24,))
    alignment.load_state_dict({key: value for key, value in state.items() if key.startswith("projectors.")})
    taps = Taps((1,))
    losses = model.flow_loss(tensor("loss/x1"), tensor("loss/x0"), tensor("loss/t"), tensor("loss/y"), taps)
    assert torch.allclose(losses["mse"], tensor("loss/mse").mean(), **CLOSE)
    assert torch.allclose(losses["cosine"], tensor("loss/cos").mean(), **CLOSE)
    aligned = alignment(taps.states[1], None, [tensor("loss/z_target")])
    assert torch.allclose(aligned, tensor("loss/proj")[0], atol=1e-5)
    total = losses["loss"] + 0.5 * aligned
    assert torch.allclose(total, tensor("loss/total_coef0.5")[0], **CLOSE)
    total.backward()
    for name in ("blocks.0.attn.qkv.weight", "final_layer.linear.weight", "x_embedder.proj.weight"):
        expected = tensor(f"grad/{name}")
        assert torch.allclose(model.dit.get_parameter(name).grad, expected, atol=1e-4, rtol=1e-4), name
    projected = alignment.get_parameter("projectors.0.0.weight").grad
    assert torch.allclose(projected, tensor("grad/projectors.0.0.weight"), atol=1e-4, rtol=1e-4)


def test_official_guidance(official):
    """The file's scale is 2.5 and its interval starts after t = 0.05: ``out`` was taken there, the others at 0.3."""
    model, tensor, _ = official
    x, labels = tensor("cfg/x2")[:2], tensor("cfg/y2")[:2]
    with torch.no_grad():
        for name, t, interval in (
            ("off", 0.3, None),
            ("in", 0.3, (0.1, 1.0)),
            ("out", 0.05, (0.1, 1.0)),
        ):
            got = model.velocity(x, torch.tensor(t), labels, DiffusionSampling(2.5, guidance_interval=interval))
            assert torch.allclose(got, tensor(f"cfg/interval_{name}")[:2], **CLOSE), name


def test_official_guided_trajectory(official):

    model, tensor, _ = official
    sampling = DiffusionSampling(2.5, guidance_interval=(0.05, 1.0))
    velocity = lambda x, t: model.velocity(x, t, tensor("ode/y"), sampling)  # noqa: E731
    with torch.no_grad():
        final = euler(velocity, tensor("ode/noise"), time_grid(10))
    assert torch.allclose(final, tensor("ode/euler10_cfg2.5_3ch_final")[:2], **CLOSE)


def test_fresh_model_predicts_nothing_and_stays_trainable():
    torch.manual_seed(0)
    model = DiffusionGenerator(DiTConfig(2, 32, 4, patch=2, cosine_weight=1.0), SPEC, num_classes=3)
    batch = make_batch(4)
    losses = model.loss(batch, torch.Generator().manual_seed(0))
    x1 = SPEC.digits_to_codes(batch.content)
    expected = x1.square().mean() + 1  # |x1 - x0|^2 with x0 of unit variance
    assert losses["mse"].item() == pytest.approx(float(expected), rel=0.1)
    assert losses["cosine"].item() == 1.0
    losses["loss"].backward()
    assert 0 < float(model.dit.final_layer.linear.weight.grad.norm()) < 100


@pytest.mark.parametrize("options", [{}, {"mlp": "gelu", "norm": "layer", "rope": False, "qk_norm": False}])
def test_loss_falls_on_a_batch_it_can_learn_by_heart(options):
    torch.manual_seed(0)
    config = DiTConfig(2, 32, 4, patch=2, label_dropout=0.0, cosine_weight=0.5, **options)
    model = DiffusionGenerator(config, SPEC, num_classes=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model.loss(make_batch(4), torch.Generator().manual_seed(0))["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_loss_is_the_flow_matching_loss_at_the_generators_draws():
    model = make(label_dropout=0.0)
    model.set_statistics(torch.tensor([0.1, 0.2, -0.1]), torch.tensor([0.5, 0.6, 0.7]))
    batch = make_batch(4)
    rng = torch.Generator().manual_seed(5)
    torch.rand(4, generator=rng)  # the labels' dropout
    x0, t = torch.randn(4, 3, 4, 6, generator=rng), torch.randn(4, generator=rng).sigmoid()
    mean, std = torch.tensor([0.1, 0.2, -0.1]).view(3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    x1 = (SPEC.digits_to_codes(batch.content) - mean) / std
    xt = torch.stack([t[i] * x1[i] + (1 - t[i]) * x0[i] for i in range(4)])
    expected = (model.dit(xt, t, batch.labels) - (x1 - x0)).square().mean()
    assert torch.allclose(model.loss(batch, torch.Generator().manual_seed(5))["loss"], expected, **CLOSE)


@pytest.mark.parametrize(("sampling", "spread"), [("uniform", math.sqrt(1 / 12)), ("lognorm", 0.2083)])
def test_training_times(sampling, spread):
    model = make(time_sampling=sampling)
    seen = []
    model.flow_loss = lambda x1, x0, t, labels, taps: seen.append(t) or {}
    model.loss(make_batch(4000), torch.Generator().manual_seed(0))
    assert float(seen[0].mean()) == pytest.approx(0.5, abs=0.02)
    assert float(seen[0].std()) == pytest.approx(spread, abs=0.01)


def test_label_dropout_only_in_training():
    model = make(label_dropout=0.5)
    seen = []
    model.flow_loss = lambda x1, x0, t, labels, taps: seen.append(labels) or {}
    batch = make_batch(64)
    model.loss(batch, torch.Generator())
    model.eval().loss(batch, torch.Generator())
    assert 16 < int((seen[0] == 3).sum()) < 48
    assert torch.equal(seen[1], batch.labels)


@pytest.mark.parametrize("channels", [None, 2])
def test_guidance_extrapolates_the_guided_channels(channels):
    model = make(guidance_channels=channels).eval()
    x, t = torch.randn(2, 3, 4, 6), torch.tensor(0.4)
    conditional = model.dit(x, t.expand(2), LABELS)
    null = model.dit(x, t.expand(2), torch.full((2,), 3))
    got = model.velocity(x, t, LABELS, DiffusionSampling(3.0))
    c = channels or 3
    assert torch.allclose(got[:, :c], (null + 3 * (conditional - null))[:, :c], **CLOSE)
    assert torch.allclose(got[:, c:], conditional[:, c:], **CLOSE)
    assert torch.allclose(
        model.velocity(x, t, LABELS, DiffusionSampling(3.0, guidance_interval=(0.5, 1.0))), conditional, **CLOSE
    )
    assert torch.allclose(model.velocity(x, t, LABELS, DiffusionSampling()), conditional, **CLOSE)


def test_hidden_states_are_those_of_the_losss_pass():
    model = make(label_dropout=0.5)
    batch, seen = make_batch(6), []
    for block in model.dit.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model.loss(batch, torch.Generator().manual_seed(3))
    for depth in (1, 2):
        states = model.hidden(batch, depth, torch.Generator().manual_seed(3))
        assert torch.equal(states, seen[depth - 1])
        assert states.shape == (6, 6, 32)
    assert torch.equal(model.eval().hidden(batch, 1), model.hidden(batch, 1))
    with pytest.raises(ValueError, match="depth=3: expected 1 to 2, the blocks of the network"):
        model.hidden(batch, 3)
    assert model.nll(batch) is None


def test_patches_return_to_their_places():
    model = make(depth=1)
    seen = []
    model.dit.final_layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    out = model.dit(torch.randn(1, 3, 4, 6), torch.tensor([0.5]), torch.tensor([0]))
    for token in range(6):
        row, column = divmod(token, 3)
        square = out[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert torch.equal(square.permute(1, 2, 0).flatten(), seen[0][0, token])


@pytest.mark.parametrize(
    ("size", "millions"),
    [("S", 33.0), ("B", 130.5), ("L", 458.1), ("XL", 675.2), ("1p0B", 1029.3), ("1p6B", 1631.7)],
)
def test_official_sizes(size, millions):
    """The official table counts the fixed position embedding, 256 x width, among the parameters; ours is a buffer."""
    spec = CodeSpec((17,) * 4, (4,), "little", "paper", (16, 16))
    with torch.device("meta"):
        model = DiffusionGenerator(DiTConfig(size=size, patch=1), spec, num_classes=1000)
    count = sum(p.numel() for p in model.parameters()) + 256 * model.config.width
    assert round(count / 1e6, 1) == millions


def test_a_size_is_what_its_numbers_are():
    by_size, by_numbers = DiTConfig(size="XL", patch=2), DiTConfig(28, 1152, 16, patch=2)
    assert replace(by_size, size="") == by_numbers
    assert build(DiTConfig, to_dict(by_size), "here") == by_size


def test_blocks_without_shift_scale_and_gate_alone():
    """With a shift of zero everywhere the same, and a third of the modulation's parameters less."""
    model, less = make(), make(adaln_shift=False)
    assert less.dit.blocks[0].adaLN_modulation[1].weight.shape == (4 * 32, 32)
    state = {}
    for key, value in model.state_dict().items():
        if ".blocks." in key and "adaLN_modulation" in key:
            _, scale_a, gate_a, _, scale_m, gate_m = value.chunk(6)
            state[key] = torch.cat([scale_a, gate_a, scale_m, gate_m])
            value.chunk(6)[0].zero_()
            value.chunk(6)[3].zero_()
        else:
            state[key] = value
    less.load_state_dict(state)
    x, t = torch.randn(2, 3, 4, 6), torch.tensor([0.2, 0.7])
    assert torch.allclose(less.predict(x, t, LABELS), model.predict(x, t, LABELS), **CLOSE)


def test_a_prediction_is_the_networks_own():
    model = make()
    x, t = torch.randn(2, 3, 4, 6), torch.tensor([0.2, 0.7])
    labels = torch.tensor([1, 3])  # a class and the null class
    out = model.predict(x, t, labels)
    assert torch.equal(out, model.dit(x, t, labels))
    assert out.requires_grad
    assert torch.equal(model.predict(x, torch.tensor(0.2), labels), model.predict(x, torch.tensor([0.2] * 2), labels))
    model.bfloat16()
    assert model.predict(x, t, labels).dtype == torch.float32
    for bad, times, message in (
        (x[..., :5], t, r"codes, times and labels of \(2, 3, 4, 5\), \(2,\), \(2,\): expected \(b, 3, 4, 6\), \(b,\)"),
        (x, torch.zeros(3), r"of \(2, 3, 4, 6\), \(3,\), \(2,\): expected"),
        (x[:1], t[:1], r"of \(1, 3, 4, 6\), \(1,\), \(2,\): expected"),
    ):
        with pytest.raises(ValueError, match=message):
            model.predict(bad, times, labels)
    with pytest.raises(ValueError, match="label 4: expected 0 to 3"):
        model.predict(x, t, torch.tensor([0, 4]))


def test_a_network_with_twice_the_channels_gives_them_all():
    dit = DiT(DiTConfig(2, 32, 4, patch=2), 3, (4, 6), 3, outputs=6)
    assert dit(torch.randn(2, 3, 4, 6), torch.rand(2), LABELS).shape == (2, 6, 4, 6)
    assert dit.final_layer.linear.weight.shape == (2 * 2 * 6, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "width=32: expected a positive multiple of heads=3"),
        ({"depth": 0}, "depth=0: expected at least 1"),
        ({"patch": 4}, "patch=4: expected a divisor of the code grid 4x6"),
        ({"mlp": "relu"}, "mlp='relu': expected one of swiglu, gelu"),
        ({"norm": "batch"}, "norm='batch': expected one of rms, layer"),
        ({"time_sampling": "beta"}, "time_sampling='beta': expected one of lognorm, uniform, mode, cosine"),
        ({"label_dropout": -0.1}, "label_dropout=-0.1: expected a share"),
        ({"cosine_weight": -1.0}, "cosine_weight=-1.0: expected"),
        ({"guidance_channels": 4}, "guidance_channels=4: the codes have 3 channels"),
        ({"heads": 16}, "head width 2: .*multiple of 4"),
        ({"size": "XXL"}, "size='XXL': expected one of S, B, L, XL, 1p0B, 1p6B, or empty with numbers"),
        ({"multiplier": 0.0}, "multiplier=0.0: expected a positive number"),
        ({"multiplier": math.inf}, "multiplier=inf: expected a positive number"),
        ({"size": "B"}, "depth=2 beside size='B', which has 12: expected one of them"),
    ],
)
def test_bad_config_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_config_without_numbers_is_refused():
    with pytest.raises(InputError, match="here: patch: is required"):
        build(DiTConfig, {"size": "B"}, "here")
    with pytest.raises(InputError, match="here: depth, width missing: expected depth, width and heads, or a size"):
        build(DiTConfig, {"heads": 4, "patch": 2}, "here")


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.0, 0.0], [1.0, 1.0], "mean=.*expected 3 finite numbers"),
        ([0.0, 0.0, math.nan], [1.0, 1.0, 1.0], "mean=.*expected 3 finite numbers"),
        ([0.0, 0.0, 0.0], [1.0, 0.0, 1.0], "std=.*expected positive numbers"),
    ],
)
def test_bad_statistics_are_refused(mean, std, message):
    with pytest.raises(ValueError, match=message):
        make().set_statistics(torch.tensor(mean), torch.tensor(std))


def test_statistics_normalise_are_stored_and_survive_casts():
    model = make()
    model.set_statistics(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7]))
    codes = torch.rand(2, 3, 4, 6)
    x = model.normalize(codes)
    assert torch.allclose(x[:, 1], (codes[:, 1] - 0.2) / 0.6)
    assert torch.allclose(model.denormalize(x), codes, atol=1e-6)
    assert {"code_mean", "code_std"} <= model.state_dict().keys()
    cast = model.bfloat16()
    assert torch.equal(cast.code_std, torch.tensor([0.5, 0.6, 0.7]))
    assert cast.sample(LABELS, steps=1).codes.dtype == torch.float32


def test_observed_codes_come_out_with_zero_mean_and_unit_variance():
    model = make()
    batch = make_batch(500)
    digits = batch.content
    digits[..., 1] = 7  # a dead channel
    model.observe(CodeSet(SPEC, digits.to(torch.uint8), batch.labels))
    x = model.normalize(SPEC.digits_to_codes(digits))
    assert torch.allclose(x.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(x.std(dim=(0, 2, 3)), torch.tensor([1.0, 0.0, 1.0]), atol=1e-3)
    assert float(model.code_std[1]) == 1.0


def test_autocast_keeps_losses_and_times_in_float32():
    model = make()
    with torch.autocast("cpu", torch.bfloat16):
        low = model.loss(make_batch(4), torch.Generator().manual_seed(0))["loss"]
    high = model.loss(make_batch(4), torch.Generator().manual_seed(0))["loss"]
    assert low.dtype == torch.float32
    assert torch.allclose(low, high, rtol=0.05)
