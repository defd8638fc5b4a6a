"""Average velocities: the identity on a Gaussian whose flow is known, guidance, long steps, resume, what is refused."""

from dataclasses import replace

import pytest
import torch
from tests.generators.test_diffusion import LABELS, SPEC, make, make_batch
from tests.training.test_loop import HERE, Killed, assert_same, weights
from torch import nn

from ifsq.codes import CodeSet
from ifsq.config import InputError, build
from ifsq.generators.diffusion import DiffusionGenerator, DiffusionSampling, DiTConfig
from ifsq.generators.diffusion.grids import fit_generator_times
from ifsq.generators.diffusion.interval import Interval
from ifsq.generators.diffusion.mean_flow import Draws, MeanFlow, derivative_along, difference_along
from ifsq.generators.diffusion.objective import Objective, ObjectiveConfig
from ifsq.generators.diffusion.path import PathSample
from ifsq.generators.train import GeneratorTask, training_flops
from ifsq.training import parallel
from ifsq.training.config import TrainConfig
from ifsq.training.log import Silent
from ifsq.training.loop import train

MEAN = {"objective": "mean_flow"}
NULL = 3
MU, STD = 0.7, 0.4  # of Gaussian data


def scale(t):
    return ((STD * t) ** 2 + (1 - t) ** 2).sqrt()


def velocity_of_gaussian(x, t):
    slope = (STD**2 * t - (1 - t)) / scale(t) ** 2
    return MU + slope * (x - t * MU)


def average_of_gaussian(x, t, length):
    """By the flow itself: ``x_s = s mu + scale(s) / scale(t) (x - t mu)``."""
    safe = torch.where(length == 0, 1.0, length)
    end = (t + safe) * MU + scale(t + safe) / scale(t) * (x - t * MU)
    return torch.where(length == 0, velocity_of_gaussian(x, t), (end - x) / safe)


def told(x, t, labels, interval):
    return average_of_gaussian(x, t[:, None], interval.length[:, None])


def drawn(rows=12, ahead=8, **options):
    torch.manual_seed(0)
    flow = MeanFlow(Objective(ObjectiveConfig(**MEAN, **options), 3), NULL)
    x, t = torch.randn(rows, 3, dtype=torch.float64), torch.rand(rows, dtype=torch.float64) * 0.8 + 0.1
    length = (torch.rand(rows, dtype=torch.float64) * (1 - t)).clamp(min=1e-3)
    length[ahead:] = 0
    return flow, x, Draws(t, Interval(length), ahead), torch.arange(rows) % NULL


@pytest.mark.parametrize(("derivative", "close"), [("exact", 1e-24), ("difference", 1e-9)])
def test_the_average_velocity_of_a_gaussian_has_no_loss_and_no_gradient(derivative, close):
    flow, x, draws, labels = drawn(derivative=derivative)
    velocity = velocity_of_gaussian(x, draws.t[:, None])
    away = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def loss(by, own=told):
        def network(*given):
            return own(*given) * (1 + by.detach())

        average = own(x, draws.t, labels, draws.interval) * (1 + by)
        return flow.loss(network, average, PathSample(x, velocity), x, x, labels, draws)["loss"]

    exact = loss(away)
    (gradient,) = torch.autograd.grad(exact, away)
    assert float(exact.detach()) < close
    assert abs(float(gradient)) < close**0.5
    assert float(loss(torch.tensor(0.1))) > 1e-4
    # The velocity alone, whatever the interval, is what flow matching gives: no average, and it has a loss.
    lasting = lambda x, t, labels, interval: velocity_of_gaussian(x, t[:, None])  # noqa: E731
    assert float(loss(torch.tensor(0.0), lasting)) > 1e-4


def test_the_derivative_follows_the_networks_own_velocity_not_a_pairs():
    """A pair's velocity is the flow's and something that is 0 in the mean; that alone is what is left of the loss."""
    flow, x, draws, labels = drawn()
    velocity = velocity_of_gaussian(x, draws.t[:, None])
    more = torch.randn_like(x)
    average = told(x, draws.t, labels, draws.interval)
    loss = flow.loss(told, average, PathSample(x, velocity + more), x, x, labels, draws)["loss"]
    assert float(loss) == pytest.approx(float(more.square().mean()), rel=1e-10)


