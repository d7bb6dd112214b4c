"""Methods on laws whose posterior is known: beliefs in closed form, samples at the floor, no dependence on a batch."""

import pytest
import torch

import sfumato as sf
from measured_laws import FIELD, FIELD_COVARIANCE, PROCESS, dense, gaussian_posterior
from sfumato.compose import Wrapped
from sfumato.data import DataSpec
from sfumato.noise import STEP, Noise

HALF = sf.operators.Mask(torch.arange(8) < 4)
POOL = sf.operators.Pool(2)
MODEL = FIELD.denoiser(PROCESS)


def measured(operator, s, seed=5):
    x = FIELD.sample(1, seed)
    y = operator(x)[0]
    return y + s * torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("operator", [HALF, POOL])
def test_mmps_is_the_belief_given_the_measurement_of_gaussian_data(operator):
    """E[x | z, y] of a Gaussian, where z is one more linear measurement of x; also at alpha = 0 and at many times."""
    s, A = 0.1, dense(operator, FIELD.shape)
    y, x = measured(operator, s), FIELD.sample(3, 1)
    model = sf.condition_on(MODEL, y, operator, s, "mmps(iterations=200)")
    for t in (1.0, 0.7, torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)):
        z = PROCESS.corrupt(x, t, torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
        found = model(z, t)
        alpha, sigma = (v.expand(3) for v in PROCESS.schedule(t))
        for i in range(3):
            mean, covariance = gaussian_posterior(FIELD_COVARIANCE, A, y.flatten(), s)
            gain = alpha[i] * covariance @ torch.linalg.inv(alpha[i] ** 2 * covariance + sigma[i] ** 2 * torch.eye(64))
            expected = mean + gain @ (z[i].flatten() - alpha[i] * mean)
            assert torch.allclose(found.x[i].flatten(), expected, atol=1e-2 if alpha[i] == 0 else 2e-5)


def test_pigdm_is_the_belief_given_the_measurement_of_standard_normal_data():
    truth = sf.exact.GaussianMixture([1.0], torch.zeros(1, 6), 1.0)
    A = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, z, t = torch.tensor([0.5, -1.0]), truth.sample(4, 1), 0.6
    found = sf.condition_on(truth.denoiser(PROCESS), y, sf.operators.Linear(A), 0.2, "pigdm")(z, t)
    mean, covariance = gaussian_posterior(torch.eye(6, dtype=torch.float64), A, y.double(), 0.2)
    alpha, sigma = PROCESS.schedule(t)
    gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(6))
    assert torch.allclose(found.x, mean + (z - alpha * mean) @ gain.T, atol=1e-6)


def test_tmpd_is_the_belief_given_measured_numbers_that_do_not_covary():
    """Standard normal data of which some entries are measured: sums of rows are the variances."""
    truth = sf.exact.GaussianMixture([1.0], torch.zeros(1, 6), 1.0)
    known = torch.tensor([1, 0, 1, 1, 0, 0]).bool()
    y, z, t = torch.tensor([0.5, -1.0, 2.0]), truth.sample(4, 1), 0.6
    found = sf.condition_on(truth.denoiser(PROCESS), y, sf.operators.Mask(known), 0.2, "tmpd")(z, t)
    A = torch.eye(6, dtype=torch.float64)[known]
    mean, covariance = gaussian_posterior(torch.eye(6, dtype=torch.float64), A, y.double(), 0.2)
    alpha, sigma = PROCESS.schedule(t)
    gain = alpha * covariance @ torch.linalg.inv(alpha**2 * covariance + sigma**2 * torch.eye(6))
    assert torch.allclose(found.x, mean + (z - alpha * mean) @ gain.T, atol=1e-6)


def test_ddrm_takes_each_direction_as_its_formula_says():
    """One step of data that are constant, E[x|z] = c, from noise: the mean and the variance of each of three kinds."""
    c, s, t = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64), 0.4, 0.9
    truth = sf.exact.GaussianMixture([1.0], c[None], 1e-8)
    y, noise = torch.tensor([1.0, 2.0]), torch.tensor([0.1, 2.0])
    operator = sf.operators.Linear(torch.eye(3, dtype=torch.float64)[:2])
    measurement = sf.inverse.Measurement(truth.denoiser(PROCESS), y, operator, noise)
    draw = Noise(0, torch.arange(20_000), STEP, 1)
    z = torch.ones(20_000, 3, dtype=torch.float64)
    found = sf.inverse.DDRM(eta=0.6).step(truth.denoiser(PROCESS), measurement, z, t, s, draw)
    (alpha, sigma), (a, b) = PROCESS.schedule(s), PROCESS.schedule(t)
    eps = (1 - a * c[2]) / b
    mean = torch.stack((alpha * 1.0, alpha * c[1] + 0.8 * sigma * (2.0 - c[1]) / 2.0, alpha * c[2] + 0.8 * sigma * eps))
    spread = torch.stack(((sigma**2 - (alpha * 0.1) ** 2).sqrt(), 0.6 * sigma, 0.6 * sigma))
    assert torch.allclose(found.mean(0), mean, atol=0.015)
    assert torch.allclose(found.std(0), spread, atol=0.015)


