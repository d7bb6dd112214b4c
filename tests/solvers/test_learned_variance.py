"""Learned step variances: between their limits, the optimum on Gaussians, in files and through wrappers."""

import math

import pytest
import torch

from sfumato import noise, serialization
from sfumato.certification import certify
from sfumato.compose import Rescheduled
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.files import read_sealed, write_sealed
from sfumato.guidance import guide
from sfumato.model import Denoiser
from sfumato.nets import MLP, DiT, UNet
from sfumato.process import Gaussian
from sfumato.sampling import sample
from sfumato.schedules import VE, Cosine, Flow, LinearBeta
from sfumato.solvers import DDPM, LearnedDDPM, OptimalDDPM

F64 = torch.float64


class Shared:
    """The exact model of a law, with a given share v(belief) of the step's variance."""

    def __init__(self, law, process, share):
        self.inner, self.process, self.shape, self.share = law.denoiser(process), process, law.shape, share

    def __call__(self, z, t, **cond):
        belief = self.inner(z, t, **cond)
        belief.variance_share = self.share(belief)
        return belief


def mixture():
    return GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [0.8, 0.0]], [0.2, 0.1])


@pytest.mark.parametrize("schedule", [LinearBeta(), VE(), Flow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("v", "variance"), [(0.0, "posterior"), (1.0, "beta")])
def test_the_ends_of_the_share_are_the_fixed_variances(schedule, v, variance):
    """2102.09672, Eq. 15."""
    process = Gaussian(schedule)
    model = Shared(mixture(), process, lambda belief: torch.full_like(belief.z, v))
    learned = sample(model, 50, 7, LearnedDDPM(), seed=3)
    fixed = sample(mixture().denoiser(process), 50, 7, DDPM(variance=variance), seed=3)
    torch.testing.assert_close(learned.float(), fixed.float(), rtol=1e-4, atol=1e-4)


def test_the_share_that_gives_the_optimal_variance_exists_and_is_taken():
    """For N(m, c) data the step's true variance lies between the limits where c does between 0 and 1."""
    law, schedule, steps = GaussianMixture([1.0], [[0.4]], 0.5), Cosine(), 6
    process, table = Gaussian(schedule), DDPM().plan(schedule, steps)
    limits = {t: k for k, t in enumerate(table.times)}
    upper = DDPM(variance="beta").plan(schedule, steps)

    def share(belief):
        k = limits[float(belief.t)]
        low, high = table.lines[k].noise, upper.lines[k].noise
        if low == 0:
            return torch.zeros_like(belief.z)
        wanted = low**2 + table.lines[k].x[k] ** 2 * belief.variance
        v = (wanted.log() / 2 - math.log(low)) / math.log(high / low)
        assert bool(((v > 0) & (v < 1)).all())
        return v

    model, n = Shared(law, process, share), 40
    z = process.prior(noise.normal(0, torch.arange(n), (1,), dtype=F64))

    def fresh(k, like):
        return noise.normal(1, torch.arange(n), (1,), noise.STEP, k, dtype=F64)

    learned = list(LearnedDDPM().plan(schedule, steps).run(model, z, fresh))
    optimal = list(OptimalDDPM().plan(schedule, steps).run(law.denoiser(process), z, fresh))
    for one, other in zip(learned[:-1], optimal[:-1], strict=True):  # the last step draws in one of them alone
        torch.testing.assert_close(one.z, other.z, rtol=1e-10, atol=1e-10)


def network(kind):
    torch.manual_seed(0)
    if kind == "mlp":
        net = MLP(4, width=8, depth=1, classes=2, outputs=2)
    elif kind == "unet":
        net = UNet((2, 8, 8), (8, 8), 1, patch=2, classes=2, outputs=2)
    else:
        net = DiT((2, 8, 8), 4, 16, 1, classes=2, outputs=2)
    for parameter in net.parameters():  # the output is zero at first, and so is what a class changes
        torch.nn.init.normal_(parameter, std=0.3)
    return net


@pytest.mark.parametrize("kind", ["mlp", "unet", "dit"])
def test_a_saved_model_loads_and_samples(kind, tmp_path):
    model = Denoiser(network(kind), Gaussian(Cosine()), variance="learned").eval()
    path = serialization.save(model, tmp_path / "model.safetensors")
    again = serialization.load(path)
    assert again.variance == "learned"
    z = torch.randn(3, *model.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = model(z, 0.4), again(z, 0.4)
    assert one.variance_share.shape == one.x.shape == z.shape
    assert float(one.variance_share.std()) > 0.01
    torch.testing.assert_close(one.variance_share, other.variance_share)
    drawn = [sample(m, 3, 4, LearnedDDPM(), seed=1) for m in (model, again)]
    torch.testing.assert_close(*drawn)
    assert "variance of a step" in " ".join(serialization.describe(path))


def test_the_second_half_of_the_outputs_is_the_share():
    net = network("unet")
    model, plain = Denoiser(net, Gaussian(Flow()), "x", variance="learned"), torch.randn(2, 2, 8, 8)
    y, share = model.process.split(model.raw(plain, 0.5), plain)
    raw = net(plain / math.sqrt(0.5), torch.zeros(2))
    torch.testing.assert_close(y, raw[:, :2])
    torch.testing.assert_close(share, (1 + raw[:, 2:]) / 2)
    assert torch.equal(model.predict(plain, 0.5), y)


def test_files_without_the_word_hold_fixed_variances(tmp_path):
    net = MLP(3, width=8, depth=1)
    path = serialization.save(Denoiser(net, Gaussian(Flow())), tmp_path / "model.safetensors")
    contract, tensors = read_sealed(path)
    del contract["hash"], contract["model"]["args"]["process"]["args"]["variance"]
    contract["model"]["args"].pop("variance", None)
    del contract["model"]["args"]["net"]["args"]["outputs"]
    write_sealed(path, tensors, contract)
    old = serialization.load(path)
    assert old.variance == "fixed" and old(torch.zeros(1, 3), 0.5).variance_share is None


def test_guidance_keeps_the_conditional_share():
    model = Denoiser(network("mlp"), Gaussian(Flow()), variance="learned")
    z, label = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 0, 1, 1])
    with torch.no_grad():
        wanted, found = model(z, 0.6, label=label), guide(model, 3.0)(z, 0.6, label=label)
    torch.testing.assert_close(found.variance_share, wanted.variance_share)
    assert float((found.x - wanted.x).abs().max()) > 1e-3


