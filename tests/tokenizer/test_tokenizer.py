"""The tokenizer against the official one (golden vectors), and its shapes."""

import pytest
import torch
import torch.nn.functional as F

import ifsq
from ifsq.config import InputError
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig
from ifsq.tokenizer.losses import LossConfig, reconstruction_loss
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig


def test_official_two_level_tokenizer(golden):
    file = golden("tokenizer_fsq_2level")
    model = Tokenizer(TokenizerConfig(ConvConfig(width=32, multipliers=(1, 2), blocks=1)))
    state = {key[3:]: file.get_tensor(key) for key in file.keys() if key.startswith("sd/")}  # noqa: SIM118
    model.load_state_dict({key: value for key, value in state.items() if "running" not in key})
    images = file.get_tensor("in/x")
    close = {"atol": 2e-5, "rtol": 1e-4}
    torch.testing.assert_close(model.encoder(images), file.get_tensor("out/encoder"), **close)
    torch.testing.assert_close(model.latent(images), file.get_tensor("out/quant_conv"), **close)
    encoded = model.encode(images)
    torch.testing.assert_close(encoded.codes, file.get_tensor("out/z_q"), **close)
    assert torch.equal(encoded.indices, file.get_tensor("out/indices").squeeze(-1))
    again = model(images).images
    torch.testing.assert_close(again, file.get_tensor("out/recon"), **close)
    loss = F.l1_loss(again, images)
    torch.testing.assert_close(loss.reshape(1), file.get_tensor("out/l1_loss"), **close)
    loss.backward()
    for name in ("decoder.conv_out.weight", "encoder.conv_in.weight", "quant_conv.weight"):
        torch.testing.assert_close(
            model.get_parameter(name).grad, file.get_tensor(f"grad/{name}"), atol=1e-4, rtol=1e-4
        )


def load_official(file, model):
    state = {key[3:]: file.get_tensor(key) for key in file.keys() if key.startswith("sd/")}  # noqa: SIM118
    state = {key: value for key, value in state.items() if "running" not in key}
    model.load_state_dict({key.replace("quantize.", "quantizer."): value for key, value in state.items()})
    return model


SMALL = ConvConfig(width=32, multipliers=(1, 2), blocks=1)
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def test_official_vq_tokenizer(golden):
    file = golden("tokenizer_vq_2level")
    quantizer = QuantizerConfig(kind="vq", codebook_size=64, commitment_weight=1.0, codebook_weight=0.5)
    model = load_official(file, Tokenizer(TokenizerConfig(SMALL, quantizer)))
    images = file.get_tensor("in/x")
    torch.testing.assert_close(model.latent(images), file.get_tensor("out/quant_conv"), **CLOSE)
    encoded = model.encode(images)
    torch.testing.assert_close(encoded.codes, file.get_tensor("out/z_q"), **CLOSE)
    assert torch.equal(encoded.indices.flatten(), file.get_tensor("out/indices"))
    out = model(images)
    torch.testing.assert_close(out.images, file.get_tensor("out/recon"), **CLOSE)
    vq = sum(out.losses.values())
    torch.testing.assert_close(vq.reshape(1), file.get_tensor("out/vq_loss"), atol=1e-4, rtol=1e-4)
    l1 = F.l1_loss(out.images, images)
    torch.testing.assert_close(l1.reshape(1), file.get_tensor("out/l1_loss"), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.decode_indices(encoded.indices), out.images, **CLOSE)


def test_official_vae_tokenizer(golden):
    file = golden("tokenizer_vae_2level")
    model = load_official(file, Tokenizer(TokenizerConfig(SMALL, QuantizerConfig(kind="kl", kl_weight=1.0)))).eval()
    images = file.get_tensor("in/x")
    torch.testing.assert_close(model.latent(images), file.get_tensor("out/quant_conv"), **CLOSE)
    out = model(images)
    torch.testing.assert_close(out.images, file.get_tensor("out/recon"), **CLOSE)
    torch.testing.assert_close(out.losses["kl"], file.get_tensor("out/kl").mean(), atol=1e-4, rtol=1e-4)
    posterior = model.quantizer.posterior(model.latent(images))
    torch.testing.assert_close(posterior.mean, file.get_tensor("out/mean"), **CLOSE)
    torch.testing.assert_close(posterior.logvar, file.get_tensor("out/logvar"), **CLOSE)


