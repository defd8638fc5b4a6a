"""Drawing indices: the filters against the official ones, the draw against its distribution, seeds and refusals."""

import math

import pytest
import torch

from ifsq.codes.spec import CodeSpec
from ifsq.config import InputError
from ifsq.generators.ar import ARConfig, ARGenerator, ARSampling
from ifsq.generators.ar.draw import draw
from ifsq.generators.ar.guidance import guidance_scales, guide
from ifsq.generators.categorical import filter_logits
from ifsq.generators.streams import gumbels

SPEC = CodeSpec((17, 17), (1, 1), "little", "equal", (3, 2))


@pytest.fixture
def model():
    torch.manual_seed(0)
    generator = ARGenerator(ARConfig(1, 16, 2, mlp_multiple_of=8, dropout=0.5), SPEC, num_classes=3)
    for output in generator.head.output:
        torch.nn.init.normal_(output.weight)
    return generator


def numbers(count):
    return torch.rand(count, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.7), (100, 0.9), (10, 0.5), (5, 1.0)])
def test_official_filters(golden, top_k, top_p):
    tensor = golden("llamagen_sampling").get_tensor
    name = f"k{top_k}_p{str(top_p).replace('.', '').removesuffix('0') if top_p < 1 else 1}"
    assert torch.equal(filter_logits(tensor("logits"), top_k, top_p), tensor(f"filtered/{name}"))
    for temperature in (0.5, 1.0, 1.7):
        probabilities = filter_logits(tensor("logits") / temperature, top_k, top_p).softmax(-1)
        assert torch.allclose(probabilities, tensor(f"probs/{name}_t{temperature}"), atol=2e-5, rtol=1e-4)


def test_top_k_keeps_ties_and_top_p_the_code_that_passes():
    logits = torch.tensor([[0.0, 1.0, 1.0, 2.0]])
    assert filter_logits(logits, 2, 1.0).isfinite().tolist() == [[False, True, True, True]]
    halves = torch.tensor([[0.6, 0.3, 0.1]]).log()
    assert filter_logits(halves, 0, 0.7).isfinite().tolist() == [[True, True, False]]
    assert filter_logits(halves, 0, 0.01).isfinite().tolist() == [[True, False, False]]


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.7), (30, 1.0), (30, 0.9), (0, 1e-9), (99, 0.999)])
@pytest.mark.parametrize("steps", [1.0, 1e3])  # among whole numbers many codes tie
def test_filters_remove_what_a_stable_order_of_all_codes_removes(top_k, top_p, steps):
    logits = (torch.randn(200, 100, generator=torch.Generator().manual_seed(0)) * steps).round() / steps
    expected = logits
    if top_k:
        expected = expected.masked_fill(expected < expected.topk(top_k).values[:, -1:], -torch.inf)
    ordered, order = expected.sort(dim=-1, descending=True, stable=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    removed = torch.zeros(200, 100, dtype=torch.bool).scatter(-1, order, before > top_p)
    expected = expected.masked_fill(removed & (top_p < 1), -torch.inf)
    assert torch.equal(filter_logits(logits, top_k, top_p), expected)
    doubled = filter_logits(logits.double(), top_k, top_p)  # by torch alone
    assert torch.equal(doubled.isfinite(), expected.isfinite())


def test_draw_follows_the_tempered_distribution():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    drawn = draw(logits.expand(40000, 4), ARSampling(temperature=0.5), numbers(40000))
    share = drawn.bincount(minlength=4) / 40000
    expected = torch.tensor([1.0, 4.0, 9.0, 16.0]) / 30
    assert torch.allclose(share, expected, atol=0.01)


def test_removed_codes_are_never_drawn_at_either_end():
    logits = torch.tensor([0.0, 5.0, 4.0, 0.0]).expand(2000, 4)
    drawn = draw(logits, ARSampling(top_k=2), numbers(2000))
    assert set(drawn.tolist()) == {1, 2}
    assert set(draw(logits, ARSampling(greedy=True), numbers(2000)).tolist()) == {1}


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-24])
def test_extreme_random_numbers_stay_in_the_codebook(uniform):
    logits = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0))
    logits[:, :3] = logits[:, -3:] = -torch.inf
    drawn = draw(logits, ARSampling(), torch.full((64,), uniform))
    assert logits.gather(1, drawn[:, None]).isfinite().all()


