"""Tokens a second and model-FLOP utilisation: by hand, in the log, and only where a peak is known."""

import pytest
import torch
from tests.training.test_loop import HERE, Regression, config

from ifsq.config import InputError, build
from ifsq.training.config import EngineConfig
from ifsq.training.distributed import World
from ifsq.training.log import Silent, read_metrics
from ifsq.training.loop import train
from ifsq.training.utilization import Utilization, Work, known_peak


class Counted(Regression):
    def work(self):
        return Work(tokens=16, flops=3 * 10**9)


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 80GB HBM3", "fp16", 989.4),
        ("NVIDIA H100 80GB HBM3", "fp32", 67.0),
        ("NVIDIA H100 PCIe", "bf16", 756.0),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA A100 80GB PCIe", "bf16", 312.0),
        ("NVIDIA L40S", "bf16", 362.0),
        ("NVIDIA GH200 480GB", "bf16", 989.4),
        ("NVIDIA GH200 144G HBM3e", "bf16", 989.4),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None),  # a part of one
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA H20", "bf16", None),
        ("", "bf16", None),
    ],
)
def test_the_peak_of_a_gpu_by_its_name(name, precision, peak):
    assert known_peak(name, precision) == peak


def test_float32_peaks_at_tf32_where_torch_may_use_it(monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert known_peak("NVIDIA A100-SXM4-80GB", "fp32") == 156.0


def test_figures_by_hand():
    """10 images a second of 2 GFLOP are 0.02 TFLOP/s: 1 % of two devices of 1 TFLOP/s."""
    engine, world = EngineConfig(peak_tflops=1.0), World(0, 2, torch.device("cpu"))
    figures = Utilization.of(Work(64, 2 * 10**9), "bf16", engine, world).figures(10.0)
    assert figures == pytest.approx({"tokens_per_second": 640, "model_tflops_per_second": 0.02, "mfu": 0.01})
    assert Utilization.of(None, "bf16", engine, world).figures(10.0) == {}


def test_the_log_holds_them_where_somebody_counts_and_a_share_only_of_a_known_peak(tmp_path):
    ends, figures = [], {"tokens_per_second", "model_tflops_per_second", "mfu"}
    for name, task, engine in (
        ("uncounted", Regression(), EngineConfig(peak_tflops=0.5)),
        ("unknown", Counted(), EngineConfig()),
        ("told", Counted(), EngineConfig(peak_tflops=0.5)),
    ):
        options = config(steps=2, log_every=1, save_every=2, engine=engine)
        ends.append(train(task, options, tmp_path / name, HERE, Silent(), "run").state_dict())
        rows = [row for row in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in row]
        assert len(rows) == 2
        for row in rows:
            found = {figure: row[figure] for figure in figures & row.keys()}
            images = row["examples_per_second"]
            expected = {
                "tokens_per_second": 16 * images,
                "model_tflops_per_second": 3e-3 * images,
                "mfu": 6e-3 * images,
            }
            if name == "unknown":
                del expected["mfu"]
            assert found == ({} if name == "uncounted" else pytest.approx(expected))
    assert all(torch.equal(value, end[key]) for end in ends for key, value in ends[0].items())  # no bit is changed


@pytest.mark.parametrize("value", [0, -1.0])
def test_a_peak_that_cannot_be_is_refused(value):
    with pytest.raises(InputError, match=r"peak_tflops=.*: expected a positive number of TFLOP/s, or none"):
        build(EngineConfig, {"peak_tflops": value}, "here")
