"""The likelihood of masked symbols in an order: exact, and a bound that many orders tighten."""

import itertools

import pytest
import torch

import sfumato as sf
from sfumato import schedules
from sfumato.conditions import Conditions
from sfumato.exact import Table
from sfumato.likelihood.orders import along
from sfumato.process import Masked, Uniform

F64 = torch.float64
TRUTH = Table(torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(7), dtype=F64) ** 3)
MASKED = Masked(schedules.Flow(), 3)
ORDERS = torch.tensor(list(itertools.permutations(range(3))), dtype=F64)


class Wrong:
    """A belief that no law has: each symbol hears one neighbour, and the share of masks."""

    process, spec, shape = MASKED, None, (3,)

    def __call__(self, z, t):
        weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
        y = weight[z.roll(1, 1)] * torch.arange(1, 4)[:, None]
        return self.process.read(y + torch.as_tensor(t).reshape(-1, 1, 1) * weight[0], z, t)


def test_of_the_exact_model_every_order_is_exact():
    exact, model = TRUTH.log_prob(TRUTH.states), TRUTH.denoiser(MASKED)
    keys = ORDERS.expand(27, 6, 3)
    torch.testing.assert_close(along(model, TRUTH.states, Conditions(), keys), exact[:, None].expand(27, 6))
    for method in ("order", "importance"):
        found = sf.log_prob(model, TRUTH.states, method, probes=2, particles=2)
        torch.testing.assert_close(found.value, exact, atol=1e-12, rtol=0)
        assert found.bound == (method == "importance") and float(found.stderr.max()) < 1e-12


def test_a_wrong_model_has_a_law_in_each_order_and_samples_follow_it():
    found = sf.log_prob(Wrong(), TRUTH.states, "order")
    assert float(found.value.exp().sum()) == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(found.bits_per_dim, -found.value / (3 * torch.tensor(2.0, dtype=F64).log()))
    count = 20_000
    drawn = sf.sample(Wrong(), count, 3, sf.solvers.Reveal(order="left-to-right"))
    seen = (drawn @ torch.tensor([9, 3, 1])).bincount(minlength=27)
    expected = count * found.value.exp()
    assert float(((seen - expected) ** 2 / expected).sum()) < 60  # 26 degrees of freedom; a fixed seed


def test_many_orders_tighten_the_bound_towards_their_mixture():
    each = along(Wrong(), TRUTH.states, Conditions(), ORDERS.expand(27, 6, 3))
    mixture = (each.logsumexp(1) - torch.tensor(6.0, dtype=F64).log()).mean()
    one, many, most = (
        sf.log_prob(Wrong(), TRUTH.states, "importance", particles=count, probes=256) for count in (1, 4, 32)
    )
    error = float(one.stderr.square().sum().sqrt()) / 27
    assert abs(float(one.value.mean() - each.mean())) < 4 * error < 0.1
    assert float(one.value.mean()) < float(many.value.mean()) - 0.02 < float(most.value.mean()) < float(mixture) + 0.01
    assert float(mixture - most.value.mean()) < 0.05


def test_other_symbols_have_none():
    model = TRUTH.denoiser(Uniform(schedules.Flow(), 3))
    with pytest.raises(sf.SfumatoError, match="masked symbols"):
        sf.log_prob(model, TRUTH.states, "order")
    with pytest.raises(sf.SfumatoError, match="no 'importance' likelihood"):
        sf.log_prob(model, TRUTH.states, "importance")
