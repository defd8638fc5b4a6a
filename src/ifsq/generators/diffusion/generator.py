"""The diffusion generator: flow matching on the codes (arXiv 2210.02747), one parametrisation for loss and sampling.

The network predicts the velocity of a path from noise to normalised codes, or what gives it (`Objective`). A sample is
snapped to the nearest point of the lattice or vector of the codebook, so that the decoder sees only codes that the
tokenizer can produce; of latents there are no others. Paper: section 4 (DiT).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ifsq.codes import CodeBatch, CodeSet, CodeSpec, LatentSpec, Sampled
from ifsq.config import InputError
from ifsq.generators.base import Generator, Sampling, check_depth, check_depths
from ifsq.generators.conditioning import drop_labels
from ifsq.generators.diffusion.config import DiTConfig
from ifsq.generators.diffusion.interval import Interval, interval_of
from ifsq.generators.diffusion.mean_flow import Draws, MeanFlow, check_averages
from ifsq.generators.diffusion.network import DiT
from ifsq.generators.diffusion.objective import Objective
from ifsq.generators.diffusion.sampling import DiffusionSampling
from ifsq.generators.diffusion.scale import check_multiplier, check_normalised, check_stored, moments_of
from ifsq.generators.diffusion.solvers import OnStep
from ifsq.generators.diffusion.watching import telling
from ifsq.generators.streams import Normals, normals
from ifsq.generators.taps import Taps, TrainingPass
from ifsq.generators.watch import Watch
from ifsq.nn.modes import evaluating
from ifsq.store.run import Run
from ifsq.store.weights import weights_digest

SNAPPED_AT_ONCE = 1024  # positions whose distances to all of a codebook are there at one time
DEAD_VARIANCE = 1e-12  # what rounding leaves of a constant; one odd code among 1e9 has more


class DiffusionGenerator(Generator, kind="diffusion"):
    """Flow model of the codes of an image, given its class. See `Generator` for the arguments.

    Codes are normalised by the per-channel ``code_mean`` and ``code_std`` (0 and 1 until `observe`). Where the digits
    number the vectors of a VQ tokenizer, the generator keeps a copy of them, ``codebook`` (v, d), from `observe` on: it
    models the vectors, and a sample takes the nearest. ``code_dim`` is their d.
    """

    title = "diffusion"
    noisy = True
    config_class = DiTConfig
    sampling_class = DiffusionSampling
    config: DiTConfig
    code_mean: Tensor
    code_std: Tensor
    codebook: Tensor | None
    code_dim: int

    def __init__(
        self, config: DiTConfig, spec: CodeSpec | LatentSpec, num_classes: int, code_dim: int | None = None
    ) -> None:
        super().__init__(config, spec, num_classes, code_dim)
        if self.code_dim is None:
            assert isinstance(spec, CodeSpec)  # the other layout says it
            raise ValueError(f"codes of a codebook of {spec.levels[0]}: expected code_dim, the channels of its vectors")
        if isinstance(spec, CodeSpec) and not spec.on_lattice and spec.dim > 1:
            raise ValueError(f"codes of {spec.dim} codebooks: expected those of one")
        if config.guidance_channels is not None and config.guidance_channels > self.code_dim:
            raise ValueError(f"guidance_channels={config.guidance_channels}: the codes have {self.code_dim} channels")
        self.objective = Objective(config, self.code_dim * spec.tokens)
        self.path = self.objective.path
        self.mean_flow = MeanFlow(self.objective, num_classes) if config.averages else None
        self._guides: dict[tuple[str, int | None], DiffusionGenerator] = {}  # no part of the model
        outputs = 2 * self.code_dim if config.learned_variance else self.code_dim
        self.dit = DiT(config, self.code_dim, spec.grid, num_classes, outputs)
        self.register_buffer("code_mean", torch.zeros(self.code_dim))
        self.register_buffer("code_std", torch.ones(self.code_dim))
        vectors = 0 if isinstance(spec, LatentSpec) or spec.on_lattice else spec.levels[0]
        self.register_buffer("codebook", torch.zeros(vectors, self.code_dim) if vectors else None)

    def set_statistics(self, mean: Float[Tensor, "d"], std: Float[Tensor, "d"]) -> None:
        """Mean and standard deviation of each channel of the codes. Raises ValueError unless finite and std > 0."""
        for name, value in (("mean", mean), ("std", std)):
            if value.shape != self.code_mean.shape or not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name}={value.tolist()}: expected {self.code_dim} finite numbers, one a channel")
        if not bool((std > 0).all()):
            raise ValueError(
                f"std={std.tolist()}: expected positive numbers (a channel that never varies has no scale)"
            )
        self.code_mean.copy_(mean)
        self.code_std.copy_(std)

    def observe(self, codes: CodeSet) -> None:
        """Normalise by mean and standard deviation of these codes, and keep their codebook where they have one.

        A channel that never varies is centred alone. Statistics that the cache states, as of latents, are taken over. A
        multiplier of the config takes the place of both. Raises ValueError where the codebook is not there, or has
        another shape than it should, and InputError where the multiplier is not of such codes.
        """
        if self.codebook is not None:
            given = () if codes.codebook is None else tuple(codes.codebook.shape)
            if codes.codebook is None or given != self.codebook.shape:
                raise ValueError(f"codebook of shape {given}: expected {tuple(self.codebook.shape)}, the tokenizer's")
            self.codebook.copy_(codes.codebook)
        multiplier = self.config.multiplier
        if multiplier is not None:
            check_multiplier(multiplier, codes)
            self.set_statistics(torch.zeros(self.code_dim), torch.full((self.code_dim,), 1 / multiplier))
            return
        mean, variance = moments_of(codes)
        std = torch.where(variance > DEAD_VARIANCE, variance, 1).sqrt()
        self.set_statistics(mean.float(), std.float())

    def check_weights(self) -> None:
        check_stored(self.code_mean, self.code_std, self.config.multiplier, self.spec, self.codebook)

    def check_codes(self, codes: CodeSet, where: str) -> None:
        try:
            self.check_weights()
            check_normalised(codes, self.code_mean, self.code_std)
        except ValueError as error:
            raise InputError(f"{where}: {error}; init_parts without them begins with their own") from error

    def check_codebook(self, codebook: Float[Tensor, "v d"] | None) -> None:
        if self.codebook is not None and (codebook is None or not torch.equal(self.codebook.cpu(), codebook.cpu())):
            raise ValueError("codebook: holds other vectors than its tokenizer's; expected the same")

    def normalize(self, codes: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """Codes -> what the flow models, float32."""
        return (codes.to(torch.float32) - _channels(self.code_mean)) / _channels(self.code_std)

    def denormalize(self, x: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """Inverse of `normalize`."""
        return x * _channels(self.code_std) + _channels(self.code_mean)

    def training_pass(
        self, batch: CodeBatch, rng: torch.Generator, progress: float = 1.0, depths: Sequence[int] = ()
    ) -> TrainingPass:
        """``mse`` of what is predicted, ``cosine`` where it has a weight, and their weighted sum ``loss``; float32.

        Of an internal layer ``internal``, its mse; its whole loss counts ``internal_weight``.

        The states are those of the noised codes' patches.
        """
        taps = Taps(check_depths(depths, len(self.dit.blocks)))
        x1, x0, t, labels, draws = self._drawn(batch, rng)
        if self.mean_flow is None or draws is None:
            losses = self.flow_loss(x1, x0, t, labels, taps)
        else:
            point = self.path.sample(x0, x1, t)
            average = self._at(point.x, t, labels, draws.interval, taps)
            losses = self.mean_flow.loss(self._at, average, point, x0, x1, labels, draws)
        return TrainingPass(losses, tuple(taps.states[depth] for depth in depths))

    def flow_loss(
        self,
        x1: Float[Tensor, "b d h w"],
        x0: Float[Tensor, "b d h w"],
        t: Float[Tensor, "b"],
        labels: Int[Tensor, "b"],
        taps: Taps | None = None,
    ) -> dict[str, Tensor]:
        """The loss of flow matching at given data, noise and times, without randomness; what `loss` computes of it."""
        point = self.path.sample(x0, x1, t)
        if self.config.internal_depth is None:
            return self.objective.loss(self._at(point.x, t, labels, taps=taps), point, x0, x1, t)
        final, early = (self.objective.loss(one, point, x0, x1, t) for one in self._both_at(point.x, t, labels, taps))
        return final | {"loss": final["loss"] + self.config.internal_weight * early["loss"], "internal": early["mse"]}

    def hidden(
        self,
        batch: CodeBatch,
        depth: int,
        rng: torch.Generator | None = None,
        progress: float = 1.0,
        cleaner: float | None = None,
    ) -> Float[Tensor, "b t width"]:
        """States of the patches, of noised codes as `loss` draws them; see `Generator.hidden`."""
        check_depth(depth, len(self.dit.blocks))
        rng = torch.Generator(batch.labels.device).manual_seed(0) if rng is None else rng
        x1, x0, t, labels, draws = self._drawn(batch, rng, None if cleaner is None else 0.0)
        interval = None if draws is None else draws.interval
        if cleaner is not None:  # of average velocities the velocity there
            nearer = cleaner * torch.rand(t.shape, generator=rng, device=rng.device).to(t.device)
            t, interval = (t + nearer).clamp(max=max(self.objective.span)), None
        condition = self.dit.condition(self.path.network_time(t), labels, interval)
        return self.dit.states(self.path.sample(x0, x1, t).x, condition, depth)

    @property
    def depth(self) -> int:
        return len(self.dit.blocks)

    @property
    def token_grid(self) -> tuple[int, int]:
        return self.dit.tokens

    def states_at(
        self, batch: CodeBatch, depths: Sequence[int], time: float | None = None, seed: int = 0, first: int = 0
    ) -> tuple[Float[Tensor, "b t width"], ...]:
        """Of the patches of codes with noise of N(0, 1), whatever the coupling; see `Generator.states_at`."""
        self.check_states(depths, time)
        taps, x1 = Taps(depths), self.normalize(batch.codes())
        x0 = normals(seed, first, len(x1), math.prod(x1.shape[1:])).view(x1.shape).to(x1.device)
        t = torch.full((len(x1),), float(time or 0), device=x1.device)
        with evaluating(self):
            self._at(self.path.sample(x0, x1, t).x, t, batch.labels, taps=taps)
        return tuple(taps.states[depth] for depth in depths)

    def cost(self, sampling: Sampling) -> int:
        """As many as the solver asks for, a guided one counted twice, but not where guidance was trained.

        Of a solver that finds its steps itself it is what the first image of class 0 and seed 0 takes; how many others
        take is seen in drawing, see `Sampled.passes`.
        """
        assert isinstance(sampling, DiffusionSampling)
        counted = replace(sampling, guidance=1.0) if self.config.tells_guidance else sampling
        if not sampling.adaptive:
            return counted.evaluations(self.objective.span)
        _, times = self._solved(torch.zeros(1, dtype=torch.int64), sampling, 0, 0)
        return sum(2 if counted.guides(t) else 1 for t in times)

    def check_sampling(self, sampling: Sampling) -> None:
        assert isinstance(sampling, DiffusionSampling)
        if sampling.respacing is not None and self.config.path != "ddpm":
            raise ValueError(
                f"respacing={sampling.respacing!r}: expected a generator of path ddpm, not {self.config.path}"
            )
        if sampling.internal_guidance is not None and self.config.internal_depth is None:
            raise ValueError(
                f"internal_guidance={sampling.internal_guidance}: expected a generator with internal_depth, whose early"
                " blocks have been trained to predict too"
            )
        check_averages(self.config, sampling)
        if sampling.guide is not None:
            guide, fresh = self._guide(sampling), not self.code_mean.any() and bool((self.code_std == 1).all())
            if not fresh:  # before training, nothing is known yet
                _check_statistics(self, guide, sampling.guide)

    def guide_digest(self, sampling: Sampling) -> str | None:
        assert isinstance(sampling, DiffusionSampling)
        return None if sampling.guide is None else weights_digest(self._guide(sampling))

    def predict(
        self, x: Float[Tensor, "b d h w"], t: Float[Tensor, "..."], labels: Int[Tensor, "..."]
    ) -> Float[Tensor, "b outputs h w"]:
        """What the network gives for normalised codes x, float32, differentiable, in the mode that the generator is in.

        t       times in [0, 1], one each or one for all; 0 is noise and 1 data
        labels  0 to num_classes, which is the null class

        Raises ValueError unless codes and times have the generator's shapes, and on other labels.
        """
        d, (h, w) = self.code_dim, self.spec.grid
        if x.shape[1:] != (d, h, w) or t.shape not in ((), x.shape[:1]) or labels.shape != x.shape[:1]:
            given = ", ".join(str(tuple(one.shape)) for one in (x, t, labels))
            raise ValueError(f"codes, times and labels of {given}: expected (b, {d}, {h}, {w}), (b,), (b,)")
        wrong = labels[(labels < 0) | (labels > self.num_classes)]
        if wrong.numel():
            raise ValueError(f"label {int(wrong[0])}: expected 0 to {self.num_classes}, the null class")
        return self._at(x, t, labels)

    def velocity(
        self, x: Float[Tensor, "b d h w"], t: Float[Tensor, ""], labels: Int[Tensor, "b"], sampling: DiffusionSampling
    ) -> Float[Tensor, "b d h w"]:
        """The velocity that the guided prediction gives, at one time for the whole batch, float32."""
        return self.objective.velocity(self.guided(x, t, labels, sampling)[:, : self.code_dim], x, t)

    def guided(
        self, x: Float[Tensor, "b d h w"], t: Float[Tensor, ""], labels: Int[Tensor, "b"], sampling: DiffusionSampling
    ) -> Float[Tensor, "b outputs h w"]:
        """The network's prediction, guided: ``null + s * (class - null)``, at one time for the whole batch, float32.

        Outside the interval (low <= t <= high) the class-conditional prediction alone, at half the cost; so too for
        the channels past ``guidance_channels``, and a learned variance in the last half of the outputs. What the
        prediction gives by conversion is guided alike: that is linear. With a guide that one's prediction takes the
        place of the null class's. Where guidance was trained the network is told the scale.
        """
        scale = sampling.scale(float(t.detach()))
        if self.config.tells_guidance:
            return self._at(x, t, labels, interval_of(x, 0.0, scale))
        if scale == 1:
            return self._inside(x, t, labels, sampling)
        if sampling.guide is not None:
            conditional, unconditional = self._inside(x, t, labels, sampling), self._guide(sampling)._at(x, t, labels)
        else:
            both = torch.cat([labels, torch.full_like(labels, self.num_classes)])
            conditional, unconditional = self._inside(x.repeat(2, 1, 1, 1), t, both, sampling).chunk(2)
        c = self.config.guidance_channels or self.code_dim
        guided = unconditional[:, :c] + scale * (conditional[:, :c] - unconditional[:, :c])
        return torch.cat([guided, conditional[:, c:]], dim=1)

    def draw(
        self, labels: Int[Tensor, "b"], sampling: DiffusionSampling, seed: int, first: int, watch: Watch | None = None
    ) -> Sampled:
        """Integrate from noise to codes and snap to the lattice. An image's noise is its own, alike on every device.

        A solver that finds its steps itself is given one image at a time, whose steps no other decides.
        """
        if sampling.guide is not None:
            _check_statistics(self, self._guide(sampling), sampling.guide)
        steps = None if sampling.adaptive else len(sampling.grid()) - 1
        on_step = None if watch is None else telling(watch, len(labels), steps, self.denormalize)
        together = 1 if sampling.adaptive else max(len(labels), 1)
        starts = range(first, first + max(len(labels), 1), together)
        parts = zip(labels.split(together), starts, strict=True)
        solved = [self._solved(part, sampling, seed, start, on_step) for part, start in parts]
        x = torch.cat([x for x, _ in solved])
        if not bool(x.isfinite().all()):
            shift = f", timestep_shift={sampling.timestep_shift}" if sampling.timestep_shift else ""
            less = f"guidance={sampling.guidance}{shift}"
            raise InputError(f"the codes are not finite numbers: expected finite weights and less than {less}")
        codes = self.denormalize(x)
        drawn = Sampled(codes, None) if sampling.snap == "none" else self._snap(codes)
        return replace(drawn, passes=sum(len(times) for _, times in solved)) if sampling.adaptive else drawn

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "DiffusionGenerator":
        """Moving takes statistics and codebook along, casting leaves them float32."""
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, value in before.items():
            moved = getattr(self, name)
            if moved.dtype != torch.float32:
                setattr(self, name, value.to(moved.device))
        return self

    def _snap(self, codes: Tensor) -> Sampled:
        """The codes that the tokenizer can produce which are nearest to these (b, d, h, w)."""
        if isinstance(self.spec, LatentSpec):
            return Sampled(codes, None)
        if self.codebook is None:
            digits = self.spec.codes_to_digits(codes)
            return Sampled(self.spec.digits_to_codes(digits), self.spec.digits_to_indices(digits))
        rows = codes.movedim(1, -1).flatten(0, 2)  # b*h*w d
        exact = "donot_use_mm_for_euclid_dist"  # whose rounding no batch changes
        distances = (torch.cdist(part, self.codebook, compute_mode=exact) for part in rows.split(SNAPPED_AT_ONCE))
        indices = torch.cat([each.argmin(dim=1) for each in distances]).view(len(codes), *self.spec.grid)
        return Sampled(F.embedding(indices, self.codebook).movedim(-1, 1), indices[..., None])

    def _guide(self, sampling: DiffusionSampling) -> "DiffusionGenerator":
        """The generator that ``sampling.guide`` names, where this one is; read once. Raises InputError."""
        assert sampling.guide is not None
        named = sampling.guide, sampling.guide_step
        if named not in self._guides:
            found = DiffusionGenerator.from_run(Run.open(sampling.guide), sampling.guide_step)
            assert isinstance(found, DiffusionGenerator)  # no other is opened
            _check_guide(self, found, sampling.guide)
            self._guides[named] = found
        return self._guides[named].to(self.code_mean.device)

    def _solved(
        self, labels: Tensor, sampling: DiffusionSampling, seed: int, first: int, on_step: OnStep | None = None
    ) -> tuple[Tensor, list[float]]:
        """Normalised codes, and the times at which the network was asked."""
        device, shape = self.code_mean.device, (self.code_dim, *self.spec.grid)
        labels, times = labels.to(device), list[float]()
        numbers = Normals(seed, first, len(labels))

        def noise(x: Tensor | None = None) -> Tensor:
            return numbers(math.prod(shape)).unflatten(1, shape).to(device)

        outputs: list[Tensor] = []  # of the last evaluation

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            times.append(float(t))
            outputs[:] = [self.guided(x, t, labels, sampling)]
            return self.objective.velocity(outputs[0][:, : self.code_dim], x, t)

        def average(x: Tensor, t: Tensor, after: Tensor) -> Tensor:
            times.append(float(t))
            return self._at(x, t, labels, interval_of(x, float(after - t), sampling.guidance))

        def variance(x: Tensor, t: Tensor) -> Tensor:
            return outputs[0][:, self.code_dim :]

        learned = variance if self.objective.trains_variance else None
        with evaluating(self):
            span = self.objective.span
            found = sampling.solve(velocity, noise(), self.path, on_step, span, noise, None, learned, average)
        return found, times

    def _at(
        self, x: Tensor, t: Tensor, labels: Tensor, interval: Interval | None = None, taps: Taps | None = None
    ) -> Tensor:
        times = self.path.network_time(t).to(x).expand(len(x))
        return self.dit(x, times, labels, taps, interval).to(torch.float32)

    def _both_at(self, x: Tensor, t: Tensor, labels: Tensor, taps: Taps | None = None) -> tuple[Tensor, Tensor]:
        """As `_at`, and what the internal layer gives."""
        times = self.path.network_time(t).to(x).expand(len(x))
        final, early = self.dit.forward_both(x, times, labels, taps)
        return final.to(torch.float32), early.to(torch.float32)

    def _inside(self, x: Tensor, t: Tensor, labels: Tensor, sampling: DiffusionSampling) -> Tensor:
        """As `_at`, led away from what the internal layer gives; a learned variance is the last layer's."""
        scale = sampling.internal_scale(float(t.detach()))
        if scale == 1:
            return self._at(x, t, labels)
        final, early = self._both_at(x, t, labels)
        d = self.code_dim
        return torch.cat([early[:, :d] + scale * (final[:, :d] - early[:, :d]), final[:, d:]], dim=1)

    def _drawn(
        self, batch: CodeBatch, rng: torch.Generator, dropped: float | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Draws | None]:
        """Data, noise, times, labels and intervals of a training pass; of the labels a share dropped, in training.

        dropped  the share, also in eval mode, where as much is drawn as in training; None: the config's
        """
        labels = batch.labels
        if self.training or dropped is not None:
            share = self.config.label_dropout if dropped is None else dropped
            labels = drop_labels(labels, self.num_classes, share, rng)
        x1 = self.normalize(batch.codes())
        x0 = torch.randn(x1.shape, generator=rng, device=rng.device).to(x1.device)
        t = self.objective.times(len(x1), rng).to(x1.device)
        draws = None if self.mean_flow is None else self.mean_flow.draw(t, labels, rng)
        t = t if draws is None else draws.t
        return x1, self.objective.pairs(x0, x1, batch.labels), t, labels, draws


def _channels(value: Tensor) -> Tensor:
    return value.to(torch.float32)[:, None, None]


def _check_guide(model: DiffusionGenerator, guide: DiffusionGenerator, where: str) -> None:
    """Raise InputError unless what the guide predicts can be compared with what the model predicts."""
    for name, mine, found in (
        ("codes", model.spec.to_dict(), guide.spec.to_dict()),
        ("channels", model.code_dim, guide.code_dim),
        ("classes", model.num_classes, guide.num_classes),
        ("path", model.config.path, guide.config.path),
        ("prediction", model.config.prediction, guide.config.prediction),
    ):
        if mine != found:
            raise InputError(f"guide={where!r}: its {name}: {found}, expected those of the generator, {mine}")


def _check_statistics(model: DiffusionGenerator, guide: DiffusionGenerator, where: str) -> None:
    """Raise InputError unless the guide normalises codes as the model does."""
    for name in ("code_mean", "code_std"):
        mine, found = getattr(model, name), getattr(guide, name)
        if not torch.equal(mine, found):
            raise InputError(
                f"guide={where!r}: its {name}: {found.tolist()}, expected that of the generator, {mine.tolist()}: "
                "one that was trained on the same codes"
            )