def test_one_step_of_the_average_leads_to_the_end_of_the_flow():
    x = torch.randn(50, 3, dtype=torch.float64)
    for steps, shift in ((1, 0.0), (2, 0.0), (2, 0.4), (7, 0.0)):
        sampling = DiffusionSampling(solver="mean", steps=steps, timestep_shift=shift)
        seen = []
        out = sampling.solve(
            velocity_of_gaussian,
            x,
            on_step=lambda done, t, x, seen=seen: seen.append((done, float(t))),
            average=lambda x, t, after: average_of_gaussian(x, t.double(), (after - t).double()),
        )
        assert torch.allclose(out, MU + STD * x, atol=1e-6)  # of float32 times
        assert [done for done, _ in seen] == list(range(1, steps + 1))
        assert seen[-1][1] == pytest.approx(1)
        assert sampling.evaluations() == steps
    one_euler = DiffusionSampling(steps=1).solve(velocity_of_gaussian, x)
    assert float((one_euler - (MU + STD * x)).abs().mean()) > 0.2
    with pytest.raises(ValueError, match=r"solver='mean': expected average velocities"):
        DiffusionSampling(solver="mean").solve(velocity_of_gaussian, x)


def mean_model(**options):
    """Random everywhere, also the weights that begin at 0."""
    return make(**MEAN, label_dropout=0.3, **options)


def at_random(model, rows=6):
    torch.manual_seed(1)
    x, t = torch.randn(rows, model.code_dim, *model.spec.grid), torch.rand(rows) * 0.7
    return x, t, torch.rand(rows) * (1 - t), torch.randn_like(x), torch.arange(rows) % 3


