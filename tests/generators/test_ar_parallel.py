"""Parallel decoding: the tokens of plain decoding, in the passes that it says."""

import pytest
import torch
from torch import nn

from ifsq.codes import CodeSpec
from ifsq.config import InputError
from ifsq.generators.ar import ARConfig, ARGenerator, ARSampling, HeadConfig
from ifsq.generators.ar.guidance import guidance_scales
from ifsq.generators.ar.speculative import decode_parallel
from ifsq.generators.ar.steps import PlainSteps
from ifsq.generators.streams import uniforms

DIGITS = CodeSpec((7, 5, 6), (1, 1, 1), "little", "equal", (5, 7))
CASES = {
    "joint": ("chain", CodeSpec((7, 9), (2,), "little", "equal", (5, 7))),
    "chain": ("chain", DIGITS),
    "transformer": ("transformer", DIGITS),
    "masked": ("masked", DIGITS),
}
NEAR = 1e-5
"""A draw this near the next code may fall on either side of it where sums are rounded otherwise."""


def make(case="chain", grid=(5, 7), dtype=torch.float32, **options):
    """A network whose tokens hang on those before them, some more and some less, as of a trained one."""
    head, spec = CASES[case]
    spec = CodeSpec(spec.levels, spec.groups, spec.digit_order, spec.cells, grid)
    torch.manual_seed(0)
    model = ARGenerator(ARConfig(2, 32, 4, mlp_multiple_of=8, head=HeadConfig(head), **options), spec, num_classes=3)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    for output in model.head.output:  # loosely: a draft is often right whatever is drafted before it
        nn.init.normal_(output.weight, std=0.03)
    return model.to(dtype).eval()


def same_but_for_ties(model, one, other, seed, **options):
    """Whether two draws of labels 0, 1, 2, ... are alike up to the first draw that lies at the edge of a code."""
    spec, groups = model.spec, len(model.spec.groups)
    labels = torch.arange(len(one)) % 3
    numbers = uniforms(seed, 0, len(one), spec.tokens * groups).unflatten(1, (spec.tokens, groups))
    null = torch.full_like(labels, model.num_classes)
    scale = options.get("guidance", 1.0)
    with torch.no_grad():
        told, untold = (model.logits(one.flatten(1, 2), rows) for rows in (labels, null))
    ties = 0
    for row in (one != other).flatten(1).any(dim=1).nonzero()[:, 0].tolist():
        place, k = (one[row] != other[row]).flatten(0, 1).nonzero()[0].tolist()
        logits = untold[k][row, place] + scale * (told[k][row, place] - untold[k][row, place])
        sums = logits.double().softmax(dim=0).cumsum(dim=0)
        edge = (sums - numbers[row, place, k]).abs().min()
        assert edge < NEAR, f"image {row}, token {place}, group {k}: {edge} from the next code"
        ties += 1
    return ties <= len(one) // 4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance": 2.5, "temperature": 0.8},
        {"guidance": 3.0, "guidance_interval": 11, "top_p": 0.9},
        {"guidance": 4.0, "guidance_schedule": "linear", "min_p": 0.05},
        {"guidance": 2.0, "noise": "gumbel", "top_k": (20, 4, 3)},
        {"guidance": 2.0, "guidance_schedule": "power-cosine", "guidance_interval": 20, "greedy": True},
    ],
)
@pytest.mark.parametrize("case", CASES)
def test_the_tokens_are_those_of_plain_decoding(case, options):
    """In float64, whose rounding no draw is near enough to see: the logits are drawn from in float32."""
    model = make(case, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2])
    options = {name: value[: len(model.spec.groups)] if name == "top_k" else value for name, value in options.items()}
    plain = model.sample(labels, seed=1, **options)
    assert plain.passes is None
    for window in (3, 16):
        found = model.sample(labels, seed=1, parallel=window, **options)
        assert torch.equal(found.indices, plain.indices), window
        assert torch.equal(found.codes, plain.codes)
        assert 1 < found.passes <= model.spec.tokens


@pytest.mark.parametrize("case", CASES)
def test_in_float32_a_token_differs_at_most_where_its_draw_lies_at_the_edge_of_a_code(case):
    """1152 tokens a case, by packed weights where the processor has them."""
    model = make(case, grid=(12, 12))
    labels = torch.arange(8) % 3
    plain = model.sample(labels, seed=2, guidance=2.0)
    found = model.sample(labels, seed=2, guidance=2.0, parallel=8)
    assert found.passes < 0.6 * model.spec.tokens
    assert same_but_for_ties(model, plain.indices, found.indices, 2, guidance=2.0)


