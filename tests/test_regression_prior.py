"""The prior of embeddings by kernel ridge regression: the law that it states, and a pair that has it for a prior."""

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato.conditions import EMBEDDING
from sfumato.errors import SfumatoError
from sfumato.training.console import Silent

PROCESS = sf.Gaussian(sf.schedules.LogLinear(-12.0, 12.0))
NOISE = torch.tensor([0.3, 0.1, 0.2])


def angles(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(y on a circle, e = (cos a, sin 2a, cos 3a) + noise): directions alone count, and e is no linear map of y."""
    draw = torch.Generator().manual_seed(seed)
    a = 2 * torch.pi * torch.rand(n, generator=draw)
    e = torch.stack((a.cos(), (2 * a).sin(), (3 * a).cos()), 1) + NOISE * torch.randn(n, 3, generator=draw)
    return 5 * torch.stack((a.cos(), a.sin()), 1), e


@pytest.fixture(scope="module")
def prior() -> sf.RegressionPrior:
    return sf.RegressionPrior.fit(*angles(600, 0), PROCESS, "y")


def test_it_finds_the_mean_and_what_it_misses_without_being_told(prior) -> None:
    y, e = angles(2000, 1)
    off = e - prior.expected(y)
    assert torch.allclose(off.square().mean(0).sqrt(), NOISE.double(), rtol=0.15)  # near the noise itself
    claimed = (prior.axes * prior.variances) @ prior.axes.T
    assert torch.allclose(claimed.double(), off.T @ off / len(off), atol=0.012)  # of leave-one-out errors
    with pytest.raises(SfumatoError, match="two different captions"):
        sf.RegressionPrior.fit(torch.ones(5, 2), torch.randn(5, 3), PROCESS)


def test_samples_have_the_law_at_each_temperature_and_are_marginal_without_a_caption(prior, tmp_path) -> None:
    y = torch.tensor([[3.0, 4.0]])
    m, s = prior.expected(y)[0], ((prior.axes * prior.variances) @ prior.axes.T).double()
    for temperature in (1.0, 0.5, 0.0):
        prior.temperature = temperature
        e = sf.sample(prior, 4000, 12, batch=4000, y=y.expand(4000, 2)).double()
        assert torch.allclose(e.mean(0), m, atol=0.03 * temperature + 1e-4), temperature
        assert torch.allclose(e.T.cov(), temperature**2 * s, atol=0.012 * temperature + 1e-6), temperature
    prior.temperature = 1.0
    known = angles(600, 0)[1].double()
    e = sf.sample(prior, 4000, 16, batch=4000).double()
    assert torch.allclose(e.mean(0), known.mean(0), atol=0.06) and torch.allclose(e.T.cov(), known.T.cov(), atol=0.06)
    far = sf.sample(sf.guide(prior, 2.0), 500, 16, y=y.expand(500, 2)).double().mean(0)
    assert float(((far - m) * (m - known.mean(0))).sum()) > 0  # guidance leads away from the mean of all
    again = sf.load(sf.save(prior, tmp_path / "prior.safetensors"))
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    cond = {"y": angles(4, 3)[0]}
    assert torch.equal(again(z, 0.4, **cond).x, prior(z, 0.4, **cond).x)
    assert torch.allclose(prior(z[1:2], 0.4, y=cond["y"][1:2]).x, prior(z, 0.4, **cond).x[1:2], atol=1e-6)


def test_a_pair_is_trained_around_it_and_resumed_with_it(tmp_path) -> None:
    draw = np.random.default_rng(0)
    colour = draw.integers(0, 3, 60)
    x = draw.integers(0, 60, (60, 3, 8, 8), dtype=np.uint8)
    x[np.arange(60), colour] += 150
    kinds = np.eye(3)[colour] + 0.05 * draw.standard_normal((60, 3))
    how = {
        "unclip": True, "prior": "regression", "embedding": "numbers", "conditions": {"tint": "vector"}, "batch": 16,
        "steps": 6, "precision": "float32", "snapshots": 0, "sample_every": 0, "net": "tiny", "console": Silent(),
    }  # fmt: skip
    run = sf.train({"x": x, "tint": kinds}, tmp_path / "run", **how)
    pair = sf.load(run.path)
    assert isinstance(pair.prior, sf.RegressionPrior) and pair.prior.temperature == 0.25
    assert run.metrics[-1]["step"] == 6  # the whole budget
    assert set(pair.decoder.spec.conditions) == {EMBEDDING} and set(pair.spec.conditions) == {"tint"}
    for c in range(3):
        e = sf.sample(pair.prior, 30, 8, tint=np.eye(3)[c])
        near = torch.cdist(e.float(), pair.embed(x)).argmin(1)
        assert float((torch.tensor(colour)[near] == c).float().mean()) > 0.9  # chance 1/3
    assert sf.sample(pair, 2, 3, tint=np.eye(3)[0]).dtype == torch.uint8
    prior, before = run.path / "prior" / "model.safetensors", (run.path / "model.safetensors").read_bytes()
    good = prior.read_bytes()
    prior.write_bytes(b"x")
    with pytest.raises(SfumatoError, match="not a model file"):  # before the pair is replaced
        sf.resume(run.path, {"x": x, "tint": kinds}, steps=8, console=Silent())
    assert (run.path / "model.safetensors").read_bytes() == before
    prior.write_bytes(good)
    again = sf.resume(run.path, {"x": x, "tint": kinds}, steps=8, console=Silent())
    assert torch.equal(again.denoiser.prior.weights, pair.prior.weights)
    captions = [f"a {('red', 'green', 'blue')[c]} one" for c in colour]
    with pytest.raises(SfumatoError, match=r"caption \(words\)"):
        sf.train({"x": x, "caption": captions}, tmp_path / "no", **{**how, "conditions": {}})
    with pytest.raises(SfumatoError, match="train with unclip"):
        sf.train({"x": x, "tint": kinds}, tmp_path / "no", **{**how, "unclip": False})
    assert not (tmp_path / "no").exists()


def test_what_is_no_number_is_refused() -> None:
    y, e = angles(20, 0)
    for own, other in ((y, e[:10]), (y.clone().fill_(torch.nan), e), (y, e.clone().fill_(torch.inf))):
        with pytest.raises(SfumatoError, match="all of them finite"):
            sf.RegressionPrior.fit(own, other, PROCESS)
    for temperature in (-1.0, float("nan"), float("inf")):
        with pytest.raises(SfumatoError, match="temperature of a prior"):
            sf.RegressionPrior(PROCESS, "y", 20, 2, 3, 0.3, temperature=temperature)
