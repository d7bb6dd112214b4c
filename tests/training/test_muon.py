"""Muon's orthogonalisation against the singular value decomposition, and its two kinds of step."""

import pytest
import torch

from sfumato.training.muon import Muon, msign, split


@pytest.mark.parametrize("shape", [(2, 16, 40), (1, 40, 16), (3, 8, 8)])
def test_msign_keeps_the_singular_vectors_and_levels_the_values(shape):
    u = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, values, right = torch.linalg.svd(u, full_matrices=False)
    inner = left.mT @ msign(u, steps=8) @ right.mT
    off = inner - torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1))
    assert off.abs().max() < 1e-9
    reached = inner.diagonal(dim1=-2, dim2=-1)
    assert reached.min() > 0.65 and reached.max() < 1.25


@pytest.mark.parametrize("shape", [(2, 12, 30), (2, 12, 14), (2, 14, 12)])
def test_the_short_cut_is_the_iteration(shape):
    u = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = u / u.norm(dim=(-2, -1), keepdim=True)
    for _ in range(4):
        s = x @ x.mT
        x = 3.4445 * x + (-4.7750 * s + 2.0315 * s @ s) @ x
    assert torch.allclose(msign(u, steps=4), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 48, 200), (1, 64, 64)])
def test_in_bfloat16_it_is_no_farther_off_than_the_iteration_itself(shape):
    """Also where singular values fall by e^6, as those of gradients do."""
    g = torch.Generator().manual_seed(3)
    left, values, right = torch.linalg.svd(torch.randn(shape, generator=g), full_matrices=False)
    u = left * torch.linspace(0, -6, values.shape[-1]).exp() @ right
    x = (u / u.norm(dim=(-2, -1), keepdim=True)).bfloat16()
    for _ in range(4):
        s = x @ x.mT
        x = 3.4445 * x + (-4.7750 * s + 2.0315 * s @ s) @ x
    exact, low = msign(u.double()), msign(u, dtype=torch.bfloat16)
    assert low.dtype == torch.bfloat16
    error = (low - exact).norm() / exact.norm()
    assert 1e-3 < error < 1.5 * (x - exact).norm() / exact.norm() and error < 0.06


def test_the_others_take_the_steps_of_adamw():
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    a = Muon([], [ours], lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    b = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    for _ in range(5):
        for p, optimiser in ((ours, a), (theirs, b)):
            optimiser.zero_grad()
            (p**3).sum().backward()
            optimiser.step()
    assert torch.allclose(ours, theirs, atol=1e-7)


def test_a_kernel_is_the_matrix_of_outputs_by_inputs_and_taps():
    g = torch.Generator().manual_seed(2)
    start, gradient = torch.randn(6, 4, 3, 3, generator=g), torch.randn(6, 4, 3, 3, generator=g)
    kernel, matrix = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.reshape(6, 36).clone())
    kernel.grad, matrix.grad = gradient.clone(), gradient.reshape(6, 36).clone()
    for p in (kernel, matrix):
        Muon([p], [], lr=0.1, weight_decay=0.0).step()
    assert torch.allclose(kernel.reshape(6, 36), matrix, atol=1e-6)
    moved = (matrix - start.reshape(6, 36)).detach()
    assert 0.5 < moved.square().mean().sqrt() / (0.1 * 0.2) < 1.5  # AdamW's root mean square


def test_split_leaves_the_outer_parts_to_adamw():
    net = torch.nn.ModuleDict({name: torch.nn.Linear(4, 4) for name in ("input", "hidden", "modulation", "output")})
    scale = torch.nn.Parameter(torch.zeros(()))
    matrices, others, scales = split([*net.named_parameters(), ("log_variance", scale)])
    assert [p is net["hidden"].weight for p in matrices] == [True]
    assert len(others) == 7 and [p is scale for p in scales] == [True]
