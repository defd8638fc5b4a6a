"""The autoregressive generator: what the official model computes, and what must hold of any."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ifsq.codes import CodeBatch, CodeSpec, LatentSpec
from ifsq.generators.ar import ARConfig, ARGenerator, ARSampling, HeadConfig
from ifsq.generators.ar.decode import decode
from ifsq.generators.ar.guidance import guidance_scales
from ifsq.generators.ar.steps import PlainSteps
from ifsq.generators.repa import Alignment, AlignmentConfig
from ifsq.interop.official.llamagen import from_official
from ifsq.pretrained.teachers import TeacherConfig

CLOSE = {"atol": 2e-5, "rtol": 1e-4}  # to numbers of other code
SAME = {"atol": 1e-5, "rtol": 1e-5}  # to ours of another shape
JOINT = CodeSpec((32,), (1,), "little", "equal", (4, 4))
PAIRS = CodeSpec((5, 5, 5, 5), (2, 2), "little", "paper", (4, 4))
WIDE = CodeSpec((5, 3, 5), (1, 1, 1), "little", "paper", (2, 3))  # a grid that is not square
CASES = {
    "joint": ("chain", CodeSpec((5, 3), (2,), "little", "paper", (2, 3))),
    "chain": ("chain", WIDE),
    "transformer": ("transformer", WIDE),
    "masked": ("masked", WIDE),
}


def official(golden, name, spec):
    """The golden file's model under our names, and its tensors."""
    tensors = golden(name)
    config = ARConfig(2, 64, 4, rope_class="zero", label_dropout=0.0, head=HeadConfig("transformer"))
    model = ARGenerator(config, spec, num_classes=10)
    state = {key[3:]: tensors.get_tensor(key) for key in tensors.keys() if key.startswith("sd/")}  # noqa: SIM118
    model.load_state_dict(from_official(state))
    return model, tensors.get_tensor, state


