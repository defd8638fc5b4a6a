"""Which devices compute in bfloat16."""

import torch

from ifsq.training.precision import computes_bfloat16


def test_a_cpu_is_asked_for_its_instructions(monkeypatch):
    asked = computes_bfloat16.__wrapped__
    for told, expected in (
        ({"avx2": True, "avx512_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda told=told: told, raising=False)
        assert asked("cpu") is expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert asked("cpu") is False
