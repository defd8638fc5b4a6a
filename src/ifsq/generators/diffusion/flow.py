"""The diffusion generator: flow matching on the codes (arXiv 2210.02747), one parametrisation for loss and sampling.

``x_t = t x_1 + (1 - t) x_0`` leads from noise x_0 to normalised codes x_1; the network predicts ``v = x_1 - x_0``.
A sample is snapped to the nearest lattice point, so that the decoder sees only codes that the tokenizer can produce.
Paper: section 4 (DiT). Called by ``generators.train`` and ``pipeline`` through the face of `Generator`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer
from torch import Tensor

from ifsq.codes.spec import CodeSpec
from ifsq.config import InputError
from ifsq.generators.base import CodeBatch, Generator, Sampled
from ifsq.generators.conditioning import check_guidance, drop_labels
from ifsq.generators.diffusion.model import DiT, DiTConfig
from ifsq.generators.diffusion.sample import SOLVERS, check_solver, time_grid
from ifsq.generators.streams import normals
from ifsq.nn.modes import evaluating

OBSERVED_AT_ONCE = 4096  # images whose codes are floats at one time

# The network starts at v = 0, where the cosine's slope is 1 / eps: with torch's 1e-8 the first step would leave an
# optimizer's second moments at 1e13. Velocities have a length of about sqrt(2 d), so 0.1 changes nothing else.
COSINE_EPS = 0.1
DEAD_VARIANCE = 1e-12  # what rounding leaves of a constant; one odd code among 1e9 has more


class DiffusionGenerator(Generator):
    """Flow model of the codes of an image, given its class. See `Generator` for the arguments.

    Codes are normalised by the per-channel ``code_mean`` and ``code_std`` (0 and 1 until `set_statistics`).
    """

    kind = "diffusion"
    code_mean: Tensor
    code_std: Tensor

    def __init__(self, config: DiTConfig, spec: CodeSpec, num_classes: int) -> None:
        super().__init__(spec, num_classes)
        if config.guidance_channels is not None and config.guidance_channels > spec.dim:
            raise ValueError(f"guidance_channels={config.guidance_channels}: the codes have {spec.dim} channels")
        self.config = config
        self.dit = DiT(config, spec.dim, spec.grid, num_classes)
        self.register_buffer("code_mean", torch.zeros(spec.dim))
        self.register_buffer("code_std", torch.ones(spec.dim))

    def set_statistics(self, mean: Float[Tensor, "d"], std: Float[Tensor, "d"]) -> None:
        """Mean and standard deviation of each channel of the codes. Raises ValueError unless finite and std > 0."""
        for name, value in (("mean", mean), ("std", std)):
            if value.shape != self.code_mean.shape or not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name}={value.tolist()}: expected {self.spec.dim} finite numbers, one a channel")
        if not bool((std > 0).all()):
            raise ValueError(
                f"std={std.tolist()}: expected positive numbers (a channel that never varies has no scale)"
            )
        self.code_mean.copy_(mean)
        self.code_std.copy_(std)

    def observe(self, digits: Integer[Tensor, "n h w d"]) -> None:
        """Normalise by the mean and standard deviation of these codes; a channel that never varies is centred alone."""
        count, total, squares = 0, torch.zeros(self.spec.dim).double(), torch.zeros(self.spec.dim).double()
        for part in digits.split(OBSERVED_AT_ONCE):
            codes = self.spec.digits_to_codes(part.to(torch.int64)).double().cpu()
            count += codes[:, 0].numel()
            total += codes.sum(dim=(0, 2, 3))
            squares += codes.square().sum(dim=(0, 2, 3))
        mean = total / count
        variance = squares / count - mean.square()
        std = torch.where(variance > DEAD_VARIANCE, variance, 1).sqrt()
        self.set_statistics(mean.float(), std.float())

    def normalize(self, codes: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """Codes -> what the flow models, float32."""
        return (codes.to(torch.float32) - _channels(self.code_mean)) / _channels(self.code_std)

    def denormalize(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """Inverse of `normalize`."""
        return x * _channels(self.code_std) + _channels(self.code_mean)

    def loss(self, batch: CodeBatch, rng: torch.Generator) -> dict[str, Tensor]:
        """``mse`` of the velocity, ``cosine`` where it has a weight, and their weighted sum ``loss``; float32."""
        labels = batch.labels
        if self.training:
            labels = drop_labels(labels, self.num_classes, self.config.label_dropout, rng)
        x1 = self.normalize(self.spec.digits_to_codes(batch.digits))
        x0 = torch.randn(x1.shape, generator=rng, device=rng.device).to(x1.device)
        t = self._draw_times(len(x1), rng).to(x1.device)
        return self.flow_loss(x1, x0, t, labels)

    def flow_loss(
        self,
        x1: Float[Tensor, "b d h w"],
        x0: Float[Tensor, "b d h w"],
        t: Float[Tensor, "b"],
        labels: Int[Tensor, "b"],
    ) -> dict[str, Tensor]:
        """The loss at given data, noise and times, without randomness; what `loss` computes."""
        time = t[:, None, None, None]
        v = self.dit(time * x1 + (1 - time) * x0, t, labels).to(torch.float32)
        mse = F.mse_loss(v, x1 - x0)
        if self.config.cosine_weight == 0:
            return {"loss": mse, "mse": mse.detach()}
        cosine = (1 - F.cosine_similarity(v, x1 - x0, dim=1, eps=COSINE_EPS)).mean()
        return {"loss": mse + self.config.cosine_weight * cosine, "mse": mse.detach(), "cosine": cosine.detach()}

    def velocity(
        self,
        x: Float[Tensor, "b d h w"],
        t: Float[Tensor, ""],
        labels: Int[Tensor, "b"],
        guidance: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
    ) -> Float[Tensor, "b d h w"]:
        """Guided velocity at one time for the whole batch: ``null + s * (class - null)``, float32.

        Outside the interval (low <= t <= high) the class-conditional velocity alone, at half the cost; so too for
        the channels past ``guidance_channels``.
        """
        low, high = guidance_interval or (0.0, 1.0)
        if guidance == 1 or not low <= float(t) <= high:
            return self._at(x, t, labels)
        null = torch.full_like(labels, self.num_classes)
        conditional, unconditional = self._at(x.repeat(2, 1, 1, 1), t, torch.cat([labels, null])).chunk(2)
        guided = unconditional + guidance * (conditional - unconditional)
        c = self.config.guidance_channels or self.spec.dim
        return torch.cat([guided[:, :c], conditional[:, c:]], dim=1)

    def sample(
        self,
        labels: Int[Tensor, "b"],
        *,
        guidance: float = 1.0,
        seed: int = 0,
        first: int = 0,
        steps: int = 25,
        solver: str = "euler",
        timestep_shift: float = 0.0,
        guidance_interval: tuple[float, float] | None = None,
    ) -> Sampled:
        """Integrate from noise to codes and snap to the lattice; see `Generator.sample`, and `velocity` for guidance.

        An image's noise is its own, and the same on every device. ``sample.function_evaluations`` gives the cost.
        Raises ValueError on bad labels, solver, steps or interval, and where the integration ends beyond all numbers.
        """
        self.check_labels(labels)
        check_guidance(guidance)
        check_solver(solver)
        _check_interval(guidance_interval)
        times = time_grid(steps, timestep_shift)
        noise = normals(seed, first, len(labels), self.spec.dim * self.spec.tokens)
        noise = noise.unflatten(1, (self.spec.dim, *self.spec.grid))
        device = self.code_mean.device
        labels = labels.to(device)
        with evaluating(self):
            x = SOLVERS[solver](
                lambda x, t: self.velocity(x, t, labels, guidance, guidance_interval), noise.to(device), times
            )
            if not bool(x.isfinite().all()):
                raise InputError(f"the codes are not finite numbers: expected finite weights and less than {guidance=}")
            digits = self.spec.codes_to_digits(self.denormalize(x))
        return Sampled(self.spec.digits_to_codes(digits), self.spec.digits_to_indices(digits))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DiffusionGenerator":
        """Moving takes the statistics along, casting leaves them float32."""
        mean, std = self.code_mean, self.code_std
        super()._apply(fn, recurse)
        if self.code_mean.dtype != torch.float32:
            self.code_mean, self.code_std = mean.to(self.code_mean.device), std.to(self.code_std.device)
        return self

    def _at(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.dit(x, t.to(x).expand(len(x)), labels).to(torch.float32)

    def _draw_times(self, count: int, rng: torch.Generator) -> Tensor:
        if self.config.time_sampling == "uniform":
            return torch.rand(count, generator=rng, device=rng.device)
        return torch.randn(count, generator=rng, device=rng.device).sigmoid()


def _channels(value: Tensor) -> Tensor:
    return value.to(torch.float32)[:, None, None]


def _check_interval(interval: tuple[float, float] | None) -> None:
    if interval is not None and not 0 <= interval[0] <= interval[1] <= 1:
        raise ValueError(f"guidance_interval={interval}: expected two times, 0 <= low <= high <= 1")