def make(case, *, rope_class="identity", seed=0, **options):
    """A small model with random weights everywhere, the zero-initialised output too."""
    head, spec = CASES[case]
    torch.manual_seed(seed)
    model = ARGenerator(
        ARConfig(2, 32, 4, mlp_multiple_of=8, head=HeadConfig(head), rope_class=rope_class, **options),
        spec,
        num_classes=3,
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    return model


def make_batch(spec, count, seed=0):
    rng = torch.Generator().manual_seed(seed)
    columns = [torch.randint(L, (count, *spec.grid), generator=rng) for L in spec.levels]
    labels = torch.randint(3, (count,), generator=rng)
    return CodeBatch(spec, torch.stack(columns, dim=-1), labels)


def projector(model, state, layer):
    """The official REPA projector on the output of a layer, and where what it saw will lie."""
    net = nn.Sequential(nn.Linear(64, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 24))
    net.load_state_dict({key[len("projectors.0.") :]: value for key, value in state.items() if "projectors" in key})
    seen = SimpleNamespace(out=None)
    layer.register_forward_hook(lambda module, inputs, output: setattr(seen, "out", net(output)))
    return net, seen


def spoken(model, labels, **options):
    """Greedy tokens, and the logits (b, t, v) of each group that they were chosen by."""
    logits = []
    groups = len(model.spec.groups)
    scales = guidance_scales(ARSampling(**options), model.spec.tokens, groups)
    tokens = decode(PlainSteps(model), labels, lambda x, *_: (logits.append(x), x.argmax(-1))[1], scales)
    return tokens, [torch.stack(logits[k::groups], dim=1) for k in range(groups)]


def test_official_logits_loss_and_gradients(golden):
    model, tensor, state = official(golden, "llamagen_tiny", JOINT)
    indices = tensor("in/idx")
    logits = model.logits(indices[..., None], tensor("in/y"))[0]
    assert torch.allclose(model.rope.table, tensor("freqs_cis"), **CLOSE)
    assert torch.allclose(logits, tensor("out/logits"), **CLOSE)
    batch = CodeBatch(JOINT, JOINT.indices_to_digits(indices.reshape(3, 4, 4, 1)), tensor("in/y"))
    losses, (states,), positions = model.training_pass(batch, torch.Generator(), depths=(1,))
    assert torch.allclose(losses["loss"], tensor("out/ar_loss")[0], **CLOSE)
    alignment = Alignment(AlignmentConfig((TeacherConfig("dinov2-vit-b"),), 1, 2.0, hidden=48), 64, (4, 4), (24,))
    alignment.load_state_dict({key: value for key, value in state.items() if key.startswith("projectors.")})
    assert torch.allclose(alignment.projectors[0](states), tensor("out/zs0"), **CLOSE)
    aligned = alignment(states, positions, [tensor("in/z_target")])
    assert torch.allclose(aligned, tensor("out/proj_loss")[0], atol=1e-5)
    (losses["loss"] + 2 * aligned).backward()
    for ours, theirs in (
        ("cls_embedding.embedding_table.weight",) * 2,
        ("layers.0.attention.qkv.weight", "layers.0.attention.wqkv.weight"),
        ("layers.1.feed_forward.w3.weight", "layers.1.feed_forward.w2.weight"),
        ("head.norm.weight", "norm.weight"),
        ("tok_embeddings.0.weight", "tok_embeddings.weight"),
    ):
        expected = tensor(f"grad_ar+2proj/{theirs}")
        assert torch.allclose(model.get_parameter(ours).grad, expected, atol=1e-4, rtol=1e-4), ours
    projected = alignment.get_parameter("projectors.0.0.weight").grad
    assert torch.allclose(projected, tensor("grad_ar+2proj/projectors.0.0.weight"), atol=1e-4, rtol=1e-4)


def test_official_factorized_logits_losses_and_gradients(golden):
    model, tensor, state = official(golden, "llamagen_tiny_factorized2", PAIRS)
    _, seen = projector(model, state, model.layers[0])
    indices = torch.stack([tensor("in/idx0"), tensor("in/idx1")], dim=-1)
    logits = model.logits(indices, tensor("in/y"))
    for k in range(2):
        assert torch.allclose(logits[k], tensor(f"out/logits{k}"), **CLOSE)
        loss = F.cross_entropy(logits[k].flatten(0, 1), indices[..., k].flatten())
        assert torch.allclose(loss, tensor(f"out/loss{k}")[0], **CLOSE)
    assert torch.allclose(seen.out, tensor("out/zs0"), **CLOSE)
    batch = CodeBatch(PAIRS, PAIRS.indices_to_digits(indices.reshape(3, 4, 4, 2)), tensor("in/y"))
    loss = model.loss(batch, torch.Generator())["loss"]
    assert torch.allclose(loss, tensor("out/loss_sum")[0], **CLOSE)
    loss.backward()
    for ours, theirs in (
        ("tok_embeddings.0.weight", "0_emb.weight"),
        ("tok_embeddings.1.weight", "1_emb.weight"),
        ("head.blocks.0.attention.qkv.weight", "factorized_blocks.0.attention.wqkv.weight"),
        ("layers.0.attention.qkv.weight", "layers.0.attention.wqkv.weight"),
        ("head.output.0.weight", "output.0.weight"),
    ):
        expected = tensor(f"grad/{theirs}")
        assert torch.allclose(model.get_parameter(ours).grad, expected, atol=1e-4, rtol=1e-4), ours


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("cfg1", {}),
        ("cfg2", {"guidance": 2.0}),
        ("cfg2_interval5", {"guidance": 2.0, "guidance_interval": 7}),
    ],
)
def test_official_greedy_tokens(golden, case, options):
    model, tensor, _ = official(golden, "llamagen_tiny", JOINT)
    tokens, logits = spoken(model, tensor("gen/cond"), **options)
    assert torch.equal(tokens[..., 0], tensor(f"gen/{case}/tokens"))
    assert torch.allclose(logits[0], tensor(f"gen/{case}/logits_per_step"), **CLOSE)
    sampled = model.sample(tensor("gen/cond"), greedy=True, **options)
    assert torch.equal(sampled.indices.flatten(1), tensor(f"gen/{case}/tokens"))


