"""Cascades: a jointly normal pair in closed form, the augmentation, and stages that are trained, saved and sampled."""

import math
from types import SimpleNamespace

import pytest
import torch

import sfumato as sf
from consoles import Heard
from sfumato.belief import Estimate, broadcast
from sfumato.cascade import WIDEST, augmented, lowered
from sfumato.conditions import AUGMENTATION, LOW
from sfumato.errors import SfumatoError
from sfumato.noise import PRIOR, Noise
from sfumato.normaliser import Normaliser
from sfumato.objectives.loss import Batch
from sfumato.objectives.times import UniformTime
from sfumato.objectives.upscaling import Upscaling
from sfumato.training.console import Silent
from sfumato.training.run import Interrupted

PROCESS = sf.Gaussian(sf.schedules.LogLinear(-12.0, 12.0))
ROOT = torch.tensor(
    [[1.0, 0.2, 0.0, 0.1], [0.5, 0.9, 0.3, 0.0], [0.1, 0.4, 0.8, 0.2], [0.0, 0.3, 0.2, 0.7]], dtype=torch.float64
)
COV = ROOT @ ROOT.T  # of x, four places
POOL = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]], dtype=torch.float64)
SMALL = POOL @ COV @ POOL.T  # of y, two


class Normal:
    """The exact denoiser of N(mean, cov), fields (1, places), whose mean may be told."""

    def __init__(self, cov: torch.Tensor, mean: torch.Tensor | float = 0.0) -> None:
        self.cov, self.mean, self.process = cov, mean, PROCESS
        self.shape = (1, len(cov))

    def law(self, n: int, cond) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(n, len(self.cov), dtype=torch.float64) + self.mean, self.cov

    def __call__(self, z, t, /, **cond):
        mean, cov = self.law(len(z), cond)
        alpha, sigma = PROCESS.schedule.alpha(t), PROCESS.schedule.sigma(t)
        gain = alpha * cov @ torch.linalg.inv(alpha**2 * cov + sigma**2 * torch.eye(len(cov), dtype=torch.float64))
        x = mean + (z[:, 0].double() - alpha * mean) @ gain.T
        return Estimate(z, t, PROCESS.schedule, x=x[:, None].to(z))


class Upscaler(Normal):
    """That of p(x | c, s), c = alpha y + s eta: N(S_xy alpha (alpha^2 S_yy + s^2)^-1 c, S_xx - alpha^2 ..)."""

    def law(self, n, cond):
        c, s = cond[LOW].values[:, 0].double(), float(cond[AUGMENTATION].values[0])
        alpha = math.sqrt(1 - s**2)
        inverse = torch.linalg.inv(alpha**2 * SMALL + s**2 * torch.eye(2, dtype=torch.float64))
        gain = alpha * COV @ POOL.T @ inverse
        return c @ gain.T, COV - alpha * gain @ POOL @ COV


class Unmoved(Normal):
    """An upscaler that does not listen."""


def sampled(bias: torch.Tensor | float, level: float) -> torch.Tensor:
    cascade = sf.Cascade(Normal(SMALL, bias), Upscaler(COV), level=level)
    return sf.sample(cascade, 6000, 24, "heun", batch=6000)[:, 0].double()


def test_a_jointly_normal_pair_keeps_its_law_at_every_level_and_a_bias_falls_with_it() -> None:
    bias, sizes = torch.tensor([1.0, -0.5], dtype=torch.float64), []
    for level in (0.1, 0.6, 0.95, 1.0):
        x = sampled(bias, level)
        alpha = math.sqrt(1 - level**2)
        inverse = torch.linalg.inv(alpha**2 * SMALL + level**2 * torch.eye(2, dtype=torch.float64))
        wanted = alpha * COV @ POOL.T @ inverse @ (alpha * bias)
        assert torch.allclose(x.mean(0), wanted, atol=0.06)  # four standard errors
        assert torch.allclose(x.T.cov(), COV, atol=0.12)
        sizes.append(float(wanted.norm()))
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] == 0  # at level 1 the upscaler is unconditional


