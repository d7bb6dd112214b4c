"""The residuals of Consistent Diffusion and FP-Diffusion, and the losses that have them."""

import pytest
import torch

import sfumato as sf
from audit_faults import EXACT, LAW, PROCESS, Faulty
from sfumato.conditions import Conditions
from sfumato.noise import PROBE, Noise
from sfumato.objectives.residuals import ConsistentDiffusion, FPDiffusion, drifts, generated
from sfumato.objectives.times import UniformTime
from sfumato.training import Run
from sfumato.training.console import Silent

NORMAL = sf.exact.GaussianMixture([1.0], [[0.0, 0.0]], [1.0])


def test_the_generator_of_a_scaled_denoiser_has_its_closed_form():
    """D = k y / (1 + r) of N(0, I): r (-dD/dr + score.grad D + lap D / 2) = k (k - 1) y / (1 + r)^2."""
    k, t = 0.7, torch.full((64,), 0.5, dtype=torch.float64)
    z = NORMAL.sample(64, process=PROCESS, t=0.5)
    model = Faulty(lambda belief, z: k * belief.x, NORMAL.denoiser(PROCESS))
    alpha, sigma = PROCESS.schedule(0.5)
    y, r = z / alpha, (sigma / alpha) ** 2
    for found in generated(model, z, t, Conditions(), Noise(0, torch.arange(64), PROBE)):
        assert torch.allclose(found, k * (k - 1) * y / (1 + r) ** 2, atol=1e-4)


@pytest.mark.parametrize("residuals", [drifts, generated])
def test_products_of_an_exact_model_have_the_mean_0(residuals):
    t = torch.full((8192,), 0.4, dtype=torch.float64)
    z = LAW.sample(8192, process=PROCESS, t=0.4)
    a, b = residuals(EXACT, z, t, Conditions(), Noise(0, torch.arange(8192), PROBE))
    product, size = (a * b).sum(1), a.square().sum(1).mean()
    assert abs(float(product.mean())) < 4 * float(product.std()) / 8192**0.5
    assert abs(float(product.mean())) < 0.05 * float(size)


@pytest.mark.parametrize("loss", [ConsistentDiffusion, FPDiffusion])
def test_gradients_lead_to_a_smaller_residual(loss):
    """Without the denoising loss the square alone falls, on draws that are not those of its gradient."""
    torch.manual_seed(0)
    model = sf.Denoiser(sf.nets.MLP(2, 32, 2), PROCESS, "v")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    regulariser = loss(UniformTime(), None, 0)
    z, t = LAW.sample(1024, process=PROCESS, t=0.4).float(), torch.full((1024,), 0.4, dtype=torch.float64)

    def square(seed):
        source = Noise(seed, torch.arange(1024), PROBE)
        a, b = regulariser.residuals(model, z, t, Conditions(), source)
        return (a * b).flatten(1).mean()

    with torch.no_grad():
        before = float(square(9))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(30):
        optimizer.zero_grad()
        square(step).backward()
        optimizer.step()
    with torch.no_grad():
        assert float(square(9)) < 0.7 * before


@pytest.mark.parametrize("loss", ["consistent-diffusion", "fp-diffusion(share=0.1)"])
def test_runs_name_the_losses(loss, tmp_path):
    how = {"steps": 4, "batch": 16, "net": "tiny", "holdout": 0.3, "precision": "float32"}
    run = sf.train(LAW.sample(100).float(), tmp_path / "run", loss=loss, console=Silent(), **how)
    assert isinstance(run, Run) and sf.load(run.path).process == sf.load(run.path).process
    with pytest.raises(sf.SfumatoError, match="is asked of a model"):
        ConsistentDiffusion(UniformTime(), None, 0).suits(sf.Codec)