@pytest.mark.parametrize(("case", "guidance"), [("cfg1", 1.0), ("cfg2", 2.0)])
def test_official_factorized_greedy_tokens(golden, case, guidance):
    model, tensor, _ = official(golden, "llamagen_tiny_factorized2", PAIRS)
    tokens, logits = spoken(model, tensor("gen/cond"), guidance=guidance)
    assert torch.equal(tokens, tensor(f"gen/{case}/tokens"))
    for k in range(2):
        # The recorded logits come from the official cache, which differs from its own full pass by 1.2e-5, times 2.
        assert torch.allclose(logits[k], tensor(f"gen/{case}/logits{k}_per_step"), atol=4e-5, rtol=1e-4)


@pytest.mark.parametrize("rope_class", ["identity", "zero"])
@pytest.mark.parametrize("case", CASES)
def test_cached_sampling_equals_the_full_pass(case, rope_class):
    model = make(case, rope_class=rope_class).eval()
    labels, null = torch.tensor([0, 2]), torch.full((2,), 3)
    tokens, logits = spoken(model, labels, guidance=3.0, guidance_interval=4)
    full, unguided = model.logits(tokens, labels), model.logits(tokens, null)
    for k in range(len(full)):
        expected = torch.cat([unguided[k] + 3 * (full[k] - unguided[k])], dim=0)
        assert torch.allclose(logits[k][:, :4], expected[:, :4], **SAME)
        assert torch.allclose(logits[k][:, 4:], full[k][:, 4:], **SAME)


def check_steps(model, way):
    """Steps of one and of several tokens, and back, give the states of the full pass; returns both."""
    indices = model.spec.digits_to_indices(make_batch(model.spec, 3).content).flatten(1, 2)
    labels, wrong = torch.tensor([0, 3, 2]), torch.zeros_like(indices[:, :3])
    steps, states = way(model), model.states(indices, labels)
    with torch.no_grad():
        assert torch.allclose(steps.first(labels), states[:, 0], **SAME)
        steps.next(wrong)
        steps.rewind(0)
        assert torch.allclose(steps.next(indices[:, :2]), states[:, 1:3], **SAME)
        steps.keep_first(2)
        steps.next(wrong[:2])
        steps.rewind(2)
        assert torch.allclose(steps.next(indices[:2, 2:3]), states[:2, 3:4], **SAME)
        assert torch.allclose(steps.next(indices[:2, 3:5]), states[:2, 4:], **SAME)
    return steps, states


@pytest.mark.parametrize("case", CASES)
def test_steps_of_several_tokens_and_back_equal_the_full_pass(case):
    steps, states = check_steps(make(case).eval(), PlainSteps)
    with torch.no_grad():
        drawn = steps.draw(states[:2].flatten(0, 1), lambda logits, group: logits.argmax(-1))
        assert torch.equal(drawn[1], steps.draw(states[:1, 1], lambda logits, group: logits.argmax(-1))[0])


@pytest.mark.parametrize("case", CASES)
def test_prediction_sees_no_later_token_and_no_later_group(case):
    model = make(case).eval()
    spec = model.spec
    indices = spec.digits_to_indices(make_batch(spec, 1).content).flatten(1, 2)
    groups = indices.shape[-1]
    before = model.logits(indices, torch.tensor([1]))
    for place in range(groups * 3):  # change one index of the first three tokens
        t, g = divmod(place, groups)
        changed = indices.clone()
        changed[0, t, g] = (changed[0, t, g] + 1) % spec.vocab_sizes[g]
        for k, after in enumerate(model.logits(changed, torch.tensor([1]))):
            differs = ((after - before[k]).abs().amax(-1) > 1e-6)[0].tolist()
            expected = [(s, k) > (t, g) for s in range(spec.tokens)]
            assert differs == expected, (place, k)


