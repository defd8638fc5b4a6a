"""Average velocities: a network that knows how far a long step of the flow leads (MeanFlow, arXiv 2505.13447).

The average velocity over the times from t to s, along the flow through x at t, is what one step from t to s takes:
``x_s = x + (s - t) u(x, t, s - t)``. Where s = t it is the velocity. By its definition, with s held,

    velocity(x, t) = u - (s - t) du/dt,    du/dt along the flow through x

and the network u is trained by the right side, a velocity that is compared with the path's. As in improved MeanFlow
(arXiv 2512.02012) the derivative follows the network's own velocity, ``u(x, t, 0)``, not that of a single pair of noise
and data, so that what is compared is a function of x alone; the derivative itself passes no gradient on.

Guidance is trained: the velocity of a drawn scale w, ``null + w (class - null)``, is what ``velocity + (1 - 1/w) (own -
null)`` has as its fixed point, in which own and null are the network's own velocities; and the network is told w. An
average of guided velocities is not what guiding two averages gives, so that only trained guidance is right for a long
step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from ifsq.generators.diffusion.interval import Interval
from ifsq.generators.diffusion.objective import Objective, ObjectiveConfig
from ifsq.generators.diffusion.path import PathSample
from ifsq.generators.diffusion.sampling import SOLVERS, DiffusionSampling

GAP = 2e-3  # of a difference: with shorter ones float32 rounds more, with longer ones the network bends more
Average = Callable[[Tensor, Tensor, Tensor, Interval], Tensor]
"""The network: x (b, d, h, w), t (b,), labels (b,) and the interval -> average velocity (b, d, h, w), float32."""


@dataclass(frozen=True)
class Draws:
    """Times of a training pass.

    t         where the intervals begin
    interval  of the first ``ahead`` examples of a length above 0, of the others 0
    """

    t: Float[Tensor, "b"]
    interval: Interval
    ahead: int


class MeanFlow:
    """The training of average velocities by an objective.

    null  label of the null class
    """

    def __init__(self, objective: Objective, null: int) -> None:
        self.objective, self.null = objective, null

    def draw(self, t: Float[Tensor, "b"], labels: Int[Tensor, "b"], rng: torch.Generator) -> Draws:
        """Intervals between times of the objective's law; a share of ``interval_share`` of the examples has any length.

        t       times of the law, of which each example's interval begins or ends at one
        labels  dropped ones are not guided
        """
        config = self.objective.config
        # As many as the share asks for, in the mean of many passes.
        ahead = int(config.interval_share * len(t) + float(torch.rand((), generator=rng, device=rng.device)))
        other = self.objective.times(ahead, rng).to(t)
        begin, end = torch.minimum(t[:ahead], other), torch.maximum(t[:ahead], other)
        length = torch.cat([end - begin, torch.zeros_like(t[ahead:])])
        guidance = None
        if config.trained_guidance > 1:  # evenly in its logarithm, p(w) ~ 1 / w
            drawn = config.trained_guidance ** torch.rand(len(t), generator=rng, device=rng.device)
            guidance = torch.where(labels == self.null, 1.0, drawn.to(t))
        return Draws(torch.cat([begin, t[ahead:]]), Interval(length, guidance), ahead)

    def loss(
        self,
        network: Average,
        average: Float[Tensor, "b *d"],
        point: PathSample,
        x0: Float[Tensor, "b *d"],
        x1: Float[Tensor, "b *d"],
        labels: Int[Tensor, "b"],
        draws: Draws,
    ) -> dict[str, Tensor]:
        """`Objective.loss` of the velocities that the average ones give, at ``point``, the path's at ``draws.t``.

        average  what the network gives there, with gradients. Before the passes that are made here, without gradients:
                 autocast may keep what it casts of the weights
        """
        if average.is_meta:  # counted there is what the model itself takes, see `ifsq.generators.train.training_flops`
            return self.objective.loss(average, point, x0, x1, draws.t)
        target, own = self._velocities(network, point, labels, draws)
        interval, n = draws.interval, draws.ahead
        scale = None if interval.guidance is None else interval.guidance[:n]

        def ahead(x: Tensor, t: Tensor, length: Tensor) -> Tensor:
            rows = len(x) // n  # of each example
            return network(
                x, t, labels[:n].repeat(rows), Interval(length, None if scale is None else scale.repeat(rows))
            )

        derivative = difference_along if self.objective.config.derivative == "difference" else derivative_along
        slope = derivative(ahead, point.x[:n], draws.t[:n], interval.length[:n], own[:n]) if n else own[:0]
        bent = interval.length[:n].reshape(-1, *[1] * (slope.ndim - 1)) * slope
        velocity = average - torch.cat([bent, torch.zeros_like(average[n:])])
        return self.objective.loss(velocity, PathSample(point.x, target), x0, x1, draws.t)

    @torch.no_grad()
    def _velocities(self, network: Average, point: PathSample, labels: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """What is aimed at, and the network's own velocities, of the first ``ahead`` at least."""
        t, scale, n = draws.t, draws.interval.guidance, draws.ahead
        if scale is None:
            here = Interval(torch.zeros_like(t[:n]))
            return point.velocity, network(point.x[:n], t[:n], labels[:n], here) if n else point.velocity[:0]
        nulls, ones = torch.full_like(labels, self.null), torch.ones_like(scale)
        here = Interval(torch.zeros_like(t).repeat(2), torch.cat([scale, ones]))
        both = network(torch.cat([point.x, point.x]), t.repeat(2), torch.cat([labels, nulls]), here)
        own, null = both.chunk(2)
        low, high = self.objective.config.trained_guidance_interval or (0.0, 1.0)
        more = torch.where((low <= t) & (t <= high), 1 - 1 / scale, 0.0)  # 0 of a dropped label
        return point.velocity + more.reshape(-1, *[1] * (own.ndim - 1)) * (own - null), own


