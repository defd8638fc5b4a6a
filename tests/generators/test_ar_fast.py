"""Fast decoding against the network's own modules: the same tokens in float32, the same distribution below."""

import copy

import pytest
import torch
from tests.generators.test_ar import CASES, check_steps, make_batch
from tests.generators.test_ar import make as make_plain
from torch import nn

from ifsq.codes import CodeSpec
from ifsq.config import InputError
from ifsq.generators.ar import ARConfig, ARGenerator, ARSampling
from ifsq.generators.ar.fast import FastSteps, is_usual, precision_of, steps_of
from ifsq.generators.ar.graphs import GraphSteps
from ifsq.generators.ar.packing import (
    INT8_BLOCK,
    SMALL,
    Int8Linear,
    OneDNNLinear,
    PackedLinear,
    SmallLinear,
    has_bf16,
    packed_copy,
    packer,
    quantize_rows,
)
from ifsq.generators.ar.steps import PlainSteps

GUIDED = {"guidance": 3.0, "guidance_interval": 4}
packs = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN packs the weights")


TRUNKS = {
    "official": {"rope_class": "zero"},
    "default": {},
    "grouped": {"kv_heads": 2},
    "normalised": {"kv_heads": 1, "qk_norm": True},
    "prefixed": {"class_tokens": 3, "rope_class": "zero"},
}


def make(case, **options):
    """As there, with norms whose scales differ."""
    model = make_plain(case, **options)
    rng = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5, generator=rng)
    return model


def plain_tokens(model, labels, **options):
    """What the network's own modules draw: hooks keep it to them."""
    watched = copy.deepcopy(model)
    watched.register_forward_hook(lambda module, inputs, output: None)
    assert isinstance(steps_of(watched, "auto"), PlainSteps)
    return watched.sample(labels, **options).indices


@packs
@pytest.mark.parametrize("options", [{}, GUIDED, {"guidance": 2.0, "top_k": 3}, {"greedy": True}])
@pytest.mark.parametrize(
    ("case", "trunk"), [*((case, "default") for case in CASES), *(("joint", trunk) for trunk in TRUNKS)]
)
def test_fast_sampling_draws_the_plain_tokens(case, trunk, options):
    model = make(case, dropout=0.5, **TRUNKS[trunk])
    assert isinstance(steps_of(model, "auto"), FastSteps)
    labels = torch.arange(24) % 3
    drawn = model.sample(labels, seed=3, **options).indices
    assert torch.equal(drawn, plain_tokens(model, labels, seed=3, **options))
    assert torch.equal(drawn[20:], model.sample(labels[20:], seed=3, first=20, **options).indices)


def whole_steps(model):
    """What a CUDA graph captures, without one."""
    return PlainSteps(model, whole=True)


@pytest.mark.parametrize(
    ("trunk", "way"),
    [
        *(pytest.param(trunk, lambda model: steps_of(model, "fp32"), marks=packs) for trunk in TRUNKS),
        ("default", whole_steps),
        ("prefixed", whole_steps),
    ],
)
def test_steps_of_several_tokens_and_back_equal_the_full_pass(trunk, way):
    check_steps(make("chain", **TRUNKS[trunk]).eval(), way)


@packs
@pytest.mark.parametrize("place", ["q_norm", "proj"])
def test_blocks_that_fast_steps_do_not_know_decode_by_their_own_modules_between_packed_layers(place):
    class Shifted(nn.Identity):
        def forward(self, x):
            return x + 1

    class Adapted(nn.Linear):
        def forward(self, x):
            return super().forward(x) + x.sum(dim=-1, keepdim=True)

    model = make("chain")
    if place == "q_norm":
        model.layers[1].attention.q_norm = Shifted()
    else:
        model.layers[1].attention.proj.__class__ = Adapted
    steps = steps_of(model, "fp32")
    assert not is_usual(model)
    assert isinstance(steps, PlainSteps)
    assert isinstance(steps.network.layers[1].attention.qkv, PackedLinear)
    labels = torch.arange(24) % 3
    assert torch.equal(model.sample(labels, **GUIDED).indices, plain_tokens(model, labels, **GUIDED))


