"""Weights: the tensors of a module and no others, in its shapes and types, finite."""

import math
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ifsq.config import InputError
from ifsq.store.weights import load_weights, read_tensors, refuse_infinite, weights_digest


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.register_buffer("count", torch.tensor(4))
        self.register_buffer("seen", torch.tensor([True, False]))


GOOD = {
    "layer.weight": torch.arange(6.0).view(3, 2),
    "layer.bias": torch.ones(3),
    "count": torch.tensor(7),
    "seen": torch.tensor([False, True]),
}
REFUSED = {
    "missing": ({"layer.bias": None}, "tensor 'layer.bias' is missing"),
    "left over": ({"more": torch.ones(1)}, "tensor 'more' is not part of this model"),
    "shape": ({"layer.bias": torch.ones(4)}, r"tensor 'layer.bias' has shape \(4,\), expected \(3,\)"),
    "integers": ({"layer.bias": torch.ones(3, dtype=torch.int64)}, "'layer.bias' is int64, expected float32"),
    "truth": ({"layer.bias": torch.ones(3, dtype=torch.bool)}, "'layer.bias' is bool, expected float32"),
    "complex": ({"layer.bias": torch.ones(3, dtype=torch.complex64)}, "'layer.bias' is complex64, expected float32"),
    "double": ({"layer.bias": torch.ones(3, dtype=torch.float64)}, "'layer.bias' is float64, expected float32"),
    "eighth": ({"layer.bias": torch.ones(3).to(torch.float8_e4m3fn)}, "is float8_e4m3fn, expected float32"),
    "half": ({"layer.bias": torch.ones(3, dtype=torch.float16)}, "'layer.bias' is float16, expected float32"),
    "a count in floats": ({"count": torch.tensor(7.0)}, "'count' is float32, expected int64"),
    "a flag in bytes": ({"seen": torch.zeros(2, dtype=torch.uint8)}, "'seen' is uint8, expected bool"),
    "nan": ({"layer.bias": torch.tensor([0, math.nan, 0])}, "tensor 'layer.bias' holds values that are not finite"),
    "infinity": ({"layer.bias": torch.tensor([0, 0, -math.inf])}, "tensor 'layer.bias' holds values that are not"),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_the_models_is_named(case, device):
    change, message = REFUSED[case]
    with torch.device(device):
        model = Small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    table = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(InputError, match=f"^w: .*{message}"):
        load_weights(model, table, "w")
    if device == "cpu":
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_halves_are_widened_where_they_may_be(dtype, device):
    with torch.device(device):
        model = Small()
    table = {key: value.to(dtype) if value.is_floating_point() else value for key, value in GOOD.items()}
    load_weights(model, table, "w", halves=True)
    assert all(torch.equal(value, GOOD[key]) for key, value in model.state_dict().items())
    assert all(value.dtype == GOOD[key].dtype for key, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_that_are_not_finite_and_floats_for_halves_are_refused(dtype):
    table = {**GOOD, "layer.bias": torch.tensor([0, math.inf, 0], dtype=dtype)}
    with pytest.raises(InputError, match=r"'layer.bias' holds values that are not finite"):
        load_weights(Small(), table, "w", halves=True)
    with pytest.raises(InputError, match=rf"'layer.bias' is float32, expected {str(dtype)[6:]}"):
        load_weights(Small().to(dtype), GOOD, "w", halves=True)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_file_that_is_written_over_changes_no_model(device, tmp_path):
    """As ``cp`` does it, in place."""
    save_file(GOOD, tmp_path / "w.safetensors")
    with torch.device(device):
        model = Small()
    load_weights(model, read_tensors(tmp_path / "w.safetensors"), "w")
    size = (tmp_path / "w.safetensors").stat().st_size
    with (tmp_path / "w.safetensors").open("r+b") as file:
        file.write(b"\xff" * size)
    assert all(torch.equal(value, GOOD[key]) for key, value in model.state_dict().items())


def test_the_largest_finite_values_pass():
    most = torch.finfo(torch.float32).max
    refuse_infinite({"a": torch.tensor([most, -most, most]), "none": torch.empty(0), "n": torch.tensor(3)}, "w")


def test_files_that_are_none_are_named(tmp_path):
    save_file(GOOD, tmp_path / "w.safetensors")
    assert read_tensors(tmp_path / "w.safetensors").keys() == GOOD.keys()
    content = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[:-1])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name, message in (
        ("gone", "no such file"),
        ("cut", "cannot be read: "),
        ("empty", "cannot be read: "),
        ("pipe", "is no regular file; expected safetensors"),
    ):
        with pytest.raises(InputError, match=rf"{name}\.safetensors: {message}") as caught:
            read_tensors(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="is no regular file"):
        read_tensors(tmp_path)


def test_the_digest_sees_every_bit():
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    b.load_state_dict(a.state_dict())
    assert weights_digest(a) == weights_digest(b)
    with torch.no_grad():
        b.bias[1] = torch.nextafter(b.bias[1], torch.tensor(9.0))
    assert weights_digest(a) != weights_digest(b)