@torch.no_grad()
def derivative_along(
    average: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Float[Tensor, "b *d"],
    t: Float[Tensor, "b"],
    length: Float[Tensor, "b"],
    velocity: Float[Tensor, "b *d"],
) -> Float[Tensor, "b *d"]:
    """Derivative in t of ``average(x, t, length)`` where x moves by ``velocity`` and the interval's end stays.

    One Jacobian-vector product in forward mode, without a graph: parameters are read alone, so that replicated, sharded
    and recomputed blocks take part in it as in any pass without gradients.
    """
    with _forward_mode(), forward_ad.dual_level():
        moved = forward_ad.make_dual(x, velocity), forward_ad.make_dual(t, torch.ones_like(t))
        out = average(*moved, forward_ad.make_dual(length, -torch.ones_like(length)))
        tangent = forward_ad.unpack_dual(out).tangent
    assert tangent is not None  # an output that is a function of x
    return tangent


@torch.no_grad()
def difference_along(
    average: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Float[Tensor, "b *d"],
    t: Float[Tensor, "b"],
    length: Float[Tensor, "b"],
    velocity: Float[Tensor, "b *d"],
    gap: float = GAP,
) -> Float[Tensor, "b *d"]:
    """`derivative_along` as the difference of values ``gap`` after and before t, of one pass of twice the rows.

    Without autocast: half precision would leave little of so small a difference.
    """
    ahead, behind = (x + gap * velocity, t + gap, length - gap), (x - gap * velocity, t - gap, length + gap)
    with torch.autocast(x.device.type, enabled=False):
        after, before = average(*(torch.cat(pair) for pair in zip(ahead, behind, strict=True))).chunk(2)
    return (after - before) / (2 * gap)


@contextmanager
def _forward_mode() -> Iterator[None]:
    """Attention by its formula, the one of torch's that has a forward derivative, and compiled blocks as they are."""
    with torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH):
        yield


def check_averages(config: ObjectiveConfig, sampling: DiffusionSampling) -> None:
    """Raise ValueError where a generator of this objective cannot be sampled so."""
    averages = SOLVERS[sampling.solver].average
    if averages and not config.averages:
        raise ValueError(
            f"solver={sampling.solver!r}: expected a generator of objective mean_flow, not {config.objective}"
        )
    if config.tells_guidance:
        if not 1 <= sampling.guidance <= config.trained_guidance:
            raise ValueError(
                f"guidance={sampling.guidance}: expected 1 to {config.trained_guidance}, which were trained"
            )
        for name, off in (("guidance_interval", None), ("guidance_schedule", "constant"), ("guide", None)):
            if getattr(sampling, name) != off:
                raise ValueError(f"{name}={getattr(sampling, name)}: expected none of a generator of trained guidance")
    elif averages and sampling.guidance != 1:
        raise ValueError(
            f"guidance={sampling.guidance}: expected 1 of solver {sampling.solver}: an average velocity is guided by"
            " training it (diffusion.trained_guidance)"
        )