def test_the_derivative_is_that_of_the_network_in_both_ways():
    for option in ({}, {"norm": "layer", "qk_norm": False, "mlp": "gelu"}):
        model = mean_model(**option)
        x, t, length, v, labels = at_random(model)
        ask = lambda x, t, length, m=model, y=labels: m._at(x, t, y.repeat(len(x) // 6), Interval(length))  # noqa: E731
        exact, near = derivative_along(ask, x, t, length, v), difference_along(ask, x, t, length, v)
        assert float((exact - near).norm() / exact.norm()) < 2e-3
        still = derivative_along(
            lambda x, t, n, y=labels, m=model, h=length: m._at(x, t, y, Interval(h)), x, t, length, v
        )
        assert float((exact - still).norm() / exact.norm()) > 0.05  # the interval grows shorter as t moves on
    net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    smooth = lambda x, t, length: net(torch.cat([x, t[:, None], length[:, None]], dim=1))  # noqa: E731
    x, v = torch.randn(2, 4, 3, dtype=torch.float64)
    t, length = torch.rand(2, 4, dtype=torch.float64)
    exact, near = (each(smooth, x, t, length, v) for each in (derivative_along, difference_along))
    assert torch.allclose(exact, near, atol=1e-5)
    nearer = difference_along(smooth, x, t, length, v, gap=1e-4)
    assert torch.allclose(exact, nearer, atol=1e-8)


def test_without_an_interval_the_network_is_the_velocitys_bit_for_bit():
    """A plain generator has the same weights under the same names, so a trained one can be gone on from."""
    torch.manual_seed(0)
    plain = DiffusionGenerator(DiTConfig(2, 32, 4, patch=2), SPEC, 3)
    averages = DiffusionGenerator(DiTConfig(2, 32, 4, patch=2, trained_guidance=4.0, **MEAN), SPEC, 3)
    new = averages.state_dict().keys() - plain.state_dict().keys()
    assert {name.split(".")[1] for name in new} == {"length_embedder", "guidance_embedder"}
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.2)
    averages.load_state_dict(averages.state_dict() | plain.state_dict())
    x, t, length, _, labels = at_random(plain)
    assert torch.equal(averages.predict(x, t, labels), plain.predict(x, t, labels))
    assert torch.equal(averages._at(x, t, labels, Interval(length, 1 + t)), plain.predict(x, t, labels))
    for solver in ("euler", "heun"):
        ours, theirs = (one.sample(LABELS, solver=solver, steps=3).codes for one in (averages, plain))
        assert torch.equal(ours, theirs)
    one_step = averages.sample(LABELS, solver="mean", steps=1).codes  # of which the average still is the velocity
    assert torch.equal(one_step, plain.sample(LABELS, solver="euler", steps=1).codes)


def test_intervals_lie_between_two_times_of_the_law_for_the_share_that_is_asked_for():
    flow = MeanFlow(Objective(ObjectiveConfig(interval_share=0.3, trained_guidance=4.0, **MEAN), 3), NULL)
    rng, labels = torch.Generator().manual_seed(0), torch.arange(5) % (NULL + 1)
    draws = [flow.draw(flow.objective.times(5, rng), labels, rng) for _ in range(400)]
    assert {each.ahead for each in draws} == {1, 2}
    assert sum(each.ahead for each in draws) / 2000 == pytest.approx(0.3, abs=0.03)
    length, t = (torch.stack([part(each) for each in draws]) for part in (lambda d: d.interval.length, lambda d: d.t))
    assert all(bool((each.interval.length[: each.ahead] > 0).all()) for each in draws)
    assert all(bool((each.interval.length[each.ahead :] == 0).all()) for each in draws)
    assert float((t + length).max()) < 1
    assert float(t[:, 4].median()) == pytest.approx(0.5, abs=0.03)  # of those that train the velocity
    scales = torch.stack([each.interval.guidance for each in draws])
    assert bool((scales[:, 3] == 1).all())  # of the null class
    told_scales = scales[:, [0, 1, 2, 4]].flatten()
    assert float(told_scales.min()) >= 1
    assert float(told_scales.max()) < 4
    assert float(told_scales.median()) == pytest.approx(2, abs=0.1)  # even in the logarithm


def test_trained_guidance_has_the_guided_velocity_as_its_fixed_point():
    """Velocities that are linear in x: of the class 2 x, of the null class x / 2."""

    def guided(x, t, labels, interval):
        null, known = x / 2, 2 * x
        scale = torch.where(labels == NULL, 1.0, interval.guidance)[:, None]
        return torch.where((labels == NULL)[:, None], null, null + scale * (known - null))

    scales = torch.tensor([1.0, 1.5, 3.0, 3.0, 1.0], dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 2, NULL])
    torch.manual_seed(0)
    x, t = torch.randn(5, 2, dtype=torch.float64), torch.tensor([0.2, 0.3, 0.5, 0.9, 0.5], dtype=torch.float64)
    velocity = torch.where((labels == NULL)[:, None], x / 2, 2 * x)  # what the pairs say in the mean
    draws = Draws(t, Interval(torch.zeros(5, dtype=torch.float64), scales), 0)
    for interval, expected in ((None, scales), ((0.0, 0.7), torch.where(t > 0.7, 1.0, scales))):
        config = ObjectiveConfig(trained_guidance=3.0, trained_guidance_interval=interval, **MEAN)
        flow = MeanFlow(Objective(config, 2), NULL)
        right = guided(x, t, labels, Interval(draws.interval.length, expected))

        def own(x, t, labels, told, low=interval):
            inside = told.guidance if low is None else torch.where(t > low[1], 1.0, told.guidance)
            return guided(x, t, labels, Interval(told.length, inside))

        assert float(flow.loss(own, right, PathSample(x, velocity), x, x, labels, draws)["loss"]) < 1e-28
        assert float(flow.loss(own, right * 1.1, PathSample(x, velocity), x, x, labels, draws)["loss"]) > 1e-3


def test_the_scale_is_told_once_for_each_evaluation():
    model = mean_model(trained_guidance=4.0)
    seen = []
    model.dit.register_forward_pre_hook(lambda _, given: seen.append(given))
    for solver, steps, calls in (("mean", 2, 2), ("euler", 3, 3), ("heun", 2, 4)):
        options = DiffusionSampling(guidance=2.5, solver=solver, steps=steps)
        seen.clear()
        model.sample(LABELS, options)
        assert len(seen) == calls == model.cost(options)
        assert all(len(given[0]) == 2 and bool((given[4].guidance == 2.5).all()) for given in seen)
        lengths = {round(float(given[4].length[0]), 6) for given in seen}
        assert lengths == ({0.5} if solver == "mean" else {0.0})
    one, other = (model.sample(LABELS, solver="mean", steps=1, guidance=s, snap="none").codes for s in (1.0, 3.0))
    assert not torch.allclose(one, other)


