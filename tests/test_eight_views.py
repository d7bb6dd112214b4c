"""Eight views: every number has its closed form on exact models, and a wrong model does not agree with itself."""

import json
import math
import re

import pytest
import torch

import sfumato as sf
from audit_faults import FAULTS, LAW, PROCESS, Faulty
from sfumato.diagnostics.samples import evaluation_set, trivial
from sfumato.eight_views import Views
from sfumato.eight_views.chains import COUNT, Scene, gains, power, similarity, walks

NAMES = ["autoencoder", "latent-variable model", "score", "reverse SDE", "flow", "recurrent network"]


@pytest.fixture(scope="module")
def field() -> tuple[sf.exact.GaussianField, Views]:
    law = sf.exact.GaussianField((1, 8, 8))
    return law, sf.views(law.denoiser(PROCESS), law, samples=256)


def closed(law, share):
    """A mean over the spectrum P of a field, of variance 1."""
    return float(share(law.spectrum).mean())


def test_numbers_of_a_field_have_their_closed_forms(field):
    law, found = field
    chapters = found.chapters
    assert [one.name for one in chapters[:6]] == NAMES and found.samples == 256
    expected = [
        closed(law, lambda p: p / (p + 1)),  # at logsnr 0, |x - x_hat|^2 of Wiener's filter
        closed(law, lambda p: 0.5 * torch.log(2 * math.pi * math.e * p)),
        closed(law, lambda p: 1 / (1 + p)),  # of alpha^2 = sigma^2 = 1/2
        1.0,
        closed(law, lambda p: 0.5 * torch.log(2 * math.pi * math.e * p)),
        1.0,  # the flow of a Gaussian is linear: its gradient has the data's variance
        1.0,
        1.0,
    ]
    for one, value in zip(chapters, expected, strict=True):
        assert abs(one.number.value - value) < 3 * one.number.stderr + 0.02, one.name
        assert one.check.agrees, one.name
        if one.exact is not None:
            assert abs(one.exact - value) < 0.03, one.name
    assert found.agrees


def test_a_band_is_half_written_where_its_signal_is_as_strong_as_the_noise(field):
    law, found = field
    chapter = found.chapters[6]
    half = [float(word) for word in chapter.says.rpartition("logsnr ")[2].rstrip(".").split(", ")]
    bands = power(law.sample(4096, seed=3), None).mean(0)
    assert torch.allclose(torch.tensor(half).double(), -bands.log(), atol=0.15)


def test_a_mixture_agrees_with_its_law():
    found = sf.views(LAW.denoiser(PROCESS), LAW, samples=512)
    assert found.agrees, str(found)
    assert found.chapters[6].name == "autoregression over principal axes"
    for one in found.chapters:
        if one.exact is not None:
            assert abs(one.number.value - one.exact) < 4 * one.number.stderr + 0.02, one.name


def test_a_shrunk_model_does_not_agree_with_itself():
    found = sf.views(Faulty(FAULTS["shrink"]), LAW, samples=512)
    assert not found.agrees
    wrong = {one.name for one in found.chapters if not one.check.agrees}
    assert {"autoencoder", "score"} <= wrong  # its steps are orthogonal all the same, and shrunk as it is


def test_the_sensitivity_of_a_gaussian_flow():
    """dx_0/dz = sqrt(c / (alpha^2 c + sigma^2)) along an axis of variance c."""
    c = torch.tensor([2.0, 0.5])
    law = sf.exact.GaussianMixture([1.0], [[0.3, -0.2]], [torch.diag(c).tolist()])
    scene = _scene(law)
    levels = [3, 7, COUNT - 1]
    found = gains(scene, levels)
    for level, value in zip(levels, found.T, strict=True):
        alpha, sigma, scale = scene.strength(level)
        exact = float((scale**2 * c / (alpha**2 * c + sigma**2)).mean())
        assert torch.allclose(value, torch.full_like(value, exact), rtol=0.02)


def test_walks_of_a_gaussian_spread_as_the_noised_data_do():
    law = sf.exact.GaussianMixture([1.0], [[0.0, 0.0]], [1.0])
    found = walks(_scene(law, 4096))
    assert torch.allclose(found["ode"].mean(0), found["ode"][:, -1].mean().expand(COUNT), atol=0.02)
    assert torch.allclose(found["chord"], found["way"], atol=1e-3)  # along the ODE of N(0, I) nothing moves
    for name in ("sde", "sde end", "ode end"):
        mean = found[name].mean(0)
        assert torch.allclose(mean, torch.ones_like(mean), atol=0.06)


def _scene(law, count=32) -> Scene:
    model = law.denoiser(PROCESS)
    found = evaluation_set(model, law, None, None, count, 0, [])
    return Scene.of(model, trivial(model, found), found.x, found.cond, 0, 256)


def test_the_page_holds_all_and_loads_nothing(field, tmp_path):
    _, found = field
    path = found.save(tmp_path / "views.html")
    text = path.read_text()
    assert text.count("<svg") == 8 and "http" not in text.replace("http://www.w3.org", "")
    assert all(one.says.split(":")[0] in text for one in found.chapters) and "4. Reverse SDE" in text
    facts = json.loads((tmp_path / "views.json").read_text())
    assert facts["agrees"] and len(facts["chapters"]) == 8
    assert len(facts["chapters"][0]["picture"]["curves"][0]["x"]) == COUNT
    with pytest.raises(sf.SfumatoError, match="must end in .html"):
        found.save(tmp_path / "views.pdf")


def test_few_samples_are_refused():
    with pytest.raises(sf.SfumatoError, match="at least 16 samples"):
        sf.views(LAW.denoiser(PROCESS), torch.zeros(5, 2))


def test_the_kl_of_paths_is_that_of_mismatched_normal_laws():
    """1/2 int snr (E|x - x_hat|^2 - mmse) dlogsnr = KL of the laws, for a denoiser of another variance."""
    law, other = (sf.exact.GaussianMixture([1.0], [[0.0] * 4], c) for c in (1.0, 0.5))
    found = sf.views(other.denoiser(PROCESS), law, samples=512).chapters[3]
    value = float(re.search(r"of the model is (\S+) nats a number", found.says)[1])
    assert value == pytest.approx((2 - 1 - math.log(2)) / 2, abs=0.01)


class Echo(torch.nn.Module):
    """A network that repeats its input."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Identity()

    def forward(self, x, noise_level):
        return self.layer(x)


def test_the_similarity_of_layers_is_that_of_what_they_repeat():
    """CKA of white states at two levels is the square of their correlation, alpha_t / alpha_s."""
    law = sf.exact.GaussianMixture([1.0], [[0.0] * 40], 1.0)
    model = sf.Denoiser(Echo(), PROCESS)
    data = evaluation_set(model, law.sample(400, seed=5).float(), None, None, 400, 0, [])
    scene = Scene.of(model, trivial(model, data), data.x, data.cond, 0, 400)
    near, far = similarity(scene)
    alpha = PROCESS.schedule.alpha(scene.t)
    assert near == pytest.approx(float((alpha[1:] / alpha[:-1]).square().mean()), abs=0.03)
    assert far == pytest.approx(0, abs=0.03)
    assert similarity(_scene(law)) is None  # an exact model has no layers
