"""E3: the estimate of the call before is carried by the walk; an exact model, which ignores it, is a fixed point."""

import pytest
import torch

import sfumato as sf
from sfumato import noise
from sfumato.conditions import PREVIOUS
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.process import Gaussian
from sfumato.schedules import Cosine
from sfumato.solvers import DDPM, Multistep

F64 = torch.float64
TRUTH = GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], [0.1, 0.2])


class Remembering:
    """An exact model that is told its estimate before, keeps what it was told, and answers as ever."""

    remembers = True

    def __init__(self, blend=0.0):
        self.model, self.blend, self.told, self.said = TRUTH.denoiser(Gaussian(Cosine())), blend, [], []
        self.process, self.shape = self.model.process, self.model.shape

    def __call__(self, z, t, /, previous=None, label=None):
        belief = self.model(z, t, label=label)
        self.told.append(previous)
        if previous is not None and self.blend:
            belief = belief.moved(belief.x + self.blend * torch.where(previous.present[:, None], previous.values, 0.0))
        self.said.append(belief.x)
        return belief


@pytest.mark.parametrize("solver", ["ddim", "multistep", "heun", "ddpm", "sa-solver", "predictor-corrector"])
def test_an_exact_model_is_a_fixed_point_and_hears_its_own_answer(solver):
    model = Remembering()
    found = sf.sample(model, 8, steps=5, solver=solver, seed=1)
    torch.testing.assert_close(found, sf.sample(model.model, 8, steps=5, solver=solver, seed=1))
    assert model.told[0] is None and len(model.told) > 4
    heard = [told for told in model.told if told is not None]
    assert all(bool(told.present.all()) for told in heard)
    assert torch.equal(heard[0].values, model.said[0])


def test_each_row_keeps_its_own_estimate_whatever_becomes_of_the_batch():
    """Rows that are selected, doubled, left waiting and advanced apart end where whole walks end."""
    model = Remembering(blend=0.2)
    plan = Multistep(2).plan(model.process, 6)
    z = torch.randn(5, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    *_, whole = plan.run(model, z)
    walk = plan.start(model, z)
    walk.advance()
    walk.advance([0, 3])
    walk.advance([3, 1])
    walk.select([3, 1, 0, 3])
    while not walk.done:
        walk.advance()
    torch.testing.assert_close(walk.z, whole.z[[3, 1, 0, 3]])
    plain = sf.sample(model.model, 5, solver=plan, z=z)
    assert float((whole.z - plain).abs().max()) > 0.01  # what is carried matters here
    noisy = DDPM().plan(model.process, 4)
    both = [sf.sample(model, 6, solver=noisy, seed=2, batch=batch) for batch in (6, 2)]
    torch.testing.assert_close(both[0], both[1])


def test_guidance_tells_both_of_its_beliefs():
    model = Remembering(blend=0.2)
    guided = sf.guide(model, 2.0)
    z, label = torch.randn(4, 2, dtype=F64, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 0, 1])
    walk = Multistep(2).plan(model.process, 4).start(guided, z, label=label)
    first = walk.advance()
    walk.advance()
    told = model.told[-1]
    assert bool(told.present.all()) and torch.equal(told.values, torch.cat([first.x, first.x]))
    with pytest.raises(SfumatoError, match="needs a condition"):
        guided(z, 0.5, previous=walk.cond[PREVIOUS])


def test_a_network_is_trained_with_its_own_estimate_in_half_of_the_samples(tmp_path):
    """It learns to use what it hears: the error of a second call is no worse, and answers differ."""
    x, label = TRUTH.labelled(1500, seed=1)
    run = sf.train(
        {"x": x.float(), "label": label}, tmp_path / "run", loss="self-conditioned", net="tiny", steps=250, batch=256,
        lr=3e-3, sample_every=0, precision="float32",
    )  # fmt: skip
    model = sf.load(tmp_path / "run")
    assert run.denoiser.remembers and model.remembers and "previous" not in model.spec.conditions
    rows = model.spec.normalise(TRUTH.sample(800, seed=9).float())
    eps = noise.normal(4, range(800), (2,), noise.TRAIN_NOISE)
    z = model.process.corrupt(rows, 0.5, eps)
    first = model(z, 0.5).x
    second = model(z, 0.5, previous=sf.conditions.Given.of(first)).x
    errors = [float((guess - rows).square().mean()) for guess in (first, second)]
    assert errors[1] < 1.05 * errors[0] and not torch.equal(first, second)
    assert float((first - second).square().mean()) < 0.1 * errors[0]
    samples = sf.sample(model, 200, steps=10, label=1)
    assert float((samples.mean(0) - torch.tensor([1.0, 0.5])).abs().max()) < 0.25
    with pytest.raises(SfumatoError, match="previous"):
        sf.sample(model, 2, previous=1.0)


def test_what_cannot_remember_is_refused():
    from sfumato.objectives.losses import SelfConditioned

    loss = SelfConditioned(sf.times.logit_normal(), None, 0)
    with pytest.raises(SfumatoError, match="condition 'previous'"):
        loss.suits(sf.Denoiser(sf.nets.MLP(2, 8, 1), Gaussian(Cosine())))