@pytest.mark.parametrize(
    "options", [{"class_tokens": 3}, {"qk_norm": True, "kv_heads": 2}, {"adaln": True}, {"rope_class": "zero"}]
)
def test_whatever_the_trunk_is(options):
    model = make(dtype=torch.float64, **options)
    labels = torch.tensor([0, 1, 2])
    plain = model.sample(labels, guidance=2.0, guidance_interval=17)
    found = model.sample(labels, guidance=2.0, guidance_interval=17, parallel=6)
    assert torch.equal(found.indices, plain.indices)


def test_an_image_is_the_same_beside_others():
    model = make(dtype=torch.float64)
    labels = torch.tensor([2, 0, 1, 1])
    whole = model.sample(labels, seed=4, guidance=2.0, parallel=8)
    for i in range(4):
        alone = model.sample(labels[i : i + 1], seed=4, first=i, guidance=2.0, parallel=8)
        assert torch.equal(alone.indices, whole.indices[i : i + 1])
        assert alone.passes <= whole.passes  # a batch waits for its slowest image


class Counted(PlainSteps):
    """Knows how many tokens each pass was given, and with how many rows."""

    def __init__(self, network):
        super().__init__(network)
        self.seen = []

    def first(self, labels):
        self.seen.append((len(labels), 1))
        return super().first(labels)

    def next(self, indices):
        self.seen.append(indices.shape[:2])
        return super().next(indices)


def counted(model, sampling, window):
    labels = torch.tensor([0, 1])
    groups = len(model.spec.groups)
    numbers = uniforms(0, 0, 2, model.spec.tokens * groups).unflatten(1, (model.spec.tokens, groups))
    steps = Counted(model)

    def choose(logits, first, group):
        count = len(logits) // 2
        level = numbers[:, first : first + count, group].flatten()[:, None]
        return (logits.softmax(dim=1).cumsum(dim=1) < level).sum(dim=1).clamp_max(logits.shape[1] - 1)

    scales = guidance_scales(sampling, model.spec.tokens, groups)
    return decode_parallel(steps, labels, choose, scales, window), steps.seen


def test_passes_are_counted_and_hold_no_more_than_the_window():
    model = make()
    drawn, seen = counted(model, ARSampling(2.0, guidance_interval=9), 6)
    assert drawn.tokens.shape == (2, 35, 3)
    assert drawn.passes == len(seen)
    assert max(tokens for _, tokens in seen) == 6
    guided = [rows for rows, _ in seen].index(2)
    assert [rows for rows, _ in seen] == [4] * guided + [2] * (len(seen) - guided)
    assert model.cost(ARSampling(2.0, guidance_interval=9, parallel=6)) == 35 + 9  # the most that it may take


def test_gumbel_noise_keeps_more_where_a_group_has_many_codes():
    model, labels = make("joint", grid=(8, 8)), torch.arange(4) % 3
    passes = [model.sample(labels, parallel=8, noise=noise).passes for noise in ("uniform", "gumbel")]
    assert passes[1] < 0.8 * passes[0]


def test_tokens_that_hang_on_none_before_them_are_drawn_a_window_at_a_time():
    """A window without drafts settles one token, the next all of its own: 7 tokens every second pass."""
    model = make()
    for table in model.tok_embeddings:
        nn.init.zeros_(table.weight)
    drawn, _ = counted(model, ARSampling(), 6)
    assert drawn.passes <= 1 + 2 * 5  # 34 tokens behind the first


@pytest.mark.parametrize("parallel", [1, -1])
def test_a_window_of_one_token_is_refused(parallel):
    with pytest.raises(ValueError, match=f"parallel={parallel}: expected 0 .* or at least 2 tokens"):
        make().sample(torch.tensor([0]), parallel=parallel)


def test_weights_that_are_not_finite_are_refused():
    model = make()
    with torch.no_grad():
        model.layers[1].feed_forward.w3.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="the logits are not finite numbers"):
        model.sample(torch.tensor([0, 1]), parallel=4)


def test_an_image_of_one_token():
    model = make(grid=(1, 1), dtype=torch.float64)
    found = model.sample(torch.tensor([0, 1]), parallel=4, guidance=2.0)
    assert torch.equal(found.indices, model.sample(torch.tensor([0, 1]), guidance=2.0).indices)
    assert found.passes == 1