@pytest.mark.parametrize("temperature", [1e-3, 1e-37, 1e-38, 1e-45, 5e-324])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e30])
def test_a_small_temperature_is_the_mode(temperature, scale):
    logits = torch.randn(64, 100, generator=torch.Generator().manual_seed(0)) * scale
    if temperature < 1e-3 * scale:
        assert torch.equal(draw(logits, ARSampling(temperature=temperature), numbers(64)), logits.argmax(dim=1))
    ties = torch.tensor([1.0, 3.0, 2.0, 3.0]).mul(scale).expand(64, 4)
    if temperature < 1e-3 * scale:
        assert draw(ties, ARSampling(temperature=temperature), numbers(64)).unique().tolist() == [1, 3]


@pytest.mark.parametrize("temperature", [1e38, 1e300, float("inf")])
def test_a_large_temperature_is_even(temperature):
    logits = torch.tensor([-9.0, 5.0, 4.0, 0.0]).expand(4000, 4)
    drawn = draw(logits, ARSampling(temperature=temperature), numbers(4000)).bincount(minlength=4) / 4000
    assert (drawn - 0.25).abs().max() < 0.03


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-45}, {"top_p": 1e-3}, {"top_k": 1, "top_p": 0.5}])
@pytest.mark.parametrize("temperature", [1e-45, 1.0, 1e300])
def test_what_keeps_one_code_keeps_the_most_likely(options, temperature):
    logits = torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
    if temperature < 1e300 or "top_k" in options:  # which ranks before the temperature evens them out
        assert torch.equal(
            draw(logits, ARSampling(temperature=temperature, **options), numbers(64)), logits.argmax(dim=1)
        )


@pytest.mark.parametrize("options", [{"top_k": 100}, {"top_k": 10**30}, {"top_p": 1.0}])
def test_what_keeps_all_changes_nothing(options):
    logits = torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(logits, ARSampling(**options), numbers(64)), draw(logits, ARSampling(), numbers(64)))


def test_a_row_does_not_see_its_neighbours():
    logits = torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
    whole = draw(logits, ARSampling(1.0, 0.7, 30, 0.9), numbers(64))
    assert [
        int(draw(logits[i : i + 1], ARSampling(1.0, 0.7, 30, 0.9), numbers(64)[i : i + 1])) for i in range(64)
    ] == whole.tolist()


