"""Encoder and decoder: layers against second implementations, key layout, sizes, and refused configurations."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ifsq.tokenizer import norms
from ifsq.tokenizer.blocks import AttnBlock, Downsample, ResnetBlock, Upsample
from ifsq.tokenizer.bottleneck import QuantizerConfig
from ifsq.tokenizer.conv import ConvConfig, Decoder, Encoder
from ifsq.tokenizer.model import Tokenizer, TokenizerConfig
from ifsq.tokenizer.norms import _GroupNormSilu, _SmallGroupNormSilu, make_norm, norm_silu

TINY = ConvConfig(width=8, multipliers=(1, 2), blocks=2, groups=4)
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def conv_of(**options):
    return replace(TINY, **options)


def randomized(module, scale=0.3):
    """Parameters away from their neutral start, so that a forgotten one is seen."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return module


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_norms_by_their_formulas(layout):
    x = torch.randn(2, 8, 3, 5).contiguous(memory_format=layout) * 3 + 1
    shape = (1, 8, 1, 1)
    layer, rms = randomized(make_norm("layer", 8, 4)), randomized(make_norm("rms", 8, 4))
    mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    expected = (x - mean) / (var + 1e-6).sqrt() * layer.weight.view(shape) + layer.bias.view(shape)
    torch.testing.assert_close(layer(x), expected, **CLOSE)
    power = x.square().mean(1, keepdim=True)
    torch.testing.assert_close(rms(x), x / (power + 1e-6).sqrt() * rms.weight.view(shape), **CLOSE)
    assert (rms(x) - layer(x)).abs().max() > 0.1  # what the official "rmsnorm" is not


def gradients_of(function, x, norm, weight):
    out = function(x)
    return out, *torch.autograd.grad(out, (x, norm.weight, norm.bias), weight)


def norm_and_map(dtype):
    torch.manual_seed(0)
    norm = randomized(make_norm("group", 12, 4)).to(dtype)
    x, weight = (torch.randn(3, 12, 4, 5, dtype=dtype).contiguous(memory_format=torch.channels_last) for _ in range(2))
    return norm, (2 * x + 1).requires_grad_(), weight


@pytest.mark.parametrize(("function", "close"), [(_GroupNormSilu, 1e-11), (_SmallGroupNormSilu, 1e-5)])
@pytest.mark.parametrize("at_once", [1, 500, 1 << 18])
def test_group_norm_and_silu_in_one_step(function, close, at_once, monkeypatch):
    monkeypatch.setattr(norms, "AT_ONCE", at_once)  # one image, two and all of them
    norm, x, weight = norm_and_map(torch.float64 if close < 1e-6 else torch.float32)
    ours = gradients_of(lambda x: function.apply(x, norm.weight, norm.bias, 4, 1e-6), x, norm, weight)
    theirs = gradients_of(lambda x: F.silu(norm(x)), x, norm, weight)
    for value, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(value, expected, atol=close, rtol=close)


@pytest.mark.parametrize(("small", "name"), [(0, "_GroupNormSilu"), (1 << 16, "_SmallGroupNormSilu")])
def test_group_norm_and_silu_in_bf16(small, name, monkeypatch):
    monkeypatch.setattr(norms, "SMALL", small)
    norm, x, weight = norm_and_map(torch.float32)
    x = x.detach().bfloat16().requires_grad_()
    ours = gradients_of(lambda x: norm_silu(norm, x), x, norm, weight.bfloat16())
    assert type(ours[0].grad_fn).__name__ == f"{name}Backward"
    assert all(value.is_contiguous(memory_format=torch.channels_last) for value in ours[:2])
    exact = x.detach().float().requires_grad_()
    theirs = gradients_of(lambda x: F.silu(norm(x)), exact, norm, weight.bfloat16().float())
    for value, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(value.float(), expected, atol=0.02 * expected.abs().max().item(), rtol=0.02)
    with torch.no_grad():
        torch.testing.assert_close(norm_silu(norm, x), ours[0], atol=0.02, rtol=0.02)


