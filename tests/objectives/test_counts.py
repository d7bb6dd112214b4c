"""Masked symbols with exact counts: the mean is that of the bound for every model, the variance finite (G5, G11)."""

import itertools
import json
import math

import pytest
import torch

import sfumato as sf
from sfumato import registry, schedules
from sfumato.belief import Logits
from sfumato.diagnostics.validation import validator_for
from sfumato.exact import Table
from sfumato.objectives.counts import counted, masked, masked_loss
from sfumato.process import Masked, Uniform

F64 = torch.float64
TRUTH = Table(torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(7), dtype=F64) ** 3)
FLOW = Masked(schedules.Flow(), 3)
ORDERS = torch.tensor(list(itertools.permutations(range(3))), dtype=F64)


class Wrong:
    """A model that hears one neighbour of each symbol: a wrong belief, in float64."""

    process, spec, shape = FLOW, None, (3,)

    def __call__(self, z, t):
        weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
        return self.process.read(weight[z.roll(1, 1)] * torch.arange(1, 4)[:, None], z, t)


def every(model) -> torch.Tensor:
    """The loss of every x, n and order, (27, 3, 6)."""
    x = TRUTH.states.repeat_interleave(18, 0)
    u = torch.tensor([1 / 6, 1 / 2, 5 / 6], dtype=F64).repeat_interleave(6).repeat(27)
    return masked_loss(model, x, u, eps=ORDERS.repeat(81, 1)).reshape(27, 3, 6)


def chain(model) -> torch.Tensor:
    """-log p of the model for every x, revealed symbol by symbol, averaged over all orders."""
    total = torch.zeros(27, dtype=F64)
    for order in itertools.permutations(range(3)):
        z = torch.full((27, 3), FLOW.mask)
        for i in order:
            log_p = model(z, 0.5).log_prob[:, i]
            total -= log_p.gather(1, TRUTH.states[:, i : i + 1])[:, 0] / 6
            z[:, i] = TRUTH.states[:, i]
    return total


@pytest.mark.parametrize("model", [TRUTH.denoiser(FLOW), Wrong()], ids=["exact", "wrong"])
def test_the_mean_is_the_code_length_over_all_orders(model) -> None:
    torch.testing.assert_close(every(model).mean((1, 2)), chain(model), rtol=0, atol=1e-12)
    if model.__class__ is not Wrong:
        torch.testing.assert_close(chain(model), -TRUTH.log_prob(TRUTH.states), rtol=0, atol=1e-12)


def test_bounds_are_of_probabilities_that_sum_to_no_more_than_one() -> None:
    """A mean over orders of log p is below the log of their mean, of any model; a bound that is cut would be above."""
    exact, wrong = (float((-every(model).mean((1, 2))).exp().sum()) for model in (TRUTH.denoiser(FLOW), Wrong()))
    assert exact == pytest.approx(1, abs=1e-12) and wrong < 1 - 1e-3


def test_it_is_the_integral_over_levels_for_a_wrong_model_too() -> None:
    """int dt / t sum over all subsets of t^m (1 - t)^(D - m) of the nats of the masks, by Beta numbers."""
    model, wanted = Wrong(), torch.zeros(27, dtype=F64)
    for subset in itertools.product((0, 1), repeat=3):
        m, hidden = sum(subset), torch.tensor(subset, dtype=torch.bool)
        if m:
            z = torch.where(hidden, FLOW.mask, TRUTH.states)
            nats = -model(z, 0.5).log_prob.gather(-1, TRUTH.states[..., None])[..., 0]
            wanted += math.gamma(m) * math.gamma(4 - m) / math.gamma(4) * (nats * hidden).sum(1)
    torch.testing.assert_close(every(model).mean((1, 2)), wanted, rtol=0, atol=1e-12)


def test_the_variance_is_finite_where_independent_masks_have_none() -> None:
    """E L^2 of independent masks, t uniform in [d, 1], grows by the same amount with every decade of d."""
    model = TRUTH.denoiser(FLOW)
    found = every(model)
    mean, square = (TRUTH.probs @ found.pow(k).mean((1, 2)) for k in (1, 2))
    assert float(mean) == pytest.approx(TRUTH.entropy, abs=1e-12) and float(square - mean**2) < 3

    def second(d: float) -> float:
        t = torch.logspace(math.log10(d), 0, 4001, dtype=F64)
        total = torch.zeros_like(t)
        for subset in itertools.product((0, 1), repeat=3):
            m, hidden = sum(subset), torch.tensor(subset, dtype=torch.bool)
            if m:
                z = torch.where(hidden, FLOW.mask, TRUTH.states)
                nats = -model(z, 0.5).log_prob.gather(-1, TRUTH.states[..., None])[..., 0]
                total += t ** (m - 2) * (1 - t) ** (3 - m) * float(TRUTH.probs @ (nats * hidden).sum(1) ** 2)
        return float(torch.trapezoid(total, t))

    growth = [second(10.0 ** -(k + 1)) - second(10.0**-k) for k in (3, 4, 5)]
    assert growth[0] > 1.0 and growth[2] == pytest.approx(growth[1], rel=1e-3)


