"""What a model answers, on laws whose answers are known: slopes, skills, the worth of labels, what is heard."""

import pytest
import torch
from torch import nn

import sfumato as sf
from sfumato import noise
from sfumato.diagnostics.answers import Answers, ask, deaf
from sfumato.diagnostics.checks.evidence import Evidence, Sample
from sfumato.diagnostics.checks.of_answers import association, condition_dead, gain, meaning
from sfumato.diagnostics.hypotheses import declared, others

MEANS = torch.tensor([[-0.9, 0.3], [0.9, -0.3]])
SPREAD = 0.4
LEVELS = torch.linspace(4, -4, 6, dtype=torch.float64)


class Truth(nn.Module):
    """E[x | z, label] of two Gaussian classes under a variance-preserving schedule, as a network of target x."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, z, level, label=None):
        alpha = torch.sigmoid(-8 * level).sqrt()[:, None]
        mean = MEANS[label]
        gain = alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + 1 - alpha**2)
        return self.one * (mean + gain * (z - alpha * mean))


def samples(count=400):
    label = torch.arange(count) % 2
    return MEANS[label] + SPREAD * noise.normal(3, range(count), (2,), noise.DATA), label


def answers(target="x", schedule=None, label=None, net=None) -> Answers:
    x, own = samples()
    made = sf.Denoiser(net or Truth(), sf.Gaussian(schedule or sf.schedules.LinearBeta()), target)
    return ask(made, x, own if label is None else label, LEVELS, 800)


def test_a_true_model_is_calibrated_and_better_than_the_guess():
    found = answers()
    score = declared(found).score(found)
    assert ((score.slope - 1).abs() < 4 * score.slope_error + 1e-3).all()
    assert (score.skill > 0).all() and abs(score.gap) < 0.01
    # E[x | z, label] under this law has the loss s^2 sigma^2 / (alpha^2 s^2 + sigma^2) in x
    alpha2 = LEVELS.sigmoid()
    true = SPREAD**2 * (1 - alpha2) / (alpha2 * SPREAD**2 + 1 - alpha2)
    loss = found.gram[..., 0, 0] - 2 * found.gram[..., 0, 1] + found.gram[..., 1, 1]
    assert loss.mean(1).tolist() == pytest.approx(true.tolist(), rel=0.12)
    assert meaning(found) is None


def test_labels_are_worth_what_the_network_takes_them_for_or_nothing():
    g, error = gain(answers())
    assert abs(g - 1) < 4 * error and error < 0.1
    shuffled = samples()[1][torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    g, error = gain(answers(label=shuffled))
    assert abs(g) < 4 * error and error < 0.2


@pytest.mark.parametrize(
    ("said", "declared_as"), [("x", "eps"), ("v", "F"), ("F", "v"), ("eps", "velocity"), ("velocity", "x")]
)
def test_the_true_target_is_found(said, declared_as):
    """v and F are each other's negative where data have deviation 1: the nearer mistake, the sign, is named."""

    class Says(Truth):
        def forward(self, z, level, label=None):
            x = super().forward(z, level, label)
            t = sf.schedules.LinearBeta().time(-8 * level.double())
            return sf.Estimate(z, t, sf.schedules.LinearBeta(), x=x).target(said)

    found = answers(declared_as, net=Says())
    h = meaning(found)
    wanted = {"v": ("F", -1), "F": ("v", -1)}.get(said, (said, 1))
    assert (h.target, h.sign) == wanted and h.schedule == sf.schedules.LinearBeta()
    assert meaning(answers(said, net=Says())) is None


def test_the_true_schedule_is_found():
    class Flow(Truth):
        def forward(self, z, level, label=None):
            x = super().forward(z, level, label)
            lam = -8 * level.double()
            flow = sf.schedules.Flow()
            t = flow.time(lam)
            eps = (z - lam.sigmoid().sqrt()[:, None] * x) / (-lam).sigmoid().sqrt()[:, None]
            a, b = flow.rates(t)
            return (a[:, None] * x + b[:, None] * eps).float()

    found = meaning(answers("velocity", net=Flow()))
    assert (found.target, found.schedule, found.sign) == ("velocity", sf.schedules.Flow(), 1)
    own = answers("velocity", sf.schedules.Flow(), net=Flow())
    assert meaning(own) is None


def test_what_means_the_same_is_never_another_meaning():
    """x, eps and F do not depend on the schedule, nor v among variance-preserving ones."""
    for schedule in (sf.schedules.Cosine(), sf.schedules.Trig(), sf.schedules.LogLinear()):
        assert meaning(answers("x", schedule)) is None
    found = answers()
    assert {h.sign for h in others(found)} == {1, -1} and declared(found) not in others(found)


def test_what_the_network_does_not_hear_changes_nothing():
    class Deaf(Truth):
        def forward(self, z, level, label=None):
            return 0.5 * self.one * z

    found = answers(net=Deaf())
    assert found.sensitivity.level == 0 == found.sensitivity.label
    sensitivity = answers().sensitivity
    assert sensitivity.level > 1e-3 and sensitivity.label > 1e-3


