"""C9: latents by the probability-flow ODE, to the noise and back."""

import math

import pytest
import torch
from scipy import stats

import sfumato as sf
from likelihood_models import PROCESSES, Plain, plane, spec_of
from sfumato.errors import SfumatoError, SfumatoWarning
from sfumato.exact import GaussianMixture
from sfumato.latents import attribute, decode, encode, interpolate, slerp
from sfumato.model import Denoiser
from sfumato.nets import MLP
from sfumato.process import Gaussian
from sfumato.sampling import sample
from sfumato.schedules import Cosine, Flow
from sfumato.solvers import Multistep

F64 = torch.float64


def pair():
    return GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], [0.2, 0.1])


@pytest.mark.parametrize("name", ["cosine", "edm", "ve", "flow"])
def test_encoded_data_is_noise(name):
    """z_1 / sigma_1 ~ N(0, 1) in each entry and in no direction more than in another."""
    law, process = plane(), PROCESSES[name]
    latent = encode(law.denoiser(process), law.sample(2000, seed=1), batch=2000)
    white = latent / float(process.schedule.sigma(1.0))
    for column in (white[:, 0], white[:, 1], (white[:, 0] - white[:, 1]) / math.sqrt(2)):
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(white.square().sum(1).numpy(), "chi2", args=(2,)).pvalue > 1e-3


def test_latents_are_those_of_the_exact_flow():
    law, process = plane(), Gaussian(Cosine())
    x = law.sample(100, seed=2)
    exact = law.flow(x, 0.0, 1.0, process)
    found = encode(law.denoiser(process), x, steps=96, sigma_min=1e-3)
    assert float((found - exact).norm(dim=1).median()) < 2e-4
    back = decode(law.denoiser(process), exact, steps=96, sigma_min=1e-3)
    assert float((back - x).norm(dim=1).median()) < 1e-4


def test_there_and_back_at_the_order_of_the_solver():
    """decode(encode(x)) - x falls like steps^-4 or faster."""
    law = pair()
    model, x = law.denoiser(Gaussian(Flow())), law.sample(100, seed=3)
    errors = [float((decode(model, encode(model, x, n), n) - x).norm(dim=1).mean()) for n in (24, 48, 96)]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert 3.7 < math.log2(coarse / fine) < 5.6
    assert errors[-1] < 1e-5


def test_a_latent_is_a_start_of_sampling():
    law = pair()
    model, x = law.denoiser(Gaussian(Cosine())), law.sample(50, seed=4)
    latent = encode(model, x)
    torch.testing.assert_close(sample(model, z=latent, steps=400, solver=Multistep(3)), x, rtol=0, atol=2e-3)


def test_another_label_edits_the_sample():
    """One Gaussian a class: the edit is m_b + (x - m_a) s_b / s_a."""
    law = pair()
    model = law.denoiser(Gaussian(Flow()))
    x = law.sample(30, seed=5, label=0)
    edited = decode(model, encode(model, x, label=0), label=1)
    expected = law.means[1] + (x - law.means[0]) * math.sqrt(0.1 / 0.2)
    torch.testing.assert_close(edited, expected, rtol=0, atol=1e-4)


def test_an_attribute_is_a_direction():
    """In one Gaussian the flow is linear: adding the direction of two groups moves a sample by their difference."""
    law = GaussianMixture([1.0], [[0.4, -0.2]], [[[0.5, 0.3], [0.3, 0.4]]])
    model, x = law.denoiser(Gaussian(Cosine())), law.sample(200, seed=6)
    having, lacking = x[x[:, 0] > 0.4], x[x[:, 0] <= 0.4]
    direction = attribute(model, having, lacking)
    moved = decode(model, encode(model, x[:20]) + 0.5 * direction)
    torch.testing.assert_close(moved, x[:20] + 0.5 * (having.mean(0) - lacking.mean(0)), rtol=0, atol=1e-4)


