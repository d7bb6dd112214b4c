"""log_prob by the probability-flow ODE, against the log-densities of exact models."""

import math
import re
import warnings

import pytest
import torch

from likelihood_models import PROCESSES, Plain, plane, ranks, spec_of
from sfumato.errors import SfumatoError, SfumatoWarning
from sfumato.exact import GaussianField, GaussianMixture
from sfumato.likelihood import log_prob
from sfumato.model import Denoiser
from sfumato.nets import MLP
from sfumato.process import Gaussian
from sfumato.schedules import VE, Cosine, Flow, LogLinear

F64 = torch.float64


@pytest.mark.parametrize("name", PROCESSES)
def test_narrow_mixture_in_the_plane(name):
    """C7: within 1e-3 nat a dimension of the truth; the reported error of the steps is no smaller than the true one."""
    law = plane()
    x = law.sample(200, seed=1)
    found = log_prob(law.denoiser(PROCESSES[name]), x)
    error = (found.value - law.log_prob(x)).abs()
    assert float(error.max()) < 2 * 1e-3
    assert float(error.square().mean().sqrt()) < 2 * 1e-4
    assert float(found.stderr.max()) == 0


@pytest.mark.parametrize("name", ["vp", "flow"])
def test_narrow_mixture_in_64_dimensions(name):
    law = ranks()
    x = law.sample(30, seed=1)
    found = log_prob(law.denoiser(PROCESSES[name]), x)
    assert float((found.value - law.log_prob(x)).abs().max()) < 64 * 1e-3


def test_a_product_with_each_unit_vector_is_the_closed_form():
    law = ranks(dim=5, count=3, rank=2)
    x, model = law.sample(7, seed=1), law.denoiser(Gaussian(Cosine()))
    closed, each = log_prob(model, x, steps=16), log_prob(Plain(model), x, steps=16, trace="exact", batch=3)
    # the flows differ in the clock alone, whose unit is the law's own size or 1
    assert float((closed.value - law.log_prob(x)).abs().max()) < 0.1
    same = log_prob(Plain(model), x, steps=128, trace="exact").value
    torch.testing.assert_close(same, log_prob(model, x, steps=128).value, rtol=0, atol=2e-4)
    assert float((each.value - same).abs().max()) < 0.1


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 8), (2, 2, 2, 2)], ids=str)
def test_fields_of_any_shape(shape):
    """Exact trace of images and volumes by products with the Jacobian."""
    law = GaussianField(shape, power=1.0, mean=0.3, std=0.8)
    x = law.sample(3, seed=2)
    found = log_prob(Plain(law.denoiser(Gaussian(Flow()))), x, steps=32)
    torch.testing.assert_close(found.value, law.log_prob(x), rtol=0, atol=1e-3 * x[0].numel())


def test_the_error_falls_with_the_fourth_power_of_the_steps():
    law = GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], [0.2, 0.1])
    x, model = law.sample(50, seed=3), law.denoiser(Gaussian(Flow()))
    best = log_prob(model, x, steps=512).value
    errors = [(log_prob(model, x, steps=n).value - best).square().mean().sqrt() for n in (32, 64, 128)]
    assert 3.5 < math.log2(errors[0] / errors[1]) < 5.5
    assert 3.5 < math.log2(errors[1] / errors[2]) < 5.5


def test_half_the_steps_tell_the_error_of_the_steps():
    law, steps = plane(), 24
    x = law.sample(200, seed=4)
    model = law.denoiser(Gaussian(Flow()))
    found, best = log_prob(model, x, steps=steps), log_prob(model, x, steps=256).value
    error = (found.value - best).abs()
    assert float((error < found.solver_error).double().mean()) > 0.95
    finer = log_prob(model, x, steps=2 * steps)
    assert float(finer.solver_error.mean()) < float(found.solver_error.mean()) / 10
    torch.testing.assert_close(finer.solver_error, (finer.value - found.value).abs(), rtol=0, atol=1e-9)