def test_classes_that_differ_in_their_mean_or_in_their_spectrum_are_told_from_chance():
    x, label = samples()
    assert association(Sample(x, label)) > 20
    random = label[torch.randperm(400, generator=torch.Generator().manual_seed(1))]
    assert association(Sample(x, random)) < 3
    phase = 6.28 * noise.uniform(0, range(400), (1,), noise.DATA)
    place = torch.arange(24) / 24 * 6.28
    waves = torch.sin((1 + label[:, None]) * place + phase)[:, None]
    assert association(Sample(waves, label)) > 20, "the means of these classes are the same"
    assert association(Sample(x[:100], label[:100])) is None, "too few to say"


def test_asking_changes_nothing():
    x, label = samples()
    torch.manual_seed(0)
    net = sf.nets.MLP(2, width=16, depth=1, classes=2, dropout=0.5).train()
    denoiser = sf.Denoiser(net, sf.Gaussian(sf.schedules.Flow()), "velocity")
    before, state = [p.clone() for p in net.parameters()], torch.random.get_rng_state()
    first, second = (ask(denoiser, x, label, LEVELS, 64) for _ in range(2))
    assert torch.equal(first.gram, second.gram) and net.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert all(p.grad is None for p in net.parameters())
    assert Evidence(answers=first).answers is first


class Rough(nn.Module):
    """The score of the two classes under VE, with an error of one size: a great one where scores are small."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, z, level, label=None):
        power = 1 + torch.exp(8 * level)[:, None]  # of z before it was scaled
        score = (MEANS[label] - z * power.sqrt()) / (power - 1 + SPREAD**2)
        return self.one * (score + 0.2 * torch.sin(1 + 3 * z))


def test_a_network_that_is_rough_at_some_levels_means_what_it_knows_at_the_others():
    """Of so many readings one fits the rough levels better than the true one; it cannot win where that one is good."""
    x, label = samples()
    made = sf.Denoiser(Rough(), sf.Gaussian(sf.schedules.VE()), "score")
    found = ask(made, x, label, torch.linspace(4.65, -4.65, 8, dtype=torch.float64), 800)
    own = declared(found).score(found)
    assert own.skill[3] > 0.5 and own.skill[-1] < -100 and own.gap > 1
    assert any(other.score(found) and other.score(found).mean > own.mean + 0.08 for other in others(found))
    assert meaning(found) is None


class Ignores(nn.Module):
    """A network that takes a temperature and a class, and adds up nothing of the first."""

    def __init__(self, heard: bool = False) -> None:
        super().__init__()
        self.heard, self.inner, self.warm = heard, sf.nets.MLP(2, 16, 1, classes=2), nn.Linear(1, 2)

    def forward(self, x, level, label=None, temperature=None):
        y = self.inner(x, level, label)
        warm = self.warm(temperature[:, None].float()) if temperature is not None else 0.0
        return y + (warm if self.heard else 0.0 * warm)


def test_a_condition_that_a_new_network_cannot_hear_is_named():
    """Before the first step, when every network of ours says 0 whatever it hears."""
    x, label = samples(8)
    cond = {"label": label, "temperature": torch.linspace(0, 1, 8)}
    described = {"label": {"kind": "label", "classes": 2}, "temperature": {"kind": "scalar"}}
    for net, wanted in [
        (sf.nets.MLP(2, 16, 2, conditions=described), ()), (Ignores(), ("temperature",)), (Ignores(heard=True), ()),
    ]:  # fmt: skip
        model = sf.Denoiser(net, sf.Gaussian(sf.schedules.Flow()), "velocity")
        before = [p.clone() for p in net.parameters()]
        with torch.no_grad():
            y = model.predict(x, 0.5, label=label)
        assert not isinstance(net, sf.nets.MLP) or not bool(y.any())
        assert deaf(model, x, cond) == wanted, net
        assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    image = sf.nets.UNet((1, 8, 8), (16,), 1, conditions={"map": {"kind": "field", "shape": [1, 4, 4]}})
    model = sf.Denoiser(image, sf.Gaussian(sf.schedules.Flow()), "velocity")
    assert deaf(model, torch.randn(4, 1, 8, 8), {"map": torch.randn(4, 1, 4, 4)}) == ()


def test_every_condition_is_asked_about():
    x, label = samples(64)
    net = Ignores()
    for parameter in net.inner.parameters():
        nn.init.normal_(parameter, std=0.3)
    model = sf.Denoiser(net, sf.Gaussian(sf.schedules.Flow()), "velocity")
    found = ask(model, x, {"label": label, "temperature": torch.linspace(0, 1, 64)}, LEVELS, 64)
    assert found.sensitivity.others == {"temperature": 0.0} and found.sensitivity.label is not None
    finding = condition_dead(Evidence(answers=found))
    assert finding is not None and "'temperature'" in finding.what and "label" not in finding.what
