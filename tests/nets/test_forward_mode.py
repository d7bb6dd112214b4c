"""Inside `forward_mode` group norms and attention are what they are outside, and compiled code never enters it."""

import torch

from sfumato.nets import forward_mode
from sfumato.nets.attention import attend
from sfumato.nets.blocks import group_norm


def test_composite_forms_are_equal_and_compiled_code_is_one_graph() -> None:
    torch.manual_seed(0)
    norm, x, qkv = group_norm(64).requires_grad_(False), torch.randn(2, 64, 4, 6), torch.randn(2, 8, 96)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    x = x.contiguous(memory_format=torch.channels_last)
    plain = norm(x), attend(qkv, 2)
    with forward_mode():
        inside = norm(x), attend(qkv, 2)
    compiled = (
        torch.compile(norm, backend="eager", fullgraph=True)(x),
        torch.compile(lambda v: attend(v, 2), backend="eager", fullgraph=True)(qkv),
    )
    for one, other, third in zip(plain, inside, compiled, strict=True):
        assert torch.allclose(one, other, atol=1e-5) and torch.equal(one, third)
