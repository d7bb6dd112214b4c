"""Flow maps: exact for Gaussian data without a network, the denoiser at s = t, the same under every schedule."""

import pytest
import torch

import sfumato as sf
from sfumato.conditions import Conditions
from sfumato.diagnostics.path_answers import ask_of_paths
from sfumato.flow_map import FlowMap
from sfumato.process.angles import angle, moved, time

SCHEDULES = ("cosine", "flow", "edm", "linear")


class Nothing(torch.nn.Module):
    """A network that answers 0 and takes a second time."""

    shape = (3,)

    def forward(self, x: torch.Tensor, noise_level: torch.Tensor, until: torch.Tensor | None = None) -> torch.Tensor:
        return torch.zeros_like(x)


def noisy(process: sf.Gaussian, t: float, count: int = 8) -> torch.Tensor:
    return process.corrupt(torch.randn(count, 3, dtype=torch.float64), t, torch.randn(count, 3, dtype=torch.float64))


def test_angle_and_time_are_inverse() -> None:
    theta = torch.linspace(0.02, 1.5, 9, dtype=torch.float64)
    for name in SCHEDULES:
        process = sf.Gaussian(name, sigma_data=0.7)
        t = time(process, theta)
        inside = (t > 0) & (t < 1)
        assert inside.sum() >= 5
        assert (angle(process, t) - theta)[inside].abs().max() < 1e-9, name


def test_a_network_of_zeros_is_the_exact_map_of_gaussian_data() -> None:
    for name in SCHEDULES:
        for sd in (1.0, 0.6):
            law = sf.exact.GaussianMixture([1.0], [[0.0, 0.0, 0.0]], [(sd**2 * torch.eye(3)).tolist()])
            process = sf.Gaussian(name, target="F", sigma_data=sd)
            model = FlowMap(sf.Denoiser(Nothing(), process))
            for t, s in ((0.9, 0.3), (0.7, 0.69), (0.99, 0.1)):
                z = noisy(process, t)
                assert torch.allclose(model(z, t, until=s).to(s), law.flow(z, t, s, process), atol=1e-9), (name, t, s)
            z = noisy(process, 0.8)
            clean = law.flow_between(z, process.schedule(0.8), (1.0, 0.0))
            assert torch.allclose(model(z, 0.8, until=0.0).to(0.0), clean, atol=1e-9), name


def teacher(classes: int = 0, target: str = "v") -> sf.Denoiser:
    torch.manual_seed(0)
    conditions = {"label": {"kind": "label", "classes": classes}, "mass": {"kind": "scalar"}} if classes else None
    net = sf.nets.MLP(3, 32, 2, conditions=conditions)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return sf.Denoiser(net, sf.Gaussian("linear" if target == "eps" else "cosine", target=target))


def test_a_student_starts_as_its_teacher() -> None:
    """At s = t it is the teacher to the bit, and each call is an Euler step in theta, or one of DDIM."""
    for classes, target in ((0, "v"), (4, "F"), (0, "eps"), (0, "x")):
        first = teacher(classes, target)
        model = FlowMap.student(first, form="mean")
        z, cond = torch.randn(5, 3), {}
        if classes:
            cond = {"label": torch.tensor([0, 1, 2, 3, -1]), "mass": torch.randn(5)}
        assert torch.equal(model(z, 0.6, **cond).F, first(z, 0.6, **cond).F)
        assert torch.equal(model.mean(z, 0.6, 0.2, **cond), first(z, 0.6, **cond).F)
        assert torch.allclose(model(z, 0.6, until=0.6, **cond).x, first(z, 0.6, **cond).x, atol=1e-5)
        assert all(p is not q for p, q in zip(first.net.parameters(), model.inner.net.parameters(), strict=False))
        skips = FlowMap.student(first, form="ddim")
        assert torch.equal(skips(z, 0.6, **cond).F, first(z, 0.6, **cond).F)
        assert torch.allclose(skips(z, 0.6, until=0.2, **cond).to(0.2), first(z, 0.6, **cond).to(0.2), atol=1e-5)