def test_prior_mismatch_is_that_of_the_noised_data():
    """log p_1(z) - log N(z; 0, sigma_1^2), which the model's own belief tells; 0 at zero signal."""
    law = GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], [0.2, 0.1])
    process = Gaussian(VE(0.002, 12.0))
    x = law.sample(100, seed=5)
    z = law.flow(x, 0.0, 1.0, process)
    prior = torch.distributions.Normal(torch.zeros((), dtype=F64), 12.0).log_prob(z).sum(1)
    true = law.log_prob(z, process=process, t=1.0) - prior
    found = log_prob(law.denoiser(process), x)
    assert float(true.abs().max()) > 0.05
    torch.testing.assert_close(found.prior_mismatch, true, rtol=0.02, atol=1e-3)
    torch.testing.assert_close(found.value, law.log_prob(x), rtol=0, atol=1e-3)
    assert float(log_prob(law.denoiser(Gaussian(Flow())), x).prior_mismatch.abs().max()) == 0


def test_truncation_is_what_the_least_noise_hides():
    law, sigma = GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], [0.2, 0.1]), 0.05
    process = Gaussian(Cosine())
    x = law.sample(100, seed=6)
    found = log_prob(law.denoiser(process), x, sigma_min=sigma, steps=128)
    true = law.log_prob(x) - law.log_prob(x, alpha=1.0, sigma=sigma)
    assert float(true.abs().max()) > 0.03
    torch.testing.assert_close(found.truncation, true, rtol=0.05, atol=1e-3)
    error = (found.value - law.log_prob(x)).abs()
    assert float(error.mean()) < float(true.abs().mean()) / 20  # what is left is of second order


def test_only_the_ends_of_logsnr_matter():
    """A6: between the same end-points every schedule gives the same likelihood."""
    law = plane()
    x = law.sample(20, seed=7)
    values = []
    for name in ("cosine", "flow"):
        schedule = PROCESSES[name].schedule
        assert float(schedule.alpha(1.0)) < 1e-15
        values.append(log_prob(law.denoiser(PROCESSES[name]), x, sigma_min=0.01).value)
    torch.testing.assert_close(*values, rtol=0, atol=1e-9)


def test_mean_is_the_integral_of_the_denoising_error():
    """A6: -E log p = D/2 log(2 pi e) - 1/2 int (D sigmoid(logsnr) - mmse_x snr) dlogsnr, with one law's own mmse."""
    law = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], 0.04)
    lam = torch.linspace(-16, 16, 200, dtype=F64)
    snr, n = lam.exp(), 2000
    mmse = torch.tensor([law.mmse(n, 8, alpha=1.0, sigma=float(s)) for s in snr**-0.5], dtype=F64)
    bound = torch.trapezoid(torch.sigmoid(lam) - mmse[:, 0] * snr, lam) / 2
    entropy = 0.5 * math.log(2 * math.pi * math.e) - float(bound)
    value, error = log_prob(law.denoiser(Gaussian(Cosine())), law.sample(n, seed=8)).mean()
    assert abs(-value - entropy) < 4 * error + 4 * float(mmse[:, 1].max())
    assert error < 0.02


@pytest.mark.parametrize("target", ["v", "x", "velocity"])
def test_any_network_defines_a_density(target):
    """C7: the integral of exp(log p) over the line is 1, whatever the weights."""
    torch.manual_seed(0)
    net = MLP(1, width=16, depth=1)
    torch.nn.init.normal_(net.output.weight, std=0.15)
    model = Denoiser(net, Gaussian(Flow()), target=target).double()
    x = torch.linspace(-12, 12, 1201, dtype=F64)[:, None]
    found = log_prob(model, x, sigma_min=0.1, steps=64)
    density = found.uncorrected.exp()
    assert float(density.max()) > 0.2
    assert float(density.sum() * 0.02) == pytest.approx(1, abs=2e-4)


def test_a_network_in_single_precision_with_labels():
    torch.manual_seed(0)
    net = MLP(6, width=16, depth=1, classes=2)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model = Denoiser(net, Gaussian(Cosine()))
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    first, second = (log_prob(model, x, steps=16, label=label) for label in (0, [0, 0, 1, 1, 1]))
    assert first.value.dtype == F64 and bool(first.value.isfinite().all())
    torch.testing.assert_close(first.value[:2], second.value[:2], rtol=0, atol=1e-4)
    assert float((first.value[2:] - second.value[2:]).abs().min()) > 1e-3


def test_labels_give_the_density_of_their_class():
    law = GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], [0.2, 0.1])
    x, label = law.labelled(40, seed=9)
    for one in (label, torch.full_like(label, -1)):
        found = log_prob(law.denoiser(Gaussian(Flow())), x, label=one)
        torch.testing.assert_close(found.value, law.log_prob(x, label=one), rtol=0, atol=1e-3)


