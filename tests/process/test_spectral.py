"""Processes with a schedule for each coefficient: their bases, laws, clocks, losses, solvers and likelihoods."""

import dataclasses
import math

import pytest
import torch

import sfumato as sf
from sfumato.probability_flow import CoefficientTrack
from sfumato.process import Basis, Blur, Coloured, Heat, Spectral, Subspace, from_config, principal
from sfumato.process.bases import wavelets
from sfumato.solvers import grids

SHAPE = (1, 8, 8)
MADE = {
    "blur": Blur("cosine", SHAPE, width=3.0),
    "heat": Heat("cosine", SHAPE, width=4.0, noise=0.3),
    "coloured": Coloured("flow", SHAPE),
    "subspace": Subspace("cosine", SHAPE),
}


def spectrum() -> torch.Tensor:
    power = 1 / (Basis(SHAPE).eigenvalues + 0.3)
    return power / power.mean()


def fields(count: int = 3) -> sf.exact.GaussianMixture:
    """A mixture of fields, as the law of their coefficients."""
    power = spectrum().flatten()
    means = torch.randn(count, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means = 0.7 * means * power.sqrt() if count > 1 else 0 * means
    variances = torch.stack([power * share for share in (0.2, 0.1, 0.3)[:count]]) if count > 1 else power[None]
    return sf.exact.GaussianMixture([1 / count] * count, means, variances, shape=SHAPE)


def known(process: Spectral, law: sf.exact.GaussianMixture) -> Spectral:
    """The process with the variance of the law; its mean is part of the coefficients here."""
    weights, means = law.weights[:, None], law.means
    variance = (weights * (law.components.spectra + means.square())).sum(0) - (weights * means).sum(0).square()
    return dataclasses.replace(process, power=tuple(variance.tolist()))


@pytest.mark.parametrize(("kind", "shape"), [
    *((kind, shape) for kind in ("dct", "hartley", "none") for shape in ((1, 8, 8), (3, 5, 6), (7,), (2, 9))),
    *((kind, shape) for kind in ("haar", "db3", "sym4") for shape in ((1, 8, 8), (3, 4, 6), (28,), (2, 10))),
])  # fmt: skip
def test_a_basis_is_orthonormal(kind, shape):
    if kind in ("haar", "db3", "sym4"):
        pytest.importorskip("pywt")
    x, basis = torch.randn(4, *shape, dtype=torch.float64), Basis(shape, kind)
    c = basis.analyse(x)
    assert torch.allclose(c.flatten(1).square().sum(1), x.flatten(1).square().sum(1), rtol=1e-12)
    assert torch.allclose(basis.synthesise(c), x, atol=1e-12)


def test_the_dct_is_the_published_one():
    scipy = pytest.importorskip("scipy.fft")
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    assert torch.allclose(
        Basis((3, 6, 5)).analyse(x), torch.from_numpy(scipy.dctn(x.numpy(), axes=(2, 3), norm="ortho")), atol=1e-12
    )


def test_wavelets_are_means_and_differences_of_pairs():
    """Haar's by hand; a constant is in the mean alone, and frequencies halve with every halving."""
    pytest.importorskip("pywt")
    rows, omega = wavelets("haar", 4)
    r = 0.5**0.5
    by_hand = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, -0.5, -0.5], [r, -r, 0, 0], [0, 0, r, -r]]).double()
    assert torch.allclose(rows.abs(), by_hand.abs(), atol=1e-7)
    assert torch.allclose(rows @ by_hand.T, torch.diag((rows @ by_hand.T).diagonal()), atol=1e-7)
    assert omega.tolist() == pytest.approx([0, 0.375 * math.pi, 0.75 * math.pi, 0.75 * math.pi])
    c = Basis((1, 28, 28), "db2").analyse(torch.ones(1, 1, 28, 28, dtype=torch.float64))
    low = Basis((1, 28, 28), "db2").eigenvalues.flatten() == Basis((1, 28, 28), "db2").eigenvalues.min()
    assert int(low.sum()) == 49 and float(c.flatten()[~low].abs().max()) < 1e-9