@pytest.mark.parametrize("case", CASES)
def test_fresh_model_knows_nothing(case):
    head, spec = CASES[case]
    model = ARGenerator(ARConfig(2, 32, 4, mlp_multiple_of=8, head=HeadConfig(head)), spec, num_classes=3)
    losses = model.eval().loss(make_batch(spec, 5), torch.Generator())
    assert losses["loss"].item() == pytest.approx(math.log(math.prod(spec.levels)), abs=1e-5)
    assert losses["bits_per_token"].item() == pytest.approx(math.log2(math.prod(spec.levels)), abs=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_loss_falls_on_a_batch_it_can_learn_by_heart(case):
    head, spec = CASES[case]
    torch.manual_seed(0)
    model = ARGenerator(
        ARConfig(2, 32, 4, mlp_multiple_of=8, head=HeadConfig(head), label_dropout=0.0), spec, num_classes=3
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch, rng = make_batch(spec, 4), torch.Generator()
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model.loss(batch, rng)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_nll_is_the_log_probability_of_an_image_whatever_the_mode():
    model = make("chain", dropout=0.5, label_dropout=0.9)
    spec, batch = model.spec, make_batch(model.spec, 4)
    nll = model.nll(batch)
    assert model.training
    model.eval()
    indices = spec.digits_to_indices(batch.content).flatten(1, 2)
    log_p = torch.zeros(4)
    for k, logits in enumerate(model.logits(indices, batch.labels)):
        log_p += logits.log_softmax(-1).gather(-1, indices[..., k : k + 1]).sum(dim=(1, 2)).detach()
    assert torch.allclose(nll, -log_p, **CLOSE)
    assert torch.allclose(model.loss(batch, torch.Generator())["loss"], nll.mean() / spec.tokens, **CLOSE)


def test_probabilities_of_all_images_sum_to_one():
    spec = CodeSpec((3, 2), (1, 1), "little", "equal", (1, 2))
    torch.manual_seed(0)
    model = ARGenerator(ARConfig(1, 16, 2, mlp_multiple_of=8), spec, num_classes=2)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    every = torch.cartesian_prod(*(torch.arange(L) for L in (3, 2, 3, 2))).reshape(36, 1, 2, 2)
    nll = model.nll(CodeBatch(spec, every, torch.ones(36, dtype=torch.int64)))
    assert float((-nll).exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_label_dropout_only_in_training():
    model = make("joint", label_dropout=0.5)
    batch = make_batch(model.spec, 16)
    draws = [model.loss(batch, torch.Generator().manual_seed(seed))["loss"].item() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    model.eval()
    assert len({model.loss(batch, torch.Generator().manual_seed(seed))["loss"].item() for seed in range(3)}) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "mlp"}, "kind='mlp': expected one of chain, transformer, masked"),
        ({"depth": 0}, "depth=0: expected at least 1"),
        ({"width": 0}, "width=0: expected at least 1"),
    ],
)
def test_bad_config_of_a_head_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HeadConfig(**options)


@pytest.mark.parametrize("case", CASES)
def test_hidden_states_are_those_of_the_losss_pass(case):
    model = make(case, label_dropout=0.5)
    batch, seen = make_batch(model.spec, 6), []
    for layer in model.layers:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model.loss(batch, torch.Generator().manual_seed(3))
    for depth in (1, 2):
        states = model.hidden(batch, depth, torch.Generator().manual_seed(3))
        assert torch.equal(states, seen[depth - 1])
        assert states.requires_grad
    assert torch.equal(model.eval().hidden(batch, 1), model.hidden(batch, 1))
    for depth in (0, 3):
        with pytest.raises(ValueError, match=f"depth={depth}: expected 1 to 2, the blocks of the network"):
            model.hidden(batch, depth)


