"""How much of a machine a training uses: tokens a second, and model-FLOP utilisation (MFU, arXiv 2204.02311).

MFU is the floating-point operations that the model itself needs, a second, over what the devices do at their best.
Operations that are done twice, as those of activation checkpointing, count once; waiting for data counts as time.
"""

import re
from dataclasses import dataclass

import torch

from ifsq.training.config import EngineConfig, Precision
from ifsq.training.distributed import World


@dataclass(frozen=True)
class Work:
    """What an example asks of the machine in training.

    tokens  positions of its grid of codes
    flops   floating-point operations, forward and backward
    """

    tokens: int
    flops: int


# TFLOP/s without sparsity, from NVIDIA's data sheets and architecture white papers (there often twice as much, with
# sparsity): products of bf16 or fp16 summed in float32, of tf32, of float32.
PEAKS: dict[str, tuple[float, float, float]] = {
    r"NVIDIA B200": (2250.0, 1125.0, 75.0),
    r"NVIDIA GH200 \d+GB?( HBM3e?)?": (989.4, 494.7, 67.0),
    r"NVIDIA H200 NVL": (835.5, 417.7, 60.0),
    r"NVIDIA H200": (989.4, 494.7, 67.0),
    r"NVIDIA H100 NVL": (835.5, 417.7, 60.0),
    r"NVIDIA H100 PCIe": (756.0, 378.0, 51.0),
    r"NVIDIA H100( 80GB HBM3| SXM5.*)": (989.4, 494.7, 67.0),
    r"NVIDIA A100.*[48]0GB( PCIe)?": (312.0, 156.0, 19.5),
    r"NVIDIA A40": (149.7, 74.8, 37.4),
    r"NVIDIA A30": (165.0, 82.0, 10.3),
    r"NVIDIA A10": (125.0, 62.5, 31.2),
    r"NVIDIA RTX A6000": (154.8, 77.4, 38.7),
    r"NVIDIA L40S": (362.0, 183.0, 91.6),
    r"NVIDIA L40": (181.0, 90.5, 90.5),
    r"NVIDIA L4": (121.0, 60.0, 30.3),
    r"NVIDIA GeForce RTX 3090": (71.0, 35.6, 35.6),
    r"NVIDIA GeForce RTX 4090": (165.2, 82.6, 82.6),
}


class Utilization:
    """The figures of a training's speed.

    work  of an example; None where nobody counts it, and then there is nothing to say
    peak  floating-point operations a second of all devices together at their best; None where it is not known
    """

    def __init__(self, work: Work | None, peak: float | None) -> None:
        self.work, self.peak = work, peak

    @classmethod
    def of(cls, work: Work | None, precision: Precision, engine: EngineConfig, world: World) -> "Utilization":
        """With the peak that the engine states for a device, else that of the GPU where it is known."""
        name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else ""
        peak = known_peak(name, precision) if engine.peak_tflops is None else engine.peak_tflops
        return cls(work, None if peak is None else 1e12 * peak * world.size)

    def figures(self, examples_per_second: float) -> dict[str, float]:
        """``tokens_per_second``, ``model_tflops_per_second``, and ``mfu``, a share, where the peak is known."""
        if self.work is None:
            return {}
        flops = self.work.flops * examples_per_second
        found = {"tokens_per_second": self.work.tokens * examples_per_second, "model_tflops_per_second": flops / 1e12}
        return found if self.peak is None else found | {"mfu": flops / self.peak}


def known_peak(name: str, precision: Precision) -> float | None:
    """TFLOP/s of the GPU that CUDA calls ``name``, without sparsity; None where not known, as of a part of one."""
    for pattern, (half, tf32, fp32) in PEAKS.items():
        if re.fullmatch(pattern, name):
            if precision != "fp32":
                return half
            return fp32 if torch.get_float32_matmul_precision() == "highest" else tf32
    return None