def test_an_untrained_guidance_guides_velocities_as_ever_and_no_average():
    model = mean_model()
    assert model.cost(DiffusionSampling(guidance=2.0, steps=3)) == 6
    with pytest.raises(ValueError, match=r"guidance=2\.0: expected 1 of solver mean: an average velocity is guided by"):
        model.sample(LABELS, solver="mean", guidance=2.0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"objective": "mean"}, r"objective='mean': expected one of flow_matching, mean_flow"),
        ({**MEAN, "path": "cosine"}, r"path='cosine': expected 'linear' beside objective = 'mean_flow'"),
        ({**MEAN, "prediction": "noise"}, r"prediction='noise': expected 'velocity' beside objective"),
        ({**MEAN, "learned_variance": True}, r"learned_variance=True: expected False beside objective"),
        ({**MEAN, "depth": 2, "internal_depth": 1}, r"internal_depth=1: expected none beside objective = 'mean_flow'"),
        ({**MEAN, "interval_share": 0.0}, r"interval_share=0\.0: expected a share above 0 and below 1"),
        ({**MEAN, "interval_share": 1.0}, r"interval_share=1\.0: expected a share"),
        ({**MEAN, "trained_guidance": 0.5}, r"trained_guidance=0\.5: expected a number of at least 1"),
        ({**MEAN, "derivative": "numeric"}, r"derivative='numeric': expected one of exact, difference"),
        ({**MEAN, "trained_guidance_interval": [0.2, 0.8]}, r"expected trained_guidance above 1 beside it"),
        (
            {**MEAN, "trained_guidance": 2.0, "trained_guidance_interval": [0.8, 0.2]},
            r"trained_guidance_interval=\(0\.8, 0\.2\): expected two times",
        ),
        ({"interval_share": 0.25}, r"interval_share=0\.25: expected objective = 'mean_flow' beside it"),
        ({"trained_guidance": 2.0}, r"trained_guidance=2\.0: expected objective = 'mean_flow' beside it"),
        ({"derivative": "difference"}, r"derivative=difference: expected objective = 'mean_flow' beside it"),
        ({**MEAN, "trained_guidance": 2.0, "label_dropout": 0.0}, r"label_dropout=0\.0: expected none and a share"),
        (
            {**MEAN, "trained_guidance": 2.0, "guidance_channels": 1},
            r"guidance_channels=1, label_dropout=0\.1: expected",
        ),
    ],
)
def test_bad_objectives_are_refused_by_name(options, expected):
    with pytest.raises(InputError, match=expected):
        build(DiTConfig, {"depth": 1, "width": 16, "heads": 2, "patch": 2, **options}, "diffusion")


@pytest.mark.parametrize(
    ("options", "sampling", "expected"),
    [
        ({}, {"solver": "mean"}, r"solver='mean': expected a generator of objective mean_flow, not flow_matching"),
        (
            {**MEAN, "trained_guidance": 2.0},
            {"guidance": 2.5},
            r"guidance=2\.5: expected 1 to 2\.0, which were trained",
        ),
        ({**MEAN, "trained_guidance": 2.0}, {"guidance": 0.5}, r"guidance=0\.5: expected 1 to 2\.0"),
        (
            {**MEAN, "trained_guidance": 2.0},
            {"guidance_interval": (0.1, 0.9)},
            r"guidance_interval=\(0\.1, 0\.9\): expected",
        ),
        (
            {**MEAN, "trained_guidance": 2.0},
            {"guidance_schedule": "linear"},
            r"guidance_schedule=linear: expected none",
        ),
        ({**MEAN, "trained_guidance": 2.0}, {"guide": "runs/other"}, r"guide=runs/other: expected none of a generator"),
    ],
)
def test_samplings_that_do_not_fit_are_refused(options, sampling, expected):
    with pytest.raises(ValueError, match=expected):
        make(**options).sample(LABELS, DiffusionSampling(**{"guidance": 1.0, **sampling}))


def test_times_of_long_steps_are_not_fitted():
    with pytest.raises(InputError, match=r"solver='mean': expected one of fixed steps without noise, euler"):
        fit_generator_times(mean_model(), DiffusionSampling(solver="mean", steps=2))


def gradients(model, autocast=False):
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = model.train().loss(make_batch(8), torch.Generator().manual_seed(0))
    losses["loss"].backward()
    return losses["loss"].detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("derivative", ["exact", "difference"])
def test_the_derivative_takes_no_part_in_the_gradient_of_blocks_that_run_again_or_of_half_precision(derivative):
    options = {"trained_guidance": 3.0, "derivative": derivative}
    expected = gradients(mean_model(**options))
    again = mean_model(**options)
    parallel.recompute(again)
    assert_equal(gradients(again), expected)
    half = gradients(mean_model(**options), autocast=True)
    assert float(half[0]) == pytest.approx(float(expected[0]), rel=0.05)
    for name, grad in expected[1].items():  # none is lost with the casts of a pass without gradients
        assert float((half[1][name] - grad).norm()) < 0.2 * float(grad.norm()) + 1e-3, name


