"""What a network of symbols as vectors hears beside them: its own estimate before, and known symbols without noise."""

import types

import pytest
import torch

import sfumato as sf
from sfumato.compose import Known
from sfumato.conditions import KNOWN, PREVIOUS
from sfumato.exact import Table
from sfumato.noise import Noise
from sfumato.objectives.cross_entropy import CrossEntropy, some_known
from sfumato.objectives.loss import Batch
from sfumato.objectives.losses import SelfConditioned
from sfumato.objectives.times import UniformTime
from sfumato.process import Embedded, Masked

F64, FLOW = torch.float64, sf.schedules.Flow()
PAIR = Table(torch.eye(3, dtype=F64).roll(1, 0) + 0.05)  # the second symbol follows from the first with .91
LIKELY = 1.05 / 1.15


class Hears:
    """The exact model of a table, that hears known symbols: p(x_i = k | z, known)."""

    exact, spec, device = True, None, torch.device("cpu")

    def __init__(self, process):
        self.process, self.shape = process, (2,)
        self.net = types.SimpleNamespace(given={KNOWN: {"kind": "field", "shape": [2 * process.dim]}})

    def __call__(self, z, t, known=None):
        evidence = self.process.evidence(z, t).exp()
        if known is not None:
            field = known.values.unflatten(1, (self.process.dim, -1)).movedim(1, -1)
            hot = torch.nn.functional.one_hot(self.process.symbols(known.values.double()), 3)
            evidence = torch.where((field != 0).any(-1, keepdim=True), hot, evidence)
        joint = PAIR.probs.reshape(3, 3) * evidence[:, 0, :, None] * evidence[:, 1, None]
        marginals = torch.stack([joint.sum(2), joint.sum(1)], 1)
        log_h = (marginals / marginals.sum(-1, keepdim=True)).log() - self.process.evidence(z, t)
        return self.process.belief(log_h.clamp(-1e6, 1e6), z, t)


@pytest.mark.parametrize("codebook", ["bits", "simplex", "random"])
@pytest.mark.parametrize("steps", [1, 12])
def test_what_is_known_is_followed_exactly_where_it_is_heard(codebook, steps):
    process, n = Embedded(FLOW, 3, codebook), 4000
    x = torch.tensor([[1, -1]]).expand(n, 2)
    drawn = sf.sample(Known(Hears(process), x), n, steps=steps, solver="ddim", batch=n, seed=2)
    assert torch.equal(drawn[:, 0], x[:, 0])
    shares = torch.bincount(drawn[:, 1], minlength=3).double() / n
    wanted = PAIR.probs.reshape(3, 3)[1] / PAIR.probs.reshape(3, 3)[1].sum()
    assert float((shares - wanted).abs().max()) < 0.02  # four deviations
    plain = sf.sample(Known(PAIR.denoiser(process), x), n, steps=steps, solver="ddim", batch=n, seed=2)
    assert float((plain[:, 1] == wanted.argmax()).double().mean()) < LIKELY - 0.1  # by replacement


def trained(loss, conditions, steps=300):
    torch.manual_seed(0)
    process = Embedded(FLOW, 3)
    fields = {name: {"kind": "field", "shape": [4]} for name in conditions}
    model = sf.Denoiser(sf.nets.MLP(4, 48, 2, outputs=2, conditions=fields), process)
    loss.suits(model)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(steps):
        index, u = torch.arange(256 * step, 256 * (step + 1)), (torch.arange(256) + 0.5).double() / 256
        optimizer.zero_grad()
        loss.losses(model, Batch(PAIR.sample(256, first=256 * step).float(), {}, index, u)).mean().backward()
        optimizer.step()
    return model.eval()


def test_a_network_learns_to_hear_what_is_known_and_its_own_estimate():
    model, n = trained(CrossEntropy(UniformTime(), previous=0.5, known=0.5), (KNOWN, PREVIOUS)), 3000
    assert model.remembers
    for first, site in ((2, 0), (0, 1)):
        x = torch.full((n, 2), -1)
        x[:, site] = first
        drawn = sf.sample(Known(model, x), n, steps=4, batch=n)
        found = (drawn[:, 1 - site] == (first + (-1 if site == 0 else 1)) % 3).double().mean()
        assert float(found) > LIKELY - 0.05, site
    free = torch.bincount(PAIR.place(sf.sample(model, n, steps=16, batch=n)), minlength=9).double() / n
    assert float((free - PAIR.probs).abs().sum()) / 2 < 0.1