def test_both_forms_are_the_step_of_their_mean() -> None:
    """X(z, t, s) = S_s [z / S_t + (theta_t - theta_s) F] for the F that losses see, also where the path has no length;
    of the form of DDIM a network that answers 0 leaves cos d of the noise, and none at the end."""
    z, each = noisy(sf.Gaussian("cosine"), 0.8), torch.ones(8, dtype=torch.float64)
    for schedule in SCHEDULES:
        for form in ("mean", "ddim"):
            net = sf.nets.MLP(3, 16, 1, conditions={"until": {"kind": "scalar"}}).double()
            torch.nn.init.normal_(next(reversed(list(net.parameters()))), std=0.5)
            model = FlowMap(sf.Denoiser(net, sf.Gaussian(schedule, sigma_data=0.7)), form=form)
            for t, s in ((0.9, 0.3), (0.6, 0.59999), (0.6, 0.6), (1.0, 0.01)):
                want = moved(model.process, z, t * each, s * each, model.mean(z, t * each, s * each))
                assert torch.allclose(model(z, t, until=s).to(s), want, atol=1e-7), (schedule, form, t, s)
    silent = FlowMap(sf.Denoiser(Nothing(), sf.Gaussian("cosine", target="F")), form="ddim")
    assert float(silent(z, 1.0, until=0.0).to(0.0).abs().max()) < 1e-9
    assert torch.allclose(silent(z, 0.8, until=0.4).to(0.4), silent(z, 0.8).to(0.4))
    with pytest.raises(sf.SfumatoError, match="did you mean 'ddim'"):
        FlowMap(sf.Denoiser(Nothing(), sf.Gaussian("cosine")), form="dim")


def test_a_student_that_hears_no_second_time_is_seen_in_either_form() -> None:
    """By its answers: the mean of the form of DDIM depends on the path's end whatever the network says."""
    for form in ("mean", "ddim"):
        model = FlowMap.student(teacher(), form=form)
        assert ask_of_paths(model, torch.randn(32, 3), Conditions({})).response < 1e-12
        torch.manual_seed(0)
        for weight in model.inner.net.parameters():
            torch.nn.init.normal_(weight, std=0.3)
        assert ask_of_paths(model, torch.randn(32, 3), Conditions({})).response > 1e-4, form


def test_a_network_that_cannot_hear_a_second_time_is_refused() -> None:
    class Plain(torch.nn.Module):
        def forward(self, x: torch.Tensor, noise_level: torch.Tensor) -> torch.Tensor:
            return x

    with pytest.raises(sf.SfumatoError, match="cannot be given a second time"):
        FlowMap.student(sf.Denoiser(Plain(), sf.Gaussian("flow")))
    with pytest.raises(sf.SfumatoError, match="moves real numbers"):
        FlowMap(sf.Denoiser(sf.nets.Transformer((4, 6), 16, 1), sf.Masked("flow", 4)))


def test_steps_of_the_map_solver_and_renewed_noise() -> None:
    """The map of Gaussian data keeps the deviation whatever the steps and gamma; each call is one of the model."""
    model = FlowMap(sf.Denoiser(Nothing(), sf.Gaussian("cosine", target="F", sigma_data=0.5)), calls=(2, 1))
    assert torch.equal(sf.sample(model, 4), sf.sample(model, 4, steps=2))
    for gamma in (0.0, 0.5, 1.0):
        for steps in (1, 2, 8):
            x = sf.sample(model, 4000, steps=steps, solver=sf.solvers.Map(gamma=gamma))
            assert abs(float(x.std()) - 0.5) < 0.02, (gamma, steps)
    plan = sf.solvers.Map(gamma=0.5).plan(model.process, 3)
    assert plan.calls == 3 and plan.stochastic
    assert sf.solvers.Plan.from_dict(plan.to_dict()) == plan
    with pytest.raises(sf.SfumatoError, match="none"):
        sf.sample(teacher(), 2, solver="map")
    with pytest.raises(sf.SfumatoError, match="gamma"):
        sf.solvers.Map(gamma=2)


def test_one_map_serves_every_schedule() -> None:
    model = FlowMap.student(teacher())
    other = sf.Rescheduled(model, sf.schedules.Flow())
    z = torch.randn(6, 3, dtype=torch.float64)
    for steps in (1, 3):
        direct = sf.sample(model, z=z, n=6, steps=steps)
        moved = sf.sample(other, z=z, n=6, steps=steps, solver="map")
        assert torch.allclose(direct.double(), moved.double(), atol=1e-4), steps


def test_a_guided_map_is_refused() -> None:
    with pytest.raises(sf.SfumatoError, match="distil the guided teacher"):
        sf.sample(sf.guide(FlowMap.student(teacher(4)), 2.0), 2, label=0)


def test_no_plan_is_fitted_to_a_map() -> None:
    with pytest.raises(sf.SfumatoError, match="sample it with steps=1, 2 or 4"):
        sf.tune(FlowMap.student(teacher()), 2, points=16, rounds=0)


def test_a_map_in_a_file(tmp_path: object) -> None:
    for form in ("mean", "ddim"):
        model = FlowMap.student(teacher(), calls=(3, 1), form=form)
        path = sf.save(model, f"{tmp_path}/{form}.safetensors")
        loaded = sf.load(path)
        assert isinstance(loaded, FlowMap) and loaded.calls == (3, 1) and loaded.form == form
        assert torch.equal(sf.sample(loaded, 3), sf.sample(model, 3))