BOTTLENECKS = {
    "fsq": QuantizerConfig(),
    "residual": QuantizerConfig(kind="residual", levels=(4, 4), cells="equal"),
    "vq": QuantizerConfig(kind="vq", codebook_size=32),
    "vq, ema": QuantizerConfig(kind="vq", codebook_size=32, ema=True, normalize=True, revive_after=2),
    "lfq": QuantizerConfig(kind="lfq", dim=6, groups=(2, 4)),
    "bsq": QuantizerConfig(kind="bsq", dim=6),
    "kl": QuantizerConfig(kind="kl"),
    "ae": QuantizerConfig(kind="ae"),
}


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_every_bottleneck_trains_and_is_saved(name, tmp_path):
    torch.manual_seed(0)
    config = TokenizerConfig(ConvConfig(width=8, multipliers=(1, 1), blocks=1, groups=4), BOTTLENECKS[name])
    model = Tokenizer(config)
    images = torch.rand(4, 3, 16, 8) * 2 - 1
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    errors = []
    for _ in range(25):
        out = model(images)
        optimizer.zero_grad()
        error = F.mse_loss(out.images, images)
        (error + sum(out.losses.values())).backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.9 * errors[0]
    model.eval().save_pretrained(tmp_path / "saved")
    again = Tokenizer.from_pretrained(tmp_path / "saved")
    encoded = again.encode(images)
    assert torch.equal(encoded.codes, model.encode(images).codes)
    if encoded.indices is None:
        assert name in ("kl", "ae")
        with pytest.raises(ValueError, match="has no indices"):
            again.decode_indices(torch.zeros(1, 8, 4).long())
    else:
        torch.testing.assert_close(again.decode_indices(encoded.indices), again.decode(encoded.codes))
    if name in ("kl", "ae"):
        with pytest.raises(InputError, match="its codes are continuous; expected a tokenizer with digits"):
            again.spec(16, 8)
    else:
        spec = again.spec(*images.shape[-2:])
        digits = again.digits(encoded, spec)
        assert digits.shape[1:] == (*spec.grid, spec.dim)
        assert again.kind == "vq" or torch.equal(spec.digits_to_codes(digits.long()), encoded.codes)


@pytest.mark.parametrize(
    ("conv", "factor"),
    [
        (ConvConfig(width=8, multipliers=(1, 2), blocks=1, groups=4), 2),
        (ConvConfig(width=8, multipliers=(1, 1), blocks=1, groups=4, patch=2), 4),
        (ConvConfig(width=8, multipliers=(1,), blocks=1, groups=4, patch=4), 4),
        (ConvConfig(width=8, multipliers=(1, 1, 2, 2), blocks=1, groups=4), 8),
    ],
)
def test_shapes_and_gradients(conv, factor):
    quantizer = QuantizerConfig(levels=(8, 5), cells="equal", groups=(1, 1))
    model = Tokenizer(TokenizerConfig(conv, quantizer))
    assert model.factor == factor
    images = torch.rand(2, 3, 2 * factor, 3 * factor) * 2 - 1
    encoded = model.encode(images)
    assert encoded.codes.shape == (2, 2, 2, 3)
    assert encoded.indices.shape == (2, 2, 3, 2)
    assert encoded.digits.shape == (2, 2, 3, 2)
    assert model.spec(2 * factor, 3 * factor).grid == (2, 3)
    losses = reconstruction_loss(images, model(images).images, LossConfig(l1=2.0, l2=3.0))
    torch.testing.assert_close(losses["loss"], 2 * losses["l1"] + 3 * losses["l2"])
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_autocast_leaves_the_digits_of_the_latent_alone():
    model = Tokenizer(TokenizerConfig(ConvConfig(width=8, multipliers=(1, 1), blocks=1, groups=4)))
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.autocast("cpu", torch.bfloat16):
        latent = model.latent(images)
        inside = model.quantizer(latent).digits
    assert latent.dtype == torch.float32
    assert torch.equal(inside, model.quantizer(latent).digits)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvConfig(width=30), "width=30: expected a multiple of groups=32"),
        (lambda: ConvConfig(multipliers=()), r"multipliers=\(\)"),
        (lambda: ConvConfig(patch=3), "patch=3: expected a power of two"),
        (lambda: ConvConfig(blocks=0), "blocks=0: expected at least 1"),
        (lambda: LossConfig(l1=0.0, l2=0.0), "l1 or l2 positive"),
        (lambda: QuantizerConfig(levels=(4,)), "paper cells with bound='ifsq' need odd levels"),
    ],
)
def test_bad_configs_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("bound", ["standardized", "quantile", "learned"])
def test_a_calibrated_tokenizer_is_saved_as_it_is(bound, tmp_path):
    torch.manual_seed(0)
    config = TokenizerConfig(
        ConvConfig(width=8, multipliers=(1, 2), blocks=1, groups=4), QuantizerConfig(levels=(9, 9, 9))
    )
    tokenizer = Tokenizer(config).eval()
    images = torch.rand(16, 3, 32, 32) * 2 - 1
    ifsq.calibrate(tokenizer, [images, -images], bound=bound, cells="equal")
    tokenizer.save_pretrained(tmp_path / "saved")
    again = Tokenizer.from_pretrained(tmp_path / "saved")
    assert again.quantizer.bound.name == bound
    assert torch.equal(again.encode(images).indices, tokenizer.encode(images).indices)
    assert again.spec(32, 32).cells == "equal"