def test_a_truncated_first_stage_gives_the_law_of_one_that_is_run_to_its_end() -> None:
    bias = torch.tensor([1.0, -0.5], dtype=torch.float64)
    for level in (0.3, 0.8):
        whole, cut = (sf.Cascade(Normal(SMALL, bias), Upscaler(COV), level=level, truncated=way) for way in (0, 1))
        schedule = PROCESS.schedule
        assert cut.stop == pytest.approx(float(schedule.time(2 * math.log(math.sqrt(1 - level**2) / level))))
        z, x = sf.sample(cut, 6000, 24, "heun", batch=6000, stages=True)
        alpha, sigma = schedule(cut.stop)
        assert torch.allclose(z[:, 0].double().T.cov(), alpha**2 * SMALL + sigma**2 * torch.eye(2), atol=0.08)
        x = x[:, 0].double()
        assert torch.allclose(x.mean(0), sampled(bias, level).mean(0), atol=0.08)  # as a whole stage does
        assert torch.allclose(x.T.cov(), COV, atol=0.12)
        assert whole.stop == 0 and [plan.stop for plan in sf.sampling.plans(cut, 4)] == [cut.stop, 0]
    some = sf.sample(cut, index=[7, 3], steps=24, solver="heun", batch=1)
    assert torch.allclose(some[:, 0].double(), x[[7, 3]], atol=1e-5)
    small = torch.ones(1, 2)  # of one's own it is whole, and gets all the noise
    given = [sf.sample(each, 8, 6, seed=3, low_resolution=small) for each in (whole, cut)]
    assert torch.equal(*given)
    three = sf.Cascade(cut, Unmoved(torch.eye(8, dtype=torch.float64)), level=0.5, truncated=True)
    assert [plan.stop for plan in sf.sampling.plans(three, 4)] == [cut.stop, three.stop, 0]
    assert [tuple(each.shape) for each in sf.sample(three, 2, 4, stages=True)] == [(2, 1, 2), (2, 1, 4), (2, 1, 8)]
    for level, how, said in ((1.0, "noise", "lower level"), (0.3, "blur", "augmentation='noise'")):
        with pytest.raises(SfumatoError, match=said):
            sf.Cascade(Normal(SMALL), Upscaler(COV), augmentation=how, level=level, truncated=True)
    with pytest.raises(SfumatoError, match="ends elsewhere than a plan"):
        sf.sample(cut, 2, solver=sf.sampling.plans(whole, 4)[0])


def test_what_a_truncated_stage_hands_over_is_in_the_units_of_the_upscaler() -> None:
    class Units(Unmoved):
        def __init__(self, places: int, std: tuple[float, ...], mean: tuple[float, ...]) -> None:
            super().__init__(torch.eye(places, dtype=torch.float64))
            self.shape, self.spec = (2, places), SimpleNamespace(normaliser=Normaliser(mean, std))

    cascade = sf.Cascade(Units(2, (3.0, 1.0), (5.0, 0.0)), Units(4, (2.0, 4.0), (1.0, 1.0)), level=0.6, truncated=True)
    n, draw = 20_000, torch.Generator().manual_seed(0)
    alpha, sigma = PROCESS.schedule(cascade.stop)
    assert float(sigma / alpha) == pytest.approx(0.75 / 1.5)  # r = s / sqrt(1 - s^2), and the widest channel has 3 / 2
    y = torch.tensor([[1.0, -1.0], [0.5, 2.0]], dtype=torch.float64)
    z = alpha * y + sigma * torch.randn(n, 2, 2, generator=draw, dtype=torch.float64)
    told = cascade.unfinished(z, Noise(0, torch.arange(n), PRIOR))
    c = told[LOW].values
    user = y * torch.tensor([[3.0], [1.0]]) + torch.tensor([[5.0], [0.0]])
    wanted = 0.8 * (user - 1) / torch.tensor([[2.0], [4.0]])
    assert torch.allclose(c.mean(0), wanted, atol=0.02)
    assert torch.allclose(c.flatten(1).T.cov(), 0.36 * torch.eye(4, dtype=torch.float64), atol=0.02)
    assert set(told[AUGMENTATION].values.tolist()) == {0.6}
    odd = Units(2, (3.0, 1.0), (5.0, 0.0))
    odd.spec.normaliser = Normaliser((0.0, 0.0), (1.0, 1.0), "log")
    with pytest.raises(SfumatoError, match="here some are by log"):
        sf.Cascade(odd, Units(4, (2.0, 4.0), (1.0, 1.0)), truncated=True)