def test_min_p_keeps_what_is_likely_enough_beside_the_most_likely():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(4000, 4)
    for min_p, kept in ((0.0, 4), (0.09, 4), (0.2, 3), (0.5, 2), (0.99, 1)):
        assert draw(logits, ARSampling(min_p=min_p), numbers(4000)).unique().tolist() == list(range(kept))
    tempered = draw(logits, ARSampling(temperature=0.5, min_p=0.5), numbers(4000))  # the ratios are squared
    assert tempered.unique().tolist() == [0]
    shares = draw(logits, ARSampling(min_p=0.5), numbers(4000)).bincount() / 4000
    assert torch.allclose(shares, torch.tensor([0.625, 0.375]), atol=0.02)
    together = draw(logits, ARSampling(top_k=3, top_p=0.6, min_p=1e-45), numbers(4000))
    assert together.unique().tolist() == [0, 1]


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("codes", [2, 289, 16384])
def test_the_place_is_found_by_halving_where_a_comparison_of_all_finds_it(rows, codes):
    """Sums on a CPU rise everywhere: the first that passes the level is where the index lies."""
    rng = torch.Generator().manual_seed(codes)
    logits = torch.randn(rows, codes, generator=rng) * 4
    logits[:, codes // 3 : codes // 2] = -torch.inf
    for step in range(50):
        level = torch.rand(rows, generator=rng) if step else torch.full((rows,), 1 - 2**-24)
        probabilities = (logits - logits.amax(dim=1, keepdim=True)).softmax(dim=1)
        sums = probabilities.cumsum(dim=1)
        bound = torch.minimum(level[:, None] * sums[:, -1:], sums[:, -1:].nextafter(torch.zeros(1)))
        expected = ((sums > bound) & (probabilities > 0)).int().argmax(dim=1)
        assert torch.equal(draw(logits, ARSampling(), level), expected)


def test_the_greatest_gumbel_sum_follows_the_distribution():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(40000, 4)
    noise = gumbels(0, 0, 1, 0, 160000).view(40000, 4)
    for options, expected in (
        ({}, [0.1, 0.2, 0.3, 0.4]),
        ({"temperature": 0.5}, [1 / 30, 4 / 30, 9 / 30, 16 / 30]),
        ({"top_k": 2}, [0.0, 0.0, 3 / 7, 4 / 7]),
        ({"top_p": 0.65}, [0.0, 0.0, 3 / 7, 4 / 7]),
        ({"min_p": 0.6}, [0.0, 0.0, 3 / 7, 4 / 7]),
        ({"greedy": True}, [0.0, 0.0, 0.0, 1.0]),
    ):
        share = draw(logits, ARSampling(noise="gumbel", **options), noise).bincount(minlength=4) / 40000
        assert torch.allclose(share, torch.tensor(expected), atol=0.01), options


def test_gumbel_noise_draws_other_images_of_the_same_seed(model):
    labels = torch.tensor([0, 1, 2])
    whole = model.sample(labels, seed=5, guidance=2.0, noise="gumbel")
    assert torch.equal(
        model.sample(labels[1:], seed=5, first=1, guidance=2.0, noise="gumbel").indices, whole.indices[1:]
    )
    assert not torch.equal(model.sample(labels, seed=5, guidance=2.0).indices, whole.indices)
    assert not torch.equal(model.sample(labels, seed=6, guidance=2.0, noise="gumbel").indices, whole.indices)
    assert ARSampling(noise="gumbel").sampler.endswith("noise gumbel")


def test_a_group_is_drawn_by_its_own_options():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(2000, 4)
    sampling = ARSampling(
        temperature=(1.0, 1e-3, 1.0, 1.0, 1.0),
        top_k=(0, 0, 2, 0, 0),
        top_p=[1.0, 1.0, 1.0, 0.9, 1.0],
        greedy=(False, False, False, False, True),
    )
    assert sampling == ARSampling(**{**vars(sampling), "top_p": (1.0, 1.0, 1.0, 0.9, 1.0)})  # a list is as good
    seen = [draw(logits, sampling, numbers(2000), group).unique().tolist() for group in range(5)]
    assert seen == [[0, 1, 2, 3], [0], [0, 1], [0, 1, 2], [0]]
    many = draw(logits, ARSampling(min_p=(0.2, 0.0)), numbers(2000), 0).unique().tolist()
    assert many == [0, 1, 2]


def test_options_of_one_group_are_those_of_all(model):
    labels = torch.tensor([0, 1, 2])
    one = {"guidance": 2.0, "temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.01}
    whole = model.sample(labels, seed=3, **one)
    assert torch.equal(model.sample(labels, seed=3, **{k: (v, v) for k, v in one.items()}).indices, whole.indices)
    other = model.sample(labels, seed=3, **one | {"temperature": (0.7, 5.0)})
    assert torch.equal(other.indices[:, 0, 0, 0], whole.indices[:, 0, 0, 0])  # drawn before anything differs
    assert not torch.equal(other.indices, whole.indices)


def test_a_group_without_guidance_is_told_the_class_alone(model):
    """Both groups of the first token by hand."""
    labels, null = torch.tensor([0, 1, 2]), torch.full((3,), 3)
    drawn = model.sample(labels, greedy=True, guidance=(1.0, 5.0)).indices.flatten(1, 2)
    model.eval()
    first, second = (model.logits(drawn, rows) for rows in (labels, null))
    assert torch.equal(drawn[:, 0, 0], first[0][:, 0].argmax(dim=1))
    guided = second[1] + 5 * (first[1] - second[1])
    assert torch.equal(drawn[:, 0, 1], guided[:, 0].argmax(dim=1))
    assert model.cost(ARSampling((1.0, 5.0))) == 12
    assert model.cost(ARSampling((1.0, 1.0))) == 6


@pytest.mark.parametrize("guidance", [1e30, 1e37, 1.7e308])
def test_a_huge_guidance_takes_the_code_that_the_class_adds_most_to(model, guidance):
    logits = torch.randn(8, 100, generator=torch.Generator().manual_seed(0))
    ((scale,),) = guidance_scales(ARSampling(guidance), 1, 1)
    guided = guide(logits, [scale])
    assert guided.isfinite().all()
    assert torch.equal(draw(guided, ARSampling(), numbers(4)), (logits[:4] - logits[4:]).argmax(dim=1))
    assert model.sample(torch.tensor([0, 1]), guidance=guidance).codes.isfinite().all()


def test_guidance_extrapolates_from_the_null_half():
    logits = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    assert guide(logits, [2.0]).tolist() == [[5.0, -1.0]]
    assert guide(logits, [0.0]).tolist() == [[1.0, 1.0]]


def test_tokens_side_by_side_are_guided_by_their_own_scales():
    logits = torch.randn(2 * 4 * 3, 7, generator=torch.Generator().manual_seed(0))  # of 4 images with 3 tokens
    scales = [1.0, 2.5, 0.3]
    whole = guide(logits, scales).unflatten(0, (4, 3))
    for i, scale in enumerate(scales):
        assert torch.equal(whole[:, i], guide(logits[i::3], [scale]))


def test_the_scale_rises_as_its_schedule_says():
    assert guidance_scales(ARSampling(3.0), 4, 1) == [[3.0]] * 4
    assert guidance_scales(ARSampling(3.0, guidance_schedule="linear"), 4, 1) == [[1.0], [1.5], [2.0], [2.5]]
    rising = ARSampling(16.0, guidance_schedule="power-cosine")
    # As in the released sampler of RAR: over the share of the tokens that are drawn, to its power.
    expected = [15.0 * (1 - torch.cos((torch.tensor(i / 256) ** 2.75) * torch.pi)) / 2 + 1 for i in range(256)]
    scales = guidance_scales(rising, 256, 2)
    assert scales[0] == [1.0, 1.0]
    torch.testing.assert_close(torch.tensor(scales), torch.stack([torch.stack(expected)] * 2, dim=1))
    flat = ARSampling(16.0, guidance_schedule="power-cosine", guidance_power=1.0)
    assert guidance_scales(flat, 4, 1)[2][0] == pytest.approx(1 + 15 / 2)
    assert guidance_scales(ARSampling((1.0, 3.0), guidance_schedule="linear"), 2, 2) == [[1.0, 1.0], [1.0, 2.0]]


def test_the_scale_rises_over_the_guided_tokens():
    linear = ARSampling(3.0, guidance_schedule="linear", guidance_interval=2)
    assert guidance_scales(linear, 8, 1) == [[1.0], [2.0]]
    assert guidance_scales(ARSampling(3.0, guidance_schedule="linear", guidance_interval=1), 8, 1) == []
    assert guidance_scales(ARSampling(3.0, guidance_interval=0), 8, 1) == []
    assert guidance_scales(ARSampling(1.0, guidance_schedule="power-cosine"), 8, 1) == []


@pytest.mark.parametrize("schedule", ["linear", "power-cosine"])
def test_a_rising_scale_in_sampling(model, schedule):
    """Greedy tokens against the full pass; the null class goes along from the start, also where the scale is 1."""
    rows = []
    model.layers[0].register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    sampling = ARSampling(6.0, greedy=True, guidance_schedule=schedule, guidance_interval=4)
    labels, null = torch.tensor([0, 1, 2]), torch.full((3,), 3)
    drawn = model.sample(labels, sampling).indices.flatten(1, 2)
    assert rows == [6] * 4 + [3] * 2
    assert model.cost(sampling) == 10
    model.eval()
    for k, (told, untold) in enumerate(zip(model.logits(drawn, labels), model.logits(drawn, null), strict=True)):
        for i in range(6):
            x = i / 4 if schedule == "linear" else (1 - math.cos(math.pi * (i / 4) ** 2.75)) / 2
            scale = 1 + 5 * x if i < 4 else 1.0
            logits = untold[:, i] + scale * (told[:, i] - untold[:, i])
            assert torch.equal(drawn[:, i, k], logits.argmax(dim=1)), (i, k)


def test_same_seed_same_codes(model):
    labels = torch.tensor([0, 1, 2])
    first, again, other = (model.sample(labels, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(first.indices, again.indices)
    assert torch.equal(first.codes, again.codes)
    assert not torch.equal(first.indices, other.indices)


def test_global_randomness_plays_no_part(model):
    labels = torch.tensor([0, 1, 2])
    first = model.sample(labels)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(model.sample(labels).indices, first.indices)
    assert torch.equal(torch.get_rng_state(), state)


def test_sample_is_two_views_of_the_same_digits(model):
    sampled = model.sample(torch.tensor([0, 1]), guidance=2.0, top_k=5, top_p=0.9)
    assert sampled.indices.shape == (2, 3, 2, 2)
    assert sampled.indices.dtype == torch.int64
    assert sampled.codes.shape == (2, 2, 3, 2)
    assert torch.equal(SPEC.digits_to_indices(SPEC.codes_to_digits(sampled.codes)), sampled.indices)


def test_sampling_leaves_the_training_mode(model):
    model.head.eval()
    assert not model.sample(torch.tensor([0])).codes.requires_grad
    assert model.training
    assert not model.head.training


def test_guidance_changes_the_sample_and_one_is_none(model):
    labels = torch.tensor([0, 1, 2])
    plain = model.sample(labels, seed=1)
    assert torch.equal(model.sample(labels, seed=1, guidance=1.0, guidance_interval=3).indices, plain.indices)
    assert torch.equal(model.sample(labels, seed=1, guidance=4.0, guidance_interval=0).indices, plain.indices)
    assert not torch.equal(model.sample(labels, seed=1, guidance=4.0).indices, plain.indices)


def test_half_of_the_batch_is_dropped_after_the_interval(model):
    rows = []
    model.layers[0].register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    model.sample(torch.tensor([0, 1]), guidance=2.0, guidance_interval=4)
    assert rows == [4, 4, 4, 4, 2, 2]
    assert model.cost(ARSampling(2.0, guidance_interval=4)) == sum(rows) / 2
    assert model.cost(ARSampling(2.0)) == model.cost(ARSampling(2.0, guidance_interval=99)) == 12
    assert model.cost(ARSampling()) == 6
    rows.clear()
    model.sample(torch.tensor([0, 1]))
    assert rows == [2] * 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0: expected a positive number"),
        ({"temperature": -1.0}, "temperature=-1.0: expected a positive number"),
        ({"temperature": math.nan}, "temperature=nan: expected a positive number"),
        ({"temperature": (1.0, 0.0)}, r"temperature=\[1.0, 0.0\]: expected for each group a positive number"),
        ({"temperature": ()}, r"temperature=\[\]: expected for each group"),
        ({"temperature": (1.0, 1.0, 1.0)}, r"temperature=\[1.0, 1.0, 1.0\]: expected one value, or 2, one a group"),
        ({"top_k": [5]}, r"top_k=\[5\]: expected one value, or 2"),
        ({"top_k": [5, -1]}, r"top_k=\[5, -1\]: expected for each group 0"),
        ({"top_p": 1.5}, "top_p=1.5: expected a number above 0 and at most 1"),
        ({"top_p": -0.1}, "top_p=-0.1: expected a number above 0 and at most 1"),
        ({"top_p": [0.5, 0.0]}, r"top_p=\[0.5, 0.0\]: expected for each group a number above 0"),
        ({"min_p": 1.0}, "min_p=1.0: expected a number of at least 0"),
        ({"min_p": -0.1}, "min_p=-0.1: expected a number of at least 0"),
        ({"min_p": [0.1]}, r"min_p=\[0.1\]: expected one value, or 2"),
        ({"greedy": [True]}, r"greedy=\[True\]: expected one value, or 2"),
        ({"guidance": [2.0, -1.0]}, r"guidance=\[2.0, -1.0\]: expected a number of at least 0"),
        ({"guidance": [2.0]}, r"guidance=\[2.0\]: expected one value, or 2, one a group of the token"),
        ({"guidance": [2.0, math.inf]}, r"guidance=\[2.0, inf\]: expected a number of at least 0"),
        ({"guidance_schedule": "cosine"}, "guidance_schedule='cosine': expected one of constant, linear, power-cosine"),
        ({"noise": "normal"}, "noise='normal': expected uniform or gumbel"),
        ({"guidance_power": 0.0}, "guidance_power=0.0: expected a positive number"),
        ({"top_k": -1}, "top_k=-1: expected 0"),
        ({"top_p": 0.0}, "top_p=0.0: expected a number above 0"),
        ({"guidance": -2.0}, "guidance=-2.0: expected a number of at least 0"),
        ({"guidance_interval": -1}, "guidance_interval=-1: expected None or a count"),
    ],
)
def test_bad_options_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.sample(torch.tensor([0]), **options)


@pytest.mark.parametrize("label", [-1, 3])
def test_label_that_is_no_class_is_refused(model, label):
    with pytest.raises(ValueError, match=f"label {label}: expected 0 to 2"):
        model.sample(torch.tensor([0, label]))


def test_lists_from_a_table_are_checked_against_the_groups(model):
    found = model.sampling({"guidance": [2, 1.5], "top_k": [5, 0], "temperature": 0.9})
    assert found == ARSampling((2.0, 1.5), 0.9, (5, 0))
    with pytest.raises(InputError, match=r"^sampling: guidance=\[2.0, 1.5, 1.0\]: expected one value, or 2"):
        model.sampling({"guidance": [2, 1.5, 1]})
    with pytest.raises(InputError, match=r"^sampling: top_k: input should be a valid integer"):
        model.sampling({"top_k": [0.5, 2]})
    with pytest.raises(InputError, match=r"^sampling: temperature=0.0: expected a positive number"):
        model.sampling({"temperature": 0})
