"""How long and how a model is trained: what every model shares. Read from an experiment's ``[train]``.

`EngineConfig` says only how the work is laid out on machines: it may change when a run goes on, as may
`ifsq.training.claim.MAY_CHANGE`; the rest may not.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from ifsq.training.optim import OptimConfig

Precision = Literal["fp32", "bf16", "fp16", "auto"]


@dataclass(frozen=True)
class EngineConfig:
    """How the work is laid out; not a part of a run's identity.

    accumulate  parts that a process cuts its share of a batch into, one after another through the model. Two processes
                with one part each, and one process with two, see the same parts and draw the same noise
    workers     processes that load data, for each training process; 0 loads in it
    prefetch    batches that each of the workers reads ahead
    compile     torch.compile of the parts that a task names
    recompute   keep the inputs of blocks alone for the backward pass and run them again there (activation
                checkpointing): the same gradients in far less memory, for about a third more time
    sharding    ``replicate`` (DDP) or ``shard`` (FSDP2: weights, averages and optimizer state spread over processes)
    loggers     beside metrics.jsonl: ``tensorboard``, ``wandb``, ``trackio`` (``pip install ifsq[log]``)
    peak_tflops  10**12 floating-point operations a second that the device of one process does at its best in the
                training's precision, for ``mfu`` in the log; None: known of some GPUs, see `Utilization`
    """

    accumulate: int = 1
    workers: int = 0
    compile: bool = False
    recompute: bool = False
    sharding: Literal["replicate", "shard"] = "replicate"
    prefetch: int = 2
    loggers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    peak_tflops: float | None = None

    def __post_init__(self) -> None:
        if self.accumulate < 1 or self.workers < 0:
            raise ValueError(
                f"accumulate={self.accumulate}, workers={self.workers}: expected at least 1, and at least 0"
            )
        if self.prefetch < 1:
            raise ValueError(f"prefetch={self.prefetch}: expected at least 1 batch")
        if len(set(self.loggers)) < len(self.loggers):
            raise ValueError(f"loggers={self.loggers}: expected each once")
        if self.peak_tflops is not None and not 0 < self.peak_tflops < math.inf:
            raise ValueError(f"peak_tflops={self.peak_tflops}: expected a positive number of TFLOP/s, or none")


@dataclass(frozen=True)
class TrainConfig:
    """How long and how.

    steps           optimizer steps
    batch           examples a step, over all processes together
    seed            of the weights, the sample order and every random draw
    precision       ``fp32``, or autocast to ``bf16`` or ``fp16`` (with a loss scale, which is saved); ``auto`` is bf16
                    where every process computes in it and fp32 elsewhere; a run is of one of these
    ema             decay of the averaged weights, which are the ones evaluated and exported
    log_every       steps between lines of metrics.jsonl
    save_every      steps between checkpoints; the last step is always saved
    validate_every  steps between validations; 0 for the last step only
    sample_every    steps between pictures ``samples/step_N.png`` of the run's folder, and at the last; 0 for none
    evaluate_every  steps between figures ``evaluate/...`` of metrics.jsonl, and at the last; 0 for none
    evaluate_images  images drawn, or held-out images reconstructed, for these figures; at most all that are held out
    keep            newest checkpoints kept
    keep_every      checkpoints at multiples of this step are kept for good; 0 for none
    init            run, folder of a saved model or ``owner/name`` on the hub, whose averaged weights the run begins
                    with, see `warm_start`; empty: fresh weights
    init_parts      parts of the model that are taken from there, as ``["encoder", "decoder"]``; empty: all of it
    freeze          parts of the model that stay as they are, as ``["encoder"]`` or ``["blocks.0"]``, see `freeze`
    optim           the optimizer, see `OptimConfig`
    engine          how the work is laid out, see `EngineConfig`
    """

    steps: int = 1000
    batch: int = 32
    seed: int = 0
    precision: Precision = "fp32"
    ema: float = 0.999
    log_every: int = 50
    save_every: int = 500
    validate_every: int = 0
    sample_every: int = 0
    evaluate_every: int = 0
    evaluate_images: int = 1000
    keep: int = 2
    keep_every: int = 0
    init: str = ""
    init_parts: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    optim: OptimConfig = field(default_factory=OptimConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.validate_every < 0 or self.keep_every < 0 or not 0 <= self.seed < 2**31:
            raise ValueError("validate_every and keep_every must not be negative, and seed must lie in 0..2**31-1")
        for name, least in (("sample_every", 0), ("evaluate_every", 0), ("evaluate_images", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {least}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema}: expected a decay in [0, 1)")
        if self.init_parts and not self.init:
            raise ValueError(f"init_parts={list(self.init_parts)} without init: expected where they are taken from")
        if self.optim.kind == "muon" and self.engine.sharding == "shard":
            raise ValueError(
                "optim.kind='muon' with engine.sharding='shard': expected adamw, or replicate: it needs whole matrices"
            )
        if self.precision == "fp16" and self.engine.sharding == "shard":
            raise ValueError("precision='fp16' with engine.sharding='shard': expected bf16, or replicate")

    def with_precision(self, bfloat16: bool) -> "TrainConfig":
        """This config with ``auto`` replaced by what it is where bfloat16 is computed, or where it is not."""
        return replace(self, precision="bf16" if bfloat16 else "fp32") if self.precision == "auto" else self
