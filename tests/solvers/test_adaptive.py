"""Adaptive solvers: as exact as their tolerance, from and to anywhere, and plain words where their extra is missing."""

import sys

import pytest
import torch

from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.guidance import guide
from sfumato.process import Gaussian
from sfumato.sampling import sample, trajectory
from sfumato.schedules import EDM, VE, Cosine, Flow, LinearBeta
from sfumato.solvers import Adaptive, Multistep, together

pytest.importorskip("torchdiffeq")
SCHEDULES = {"cosine": Cosine(), "vp": LinearBeta(), "edm": EDM(), "flow": Flow()}


def law():
    return GaussianMixture([0.4, 0.6], [[-1.0, 0.5], [0.8, 0.0]], [0.2, 0.1])


@pytest.mark.parametrize("name", SCHEDULES)
def test_ends_on_the_exact_flow(name):
    process, truth = Gaussian(SCHEDULES[name]), law()
    z = truth.sample(50, seed=1, process=process, t=1.0)
    got = sample(truth.denoiser(process), steps=1, solver=Adaptive(rtol=1e-9, atol=1e-10), z=z)
    torch.testing.assert_close(got, truth.flow(z, 1.0, 0.0, process), rtol=0, atol=2e-4)
    part = sample(truth.denoiser(process), steps=1, solver=Adaptive(rtol=1e-10, atol=1e-11), z=z, t_stop=0.2)
    torch.testing.assert_close(part, truth.flow(z, 1.0, 0.2, process), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3"])
def test_the_error_follows_the_tolerance(method):
    process, truth = Gaussian(Cosine()), law()
    z = truth.sample(50, seed=2, process=process, t=0.9)
    exact, errors, calls = truth.flow(z, 0.9, 0.1, process), [], []
    for tolerance in (1e-4, 1e-6, 1e-8):
        way = Adaptive(method, tolerance, tolerance).plan(process.schedule, 1, 0.9, 0.1)
        got = sample(truth.denoiser(process), solver=way, z=z, t_start=0.9, t_stop=0.1)
        errors.append(float((got - exact).square().mean().sqrt()))
        calls.append(way.spent)
    assert errors[0] < 1e-3 and errors[2] < 1e-5
    assert errors[0] > 2 * errors[1] > 20 * errors[2]
    assert calls[0] < calls[1] < calls[2]


def test_a_trajectory_shows_as_many_states_as_asked_for():
    process, truth = Gaussian(VE()), law()
    states = list(trajectory(truth.denoiser(process), 7, steps=5, solver=Adaptive(), seed=3))
    assert len(states) == 7 and states[0].t == 1.0 and states[-1].belief is None
    assert all(a.t > b.t for a, b in zip(states[:-2], states[1:-1], strict=True))
    for state in states[:-1]:
        assert torch.equal(state.belief.z.float(), state.z)
    shown = truth.flow(states[0].z, 1.0, states[3].t, process)
    torch.testing.assert_close(states[3].z.double(), shown, rtol=1e-3, atol=1e-3)


def test_labels_guidance_and_single_precision():
    process, truth = Gaussian(Flow()), law()
    model = truth.denoiser(process)
    z = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fine = {"steps": 300, "solver": Multistep(3), "z": z}
    for one, label in ((model, 1), (guide(model, 1.5), 0)):
        got = sample(one, steps=1, solver=Adaptive(), z=z, label=label)
        torch.testing.assert_close(got, sample(one, **fine, label=label), rtol=0, atol=2e-3)


def test_rows_may_be_advanced_in_odd_orders():
    process, truth = Gaussian(Cosine()), law()
    model, plan = truth.denoiser(process), Adaptive(rtol=1e-8, atol=1e-9).plan(process, 4)
    z = truth.sample(4, seed=1, process=process, t=1.0)
    *_, whole = plan.run(model, z)
    for order in ([[0, 2]], [[3], [3], [1]], [None, [0]]):
        walk, other = plan.start(model, z), plan.start(model, z)
        for rows in order:
            walk.advance(rows)
        while not walk.done:
            together([walk, other])
        torch.testing.assert_close(walk.z, whole.z, rtol=0, atol=1e-4, msg=str(order))
        torch.testing.assert_close(other.z, whole.z, rtol=0, atol=1e-4, msg=str(order))


def test_mistakes_are_named(monkeypatch):
    with pytest.raises(SfumatoError, match="dopri5"):
        Adaptive("rk45")
    with pytest.raises(SfumatoError, match="tolerances"):
        Adaptive(rtol=-1.0)
    with pytest.raises(SfumatoError, match="t_stop"):
        Adaptive().plan(Cosine(), 1, 0.5, 0.5)
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(SfumatoError, match=r"sfumato\[adaptive\]"):
        sample(law().denoiser(Gaussian(Cosine())), 2, solver=Adaptive())