MULTISTEP = ("mmps(iterations=10)", {"steps": 20, "solver": "multistep"})


@pytest.mark.parametrize(("method", "how"), [("mmps", {}), MULTISTEP], ids=["default", "multistep"])
def test_samples_of_mmps_are_at_the_floor_within_30_calls(method, how):
    """The error of the mean of 200 samples, in deviations of the posterior: 1 / sqrt(200) by chance alone; and their
    variance, of which ancestral steps lose a sixth."""
    field = sf.exact.GaussianField((1, 16, 16))
    covariance = field.components.basis.matrix(field.components.spectra[None])[0]
    operator, s = sf.operators.Mask(torch.arange(16) < 8), 0.05
    y = operator(field.sample(1, 5))[0]
    mean, spread = gaussian_posterior(covariance, dense(operator, field.shape), y, s)
    found = sf.posterior(field.denoiser(PROCESS), y, operator, s, method, 200, seed=1, **how)
    error = (found.mean.flatten() - mean) / spread.diagonal().sqrt()
    assert float(error.square().mean().sqrt()) < 1.1 / 200**0.5
    assert float(found.std.square().sum() / spread.trace()) == pytest.approx(1, abs=0.1)  # 0.05 by chance


class Turned(Wrapped):
    """E[x|z] + error sigma K z, K antisymmetric: a Jacobian as little symmetric as that of a network."""

    def __init__(self, inner, error):
        super().__init__(inner)
        k = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.turn = error * (k - k.mT) / 128**0.5 / 2

    def __call__(self, z, t, **cond):
        belief = self.inner(z, t, **cond)
        change = (z.double().flatten(1) @ self.turn.mT).reshape(z.shape)
        return belief.moved(belief.x + (belief.sigma.reshape(-1, 1, 1, 1) * change).to(belief.x))


@pytest.mark.parametrize("solver", ["multistep", "ddim(eta=1)", None])
def test_samples_of_mmps_stay_with_the_posterior_where_the_jacobian_is_not_symmetric(solver):
    """By ten products a call; with conjugate gradients their mean was 6 and 1 deviations off, and more with each."""
    y, A = measured(HALF, 0.05), dense(HALF, FIELD.shape)
    mean, spread = gaussian_posterior(FIELD_COVARIANCE, A, y, 0.05)
    how = {"n": 32, "steps": 20, "solver": solver, "seed": 1}
    found = sf.posterior(Turned(MODEL, 0.1), y, HALF, 0.05, "mmps(iterations=10)", **how)
    error = (found.mean.flatten() - mean) / spread.diagonal().sqrt()
    assert float(error.square().mean().sqrt()) < 0.35  # 1 / sqrt(32) = 0.18 by chance
    assert 0.7 < float(found.std.square().sum() / spread.trace()) < 1.2


def test_the_likelihood_of_the_conditioned_model_is_that_of_the_posterior():
    y, A = measured(POOL, 0.3), dense(POOL, FIELD.shape)
    mean, covariance = gaussian_posterior(FIELD_COVARIANCE, A, y.flatten(), 0.3)
    x = FIELD.sample(2, 9)
    model = sf.condition_on(MODEL, y, POOL, 0.3, "mmps(iterations=60)")
    law = torch.distributions.MultivariateNormal(mean, covariance)
    found = sf.log_prob(model, x, steps=64, trace="exact", sigma_min=1e-3)
    assert torch.allclose(found.value, law.log_prob(x.flatten(1)), atol=0.5)


NOISELESS = ["ddnm", "ddrm", "replacement", "repaint(repeats=3)"]


@pytest.mark.parametrize("method", NOISELESS)
@pytest.mark.parametrize("operator", [HALF, POOL])
def test_methods_without_noise_have_the_measurement_at_the_end(method, operator):
    y = measured(operator, 0.0)
    found = sf.posterior(MODEL, y, operator, 0.0, method, n=3, steps=6)
    assert torch.allclose(operator(found.samples.double()), y.expand(3, *y.shape), atol=1e-5)


def test_repainting_more_often_comes_nearer_to_the_posterior():
    y, A = measured(HALF, 0.0), dense(HALF, FIELD.shape)
    mean, covariance = gaussian_posterior(FIELD_COVARIANCE, A, y, 1e-4)
    hidden = ~HALF.known.expand(8, 8).flatten()

    def error(method):
        found = sf.posterior(MODEL, y, HALF, 0.0, method, n=64, steps=25).mean.flatten()
        return float(((found - mean)[hidden] / covariance.diagonal()[hidden].sqrt()).square().mean().sqrt())

    assert error("repaint(repeats=10)") < 0.8 * error("replacement")