def test_exactly_n_are_masked_and_a_batch_has_every_count() -> None:
    x = torch.randint(3, (60, 2, 5), generator=torch.Generator().manual_seed(0))
    u = (torch.arange(60, dtype=F64) + 0.5) / 60
    n = counted(u, x)
    assert torch.bincount(n).tolist() == [0] + [6] * 10
    z, t = masked(FLOW, x, n, torch.randn(60, 2, 5, generator=torch.Generator().manual_seed(1)))
    hidden = z == FLOW.mask
    assert torch.equal(hidden.flatten(1).sum(1), n) and torch.equal(z[~hidden], x[~hidden])
    torch.testing.assert_close(1 - FLOW.keep(t), n / 10, check_dtype=False)
    u = torch.tensor([0.05], dtype=F64)  # one mask: each place as likely as another
    first = [masked(FLOW, x[:1], counted(u, x[:1]), torch.eye(10)[k].neg().reshape(1, 2, 5))[0] for k in range(10)]
    assert torch.equal(torch.cat([(z == FLOW.mask).flatten(1) for z in first]), torch.eye(10, dtype=torch.bool))


def test_log_prob_of_masks_has_no_chance_in_the_counts() -> None:
    """With every count equally often, what is left is which symbols are masked; of independent symbols nothing."""
    model = TRUTH.denoiser(FLOW)
    found = sf.log_prob(model, TRUTH.states, steps=96, probes=16, seed=1)
    wanted = TRUTH.log_prob(TRUTH.states)
    assert found.bound and bool(((found.value - wanted).abs() < 4.5 * found.stderr + 1e-9).all())
    assert float(TRUTH.probs @ found.stderr) < 0.02
    alone = sf.log_prob(model, TRUTH.states[4:5], steps=96, probes=16, seed=1, index=[4])
    torch.testing.assert_close(alone.value, found.value[4:5])
    even = Table(torch.full((3, 3), 1 / 9, dtype=F64))
    flat = sf.log_prob(even.denoiser(FLOW), even.states, steps=4, probes=2)
    torch.testing.assert_close(flat.value, even.log_prob(even.states), rtol=0, atol=1e-12)
    assert float(flat.stderr.max()) < 1e-12
    torch.testing.assert_close(flat.by_level.sum(1), -flat.value, rtol=0, atol=1e-12)


def test_a_network_is_trained_by_it(tmp_path) -> None:
    torch.manual_seed(0)
    run = sf.train(
        TRUTH.sample(2000).numpy(), tmp_path / "run", process="masked", loss="masked", net="tiny", steps=150, batch=128,
        precision="float32", holdout=0.1,
    )  # fmt: skip
    bands = json.loads((run.path / "report.json").read_text())["holdout"]["bands"]
    assert [band["name"] for band in bands] == ["low noise", "middle", "high noise"]
    assert bands[0]["logsnr"] is None and bands[0]["loss"]["value"] < bands[2]["loss"]["value"]
    nats = -sf.log_prob(run.denoiser, TRUTH.states, steps=12, probes=4).value
    assert float(TRUTH.probs @ nats) < 0.9 * 3 * math.log(3)
    with pytest.raises(sf.SfumatoError, match="need process='masked'"):
        masked_loss(sf.Denoiser(sf.nets.MLP(9, 8, 1), Uniform(schedules.Flow(), 3)), TRUTH.states)


@pytest.mark.parametrize("name", ["masked", "maskgit"])
def test_held_out_losses_are_told_apart_by_the_number_of_masks(name: str) -> None:
    """Thirds of the draws, from few masks to many."""

    class Counting:
        """A model whose belief in the first symbol grows with the share of masks, m: log h = (m, 0, 0)."""

        process, spec, shape = FLOW, None, (30,)

        def __call__(self, z, t):
            first = (z == 3).double().mean(1)[:, None].expand(z.shape)
            return self.process.read(torch.stack((first, 0 * first, 0 * first), -1), z, t)

    loss = registry.make("loss", name)
    x = torch.zeros(90, 30)
    found = validator_for(loss, Counting(), x, {}, 900, 90).measure(Counting(), None).triples
    assert found.levels == 9 and found.bands == 3
    n = counted(loss.share((torch.arange(900, dtype=F64) + 0.5) / 900), x[:1].expand(900, -1)).double() / 30
    assert n[0] < 0.05 and n[-1] == 1
    for k in range(3):
        share = n[k * 300 : (k + 1) * 300]
        logits = torch.stack((share, 0 * share, 0 * share), -1)
        each = torch.nn.functional.cross_entropy(
            logits, torch.zeros(300, dtype=torch.int64), reduction="none", label_smoothing=loss.smoothing
        )
        assert found.interval(band=k).value == pytest.approx(float((each * share**loss.power).mean()), rel=1e-3), k


def test_only_masks_are_read() -> None:
    """What the model says of visible symbols does not matter, not even if it is no number."""
    x = TRUTH.states
    u, eps = torch.full((27,), 0.5, dtype=F64), ORDERS[:1].expand(27, 3)
    belief = TRUTH.denoiser(FLOW)

    class Noisy(Wrong):
        def __call__(self, z, t):
            true = belief(z, t)
            logits = torch.where((z == FLOW.mask)[..., None], true.logits, torch.nan)
            return Logits(logits, z, t, FLOW)

    torch.testing.assert_close(masked_loss(Noisy(), x, u, eps=eps), masked_loss(belief, x, u, eps=eps))