@packs
def test_adaptive_norms_decode_by_their_own_modules_between_packed_layers():
    model, labels = make("chain", adaln=True, class_tokens=2), torch.arange(24) % 3
    steps = steps_of(model, "fp32")
    assert isinstance(steps, PlainSteps)
    assert isinstance(steps.network.layers[1].attention.qkv, PackedLinear)
    assert torch.equal(model.sample(labels, **GUIDED).indices, plain_tokens(model, labels, **GUIDED))


@packs
@pytest.mark.parametrize("case", CASES)
def test_a_packed_copy_packs_every_layer_and_leaves_the_module_alone(case):
    model = make(case, dropout=0.5)
    before = list(model.modules())
    twin = packed_copy(model, packer("fp32"))
    assert list(model.modules()) == before
    assert model.training
    assert not twin.training
    assert twin.tok_embeddings[0].weight is model.tok_embeddings[0].weight
    assert not any(isinstance(module, nn.Linear) for module in twin.modules())
    batch = make_batch(model.spec, 4)
    indices = batch.indices(model.spec.groups).flatten(1, 2)
    for ours, expected in zip(*(net.logits(indices, batch.labels) for net in (twin, model.eval())), strict=True):
        assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(twin.nll(batch), model.nll(batch), rtol=1e-5)


@packs
def test_weights_that_change_are_sampled_as_they_are_now():
    model, labels = make("joint"), torch.arange(24) % 3
    before = model.sample(labels).indices
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    after = model.sample(labels).indices
    assert not torch.equal(before, after)
    assert torch.equal(after, plain_tokens(model, labels))


@packs
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inputs", "outputs", "rows"), [(1024, 300, 3), (7, 1, 3), (32, 5, 3), (64, 48, 300)])
def test_packed_layers_are_the_layer_but_for_rounding(precision, bias, inputs, outputs, rows):
    rng = torch.Generator().manual_seed(0)
    weight, x = torch.randn(outputs, inputs, generator=rng), torch.randn(2, rows, inputs, generator=rng)
    offset = torch.randn(outputs, generator=rng) if bias else None
    layer = packer(precision)(weight, offset)
    small, blocks = inputs * outputs <= SMALL, inputs % INT8_BLOCK == 0
    expected = {"fp32": SmallLinear if small else OneDNNLinear, "int8": Int8Linear if blocks else OneDNNLinear}
    assert type(layer) is expected.get(precision, OneDNNLinear)
    exact, other = nn.functional.linear(x, weight, offset), torch.randn(2, rows, outputs, generator=rng)
    error = 2e-6 if precision == "fp32" else 0.05
    near = {"atol": error * inputs**0.5, "rtol": error}
    assert layer(x).dtype == layer.plus(x, other).dtype == torch.float32
    assert torch.allclose(layer(x), exact, **near)
    assert torch.allclose(layer.plus(x, other), exact + other, **near)
    assert torch.allclose(layer.silu(x).float(), nn.functional.silu(exact), **near)
    rounded = other.to(layer.dtype)
    assert torch.allclose(layer.times(x, rounded).float(), layer(x) * rounded, **near)


def test_rows_in_int8_are_within_half_a_step():
    weight = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    weight[3], weight[4, 1:] = 0, 0
    numbers, scale = quantize_rows(weight)
    assert numbers.dtype == torch.int8
    assert int(numbers.abs().max()) <= 127
    error = (numbers * scale.float()[:, None] - weight).abs()
    # The scale itself is a bfloat16, so the greatest number of a row may be off by its rounding as well.
    assert (error <= 0.5 * scale.float()[:, None] + 2**-8 * weight.abs()).all()
    assert not numbers[3].any()


@packs
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_low_precision_draws_from_the_distribution(precision):
    """Chi-square over all 36 images: among 20,000 a divergence of 0.002 nats is found with a power of 0.99."""
    if precision == "bf16" and not has_bf16():
        pytest.skip("this processor does not compute in bfloat16, and decoding in it is refused")
    spec = CodeSpec((3, 2), (1, 1), "little", "equal", (1, 2))
    torch.manual_seed(0)
    model = ARGenerator(ARConfig(1, 32, 2, mlp_multiple_of=32), spec, num_classes=2)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    every = torch.cartesian_prod(*(torch.arange(L) for L in (3, 2, 3, 2)))
    batch = type(make_batch(spec, 1))(spec, every.reshape(36, 1, 2, 2), torch.ones(36, dtype=torch.int64))
    expected = (-model.nll(batch)).exp()
    count = 20000
    drawn = model.sample(torch.ones(count, dtype=torch.int64), precision=precision, seed=1).indices.flatten(1)
    seen = (drawn @ torch.tensor([12, 6, 2, 1])).bincount(minlength=36)
    chi = float(((seen - count * expected) ** 2 / (count * expected)).sum())
    assert chi < 66.6  # 35 degrees of freedom: exceeded by chance once in 1000


