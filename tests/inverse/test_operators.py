"""Operators: adjoints by their definition, what is read of a measurement, and linear systems solved row by row."""

import pytest
import torch

import sfumato as sf
from measured_laws import FIELD, PROCESS
from sfumato.inverse import Measurement
from sfumato.inverse.measurement import conjugate_gradient, minimal_residual
from sfumato.inverse.operators import Blur, Linear, Map, Mask, Pool

KNOWN = torch.arange(64).reshape(8, 8) % 3 > 0
MATRIX = torch.randn(5, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LINEAR = {
    "mask": Mask(KNOWN), "pool": Pool(2), "blur": Blur(1.3), "matrix": Linear(MATRIX),
    "map": Map(lambda x: x[:, :, 1:]),
    "functions": Linear(lambda x: x.flatten(1) @ MATRIX.T, lambda u: (u @ MATRIX).reshape(-1, 1, 8, 8)),
    "function": Linear(lambda x: x.flip(2) * 3),
}  # fmt: skip


@pytest.mark.parametrize("name", LINEAR)
def test_an_adjoint_is_that_of_its_operator(name):
    operator, draw = LINEAR[name], torch.Generator().manual_seed(1)
    x = torch.randn(3, 1, 8, 8, generator=draw, dtype=torch.float64)
    y = operator(x)
    u = torch.randn(y.shape, generator=draw, dtype=torch.float64)
    back = operator.adjoint(u, x)
    assert back.shape == x.shape
    assert torch.allclose((y * u).flatten(1).sum(1), (x * back).flatten(1).sum(1), rtol=1e-12)


def test_pooling_and_blurring_are_means():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert Pool(2)(x).tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    assert Pool(2)(torch.tensor([[1.0, 3.0, 5.0, 9.0]])).tolist() == [[2.0, 7.0]]
    constant = torch.full((1, 1, 6, 6), 3.0, dtype=torch.float64)
    assert torch.allclose(Blur(5.0)(constant), constant)
    impulse = torch.zeros(1, 1, 21, 21, dtype=torch.float64)
    impulse[..., 10, 10] = 1
    along = Blur(1.5)(impulse)[0, 0].sum(0)
    place = torch.arange(21) - 10.0
    assert float((along * place**2).sum()) == pytest.approx(1.5**2, rel=0.01)


def test_a_masked_measurement_is_read_from_a_whole_sample_with_gaps():
    whole = torch.arange(64.0).reshape(1, 8, 8)
    gaps = torch.where(KNOWN, whole, torch.nan)
    assert torch.equal(Mask.of(gaps).observed(gaps), Mask(KNOWN).observed(whole))
    assert torch.equal(Mask(KNOWN).observed(whole), Mask(KNOWN)(whole[None])[0])
    assert torch.equal(Mask(KNOWN).observed(whole[0][KNOWN]), whole[0][KNOWN])


def test_conjugate_gradients_solve_each_row_by_itself():
    draw = torch.Generator().manual_seed(0)
    root = torch.randn(4, 6, 6, generator=draw, dtype=torch.float64)
    K, b = root @ root.mT + 0.1 * torch.eye(6), torch.randn(4, 6, generator=draw, dtype=torch.float64)
    b[2] = 0
    u = conjugate_gradient(lambda v: (K @ v[..., None])[..., 0], b, 40, tol=1e-10)
    assert torch.allclose(u, torch.linalg.solve(K, b[..., None])[..., 0], atol=1e-7)
    few = conjugate_gradient(lambda v: (K @ v[..., None])[..., 0], b, 3)
    alone = conjugate_gradient(lambda v: (K[:1] @ v[..., None])[..., 0], b[:1], 3)
    assert torch.allclose(few[:1], alone, atol=1e-12)


def test_minimal_residuals_solve_what_is_not_symmetric_and_never_grow():
    draw = torch.Generator().manual_seed(0)
    root, turn = torch.randn(2, 4, 6, 6, generator=draw, dtype=torch.float64)
    K, b = root @ root.mT + 0.1 * torch.eye(6) + turn - turn.mT, torch.randn(4, 6, generator=draw, dtype=torch.float64)
    b[2] = 0

    def product(v, rows=slice(None)):
        return (K[rows] @ v[..., None])[..., 0]

    left = [(b - product(minimal_residual(product, b, rounds))).norm(dim=1) for rounds in range(8)]
    assert all(bool((after <= before + 1e-12).all()) for before, after in zip(left, left[1:], strict=False))
    assert float(left[6].max()) < 1e-6 < float(left[2].max())
    alone = minimal_residual(lambda v: product(v, slice(1)), b[:1], 3)
    assert torch.allclose(minimal_residual(product, b, 3)[:1], alone, atol=1e-12)
    assert float((b - product(conjugate_gradient(product, b, 7))).norm()) > float(b.norm())  # not what that is for


def test_measurements_that_do_not_fit_are_refused_in_a_sentence():
    model, y = FIELD.denoiser(PROCESS), torch.zeros(1, 8, 8)
    wrong = {
        "NaN": lambda: sf.posterior(model, torch.full((1, 8, 8), torch.nan), Blur(1.0), 0.1),
        r"has shape \(4, 4\), and the operator gives \(1, 4, 4\)": lambda: sf.posterior(model, y[0, :4, :4], Pool(2)),
        "does not fit samples": lambda: sf.posterior(model, y, Mask(torch.ones(3, 3)), 0.1),
        "without a known entry": lambda: Mask(torch.zeros(8, 8)),
        "one of sf.operators": lambda: sf.posterior(model, y, lambda x: x, 0.1),
        "cannot be pooled by 3": lambda: sf.posterior(model, y, Pool(3), 0.1),
        "at least 0": lambda: sf.posterior(model, y, Blur(1.0), -1.0),
        "matrix": lambda: Linear(torch.ones(3)),
        "no method for inverse problems 'mmsp'": lambda: sf.posterior(model, y, Blur(1.0), 0.1, "mmsp"),
        "no argument 'step'": lambda: sf.posterior(model, y, Blur(1.0), 0.1, step=3),
    }
    for words, call in wrong.items():
        with pytest.raises(sf.SfumatoError, match=words):
            call()


def test_the_projection_is_the_smallest_change_with_the_measurement():
    x = FIELD.sample(2, 0)
    for name in ("mask", "pool", "matrix"):
        operator = LINEAR[name]
        measured = Measurement(FIELD.denoiser(PROCESS), operator(x)[0], operator)
        start = FIELD.sample(2, 1)
        change = measured.project(start, measured.residual(start))
        A = operator(torch.eye(64, dtype=torch.float64).reshape(64, 1, 8, 8)).flatten(1).T
        expected = torch.linalg.pinv(A) @ measured.residual(start).flatten(1).T
        assert torch.allclose(change.flatten(1), expected.T, atol=1e-6)