def test_principal_components_are_uncorrelated():
    x = torch.randn(500, 4, dtype=torch.float64) @ torch.randn(4, 4, dtype=torch.float64)
    c = torch.cov(principal(x).analyse(x).T)
    assert float((c - c.diagonal().diag()).abs().max()) < 1e-12 * float(c.max())
    assert torch.equal(c.diagonal(), c.diagonal().sort(descending=True).values)


def test_the_word_pca_measures_the_directions_of_vectors(tmp_path):
    """The k-th principal component has the frequency k / 2n, so that a subspace loses the smallest first."""
    draw = torch.Generator().manual_seed(0)
    x, mixing = (torch.randn(n, 6, dtype=torch.float64, generator=draw) for n in (500, 6))
    x = x @ mixing
    process = sf.registry.make("process", "subspace(basis=pca)", {"schedule": sf.schedules.Cosine(), "shape": (6,)})
    process = process.fitted(x)
    c = torch.cov(process.data(x).T)
    assert float((c - c.diagonal().diag()).abs().max()) < 1e-9 * float(c.max())
    power = torch.tensor(process.power, dtype=torch.float64)
    assert torch.equal(power, power.sort(descending=True).values) and from_config(process.config()) == process
    assert torch.allclose(process.transform.frequency.flatten(), torch.arange(6).double() / 12)
    noise_alone = (process.schedule.alpha(0.8) == 0).flatten()
    assert noise_alone.tolist() == sorted(noise_alone.tolist()) and bool(noise_alone.any()) and not bool(noise_alone[0])
    sf.train(x.numpy(), tmp_path / "run", net="tiny", steps=2, process="subspace(basis=pca)", sample_every=0)
    model = sf.load(tmp_path / "run")
    assert len(model.process.channels) == 6 and sf.sample(model, 3, 4).shape == (3, 6)
    with pytest.raises(sf.SfumatoError, match="pca is one of vectors"):
        Blur("cosine", SHAPE, basis="pca")


@pytest.mark.parametrize("name", MADE)
def test_no_level_rises_and_the_rates_are_the_slopes(name):
    process = MADE[name]
    t = torch.linspace(0.01, 0.97, 200, dtype=torch.float64)
    levels = process.schedule.logsnr(t)
    assert bool((levels[1:] <= levels[:-1] + 1e-12).all()) and bool((process.clock.logsnr(t).diff() < 0).all())
    h = 1e-6
    for schedule in (process.schedule, process.clock):
        upper, lower, rates = schedule(t + h), schedule(t - h), schedule.rates(t)
        near = (t[:, None] - process.schedule.rate.flatten()).abs().amin(1) > 1e-3 if name == "subspace" else t > 0
        for up, down, rate in zip(upper, lower, rates, strict=True):
            assert torch.allclose(((up - down) / (2 * h))[near], rate[near], atol=1e-6, rtol=1e-5)
    some = torch.tensor([0.2, 0.7], dtype=torch.float64)
    assert torch.allclose(process.clock.time(process.clock.logsnr(some)), some, atol=1e-12)


@pytest.mark.parametrize("name", MADE)
def test_the_law_moves_with_the_flow(name):
    """d log p_t / dt = -div(v) - v . score: the continuity equation, by differences in t and the Jacobian of v."""
    process, law, t, h = MADE[name], fields(), 0.4, 1e-5
    model = law.denoiser(process)
    z = law.sample(2, process=process, t=t)
    slope = (law.log_prob(z, process=process, t=t + h) - law.log_prob(z, process=process, t=t - h)) / (2 * h)

    def velocity(z: torch.Tensor) -> torch.Tensor:
        return model(z, t).velocity.flatten(1).sum(0)

    jacobian = torch.autograd.functional.jacobian(velocity, z).reshape(64, 2, 64)
    divergence = torch.einsum("ibi->b", jacobian)
    moved = (model(z, t).velocity * law.score(z, process=process, t=t)).flatten(1).sum(1)
    assert torch.allclose(slope, -divergence - moved, rtol=1e-5)


def end(solver: sf.solvers.Solver, model, z: torch.Tensor, steps: int) -> torch.Tensor:
    return list(solver.plan(model.process, steps, 1.0, 0.1).run(model, z))[-1].z


