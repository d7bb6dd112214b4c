"""Models under conditions in the user's units: samples, likelihoods, latents, plans and guidance, for any process."""

import numpy as np
import pytest
import torch
from torch import nn

import sfumato as sf
from sfumato import schedules
from sfumato.conditions import Given
from sfumato.data import DataSpec
from sfumato.errors import SfumatoError
from sfumato.process import Gaussian, Masked, Uniform

COUNT = 64


def given() -> dict:
    draw = np.random.default_rng(0)
    kelvin = draw.uniform(200, 400, COUNT)
    kelvin[::8] = np.nan
    return {
        "x": draw.normal(size=(COUNT, 2)).astype(np.float32), "label": draw.choice(["cat", "dog", "cow"], COUNT),
        "temperature": kelvin, "index": draw.uniform(0, 9, COUNT), "pose": draw.normal(size=(COUNT, 4)),
        "t": draw.uniform(0, 1, COUNT),
    }  # fmt: skip


def random(net: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net.eval()


def model() -> sf.Denoiser:
    spec = DataSpec.fit(sf.data.open(given()))
    described = {name: each.network() for name, each in spec.conditions.items()}
    return sf.Denoiser(
        random(sf.nets.MLP(2, 24, 2, conditions=described)), Gaussian(schedules.Flow()), "velocity", 1.0, spec
    )


COND = {"label": "dog", "temperature": 300.0, "pose": [0.1, 0.2, 0.3, 0.4], "cond": {"index": 4.0, "t": 0.5}}


def test_samples_under_one_value_or_one_a_sample():
    d = model()
    one = sf.sample(d, 6, 8, seed=2, **COND)
    each = sf.sample(
        d, 6, 8, seed=2, batch=4, label=["dog"] * 6, temperature=[300.0] * 6, pose=np.tile(COND["pose"], (6, 1)),
        cond={"index": np.full(6, 4.0), "t": torch.full((6,), 0.5)},
    )  # fmt: skip
    assert torch.allclose(one, each, atol=1e-6)
    mixed = sf.sample(d, 6, 8, seed=2, **{**COND, "temperature": [300, None, float("nan"), 300, 250, 300]})
    assert torch.allclose(mixed[[0, 3, 5]], one[[0, 3, 5]], atol=1e-5) and (mixed[4] - one[4]).abs().max() > 1e-4
    open_ = sf.sample(d, 6, 8, seed=2, **{k: v for k, v in COND.items() if k != "temperature"})
    assert torch.allclose(mixed[1:3], open_[1:3], atol=1e-5)
    for name in ("label", "pose"):
        other = {**COND, name: "cat" if name == "label" else [0.5, 0.2, 0.3, 0.4]}
        assert (sf.sample(d, 6, 8, seed=2, **other) - one).abs().max() > 1e-4, name
    for name in ("index", "t"):  # names that are arguments, of sampling and of every call of the model
        other = {**COND, "cond": {**COND["cond"], name: 0.9}}
        assert (sf.sample(d, 6, 8, seed=2, **other) - one).abs().max() > 1e-4, name


def test_all_that_takes_conditions_takes_any():
    d, x = model(), torch.from_numpy(given()["x"][:5])
    cond = {**COND, "temperature": [300, None, 250, 300, 350]}
    for method in ("ode", "elbo", "importance"):
        found = sf.log_prob(d, x, method, steps=8, probes=2, **cond).value
        open_ = sf.log_prob(d, x, method, steps=8, probes=2).value
        assert found.isfinite().all() and (found - open_).abs().max() > 1e-3, method
    z = sf.encode(d, x, steps=64, **cond)
    assert torch.allclose(sf.decode(d, z, steps=64, **cond), x, atol=0.05)
    plan = sf.tune(d, 3, rounds=1, points=8, label=["cat", "dog"], temperature=300.0, cond={"t": [0.1, 0.9, 0.5]})
    assert sf.sample(d, 4, solver=plan, **COND).shape == (4, 2)
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    loss = sf.denoising_loss(d, z, label=torch.tensor([0, 1, 2, -1, 0]), cond={"t": torch.linspace(-1, 1, 5)})
    assert loss.shape == (5,) and not torch.equal(loss, sf.denoising_loss(d, z))
    said = sf.information(d, given()["x"], 256, **{k: given()[k] for k in ("label", "temperature")})
    assert set(said.each) == {"label", "temperature"}


def test_mistakes_at_the_door_are_one_sentence():
    d = model()
    for cond, words in [
        ({"heat": 3}, "'heat'.*none of this name"), ({"label": "mouse"}, "no class 'mouse'"),
        ({"temperature": 9e5}, "far outside the data"), ({"pose": [1, 2, 3]}, "shape"),
        ({"temperature": [1, 2, 3]}, "3 values"),
        ({"temperature": "warm"}, "not a number"),
    ]:  # fmt: skip
        with pytest.raises(SfumatoError, match=words):
            sf.sample(d, 2, 4, **cond)


class Hears(nn.Module):
    """A network of a user's own, which keeps what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.told = nn.Parameter(torch.ones(())), []

    def forward(self, x, level, vec=None, label=None):
        self.told.append((vec, label))
        return self.weight * x


class Masks(Hears):
    def forward(self, x, level, vec=None, label=None, present=None):
        self.told.append((vec, label, present))
        return self.weight * x


def test_a_network_of_a_user_hears_floats_as_floats():
    """Case H3: no data spec; and masks go where they are asked for alone."""
    net = Hears()
    d = sf.Denoiser(net, Gaussian(schedules.Flow()), "velocity")
    z = torch.randn(3, 2)
    for vec, wanted in [
        (torch.tensor([0.7]), [0.7] * 3), ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3]), (0.5, [0.5] * 3),
        (torch.arange(12.0).reshape(3, 4), torch.arange(12.0).reshape(3, 4).tolist()),
    ]:  # fmt: skip
        sf.sample(d, 3, 2, z=z, vec=vec, label=[1, 0, -1])
        assert net.told[-1][0].is_floating_point() and torch.allclose(net.told[-1][0], torch.tensor(wanted)), vec
        assert net.told[-1][1].tolist() == [1, 0, -1]
    net = Masks()
    d = sf.Denoiser(net, Gaussian(schedules.Flow()), "velocity")
    sf.sample(d, 3, 2, z=z, vec=[0.1, None, 0.3], label=[1, 0, -1])
    vec, label, present = net.told[-1]
    assert vec.tolist() == pytest.approx([0.1, 0.0, 0.3]) and label.tolist() == [1, 0, -1]
    assert present["vec"].tolist() == [True, False, True] and present["label"].tolist() == [True, True, False]


def test_guidance_of_symbols_has_its_ends():
    """Scale 0 is the unconditional law and 1 the conditional one, in log-probabilities between and beyond."""
    for kind in (Masked, Uniform):
        process = kind(schedules.Flow(), 3)
        width = process.inputs(torch.zeros(1, 2, dtype=torch.int64), 0.5)[0].shape[1]
        net = random(
            sf.nets.MLP(width, 16, 1, conditions={"mass": {"kind": "scalar"}, "label": {"kind": "label", "classes": 2}})
        )
        d = sf.Denoiser(net, process)
        z = torch.tensor([[0, 1], [2, 2], [1, 0]])
        cond = {
            "mass": Given(torch.tensor([0.3, 1.0, -1.0]), torch.tensor([True, True, False])),
            "label": torch.tensor([0, 1, -1]),
        }
        null, told = d(z, 0.6).log_prob, d(z, 0.6, **cond).log_prob
        for scale, wanted in ((0.0, null), (1.0, told)):
            assert (sf.guide(d, scale)(z, 0.6, **cond).log_prob - wanted).abs().nan_to_num(0.0).max() < 1e-6, kind
        finite = null.isfinite() & told.isfinite()
        beyond = sf.guide(d, 2.0)(z, 0.6, **cond).log_prob
        wanted = (null + 2 * (told - null)).where(finite, -torch.inf).log_softmax(-1)
        assert torch.allclose(beyond[finite], wanted[finite], atol=1e-5), kind
        both = sf.guide(d, {"mass": 1.5, "label": 0.5})(z, 0.6, **cond)
        alone = [d(z, 0.6, **{name: cond[name]}).log_prob - null for name in ("mass", "label")]
        wanted = (null + 1.5 * alone[0] + 0.5 * alone[1]).where(finite, -torch.inf).log_softmax(-1)
        assert torch.allclose(both.log_prob[finite], wanted[finite], atol=1e-4), kind
        assert sf.sample(sf.guide(d, 2.0), 5, 4, label=1, mass=0.2).shape == (5, 2)