def test_the_way_along_the_sphere():
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(6, 3, 50, generator=g, dtype=F64) for _ in range(2))
    b = b * (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1))[:, None, None]
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    shares = torch.linspace(0.1, 0.9, 6, dtype=F64)
    middle = slerp(a, b, shares)
    torch.testing.assert_close(middle.flatten(1).norm(dim=1), a.flatten(1).norm(dim=1))
    angles = [torch.acos(torch.cosine_similarity(v.flatten(1), middle.flatten(1))) for v in (a, b)]
    torch.testing.assert_close(angles[0] * (1 - shares), angles[1] * shares)
    torch.testing.assert_close(slerp(a, 2 * a, 0.25), 1.25 * a)
    with pytest.raises(SfumatoError, match="opposite"):
        slerp(a, -a, 0.5)
    with pytest.raises(SfumatoError, match="one shape"):
        slerp(a, b[:2], 0.5)


def test_interpolation_ends_on_its_samples_and_stays_in_the_law():
    """In 64 dimensions a mixture's samples have a log-density in a narrow range, and so has what lies between."""
    dim = 64
    law = GaussianMixture([1.0], torch.zeros(1, dim), torch.linspace(0.2, 1.5, dim)[None])
    model, (a, b) = law.denoiser(Gaussian(Cosine())), law.sample(40, seed=7).split(20)
    way = interpolate(model, a, b, (0.0, 0.5, 1.0), steps=48)
    torch.testing.assert_close(way[0], a, rtol=0, atol=1e-4)
    torch.testing.assert_close(way[2], b, rtol=0, atol=1e-4)
    typical, middle = law.log_prob(law.sample(2000, seed=8)), law.log_prob(way[1])
    assert float((middle - typical.mean()).abs().max()) < 4 * float(typical.std())
    assert float(law.log_prob((a + b) / 2).mean() - typical.mean()) > 2 * float(typical.std())  # a straight way is not


def test_units_and_types_are_the_users():
    law = pair()
    x = (100 * law.sample(300, seed=9)).round().to(torch.int32)
    spec = spec_of(x)
    mean, std = (torch.tensor(v, dtype=F64) for v in (spec.normaliser.mean, spec.normaliser.std))
    covs = torch.tensor([0.2, 0.1], dtype=F64)[:, None] * (100 / std) ** 2
    inner = GaussianMixture(law.weights, (100 * law.means - mean) / std, covs)
    model = Plain(inner.denoiser(Gaussian(Cosine())), spec)
    assert torch.equal(decode(model, encode(model, x)), x)
    torch.testing.assert_close(encode(model, x), encode(model, spec.normalise(x), normalised=True))
    with pytest.warns(SfumatoWarning, match="units"):
        encode(model, x // 100)


def test_a_network_in_single_precision():
    torch.manual_seed(0)
    net = MLP(3, width=16, depth=1)
    torch.nn.init.normal_(net.output.weight, std=0.2)
    model = Denoiser(net, Gaussian(Cosine()))
    x = torch.randn(10, 3)
    latent = encode(model, x, batch=4)
    assert latent.dtype == torch.float32
    torch.testing.assert_close(decode(model, latent), x, rtol=0, atol=1e-3)


def test_what_is_no_sample_is_refused():
    model = pair().denoiser(Gaussian(Flow()))
    for x in (torch.zeros(2), torch.zeros(0, 2), torch.full((2, 2), math.nan)):
        with pytest.raises(SfumatoError, match="encode (takes samples|got 4 values)"):
            encode(model, x)


def test_keywords_that_were_once_taken_name_what_to_do():
    model, x = (
        GaussianMixture([1.0], [[0.3, -0.2]], 0.4).denoiser(sf.Gaussian(sf.schedules.Cosine())),
        torch.zeros(2, 2),
    )
    for act in (sf.encode, sf.decode, sf.log_prob):
        for old in ({"guidance": 2.0}, {"interval": (0.1, 0.5)}):
            with pytest.raises(SfumatoError, match=f"takes no {next(iter(old))}: pass the guided model, sf.guide"):
                act(model, x, **old)
