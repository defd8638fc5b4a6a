"""Options of the autoregressive trunk: what holds of each of them, and of all together."""

import pytest
import torch
from torch import nn

from ifsq.codes import CodeBatch, CodeSpec
from ifsq.generators import Generator
from ifsq.generators.ar import ARConfig, ARGenerator, HeadConfig
from ifsq.generators.ar.fast import steps_of
from ifsq.generators.ar.steps import PlainSteps
from ifsq.nn.modes import evaluating, exact_float32
from ifsq.training import parallel
from ifsq.training.optim import hidden_matrices

WIDE = CodeSpec((5, 3, 5), (1, 1, 1), "little", "paper", (2, 3))  # a grid that is not square
HEADS = {
    "joint": ("chain", CodeSpec((5, 3), (2,), "little", "paper", (3, 2))),
    "chain": ("chain", WIDE),
    "transformer": ("transformer", WIDE),
    "masked": ("masked", WIDE),
}
OPTIONS = {
    "none": {},
    "grouped": {"kv_heads": 2},
    "one key head": {"kv_heads": 1, "qk_norm": True},
    "qk-norm": {"qk_norm": True},
    "class tokens": {"class_tokens": 3},
    "zero class tokens": {"class_tokens": 2, "rope_class": "zero"},
    "adaln": {"adaln": True},
    "drops": {"drop_path": 0.5, "token_dropout": 0.3, "residual_dropout": 0.2, "mlp_dropout": 0.1},
    "random order": {"order": "random", "order_start": 1.0, "order_end": 1.0},
    "all": {"kv_heads": 2, "qk_norm": True, "class_tokens": 3, "adaln": True, "drop_path": 0.5, "dropout": 0.3}
    | {"order": "random"},
}
EXACT = {"atol": 1e-5, "rtol": 1e-5}


def make(head="chain", depth=2, **options):
    """A small model with random weights everywhere, those that begin at zero too."""
    kind, spec = HEADS[head]
    torch.manual_seed(0)
    config = ARConfig(depth, 32, 4, mlp_multiple_of=8, head=HeadConfig(kind), **options)
    model = ARGenerator(config, spec, num_classes=3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.15)
    return model


def some(model, count=4):
    """Indices (b, t, g) and labels, the null class among them."""
    spec, rng = model.spec, torch.Generator().manual_seed(1)
    columns = [torch.randint(size, (count, spec.tokens), generator=rng) for size in spec.vocab_sizes]
    return torch.stack(columns, dim=-1), torch.arange(count) % 4


def batch_of(model, count=4):
    indices, labels = some(model, count)
    digits = model.spec.indices_to_digits(indices.unflatten(1, model.spec.grid))
    return CodeBatch(model.spec, digits, labels % 3)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("options", OPTIONS)
def test_cached_steps_equal_the_full_pass_at_every_position(head, options):
    model = make(head, **OPTIONS[options])
    indices, labels = some(model)
    with evaluating(model):
        full = model.logits(indices, labels)
        steps = PlainSteps(model, whole=options == "all")
        states = [steps.first(labels)]
        for position in range(model.spec.tokens - 1):
            if position == 3:  # the first two rows alone, as where guidance ends
                steps.keep_first(2)
                indices = indices[:2]
            states.append(steps.next(indices[:, position : position + 1])[:, 0])
        for position, state in enumerate(states):
            rows = len(state)
            logits = model.head.logits(state[:, None], some(model)[0][:rows, position : position + 1])
            for ours, expected in zip(logits, full, strict=True):
                torch.testing.assert_close(ours[:, 0], expected[:rows, position], **EXACT)
        steps.rewind(1)  # and on again, by two tokens at once
        again = steps.next(indices[:, 1:3])
        torch.testing.assert_close(again, torch.stack([states[2][:2], states[3][:2]], dim=1), **EXACT)