@torch.no_grad()
def test_bf16_keeps_float32_at_the_quantizer_and_outside():
    torch.manual_seed(0)
    model = Tokenizer(TokenizerConfig(ConvConfig(width=16, multipliers=(1, 2), blocks=1, groups=4)))
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    exact = model.encode(images)
    latent, again = model.latent(images), model.decode(exact.codes)
    with torch.autocast("cpu", torch.bfloat16):
        cast = model.latent(images)
    assert model.optimize("bf16") is model
    assert model.encoder.mid_block[0].conv1.weight.dtype == torch.bfloat16
    assert model.encoder.conv_out.weight.dtype == model.quant_conv.weight.dtype == torch.float32
    for rounded in (cast, model.latent(images)):
        assert rounded.dtype == torch.float32
        assert not torch.equal(rounded, rounded.bfloat16().float())  # the last convolutions are not rounded
        assert 0 < (rounded - latent).abs().max() < 0.05 * latent.abs().max()
    encoded = model.encode(images)
    assert encoded.codes.dtype == torch.float32
    assert torch.equal(model.quantizer.indices_to_codes(encoded.indices), encoded.codes + 0.0)
    assert (encoded.indices != exact.indices).float().mean() < 0.2
    decoded = model.decode(exact.codes)
    assert decoded.dtype == torch.float32
    assert 0 < (decoded - again).abs().max() < 0.05 * again.abs().max()
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training


def test_optimized_in_float32_is_the_same_and_is_saved(tmp_path):
    torch.manual_seed(0)
    model = Tokenizer(TokenizerConfig(ConvConfig(width=16, multipliers=(1, 2), blocks=1, groups=4))).eval()
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    digest, before = model.digest(), model(images).images
    fast = model.optimize("fp32")
    torch.testing.assert_close(fast(images).images, before)
    assert fast.digest() == digest
    fast.save_pretrained(tmp_path / "fp32")
    assert Tokenizer.from_pretrained(tmp_path / "fp32").digest() == digest
    rounded = model.optimize("bf16").save_pretrained(tmp_path / "bf16")
    assert rounded is None
    assert model.digest() != digest
    loaded = Tokenizer.from_pretrained(tmp_path / "bf16")
    assert torch.equal(loaded.encoder.conv_in.weight, model.encoder.conv_in.weight.float())


@pytest.mark.parametrize(("computes", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_optimize_takes_bfloat16_where_the_device_computes_in_it(computes, dtype, monkeypatch):
    monkeypatch.setattr("ifsq.tokenizer.model.computes_bfloat16", lambda kind: computes)
    model = Tokenizer(TokenizerConfig(ConvConfig(width=8, multipliers=(1,), blocks=1, groups=4))).optimize()
    assert model.decoder.conv_in.weight.dtype == dtype


def test_optimize_compiles_encoder_and_decoder():
    model = Tokenizer(TokenizerConfig(ConvConfig(width=8, multipliers=(1,), blocks=1, groups=4)))
    keys = list(model.state_dict())
    model.optimize("fp32", compile=True)
    assert model.encoder._compiled_call_impl is not None
    assert model.decoder._compiled_call_impl is not None
    assert list(model.state_dict()) == keys


def test_optimize_names_a_bad_precision():
    model = Tokenizer(TokenizerConfig(ConvConfig(width=8, multipliers=(1,), blocks=1, groups=4)))
    with pytest.raises(Exception, match="int8"):
        model.optimize("int8")


def test_a_codebook_of_more_than_sixteen_bits_is_counted_and_not_cached():
    levels = (70001, 3)
    model = Tokenizer(TokenizerConfig(SMALL, QuantizerConfig(levels=levels, cells="equal")))
    assert model.spec(16, 16).levels == levels
    with pytest.raises(
        InputError, match=r"levels=\[70001, 3\]: a cache holds digits of 16 bits; expected at most 65536"
    ):
        model.layout(16, 16)