# -- units -------------------------------------------------------------------------------------------------------


def in_units(law, scale, offset, n=400):
    """A model of scale (law's samples) + offset, which it sees with mean 0 and standard deviation 1, and its data."""
    x = scale * law.sample(n, seed=10) + offset
    spec = spec_of(x)
    mean, std = (torch.tensor(v, dtype=F64) for v in (spec.normaliser.mean, spec.normaliser.std))
    shrink = scale / std
    inner = GaussianMixture(law.weights, (scale * law.means + offset - mean) / std, shrink[:, None] * law.covs * shrink)
    return Plain(inner.denoiser(Gaussian(Cosine())), spec), x


def test_user_units_and_their_change():
    """log p(1000 x) = log p(x) - D log 1000."""
    law = GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], [0.2, 0.1])
    model, x = in_units(law, 1.0, 5.0)
    found = log_prob(model, x)
    torch.testing.assert_close(found.value, law.log_prob(x - 5), rtol=0, atol=1e-3)
    other, y = in_units(law, 1000.0, 5000.0)
    moved = log_prob(other, y)
    torch.testing.assert_close(moved.value, found.value - 2 * math.log(1000), rtol=0, atol=1e-5)
    assert float((moved.value - found.value + 2 * math.log(1000)).abs().median()) < 1e-12


def test_other_units_are_refused():
    model, x = in_units(GaussianMixture([1.0], [[0.0, 0.0]], 1.0), 1.0, 0.0)
    with pytest.raises(SfumatoError, match="units"):
        log_prob(model, x * 1000)
    with pytest.warns(SfumatoWarning, match="of one kind, or in other units"):
        log_prob(model, x / 1000)


def test_mistakes_are_named():
    law = plane()
    model, x = law.denoiser(Gaussian(Flow())), law.sample(4)
    for kwargs, words in (
        ({"method": "exact"}, "method"),
        ({"steps": 7}, "even"),
        ({"trace": "hutchinson"}, "trace"),
        ({"trace": "rademacher", "probes": 1}, "2 probes"),
        ({"sigma_min": 0.0}, "sigma_min"),
        ({"index": [0]}, "number"),
    ):
        with pytest.raises(SfumatoError, match=words):
            log_prob(model, x, **kwargs)
    with pytest.raises(SfumatoError, match="discrete"):
        _ = log_prob(model, x, steps=2).bits_per_dim


class Off(torch.nn.Module):
    """x or v of N(0, I) data under a variance-preserving schedule, with a wavy error of the network's own."""

    def __init__(self, target, error):
        super().__init__()
        self.target, self.error = target, error

    def forward(self, z, level):
        logsnr = -8 * level.double()[:, None]
        exact = torch.sigmoid(logsnr).sqrt() * z if self.target == "x" else torch.zeros_like(z)
        return (exact + self.error * torch.sin(5 * z)).to(z.dtype)


def test_where_the_value_cannot_be_trusted_is_said():
    """Case Q6: an error of x of 0.03 is divided by sigma near the data; the same error of v is not."""
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    truth = -0.5 * x.square().sum(1) - math.log(2 * math.pi)
    direct = Denoiser(Off("v", 0.03).double(), Gaussian(Cosine(0.0), "v"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float((log_prob(direct, x).value - truth).abs().median()) < 0.2
    model = Denoiser(Off("x", 0.03).double(), Gaussian(Cosine(0.0), "x"))
    with pytest.warns(SfumatoWarning, match="cannot be trusted near the data.*sigma_min=") as caught:
        wrong = log_prob(model, x)
    assert float((wrong.value - truth).abs().median()) > 0.8
    advised = float(re.search(r"sigma_min=([\d.]+)", str(caught[0].message))[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        better = log_prob(model, x, sigma_min=advised)
    assert float((better.value - truth).abs().median()) < 0.6 * float((wrong.value - truth).abs().median())


def test_a_large_correction_for_the_prior_is_said():
    """Data of mean 6 under a schedule that keeps a fifth of them at t = 1."""
    law = GaussianMixture([1.0], [[6.0, 6.0]], 1.0)
    model = law.denoiser(Gaussian(LogLinear(-3.0, 12.0)))
    with pytest.warns(SfumatoWarning, match="cannot be trusted near the noise"):
        log_prob(model, law.sample(20, seed=1))