def test_the_loss_of_vectors_is_self_conditioned_too():
    model = trained(SelfConditioned(UniformTime(), None, 0), (PREVIOUS,))
    z = model.process.corrupt(PAIR.sample(500, seed=8), 0.6, Noise(1, torch.arange(500)))
    first = model(z, 0.6)
    second = model(z, 0.6, previous=sf.conditions.Given.of(first.x.detach()))
    assert 0 < float((first.x - second.x).detach().square().mean()) < 0.1
    drawn = sf.sample(model, 3000, steps=16, batch=3000)
    found = torch.bincount(PAIR.place(drawn), minlength=9).double() / 3000
    assert float((found - PAIR.probs).abs().sum()) / 2 < 0.1


def test_some_symbols_are_known_of_a_share_of_the_samples():
    process, n = Embedded(FLOW, 5), 6000
    x = process.data(torch.randint(0, 5, (n, 1, 4), generator=torch.Generator().manual_seed(0)).double())
    given = some_known(process, x, 0.25, Noise(3, torch.arange(n)))
    assert abs(float(given.present.double().mean()) - 0.25) < 0.03
    assert not given.values[~given.present].any()
    field = given.values[given.present]
    some = (field != 0).any(1)
    assert torch.equal(field, x[given.present] * some[:, None])  # whole vectors, or nothing
    counts = torch.bincount(some.sum(1), minlength=5).double() / len(some)
    assert float((counts[:4] - 0.25).abs().max()) < 0.05 and float(counts[4]) == 0
    prefix = (some.long().diff(dim=1) <= 0).all(1)[some.sum(1) == 1].double().mean()
    assert abs(float(prefix) - 0.625) < 0.08  # half of them, and a quarter of the others by chance
    again = some_known(process, x[7:9], 0.25, Noise(3, torch.arange(7, 9)))
    assert torch.equal(again.values, given.values[7:9])


def test_text_of_vectors_is_trained_to_follow_a_prompt(tmp_path):
    run = sf.train(
        ["abcd" * 60], tmp_path / "run", length=9, steps=200, batch=32, lr=3e-3, precision="float32", sample_every=0,
        process="embedded", loss="cross-entropy(previous=0.5, known=0.5)",
        net="Transformer(width=32, depth=1, heads=1)",
    )  # fmt: skip
    model = sf.load(run.path)
    assert model.remembers and KNOWN in model.net.given and KNOWN not in model.spec.conditions
    texts = sf.sample_text(model, 40, prompt="bcda", steps=8)
    assert all(text.startswith("bcda") for text in texts)
    assert sum(text == "bcdabcdab" for text in texts) > 30
    assert sf.sample_text(model, index=[3], prompt="bcda", steps=8) == texts[3:4]


def test_what_cannot_hear_is_refused():
    plain = sf.Denoiser(sf.nets.MLP(4, outputs=2), Embedded(FLOW, 3))
    masked = sf.Denoiser(sf.nets.MLP(6), Masked(FLOW, 3))
    for loss, model, said in (
        (CrossEntropy(UniformTime(), known=0.5), plain, "condition 'known'"),
        (CrossEntropy(UniformTime(), previous=0.5), plain, "condition 'previous'"),
        (CrossEntropy(UniformTime(), known=0.5), masked, "process='embedded'"),
        (SelfConditioned(UniformTime(), None, 0), masked, "only for a Gaussian process"),
    ):
        with pytest.raises(sf.SfumatoError, match=said):
            loss.suits(model)
    with pytest.raises(sf.SfumatoError, match=r"Shares .* \[0, 1\]"):
        CrossEntropy(UniformTime(), known=1.5)
    with pytest.raises(sf.SfumatoError, match="kind 'field'"):
        sf.nets.Transformer((5, 4), conditions={KNOWN: {"kind": "field", "shape": [1, 4]}})