def test_attention_by_its_formula():
    torch.manual_seed(0)
    block = randomized(AttnBlock(8, 4))
    x = torch.randn(2, 8, 3, 5).contiguous(memory_format=torch.channels_last)
    tokens = F.group_norm(x, 4, block.norm.weight, block.norm.bias, 1e-6).reshape(2, 8, 15).transpose(1, 2)
    q, k, v = (tokens @ layer.weight.T + layer.bias for layer in (block.q, block.k, block.v))
    mixed = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v
    expected = x + (mixed @ block.proj_out.weight.T + block.proj_out.bias).transpose(1, 2).reshape(2, 8, 3, 5)
    torch.testing.assert_close(block(x), expected, **CLOSE)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(1, 1), (3, 5)])
def test_transposed_upsampling_is_doubling_and_convolution(size, layout):
    torch.manual_seed(0)
    step = Upsample(6).double()
    x = torch.randn(2, 6, *size).double().contiguous(memory_format=layout).requires_grad_()
    out, expected = step(x), step.reference(x)
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(expected)
    inputs = (x, step.conv.weight, step.conv.bias)
    ours = torch.autograd.grad((out * weight).sum(), inputs)
    theirs = torch.autograd.grad((expected * weight).sum(), inputs)
    torch.testing.assert_close(ours, theirs)


def test_downsampling_sees_zeros_below_and_to_the_right():
    step = Downsample(4)
    x = torch.randn(1, 4, 6, 8)
    padded = torch.zeros(1, 4, 7, 9)
    padded[..., :6, :8] = x
    expected = F.conv2d(padded, step.conv.weight, step.conv.bias, stride=2)
    torch.testing.assert_close(step(x), expected, **CLOSE)


@pytest.mark.parametrize(
    "options", [{}, {"norm": "layer", "attention": (2,)}, {"middle_attention": True, "dropout": 0.5}]
)
def test_recomputing_gives_the_same_gradients(options):
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = Tokenizer(TokenizerConfig(conv_of(**options, recompute=recompute)))
        calls = []
        hook = model.encoder.mid_block[0].norm1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model(torch.rand(2, 3, 8, 12) * 2 - 1).images.abs().mean().backward()
        assert len(calls) == 1 + recompute
        hook.remove()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_dropout_acts_in_training_only():
    block = ResnetBlock(8, 8, 4, dropout=0.5)
    x = torch.randn(1, 8, 4, 4)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_keys_of_attention_and_nothing_where_there_is_none():
    with torch.device("meta"):
        plain = Tokenizer(TokenizerConfig(TINY)).state_dict().keys()
        full = Tokenizer(TokenizerConfig(conv_of(attention=(2,), middle_attention=True))).state_dict().keys()
    places = [f"encoder.down.1.attn.{i}" for i in range(2)] + [f"decoder.up.1.attn.{i}" for i in range(3)]
    places += ["encoder.mid_attention", "decoder.mid_attention"]
    layers = ("norm", "q", "k", "v", "proj_out")
    assert full - plain == {f"{p}.{layer}.{end}" for p in places for layer in layers for end in ("weight", "bias")}
    assert plain <= full
    assert not any("att" in key for key in plain)