def test_a_head_owns_its_loss():
    model = make("transformer")
    state, indices = torch.randn(2, 6, 32), torch.randint(3, (2, 6, 3))
    nats = model.head.nats(state, indices)
    log_p = sum(
        logits.log_softmax(-1).gather(-1, indices[..., k : k + 1])[..., 0]
        for k, logits in enumerate(model.head.logits(state, indices))
    )
    assert torch.allclose(nats, -log_p, **CLOSE)
    assert not any("embeddings" in name for name, _ in model.head.named_parameters())  # the trunk's, by their own name


def test_head_width_that_rotary_positions_cannot_split_is_refused():
    with pytest.raises(ValueError, match=r"head width 6: .*multiple of 4"):
        ARGenerator(ARConfig(1, 12, 2), WIDE, num_classes=3)


def test_groups_too_large_for_a_softmax_are_refused():
    spec = CodeSpec((17,) * 8, (8,), "little", "paper", (2, 2))
    with pytest.raises(ValueError, match="a group of 6975757441 codes: expected at most 1048576; use smaller groups"):
        ARGenerator(ARConfig(1, 16, 2), spec, num_classes=3)


def test_the_numbers_of_a_codebook_are_one_group():
    spec = CodeSpec((7,), (1,), "little", "codebook", (2, 3))
    torch.manual_seed(0)
    model = ARGenerator(ARConfig(1, 16, 2, mlp_multiple_of=8), spec, num_classes=3)
    assert model.loss(make_batch(spec, 4), torch.Generator())["loss"].item() == pytest.approx(math.log(7), abs=1e-5)
    nn.init.normal_(model.head.output[0].weight, std=20.0)
    drawn = model.sample(torch.tensor([0, 1, 2]))
    assert drawn.codes is None
    assert drawn.indices.shape == (3, 2, 3, 1)
    assert len(drawn.indices.unique()) > 1
    assert 0 <= int(drawn.indices.min()) <= int(drawn.indices.max()) < 7


def test_groups_are_the_models_own_whatever_the_cache_has():
    model, joint = make("chain"), CodeSpec((5, 3, 5), (3,), "little", "paper", (2, 3))
    batch = make_batch(model.spec, 4)
    assert torch.equal(model.nll(CodeBatch(joint, batch.content, batch.labels)), model.nll(batch))


def test_latents_are_refused():
    with pytest.raises(ValueError, match=r"latents of 4 channels have no indices: expected digits .* for an autoreg"):
        ARGenerator(ARConfig(1, 16, 2), LatentSpec(4, (2, 2)), num_classes=3)


def test_transformer_head_needs_positions_for_its_groups():
    spec = CodeSpec((3, 3, 3), (1, 1, 1), "little", "equal", (1, 1))
    with pytest.raises(ValueError, match="3 groups: the transformer head on this grid takes 2"):
        ARGenerator(ARConfig(1, 16, 2, head=HeadConfig("transformer")), spec, num_classes=3)


@pytest.mark.parametrize("case", CASES)
def test_low_precision_keeps_losses_and_draws_in_float32(case):
    model = make(case).eval()
    batch = make_batch(model.spec, 4)
    high = model.loss(batch, torch.Generator())["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        low = model.loss(batch, torch.Generator())["loss"]
        model.sample(batch.labels, guidance=2.0)
    assert low.dtype == torch.float32
    assert torch.allclose(low, high, rtol=0.05)
    seen = []
    for scales in ([], [[2.0] * len(model.spec.groups)] * model.spec.tokens):
        steps = PlainSteps(model.bfloat16())
        decode(steps, batch.labels, lambda x, *_: (seen.append(x.dtype), x.argmax(-1))[1], scales)
    assert set(seen) == {torch.float32}
    assert torch.allclose(model.nll(batch), make(case).nll(batch), rtol=0.05)