def test_precision_is_chosen_by_size_and_place(monkeypatch):
    monkeypatch.setattr("ifsq.generators.ar.packing.has_bf16", lambda: True)
    small = make("joint")
    with torch.device("meta"):
        meta = ARGenerator(ARConfig(1, 32, 2), CASES["joint"][1], num_classes=3)
    assert precision_of(meta, "auto") is None
    assert precision_of(meta, "fp32") is None
    if torch.backends.mkldnn.is_available():
        large = ARGenerator(ARConfig(3, 512, 8), CASES["joint"][1], num_classes=3)
        assert precision_of(small, "auto") == "fp32"
        assert precision_of(large, "auto") == "bf16"
        assert precision_of(copy.deepcopy(small).bfloat16(), "auto") == "bf16"
        assert precision_of(large, "int8") == "int8"
        assert large.arithmetic(ARSampling()) == "bf16 weights"
        half = copy.deepcopy(small).bfloat16()
        assert half.arithmetic() == "bfloat16"
        assert half.arithmetic(ARSampling(precision="fp32")) == "float32"
    assert small.arithmetic(ARSampling()) == small.arithmetic() == "float32"


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_precision_that_cannot_be_is_refused(precision):
    model = make("joint")
    asked = {"precision": precision}
    with pytest.raises(InputError, match=f"precision='{precision}': expected auto or fp32 of weights in float64"):
        copy.deepcopy(model).double().sample(torch.tensor([0]), **asked)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(InputError, match=f"precision='{precision}': expected auto under autocast"),
    ):
        model.sample(torch.tensor([0]), **asked)
    model.layers[0].register_forward_pre_hook(lambda module, inputs: None)
    with pytest.raises(InputError, match=f"precision='{precision}': expected auto or fp32 of a network that hooks"):
        model.sample(torch.tensor([0]), **asked)


def test_float32_of_halves_that_decode_by_their_own_modules_is_refused():
    model = make("joint").bfloat16()
    model.layers[0].register_forward_pre_hook(lambda module, inputs: None)
    with pytest.raises(InputError, match="precision='fp32': expected auto of a network that hooks watch"):
        model.sample(torch.tensor([0]), precision="fp32")
    assert precision_of(model, "auto") is None


@packs
def test_a_processor_without_bf16_decodes_in_float32(monkeypatch):
    monkeypatch.setattr("ifsq.generators.ar.packing.has_bf16", lambda: False)
    large = ARGenerator(ARConfig(3, 512, 8), CASES["joint"][1], num_classes=3)
    assert precision_of(large, "auto") == "fp32"
    message = "precision='bf16': expected auto or fp32 or int8 on a processor without bfloat16"
    with pytest.raises(InputError, match=message):
        large.sample(torch.tensor([0]), precision="bf16")
    odd = packer("int8")(torch.randn(3, 7), None)
    assert type(odd) is OneDNNLinear
    assert odd.dtype == torch.float32


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision='fp16': expected one of auto, fp32, bf16, int8"):
        ARSampling(precision="fp16")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_graphs_draw_the_plain_tokens(case):
    model, labels = make(case).cuda(), torch.arange(24) % 3
    assert isinstance(steps_of(model, "auto"), GraphSteps)
    assert isinstance(steps_of(model, "bf16"), GraphSteps)
    assert next(model.parameters()).dtype == torch.float32
    for options in ({}, GUIDED):
        drawn = model.sample(labels, **options).indices
        assert torch.equal(drawn, plain_tokens(model, labels, **options))
    near = model.sample(labels, precision="bf16", greedy=True).indices == plain_tokens(model, labels, greedy=True)
    assert near.float().mean() > 0.5
    with pytest.raises(InputError, match="precision='int8': expected auto or fp32 or bf16 on cuda"):
        model.sample(labels, precision="int8")