def test_the_share_means_the_same_under_any_schedule():
    """Both limits scale with the state, so that z_VE = z_VP / alpha step by step."""
    base, steps = Gaussian(LinearBeta()), 5
    inner = Denoiser(network("mlp"), base, variance="learned").double()
    wide = Rescheduled(inner, VE(0.05, 80.0))
    nodes = [VE(0.05, 80.0).logsnr(t) for t in LearnedDDPM().plan(VE(0.05, 80.0), steps, 0.9, 0.3).times]
    index = torch.arange(6)
    z = noise.normal(0, index, (4,), dtype=F64)
    with torch.no_grad():
        for lam, mu in zip(nodes, nodes[1:], strict=False):
            t_ve, s_ve = (float(VE(0.05, 80.0).time(v)) for v in (lam, mu))
            t_vp, s_vp = (float(base.schedule.time(v)) for v in (lam, mu))
            (alpha_t, _), (alpha_s, _) = base.schedule(t_vp), base.schedule(s_vp)
            fresh = noise.normal(1, index, (4,), dtype=F64)
            ends = []
            for model, schedule, t, s, start in (
                (inner, base.schedule, t_vp, s_vp, z),
                (wide, VE(0.05, 80.0), t_ve, s_ve, z / alpha_t),
            ):
                walk = LearnedDDPM().plan(schedule, 1, t, s).run(model, start, lambda k, like, fresh=fresh: fresh)
                ends.append(list(walk)[-1].z)
            torch.testing.assert_close(ends[0] / alpha_s, ends[1], rtol=1e-5, atol=1e-5)


class Single(torch.nn.Module):
    def forward(self, z, level):
        return z


def test_mistakes_are_named():
    process = Gaussian(Flow())
    with pytest.raises(SfumatoError, match="outputs=2"):
        Denoiser(MLP(3, width=8, depth=1), process, variance="learned")
    with pytest.raises(SfumatoError, match="outputs=1"):
        Denoiser(MLP(3, width=8, depth=1, outputs=2), process)
    with pytest.raises(SfumatoError, match="did you mean 'learned'"):
        Denoiser(MLP(3, width=8, depth=1), process, variance="learn")
    with pytest.raises(SfumatoError, match="twice as many"):
        Denoiser(Single(), process, variance="learned").predict(torch.zeros(1, 3), 0.5)
    with pytest.raises(SfumatoError, match="a learned variance"):
        sample(mixture().denoiser(process), 2, 3, LearnedDDPM())
    with pytest.raises(SfumatoError, match="positive sizes"):
        MLP(3, outputs=0)


def test_certify_says_what_the_solver_needs():
    with pytest.raises(SfumatoError, match="a learned variance"):
        certify(LearnedDDPM(), name="ddpm-learned", quick=True)