OFFICIAL = {  # table of keys, bottleneck, parameters, tensors that only the official class has
    "tokenizer_ifsq_f16_d4_4bit": (QuantizerConfig(), 83_324_099),
    "tokenizer_vae_f16": (QuantizerConfig(kind="kl"), 83_324_135),
    "tokenizer_vq_f16": (QuantizerConfig(kind="vq", codebook_size=16384), 83_389_635),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_sizes_and_keys(name, golden_folder):
    keys = json.loads((golden_folder / "state_dict_keys.json").read_text())[name]
    quantizer, count = OFFICIAL[name]
    with torch.device("meta"):
        model = Tokenizer(TokenizerConfig(quantizer=quantizer))
    assert sum(p.numel() for p in model.parameters()) == count
    official = {key.replace("quantize.", "quantizer."): tuple(shape) for key, (shape, _) in keys.items()}
    ours = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert ours == {key: shape for key, shape in official.items() if "running" not in key}


@pytest.mark.parametrize("factor", [4, 8, 16, 32])
@pytest.mark.parametrize("norm", ["group", "layer", "rms"])
def test_every_factor_and_norm_on_oblong_images(factor, norm):
    levels = factor.bit_length()
    config = conv_of(multipliers=(1,) * levels, blocks=1, norm=norm, attention=(factor,), middle_attention=True)
    model = Tokenizer(TokenizerConfig(config))
    assert model.factor == factor
    out = model(torch.rand(1, 3, factor, 3 * factor) * 2 - 1)
    assert out.images.shape == (1, 3, factor, 3 * factor)
    out.images.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_image_channels(channels, patch):
    model = Tokenizer(TokenizerConfig(conv_of(in_channels=channels, patch=patch))).eval()
    images = torch.rand(2, channels, 8, 16) - 0.5
    assert model.channels == channels
    assert model(images).images.shape == model.decode(model.encode(images).codes).shape == images.shape
    assert model.reconstruct(images, tile=8).shape == images.shape
    with torch.no_grad():  # every channel is seen, and every one is drawn
        moved = [model.latent(images + torch.eye(channels)[k].view(-1, 1, 1) / 2) for k in range(channels)]
        assert all((latent - model.latent(images)).abs().max() > 1e-4 for latent in moved)
        assert (model.reconstruct(images).std(dim=(0, 2, 3)) > 1e-3).all()


def test_one_channel_is_a_colour_network_that_sums_its_colours():
    """The same function of grey images, and drawn grey, where first and last convolution are made from each other."""
    torch.manual_seed(0)
    grey = Tokenizer(TokenizerConfig(conv_of(in_channels=1))).eval()
    colour = Tokenizer(TokenizerConfig(TINY)).eval()
    table = grey.state_dict()
    table["encoder.conv_in.weight"] = table["encoder.conv_in.weight"].expand(-1, 3, -1, -1) / 3
    for end in ("weight", "bias"):
        name = f"decoder.conv_out.{end}"
        table[name] = table[name].expand(3, *table[name].shape[1:])
    colour.load_state_dict(table)
    images = torch.rand(2, 1, 8, 12) * 2 - 1
    with torch.no_grad():
        again = colour(images.expand(-1, 3, -1, -1)).images
        torch.testing.assert_close(again, grey(images).images.expand(-1, 3, -1, -1), **CLOSE)


def test_an_older_description_means_three_channels():
    described = Tokenizer(TokenizerConfig(TINY)).describe()
    del described["config"]["conv"]["in_channels"]
    torch.manual_seed(0)
    before = Tokenizer.from_description(described, "older")
    torch.manual_seed(0)
    assert before.channels == 3
    assert before.digest() == Tokenizer(TokenizerConfig(TINY)).digest()


def test_maps_run_with_channels_last():
    encoder, decoder = Encoder(TINY), Decoder(TINY)
    seen = []
    for module in (*encoder.modules(), *decoder.modules()):
        if isinstance(module, ResnetBlock):
            module.register_forward_hook(
                lambda _, __, out: seen.append(out.is_contiguous(memory_format=torch.channels_last))
            )
    decoder(encoder(torch.rand(1, 3, 8, 8))[:, :4])
    assert len(seen) == 14
    assert all(seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": (3,)}, r"attention=\(3,\): expected factors among \(1, 2\)"),
        ({"attention": (2, 2)}, r"attention=\(2, 2\): expected factors among \(1, 2\), each once"),
        ({"in_channels": 0}, "in_channels=0: expected at least 1"),
        ({"dropout": 1.0}, r"dropout=1.0: expected a number in \[0, 1\)"),
        ({"dropout": float("nan")}, "dropout=nan"),
        ({"norm": "group", "width": 6}, "width=6: expected a multiple of groups=4"),
    ],
)
def test_bad_configs_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        conv_of(**options)


def test_unknown_norm_is_named():
    config = replace(TINY)
    object.__setattr__(config, "norm", "batch")  # the tests' type checks refuse it in the constructor
    with pytest.raises(ValueError, match="norm='batch': expected one of group, layer, rms"):
        config.__post_init__()