def assert_equal(found, expected):
    assert torch.equal(found[0], expected[0])
    for name, grad in expected[1].items():
        assert torch.equal(found[1][name], grad), name


def test_states_are_of_the_intervals_that_the_loss_draws():
    model, batch = mean_model().eval(), make_batch(4)
    through = model.training_pass(batch, torch.Generator().manual_seed(2), depths=(1, 2))
    for depth, states in zip((1, 2), through.states, strict=True):
        assert torch.equal(model.hidden(batch, depth, torch.Generator().manual_seed(2)), states)
    other = replace(model.config, objective="flow_matching")
    plain = DiffusionGenerator(other, model.spec, 3).eval()
    plain.load_state_dict({name: model.state_dict()[name] for name in plain.state_dict()})
    assert not torch.equal(plain.hidden(batch, 2, torch.Generator().manual_seed(2)), through.states[1])


def test_what_training_takes_is_counted_without_the_passes_of_the_derivative():
    plain, averages = training_flops(make()), training_flops(mean_model(trained_guidance=2.0))
    assert plain < averages < 1.2 * plain  # two embeddings more


class Stopped(GeneratorTask):
    stop_at = None

    def loss(self, model, batch, rng, step):
        if step == self.stop_at:
            raise Killed
        return super().loss(model, batch, rng, step)


def test_a_run_goes_on_with_the_same_bits(tmp_path):
    def run(name, stop_at=None):
        model = mean_model(trained_guidance=2.0)
        batch = make_batch(24)
        config = TrainConfig(steps=6, batch=8, log_every=3, save_every=2, ema=0.9)
        task = Stopped(model, CodeSet(model.spec, batch.content.to(torch.uint8), batch.labels), None, config)
        task.stop_at = stop_at
        train(task, config, tmp_path / name, HERE, Silent(), name)
        return weights(tmp_path / name)

    with pytest.raises(Killed):
        run("cut", stop_at=3)
    ours, theirs = run("whole"), run("cut")
    assert ours[0] == theirs[0] == 6
    assert_same(ours[1], theirs[1])


def test_one_step_is_nearer_to_the_data_than_one_of_flow_matching_by_far():
    """Four clusters in the plane, by the energy distance, whose floor is the distance of data to other data."""

    def data(count, rng):
        corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        return corners[torch.randint(4, (count,), generator=rng)] + 0.1 * torch.randn(count, 2, generator=rng)

    def energy(one, other):
        across, *within = (torch.cdist(a, b).mean() for a, b in ((one, other), (one, one), (other, other)))
        return float(2 * across - sum(within))

    def trained(averages):
        torch.manual_seed(0)
        config = ObjectiveConfig(time_sampling="uniform", **(MEAN if averages else {}))
        flow, steps = MeanFlow(Objective(config, 2), 1), 400
        net = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
        optimizer, rng = torch.optim.AdamW(net.parameters(), 1e-2, weight_decay=0.0), torch.Generator().manual_seed(0)
        network = lambda x, t, _, interval: net(torch.cat([x, t[:, None], interval.length[:, None]], dim=1))  # noqa: E731
        labels = torch.zeros(256, dtype=torch.int64)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
            x0, x1 = torch.randn(256, 2, generator=rng), data(256, rng)
            draws = flow.draw(flow.objective.times(256, rng), labels, rng)
            if not averages:
                draws = Draws(draws.t, Interval(torch.zeros(256)), 0)
            point = flow.objective.path.sample(x0, x1, draws.t)
            average = network(point.x, draws.t, labels, draws.interval)
            flow.loss(network, average, point, x0, x1, labels, draws)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
        return network

    def distance(network, length):
        """Of one step from noise, whose velocity is averaged over ``length``."""
        rng = torch.Generator().manual_seed(9)
        noise, ones = torch.randn(1000, 2, generator=rng), torch.ones(1000)
        with torch.no_grad():
            found = noise + network(noise, 0 * ones, None, Interval(length * ones))
        return energy(found, data(1000, rng))

    averages = trained(averages=True)
    plain = distance(trained(averages=False), 0.0)
    assert plain > 0.5
    assert distance(averages, 1.0) < plain / 10
    assert distance(averages, 0.0) > 0.5  # its velocity is that of flow matching, whose one step ends in the middle