@pytest.mark.parametrize("name", ["blur", "heat", "coloured"])
@pytest.mark.parametrize(("order", "solver"), [
    (1, sf.solvers.DDIM(grid=grids.Uniform())),
    (2, sf.solvers.Multistep(2, "x", grid=grids.Uniform())),
])  # fmt: skip
def test_the_orders_of_solvers_are_those_of_one_schedule(name, order, solver):
    law = fields()
    model = law.denoiser(MADE[name])
    z = law.sample(4, seed=3, process=model.process, t=1.0)
    ends = [end(solver, model, z, steps) for steps in (80, 160, 320)]
    errors = [float((a - b).square().mean().sqrt()) for a, b in zip(ends, ends[1:], strict=False)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize("name", MADE)
def test_the_default_solver_is_better_than_ddim_in_ten_steps(name):
    law = fields()
    model = law.denoiser(known(MADE[name], law))
    z = model.process.prior(torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    fine = end(sf.solvers.Multistep(2, "F", grid=grids.Uniform()), model, z, 160)
    errors = [float((end(one, model, z, 10) - fine).square().mean())
              for one in (sf.solvers.NAMES["multistep-in-t"](), sf.solvers.DDIM(grid=grids.Uniform()))]  # fmt: skip
    assert errors[0] < errors[1] and bool(torch.isfinite(fine).all())


def test_coloured_noise_is_plain_diffusion_of_whitened_data():
    coloured = MADE["coloured"]
    colour = coloured.schedule.sigma(0.5) / coloured.base.sigma(0.5)
    law = fields()
    white = sf.exact.GaussianMixture(
        law.weights, law.means / colour.flatten(), law.components.spectra / colour.flatten() ** 2, shape=SHAPE
    )
    z, plain = law.sample(5, process=coloured, t=0.5), sf.Gaussian("flow")
    there = white.denoiser(plain)(z / colour, 0.5)
    assert torch.allclose(law.denoiser(coloured)(z, 0.5).x, there.x * colour, atol=1e-12)
    plans = [sf.solvers.DDIM(grid=grids.Uniform()).plan(process, 5) for process in (coloured, plain)]
    ends = [list(plan.run(model, state))[-1].z for plan, model, state in
            zip(plans, (law.denoiser(coloured), white.denoiser(plain)), (z, z / colour), strict=True)]  # fmt: skip
    assert torch.allclose(ends[0], ends[1] * colour, atol=1e-12)


def test_the_step_of_heat_that_renews_all_noise_keeps_the_law():
    """delta_f^2 = sigma^2 + alpha_s^2 Var(x_f | z_t): 1 to 1.68 times sigma, where the paper takes 1.25 for all."""
    heat, power = MADE["heat"], spectrum()
    t, s = 0.5, 0.45
    (alpha_t, sigma), (alpha_s, _) = heat.schedule(t), heat.schedule(s)
    law = sf.exact.GaussianMixture([1.0], torch.zeros(1, 64), power.reshape(1, -1), shape=SHAPE)
    left = law.variance(torch.zeros(1, *SHAPE, dtype=torch.float64), process=heat, t=t)
    gain = alpha_t * power / (alpha_t**2 * power + sigma**2)  # x_hat = gain z
    delta = torch.sqrt(sigma**2 + alpha_s**2 * left)
    variance = alpha_s**2 * gain**2 * (alpha_t**2 * power + sigma**2) + delta**2
    assert torch.allclose(variance, alpha_s**2 * power + sigma**2, rtol=1e-12)
    ratio = delta / sigma
    assert float(ratio.min()) >= 1 and 1.2 < float(ratio.max()) < 1.5


def test_the_delta_of_heat_is_an_option_of_the_solver():
    """v_s = alpha_s^2 g^2 v_t + (delta sigma)^2, g = alpha_t P / (alpha_t^2 P + sigma^2), of each coefficient."""
    power, nodes = spectrum(), [0.6, 0.58, 0.56, 0.54]
    law = sf.exact.GaussianMixture([1.0], torch.zeros(1, 64), power.reshape(1, -1), shape=SHAPE)
    heat = known(MADE["heat"], law)
    plan = sf.solvers.DDIM(delta=1.25).plan(heat, 3, nodes[0], nodes[-1])
    v = torch.full((1, *SHAPE), 0.5, dtype=torch.float64)
    z = v.sqrt() * torch.randn(4000, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t, s in zip(nodes, nodes[1:], strict=False):
        (alpha_t, sigma), alpha_s = heat.schedule(t), heat.schedule.alpha(s)
        v = (alpha_s * alpha_t * power / (alpha_t**2 * power + sigma**2)) ** 2 * v + (1.25 * sigma) ** 2
    found = sf.sample(law.denoiser(heat), solver=plan, z=z, t_start=nodes[0], t_stop=nodes[-1], normalised=True)
    c = heat.data(found.double())
    assert torch.allclose(c.var(0), v[0], rtol=0.15)
    assert float((c.var(0) / v[0]).mean()) == pytest.approx(1, abs=0.02)
    assert sf.sample(law.denoiser(heat), 2, 4, "ddim(delta=1.25)").shape == (2, *SHAPE)
    with pytest.raises(sf.SfumatoError, match="in the place of eta"):
        sf.solvers.DDIM(eta=0.5, delta=1.25)


def test_heat_is_a_semigroup_and_keeps_the_mean():
    heat = dataclasses.replace(MADE["heat"], noise=1e-9)
    x = torch.randn(3, *SHAPE, dtype=torch.float64)
    blurred = heat.table(heat.corrupt(heat.data(x), 0.8, torch.zeros_like(x)))
    assert torch.allclose(blurred.mean((1, 2, 3)), x.mean((1, 2, 3)), atol=1e-14)
    taus = [heat.schedule.heated(torch.tensor(t))[0] for t in (0.3, 0.8)]
    steps = [torch.exp(-heat.transform.eigenvalues * tau) for tau in (taus[0], taus[1] - taus[0])]
    assert torch.allclose(steps[0] * steps[1], heat.schedule.alpha(0.8), atol=1e-14)


@pytest.mark.parametrize("name", ["blur", "heat", "coloured"])
def test_the_likelihood_of_a_gaussian_field_is_exact(name):
    law = fields(1)
    process = dataclasses.replace(known(MADE[name], law), **({"noise": 0.02} if name == "heat" else {}))
    model, c = law.denoiser(process), law.sample(3)
    x = process.table(c)
    found = sf.log_prob(model, x, steps=128)
    assert torch.allclose(found.value, law.log_prob(c), atol=0.02)
    bound = sf.log_prob(model, x, method="elbo", steps=64, probes=16)
    assert float((bound.value - law.log_prob(c)).abs().max()) < 4 * float(bound.stderr.max())


def test_the_likelihood_of_a_mixture_is_exact():
    law = fields()
    process = known(MADE["blur"], law)
    c = law.sample(3)
    found = sf.log_prob(law.denoiser(process), process.table(c), steps=128)
    assert torch.allclose(found.value, law.log_prob(c), atol=0.02)


@pytest.mark.parametrize("name", MADE)
def test_latents_are_those_of_the_exact_flow_and_lead_back(name):
    """Of one normal law the flow keeps each coefficient over its deviation."""
    law = fields(1)
    process = known(MADE[name], law)
    model, c = law.denoiser(process), law.sample(3)
    x = process.table(c)
    latent = sf.encode(model, x, steps=128)
    least = CoefficientTrack.along(process, 128, None)
    deviation = (least.alpha[0] ** 2 * spectrum() + least.sigma[0] ** 2).sqrt()
    expected = process.prior(least.alpha[0] * c / deviation)
    most = 0.03 if name == "subspace" else 1e-3  # its curves have kinks
    for found, true in ((latent, expected), (sf.decode(model, latent, steps=128), x)):
        assert float((found - true).square().mean().sqrt()) < most


def test_a_way_between_two_samples_keeps_their_power():
    law = fields(1)
    process = known(MADE["blur"], law)
    a, b = process.table(law.sample(400)).split(200)
    way = sf.interpolate(law.denoiser(process), a, b, (0.0, 0.5, 1.0), steps=48)
    assert torch.allclose(way[0], a, atol=0.02) and torch.allclose(way[2], b, atol=0.02)
    power = process.data(way[1]).square().mean(0)
    assert float((power / spectrum()).log().square().mean().sqrt()) < 0.2  # 0.1 by chance


class Zero(torch.nn.Module):
    """A network that says 0, and remembers what it was given."""

    shape, outputs = SHAPE, 1

    def forward(self, x, level):
        self.given = x
        return torch.zeros_like(x)


@pytest.mark.parametrize("name", MADE)
def test_a_network_that_says_0_is_the_denoiser_of_the_fitted_field(name):
    law = fields(1)
    process = known(MADE[name], law)
    model, z = sf.Denoiser(Zero(), process), law.sample(4, process=process, t=0.3)
    assert torch.allclose(model(z, 0.3).x, law.denoiser(process)(z, 0.3).x, atol=1e-10)
    assert float(model.net.given.square().mean()) == pytest.approx(1, abs=0.6)


def test_the_fit_is_the_variance_and_the_mean_of_the_coefficients():
    x = 2 + torch.randn(400, *SHAPE, dtype=torch.float64)
    process = MADE["blur"].fitted(x)
    c = process.data(x)
    assert float(c.mean(0).abs().max()) < 1e-12
    assert torch.allclose(c.var(0).flatten(), torch.tensor(process.power, dtype=torch.float64))
    assert torch.allclose(process.table(c), x, atol=1e-12)


def test_the_prior_of_heat_is_blurred_data():
    law = fields(1)
    with pytest.raises(sf.SfumatoError, match="fitted"):
        MADE["heat"].prior(torch.zeros(1, *SHAPE))
    heat = known(MADE["heat"], law)
    z = law.sample(20_000, process=heat, t=1.0)
    noise = torch.randn(1, *SHAPE, dtype=torch.float64)
    assert torch.allclose(z.var(0) ** 0.5, (heat.prior(noise) / noise)[0], rtol=0.05)


@pytest.mark.parametrize("name", MADE)
def test_a_process_is_its_file(name):
    process = MADE[name].fitted(torch.randn(9, *SHAPE))
    again = from_config(process.config())
    assert again == process
    assert torch.equal(again.schedule.alpha(0.3), process.schedule.alpha(0.3))


@pytest.mark.parametrize("solver", [sf.solvers.DPMSolverPP(3, multistep=False), sf.solvers.Adaptive()])
def test_solvers_with_stages_of_their_own_say_so(solver):
    with pytest.raises(sf.SfumatoError, match="one call a step"):
        solver.plan(MADE["blur"], 5)


@pytest.mark.parametrize("solver", ["heun", "ddpm", "bridge", "dpm++2m", "unipc", "annealed-langevin", "sde-dpm++2m"])
def test_other_solvers_run(solver):
    law = fields()
    model = law.denoiser(known(MADE["blur"], law))
    assert bool(sf.sample(model, 2, 4, solver).isfinite().all())


@pytest.mark.parametrize(("made", "said"), [
    (lambda: Blur("cosine", SHAPE, basis="harr"), "basis"),
    (lambda: Basis((1, 6, 9), "haar").eigenvalues, "no half"),
    (lambda: Blur("cosine", SHAPE, power=(1.0,)), "64 coefficients"),
    (lambda: Heat("cosine", SHAPE, width=0.1), "least"),
    (lambda: Basis((2,), "none", ((1.0, 1.0), (0.0, 1.0))), "orthonormal"),
    (lambda: MADE["blur"].data(torch.zeros(1, 1, 4, 4)), "shape"),
    (lambda: sf.Denoiser(Zero(), dataclasses.replace(MADE["heat"], target="velocity")), "target"),
])  # fmt: skip
def test_mistakes_are_said(made, said):
    with pytest.raises(sf.SfumatoError, match=said):
        made()


def test_a_blurring_run_trains_samples_and_resumes(tmp_path):
    sf.train("digits", tmp_path / "run", net="tiny", steps=2, process="blur(width=4)")
    sf.resume(tmp_path / "run", steps=3)
    model = sf.load(tmp_path / "run")
    assert isinstance(model.process, Blur) and model.target == "F" and len(model.process.power) == 64
    x = sf.sample(model, 2, 3)
    assert x.shape == (2, 1, 8, 8) and x.dtype == torch.uint8
    assert bool(sf.log_prob(model, x, steps=4).value.isfinite().all())


def test_an_objective_by_frequency_is_not_explained_as_one(capsys):
    from sfumato.cli import main

    assert main(["explain-objective", "--process", "blur"]) != 0
    assert "each frequency" in capsys.readouterr().err