@pytest.mark.parametrize("method", ["dps(scale=0.3)", "daps", "ddrm", "tmpd"])
def test_walks_come_near_to_the_mean_of_the_posterior(method):
    y, A = measured(POOL, 0.05), dense(POOL, FIELD.shape)
    mean, _ = gaussian_posterior(FIELD_COVARIANCE, A, y.flatten(), 0.05)
    found = sf.posterior(MODEL, y, POOL, 0.05, method, n=32, steps=60)
    assert float((found.mean.flatten() - mean).norm() / mean.norm()) < 0.25


def test_daps_draws_the_posterior_of_standard_normal_data():
    """There the Gaussian that the draw assumes is exact: mean and covariance are those of the posterior."""
    truth = sf.exact.GaussianMixture([1.0], torch.zeros(1, 3), 1.0)
    A, y = torch.tensor([[1.0, 0.5, 0.0]], dtype=torch.float64), torch.tensor([1.2])
    mean, covariance = gaussian_posterior(torch.eye(3, dtype=torch.float64), A, y.double(), 0.3)
    found = sf.posterior(truth.denoiser(PROCESS), y, sf.operators.Linear(A), 0.3, "daps", n=4000, batch=4000, steps=40)
    assert torch.allclose(found.mean, mean, atol=0.06)
    assert torch.allclose(found.samples.double().T.cov(), covariance, atol=0.06)


@pytest.mark.parametrize(
    "method", ["mmps", "pigdm", "tmpd", "ddnm", "ddrm", "dps", "daps", "replacement", "repaint(repeats=2)"]
)
def test_a_sample_does_not_depend_on_its_batch(method):
    y, how = measured(POOL, 0.1), {"steps": 6, "seed": 3}
    together = sf.posterior(MODEL, y, POOL, 0.1, method, n=5, **how).samples
    alone = sf.posterior(MODEL, y, POOL, 0.1, method, index=[3], **how).samples
    assert float((alone[0] - together[3]).abs().max()) < 1e-6


def test_what_a_method_cannot_take_is_said():
    y = measured(POOL, 0.1)
    square = sf.operators.Map(lambda x: x**2)
    wrong = {
        "SMC needs noise above 0": lambda: sf.posterior(MODEL, y, POOL, 0.0, "smc"),
        "DDNM needs a linear operator": lambda: sf.posterior(MODEL, FIELD.sample(1)[0], square, 0.1, "ddnm"),
        "of at most 256 numbers": lambda: sf.posterior(
            sf.exact.GaussianField((1, 32, 32)).denoiser(PROCESS), torch.zeros(1, 16, 16), POOL, 0.1, "smc"
        ),
        "is a walk of its own: leave solver out": lambda: sf.posterior(MODEL, y, POOL, 0.1, "dps", solver="heun"),
        "everywhere or nowhere": lambda: sf.posterior(MODEL, y, POOL, torch.arange(16).reshape(1, 4, 4), "ddrm"),
        "DDRM takes samples of at most 4096 numbers": lambda: sf.posterior(
            sf.exact.GaussianField((1, 80, 80)).denoiser(PROCESS), torch.zeros(1, 40, 40), POOL, 0.1, "ddrm"
        ),
        "is a walk and no model": lambda: sf.condition_on(MODEL, y, POOL, 0.1, "dps"),
        "leave index out": lambda: sf.posterior(MODEL, y, POOL, 0.1, "smc", index=[1]),
        "only for a Gaussian process": lambda: sf.posterior(
            sf.Denoiser(lambda z, level: z, sf.process.Uniform("cosine", 3)), y, POOL, 0.1
        ),
    }
    for words, call in wrong.items():
        with pytest.raises(sf.SfumatoError, match=words):
            call()


class InUnits(Wrapped):
    """The field in the units of data with mean 100 and deviation 25."""

    def __init__(self, inner):
        super().__init__(inner)
        x = (100 + 25 * FIELD.sample(400, 2)).float()
        self.spec = DataSpec.fit(sf.data.open(x.numpy()))

    def __call__(self, z, t, **cond):
        return self.inner(z, t)


def test_measurements_are_in_the_units_of_the_data():
    model = InUnits(MODEL)
    normaliser = model.spec.normaliser
    y = measured(POOL, 0.1)
    user = y * normaliser.std[0] + normaliser.mean[0]
    for method in ("mmps", "dps", "smc"):
        n, how = 4, {"steps": 5, "seed": 1, "particles": 16}
        plain = sf.posterior(MODEL, y, POOL, 0.1, method, n, **how)
        found = sf.posterior(model, user, POOL, 0.1 * normaliser.std[0], method, n, **how)
        expected = plain.samples.double() * normaliser.std[0] + normaliser.mean[0]
        assert torch.allclose(found.samples.double(), expected, atol=1e-2)
        if method == "smc":
            shift = y.numel() * torch.tensor(normaliser.std[0]).log()
            assert found.log_evidence == pytest.approx(plain.log_evidence - float(shift), abs=1e-2)