@pytest.mark.parametrize("options", OPTIONS)
def test_the_decoding_copy_is_in_the_plain_states_at_every_position(options):
    model = make("transformer", **OPTIONS[options])
    indices, labels = some(model)
    with evaluating(model):
        plain, fast = PlainSteps(model), steps_of(model, "fp32")
        torch.testing.assert_close(fast.first(labels), plain.first(labels), atol=1e-4, rtol=1e-5)
        for position in range(model.spec.tokens - 1):
            if position == 3:
                plain.keep_first(2), fast.keep_first(2)
                indices = indices[:2]
            token = indices[:, position : position + 1]
            torch.testing.assert_close(fast.next(token), plain.next(token), atol=1e-4, rtol=1e-5)
        plain.rewind(1), fast.rewind(1)
        torch.testing.assert_close(fast.next(indices[:, 1:3]), plain.next(indices[:, 1:3]), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_token_is_told_the_class_and_the_tokens_before_it(options):
    model = make("joint", **OPTIONS[options]).eval()
    indices, labels = some(model)
    before = model.logits(indices, labels)[0]
    for place in range(model.spec.tokens):
        changed = indices.clone()
        changed[:, place] = (changed[:, place] + 1) % 15
        after = model.logits(changed, labels)[0]
        differs = (after - before).abs().amax((0, 2)) > 1e-6
        assert differs.tolist() == [position > place for position in range(model.spec.tokens)]
    other = model.logits(indices, (labels + 1) % 4)[0]
    assert bool(((other - before).abs().amax(-1) > 1e-6).all())


@pytest.mark.parametrize("options", OPTIONS)
def test_a_fresh_model_knows_nothing_and_learns(options):
    kind, spec = HEADS["chain"]
    torch.manual_seed(0)
    config = ARConfig(2, 32, 4, mlp_multiple_of=8, head=HeadConfig(kind), label_dropout=0.0, **OPTIONS[options])
    model = ARGenerator(config, spec, num_classes=3)
    batch, optimizer = batch_of(model), torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model.loss(batch, torch.Generator())["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(torch.tensor([5.0, 3.0, 5.0]).log().sum().item(), abs=1e-5)
    assert losses[-1] < 0.9 * losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("options", OPTIONS)
def test_a_saved_model_is_the_same_again(options, tmp_path):
    model = make("transformer", **OPTIONS[options]).eval()
    model.save_pretrained(tmp_path)
    again = Generator.from_pretrained(tmp_path)
    assert again.config == model.config
    for ours, expected in zip(again.logits(*some(model)), model.logits(*some(model)), strict=True):
        assert torch.equal(ours, expected)


def test_a_description_of_before_these_options_builds_what_it_was():
    model = make("chain", dropout=0.1)
    described = model.describe()
    before = ("depth", "width", "heads", "mlp_multiple_of", "dropout", "label_dropout", "rope_base", "rope_class")
    described["config"] = {key: described["config"][key] for key in (*before, "initializer_range", "head")}
    again = Generator.from_description(described, "here")
    assert again.config == model.config
    assert [(k, v.shape) for k, v in again.state_dict().items()] == [
        (k, v.shape) for k, v in model.state_dict().items()
    ]


@pytest.mark.parametrize("options", ["none", "all"])
def test_an_image_is_its_own_whatever_the_batch(options):
    model = make("transformer", **OPTIONS[options])
    labels = torch.tensor([0, 1, 2, 1])
    drawn = model.sample(labels, seed=3, guidance=2.0, guidance_interval=4)
    assert drawn.indices.shape == (4, 2, 3, 3)
    assert drawn.codes.shape == (4, 3, 2, 3)
    for number in range(4):
        alone = model.sample(labels[number : number + 1], seed=3, first=number, guidance=2.0, guidance_interval=4)
        assert torch.equal(alone.indices[0], drawn.indices[number])


def test_adaln_blocks_begin_as_the_identity_and_their_modulations_are_no_hidden_matrices():
    torch.manual_seed(0)
    model = ARGenerator(ARConfig(2, 32, 4, mlp_multiple_of=8, adaln=True), WIDE, num_classes=3)
    x, condition = torch.randn(2, 6, 32), torch.randn(2, 32)
    assert torch.equal(model.trunk(x, condition=condition), x)
    hidden = {id(parameter) for parameter in hidden_matrices(model)}
    by_name = dict(model.named_parameters())
    assert id(by_name["layers.0.attention.qkv.weight"]) in hidden
    assert id(by_name["layers.0.adaLN_modulation.1.weight"]) not in hidden
    assert not any("adaLN" in name for name in by_name if name.startswith("head."))


def test_adaln_is_the_written_out_formula():
    model = make("joint", depth=1, adaln=True).eval()
    block, x, condition = model.layers[0], torch.randn(2, 6, 32), torch.randn(2, 32)
    parts = block.adaLN_modulation[1](condition * condition.sigmoid())[:, None].chunk(6, dim=-1)
    attended = block.attention(block.attention_norm(x) * (1 + parts[1]) + parts[0], model.rope, causal=True)
    y = x + parts[2] * attended
    y = y + parts[5] * block.feed_forward(block.ffn_norm(y) * (1 + parts[4]) + parts[3])
    torch.testing.assert_close(model.trunk(x, condition=condition), y, **EXACT)
    torch.testing.assert_close(model.trunk(x, modulations=[block.modulated_by(condition)]), y, **EXACT)


@pytest.mark.parametrize("part", ["token", "residual", "mlp"])
def test_each_dropout_drops_its_own_part(part):
    model, seen = make("joint", depth=1, adaln=True, **{f"{part}_dropout": 0.4}).train(), {}
    block = model.layers[0]
    places = {"token": model.dropout, "residual": block.attention_dropout, "mlp": block.ffn_dropout}
    for name, module in places.items():
        module.register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({name: (output == 0).float().mean()})
        )
    indices, labels = some(model, 64)
    model.states(indices, labels)
    for name, zeros in seen.items():
        assert float(zeros) == pytest.approx(0.4 if name == part else 0.0, abs=0.02)


def test_token_dropout_leaves_what_modulates_alone():
    model = make("joint", adaln=True, token_dropout=0.9).train()
    seen = []
    model.layers[0].adaLN_modulation.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    indices, labels = some(model)
    model.states(indices, labels)
    assert torch.equal(seen[0], model.prefix(labels)[:, 0])


def test_drop_path_rises_linearly_and_drops_whole_images():
    model = make("joint", depth=5, drop_path=0.4)
    rates = [getattr(block.drop_path, "rate", 0.0) for block in model.layers]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    block, x = make("joint", depth=2, drop_path=0.5).train().layers[1], torch.randn(400, 6, 32)
    rope = model.rope
    out = block(x, rope)
    untouched = (out == x).all(dim=(1, 2)).float().mean()
    assert float(untouched) == pytest.approx(0.25, abs=0.09)  # attention and MLP are drawn apart
    assert not bool((block.eval()(x, rope) == x).all(dim=(1, 2)).any())


def test_class_tokens_are_embeddings_before_the_grid():
    model = make("joint", depth=1, class_tokens=3).eval()
    indices, labels = some(model)
    prefix = model.prefix(labels)
    assert prefix.shape == (4, 3, 32)
    assert torch.equal(prefix[1].flatten(), model.cls_embedding.embedding_table.weight[1])
    x = torch.cat([prefix, model.embed(indices[:, :-1])], dim=1)
    assert torch.equal(model.rope.table[:3], torch.tensor([1.0, 0.0]).expand(3, 4, 2))  # no turn
    assert torch.equal(model.states(indices, labels), model.layers[0](x, model.rope)[:, 2:])
    assert model.hidden(batch_of(model), 1).shape == (4, 6, 32)


def test_the_official_head_keeps_its_positions_whatever_the_class_tokens():
    several, one = make("transformer", class_tokens=4, rope_class="zero"), make("transformer", rope_class="zero")
    assert torch.equal(several.head.rope.table, one.head.rope.table)
    assert one.head.rope is one.rope


def test_logits_of_tokens_with_one_group_and_with_several():
    model = make("joint").eval()
    indices, labels = some(model)
    flat = model.logits(indices[..., 0], labels)
    assert [tuple(part.shape) for part in flat] == [(4, 6, 15)]
    assert torch.equal(flat[0], model.logits(indices, labels)[0])
    begun = model.logits(indices[:, :4], labels)[0]
    torch.testing.assert_close(begun, flat[0][:, :4], **EXACT)
    several = make("chain").eval()
    assert [tuple(part.shape) for part in several.logits(*some(several))] == [(4, 6, 5), (4, 6, 3), (4, 6, 5)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, y: (i[..., 0], y), r"indices of shape \(4, 6\): expected \(b, 6, 3\), or the first of these tokens"),
        (lambda i, y: (i[..., :2], y), r"indices of shape \(4, 6, 2\): expected \(b, 6, 3\)"),
        (lambda i, y: (i.repeat(1, 2, 1), y), r"indices of shape \(4, 12, 3\): expected \(b, 6, 3\)"),
        (lambda i, y: (i[:, :0], y), r"indices of shape \(4, 0, 3\): expected \(b, 6, 3\)"),
        (lambda i, y: (i, y + 1), "label 4: expected 0 to 3, the null class"),
        (lambda i, y: (i, y - 1), "label -1: expected 0 to 3, the null class"),
        (lambda i, y: (i + torch.tensor([0, 3, 0]), y), r"index [345] in group 1: expected 0 to 2"),
        (lambda i, y: (i - 5, y), r"index -\d in group 0: expected 0 to 4"),
    ],
)
def test_indices_that_do_not_fit_are_refused(change, message):
    model = make("chain")
    with pytest.raises(ValueError, match=message):
        model.logits(*change(*some(model)))


