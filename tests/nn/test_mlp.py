"""The feed-forward layers against their formulas."""

import torch

from ifsq.nn.mlp import GELU, SwiGLU


def test_swiglu_gates_with_its_first_half():
    layer = SwiGLU(4, 6, bias=True)
    x = torch.randn(3, 4)
    gate, value = layer.w12.weight[:6] @ x.T, layer.w12.weight[6:] @ x.T
    gate, value = gate.T + layer.w12.bias[:6], value.T + layer.w12.bias[6:]
    expected = (gate / (1 + torch.exp(-gate)) * value) @ layer.w3.weight.T + layer.w3.bias
    assert torch.allclose(layer(x), expected, atol=1e-6)
    assert not any(name.endswith("bias") for name in SwiGLU(4, 6, bias=False).state_dict())


def test_gelu_is_the_tanh_form():
    layer = GELU(4, 6)
    x = torch.randn(3, 4)
    hidden = x @ layer.fc1.weight.T + layer.fc1.bias
    inner = (2 / torch.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)
    expected = 0.5 * hidden * (1 + torch.tanh(inner)) @ layer.fc2.weight.T + layer.fc2.bias
    assert torch.allclose(layer(x), expected, atol=1e-6)