def test_stages_are_told_apart_and_a_sample_does_not_depend_on_the_batch() -> None:
    cascade = sf.Cascade(Normal(SMALL), Upscaler(COV), level=0.1)
    small, large = sf.sample(cascade, 500, 10, seed=3, stages=True)
    assert small.shape == (500, 1, 2) and large.shape == (500, 1, 4)
    between = torch.stack((small.flatten(1)[:, 0], lowered(large, 2).flatten(1)[:, 0])).corrcoef()[0, 1]
    assert float(between) > 0.95  # the large one is that of the small one
    some = sf.sample(cascade, index=[7, 3], steps=10, seed=3, batch=1)
    assert torch.allclose(some, large[[7, 3]], atol=1e-6)
    with pytest.raises(SfumatoError, match="leave out given, z and t"):
        sf.sample(cascade, 2, t_stop=0.5)
    with pytest.raises(SfumatoError, match="do not fit"):
        sf.Cascade(Normal(COV), Upscaler(COV))
    with pytest.raises(SfumatoError, match="level from 0 to 1"):
        sf.Cascade(Normal(SMALL), Upscaler(COV), level=2.0)


def test_a_small_sample_of_ones_own_is_enlarged_from_the_stage_of_its_size() -> None:
    cascade = sf.Cascade(Normal(SMALL), Upscaler(COV), level=0.1)
    small, large = sf.sample(cascade, 8, 10, seed=3, stages=True)
    assert torch.equal(sf.sample(cascade, 8, 10, seed=3, low_resolution=small), large)
    one = sf.sample(cascade, 5, 10, low_resolution=small[0])
    assert one.shape == (5, 1, 4) and torch.allclose(lowered(one, 2).mean(0), small[0], atol=0.3)
    three = sf.Cascade(cascade, Unmoved(torch.eye(8, dtype=torch.float64)), level=0.1)
    stages = sf.sample(three, 8, 10, seed=3, low_resolution=small, stages=True)
    assert [tuple(x.shape[1:]) for x in stages] == [(1, 4), (1, 8)]
    assert [tuple(x.shape[1:]) for x in sf.sample(three, 8, 10, low_resolution=large, stages=True)] == [(1, 8)]
    with pytest.raises(SfumatoError, match=r"of shape \(1 or 8, 1, 2\)"):
        sf.sample(three, 8, 4, low_resolution=torch.zeros(1, 3))


def test_noise_and_blur_of_the_small_sample() -> None:
    draws = Noise(0, torch.arange(3), PRIOR)
    wave = torch.cos(math.pi * 3 * (torch.arange(16, dtype=torch.float64) + 0.5) / 16)  # its mirror image goes on
    y = wave.expand(3, 1, 16)
    level = torch.tensor([0.0, 0.5, 1.0])
    blurred = augmented(y, level, draws, "blur")
    kept = torch.exp(-0.5 * (WIDEST * level.double() * math.pi * 3 / 16) ** 2)
    assert torch.allclose(blurred, broadcast(kept, y) * y, atol=1e-6)
    noised = augmented(y, level, draws)
    eta = draws.fold(AUGMENTATION).normal((1, 16), dtype=torch.float64)
    assert torch.allclose(noised[0], y[0]) and torch.allclose(noised[2], eta[2])
    assert torch.allclose(noised[1], math.sqrt(0.75) * y[1] + 0.5 * eta[1])
    with pytest.raises(SfumatoError, match="pick a divisor"):
        lowered(torch.zeros(1, 1, 5, 5), 2)


