"""The autoregressive generator: cross-entropy of the next token in training, one draw after the other in sampling."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ifsq.codes import CodeBatch, Sampled
from ifsq.config import InputError
from ifsq.generators.ar.config import ARConfig
from ifsq.generators.ar.decode import Told, decode
from ifsq.generators.ar.draw import ARSampling, draw
from ifsq.generators.ar.fast import precision_of, steps_of
from ifsq.generators.ar.guidance import guidance_scales
from ifsq.generators.ar.network import ARNetwork
from ifsq.generators.ar.noise import NOISES
from ifsq.generators.ar.order import draw_orders, in_order, random_share, to_raster
from ifsq.generators.ar.speculative import decode_parallel
from ifsq.generators.base import Sampling, check_depth, check_depths
from ifsq.generators.conditioning import drop_labels
from ifsq.generators.taps import Taps, TrainingPass
from ifsq.generators.watch import Partly, Progress, Watch, blank_where_unknown
from ifsq.nn.modes import evaluating


class ARGenerator(ARNetwork, kind="ar"):
    """Next-token model of the indices of an image, given its class. See `Generator` for the arguments.

    The numbers of a codebook's vectors are one group of as many codes.

    Raises ValueError for latents, where a group has more than 2**20 codes, and where the head width does not suit
    rotary positions.
    """

    title = "autoregressive"
    causal = True
    config_class = ARConfig
    sampling_class = ARSampling

    @classmethod
    def current(cls, config: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(config.get("head"), str):
            return config
        names = {"kind": "head", "depth": "head_depth", "width": "head_width"}  # before the head had a table of its own
        head = {name: config[key] for name, key in names.items() if key in config}
        return {key: value for key, value in config.items() if key not in names.values()} | {"head": head}

    @property
    def annealed(self) -> tuple[str, ...]:
        return () if self.config.order == "raster" else ("the annealing of the tokens' orders is",)

    def training_pass(
        self, batch: CodeBatch, rng: torch.Generator, progress: float = 1.0, depths: Sequence[int] = ()
    ) -> TrainingPass:
        """``loss``: nats a token, summed over its groups; ``bits_per_token`` and ``bits_per_image``: the same in bits.

        In training the head's own loss, which for the masked head is a bound, and with ``config.order = "random"`` of
        images that are read in orders by ``progress``. In eval mode the negative log-likelihood, in raster. A state
        is about the token that it predicts, whatever its groups; of the class's positions the last predicts the first.
        """
        taps = Taps(check_depths(depths, len(self.layers)))
        labels, indices = self._dropped(batch.labels, rng), self._indices(batch)
        order = self._orders(batch, rng, progress)
        states = self.states(indices, labels, order=order, taps=taps)
        told = indices if order is None else in_order(indices, order)
        loss = self.head.loss(states, told, rng) if self.training else self.head.nats(states, told).mean()
        bits = loss.detach() / math.log(2)
        losses = {"loss": loss, "bits_per_token": bits, "bits_per_image": bits * self.spec.tokens}
        before = self.config.class_tokens - 1
        return TrainingPass(losses, tuple(taps.states[depth][:, before:] for depth in depths), order)

    def nll(self, batch: CodeBatch, first: int = 0) -> Float[Tensor, "b"]:
        """Negative log-likelihood of each image in nats, given its label; no dropout of any kind, no gradient."""
        indices = self._indices(batch)
        with evaluating(self):
            return self.head.nats(self.states(indices, batch.labels), indices).sum(dim=1)

    def hidden(
        self,
        batch: CodeBatch,
        depth: int,
        rng: torch.Generator | None = None,
        progress: float = 1.0,
        cleaner: float | None = None,
    ) -> Float[Tensor, "b t width"]:
        """States that predict tokens 0..t-1 after ``depth`` blocks; see `Generator.hidden`."""
        check_depth(depth, len(self.layers))
        rng = torch.Generator(batch.labels.device).manual_seed(0) if rng is None else rng
        labels = self._dropped(batch.labels, rng)
        order = self._orders(batch, rng, progress)
        states = self.states(self._indices(batch), labels, depth, order)
        return states if order is None else to_raster(states, order)

    def states_at(
        self, batch: CodeBatch, depths: Sequence[int], time: float | None = None, seed: int = 0, first: int = 0
    ) -> tuple[Float[Tensor, "b t width"], ...]:
        """State i has read the tokens before i, in raster, and predicts token i; see `Generator.states_at`."""
        self.check_states(depths, time)
        taps, before = Taps(depths), self.config.class_tokens - 1
        with evaluating(self):
            self.states(self._indices(batch), batch.labels, taps=taps)
        return tuple(taps.states[depth][:, before:] for depth in depths)

    def check_sampling(self, sampling: Sampling) -> None:
        assert isinstance(sampling, ARSampling)
        sampling.check_groups(len(self.spec.groups))

    def arithmetic(self, sampling: Sampling | None = None) -> str:
        used = precision_of(self, sampling.precision) if isinstance(sampling, ARSampling) else None
        if used == "fp32":
            return "float32"
        return super().arithmetic(sampling) if used is None else f"{used} weights"

    def cost(self, sampling: Sampling) -> int:
        """One evaluation a token; two up to the last that is guided, whose null half must know all before it.

        Of parallel decoding it is the most: how many it takes is seen in drawing, see `Sampled.passes`.
        """
        assert isinstance(sampling, ARSampling)
        return self.spec.tokens + len(guidance_scales(sampling, self.spec.tokens, len(self.spec.groups)))

    def draw(
        self, labels: Int[Tensor, "b"], sampling: ARSampling, seed: int, first: int, watch: Watch | None = None
    ) -> Sampled:
        """Decode token by token, or in parallel; an image's random numbers are its own."""
        if len(labels):
            tell = None if watch is None else partial(self._tell, watch)
            indices, passes = self._decoded(labels, sampling, seed, first, tell)
        else:
            shape, device = (0, self.spec.tokens, len(self.spec.groups)), next(self.parameters()).device
            indices, passes = torch.empty(shape, dtype=torch.int64, device=device), None
        indices = indices.unflatten(1, self.spec.grid)
        return Sampled(self._codes(indices), indices, passes)

    def _codes(self, indices: Int[Tensor, "b h w g"]) -> Float[Tensor, "b d h w"] | None:
        return self.spec.digits_to_codes(self.spec.indices_to_digits(indices)) if self.spec.on_lattice else None

    def _tell(self, watch: Watch, settled: int, tokens: Callable[[], Tensor]) -> None:
        """Say that so many tokens stand, which ``tokens`` gives."""

        def look() -> Partly:
            found = tokens()  # b s g
            indices = F.pad(found, (0, 0, 0, self.spec.tokens - settled)).unflatten(1, self.spec.grid)
            places = torch.arange(self.spec.tokens, device=found.device).view(1, 1, *self.spec.grid)
            known = (places < settled).expand(len(found), -1, -1, -1)
            return Partly(Sampled(blank_where_unknown(self._codes(indices), known), indices), known)

        watch(Progress(settled, self.spec.tokens, look))

    def _decoded(
        self, labels: Int[Tensor, "b"], sampling: ARSampling, seed: int, first: int, tell: Told | None
    ) -> tuple[Int[Tensor, "b t g"], int | None]:
        """All tokens, and how many passes drew them where drawing decided that."""
        tokens, groups = self.spec.tokens, len(self.spec.groups)
        device = self.cls_embedding.embedding_table.weight.device
        noise = NOISES[sampling.noise](self.spec, seed, first, len(labels), device)
        finite: dict[int, Tensor] = {}

        def choose(logits: Tensor, position: int, group: int) -> Tensor:
            count = len(logits) // len(labels)
            if position + count == tokens:  # the last token sees all before it, so NaN anywhere is NaN there
                finite[group] = logits[count - 1 :: count].amax(dim=-1).isfinite().all()
            return draw(logits, sampling, noise.of(position, count, group), group)

        steps, scales, passes = steps_of(self, sampling.precision), guidance_scales(sampling, tokens, groups), None
        if sampling.parallel:
            indices, passes = decode_parallel(steps, labels, choose, scales, sampling.parallel, tell)
        else:
            indices = decode(steps, labels, choose, scales, tell)
        if not bool(torch.stack(list(finite.values())).all()):
            raise InputError("the logits are not finite numbers: expected finite weights")
        return indices, passes

    def _dropped(self, labels: Tensor, rng: torch.Generator) -> Tensor:
        """In training a share of the labels becomes the null class."""
        return drop_labels(labels, self.num_classes, self.config.label_dropout, rng) if self.training else labels

    def _orders(self, batch: CodeBatch, rng: torch.Generator, progress: float) -> Tensor | None:
        """In training an order for each image, where any may be random; None is raster."""
        if not self.training or self.config.order == "raster":
            return None
        share = random_share(progress, self.config.order_start, self.config.order_end)
        order = draw_orders(len(batch.labels), self.spec.tokens, share, rng)
        return None if order is None else order.to(batch.labels.device)

    def _indices(self, batch: CodeBatch) -> Tensor:
        return batch.indices(self.spec.groups).flatten(1, 2)  # b t g