@pytest.mark.parametrize("grid", [(2, 5), (5, 2), (1, 7)])
def test_tokens_land_where_they_belong_on_grids_that_are_not_square(grid):
    """Class 0 holds each code's row, class 1 its column; both are drawn after a short training."""
    torch.manual_seed(0)
    spec = CodeSpec((7,), (1,), "little", "equal", grid)
    config = ARConfig(1, 32, 4, mlp_multiple_of=8, label_dropout=0.0, **OPTIONS["class tokens"], qk_norm=True)
    model = ARGenerator(config, spec, num_classes=2)
    row, column = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    batch = CodeBatch(spec, torch.stack([row, column])[..., None], torch.tensor([0, 1]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(batch, torch.Generator())["loss"].backward()
        optimizer.step()
    drawn = model.sample(torch.tensor([1, 0]), greedy=True, guidance=1.5)
    assert torch.equal(drawn.indices[..., 0], torch.stack([column, row]))
    assert torch.equal(drawn.codes, spec.digits_to_codes(drawn.indices))


def test_grouped_queries_train_in_bf16():
    model = make("chain", **OPTIONS["all"])
    high = model.eval().loss(batch_of(model), torch.Generator())["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        low = model.loss(batch_of(model), torch.Generator())["loss"]
    low.backward()
    assert torch.allclose(low, high, rtol=0.05)
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", OPTIONS)
def test_an_accelerator_trains_and_decodes_with_every_option(options):
    check_on("cuda", options)


def check_on(device, options):
    """Whole caches against the full pass, and a training step in bf16 whose blocks run again."""
    model = make("transformer", **OPTIONS[options]).to(device)
    indices, labels = (tensor.to(device) for tensor in some(model))
    with evaluating(model), exact_float32():
        steps = PlainSteps(model, whole=True)
        states = [steps.first(labels)]
        states += [steps.next(indices[:, t : t + 1])[:, 0] for t in range(model.spec.tokens - 1)]
        full = model.states(indices, labels)
    torch.testing.assert_close(torch.stack(states, dim=1), full, atol=1e-4, rtol=1e-4)
    parallel.recompute(model)
    digits = model.spec.indices_to_digits(indices.unflatten(1, model.spec.grid))
    with torch.autocast(device, torch.bfloat16):
        loss = model.loss(CodeBatch(model.spec, digits, labels % 3), torch.Generator(device))["loss"]
    loss.backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters())