def test_an_upscaler_hears_levels_of_all_sizes_and_sometimes_nothing() -> None:
    loss = Upscaling(UniformTime(), None, 0, drop=0.25)
    x = torch.randn(2000, 1, 4, generator=torch.Generator().manual_seed(0))
    batch = Batch(x, {}, torch.arange(2000), torch.rand(2000))
    told = loss.told(None, batch, torch.rand(2000))
    here = told[LOW].present
    assert torch.equal(here, told[AUGMENTATION].present)
    assert 0.7 < float(here.float().mean()) < 0.8
    assert float(told[LOW].values[~here].abs().max()) == 0
    level = told[AUGMENTATION].values[here]
    assert abs(float(level.mean()) - 0.5) < 0.03
    quiet = here & (told[AUGMENTATION].values < 0.05)
    assert torch.allclose(told[LOW].values[quiet], lowered(x, 2)[quiet], atol=0.25)


def test_stages_that_are_trained_apart_are_one_file_and_one_call(tmp_path) -> None:
    how = {
        "steps": 6, "batch": 16, "precision": "float32", "snapshots": 0, "sample_every": 0, "console": Silent(),
        "net": "UNet(channels=(8, 8), blocks=1, attention=())",
    }  # fmt: skip
    source = sf.data.open("digits")
    x, y = source.x[:120], [source.classes[int(i)] for i in source.labels[:120]]
    base = sf.train(lowered(x.float(), 2), tmp_path / "base", y, **how)
    upscaler = sf.train(x, tmp_path / "up", y, loss="upscaling(factor=2)", **how)
    cascade = sf.Cascade(base.denoiser, upscaler.denoiser)
    again = sf.load(sf.save(cascade, tmp_path / "cascade.safetensors"))
    small, large = sf.sample(again, 3, 4, label="3", stages=True)
    assert small.shape == (3, 1, 4, 4) and large.shape == (3, 1, 8, 8) and large.dtype == torch.uint8
    assert torch.equal(large, sf.sample(cascade, 3, 4, label="3"))
    cut = sf.Cascade(base.denoiser, upscaler.denoiser, truncated=True)
    cut = sf.load(sf.save(cut, tmp_path / "cut.safetensors"))
    assert cut.truncated and 0 < cut.stop < 1
    assert sf.sample(cut, 2, 4, label="3").dtype == torch.uint8
    hears = upscaler.denoiser.net.given
    assert {LOW, AUGMENTATION} <= set(hears)
    guided = sf.Cascade(base.denoiser, sf.guide(upscaler.denoiser, 2.0))
    assert sf.sample(guided, 2, 4, label="3").shape == (2, 1, 8, 8)
    with pytest.raises(SfumatoError, match="hears the small sample"):
        how |= {"net": "auto", "model": base.denoiser}
        sf.train(lowered(x.float(), 2), tmp_path / "no", y, loss="upscaling", **how)


def test_one_command_trains_all_stages_and_goes_on_with_the_one_that_was_stopped(tmp_path) -> None:
    how = {
        "batch": 16, "precision": "float32", "snapshots": 0, "sample_every": 0, "labels": None, "steps": 12,
        "net": "UNet(channels=(8, 8), blocks=1, attention=())",
    }  # fmt: skip
    out = tmp_path / "run"
    with pytest.raises(Interrupted, match=str(out)):
        sf.train("digits", out, cascade=(4, 8), console=(heard := Heard(3)), **how)
    assert heard.said[-1] == f"All stages: sfumato resume {out}"
    assert (out / "size_4").is_dir() and not (out / "model.safetensors").exists()
    for stop in (5, 3):  # of the first stage, and of the second
        with pytest.raises(Interrupted):
            sf.resume(out, console=Heard(stop))
    assert sf.sample(sf.load(out), 2, 4, label="3", stages=True)[0].shape == (2, 1, 4, 4)  # what is there so far
    run = sf.resume(out, console=Silent())
    assert isinstance(run.denoiser, sf.Cascade) and run.metrics[-1]["step"] == 6
    small, large = sf.sample(sf.load(out), 2, 4, label="3", stages=True)
    assert small.shape == (2, 1, 4, 4) and large.shape == (2, 1, 8, 8)
    for wrong in ("8", "8,4", "4,6", "a,b"):
        with pytest.raises(SfumatoError, match="cascade is sizes"):
            sf.train("digits", tmp_path / "wrong", cascade=wrong, console=Silent(), **how)
