"""Drawing indices: the filters against the official ones, the draw against its distribution, seeds and refusals."""

import pytest
import torch

from ifsq.codes.spec import CodeSpec
from ifsq.generators.ar import ARConfig, ARGenerator, ARSampling
from ifsq.generators.ar.draw import draw, filter_logits, guide

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


@pytest.mark.parametrize("guidance", [1e30, 1e37, 1.7e308])
def test_a_huge_guidance_takes_the_code_that_the_class_adds_most_to(model, guidance):
    logits = torch.randn(8, 100, generator=torch.Generator().manual_seed(0))
    guided = guide(logits, guidance)
    assert guided.isfinite().all()
    assert torch.equal(draw(guided, ARSampling(), numbers(4)), (logits[:4] - logits[4:]).argmax(dim=1))
    assert model.sample(torch.tensor([0, 1]), guidance=guidance).codes.isfinite().all()


def test_guidance_extrapolates_from_the_null_half():
    logits = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    assert guide(logits, 2.0).tolist() == [[5.0, -1.0]]
    assert guide(logits, 0.0).tolist() == [[1.0, 1.0]]


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
