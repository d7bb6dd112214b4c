"""Sizes of the steps that reveal masks: predicted loss, its exact minimum, and what the loss means."""

import itertools
import json

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato import schedules
from sfumato.exact import Table
from sfumato.process import Masked
from sfumato.tuning.masks import best, entropies, even, growing, loss

D, K = 4, 3
TABLE = Table(torch.rand(*[K] * D, generator=torch.Generator().manual_seed(5), dtype=torch.float64) ** 4)
TRUTH = TABLE.denoiser(Masked(schedules.Flow(), K))
P = TABLE.probs.reshape([K] * D).numpy()


def marginal(known) -> np.ndarray:
    """p of the symbols at `known`, (K, .. or 1, ..)."""
    return P.sum(tuple(i for i in range(D) if i not in known), keepdims=True)


def given(i, known) -> np.ndarray:
    """p(x_i | x at known)."""
    return marginal({i, *known}) / marginal(known)


def exact_c() -> np.ndarray:
    """The mean entropy of a masked symbol where m are masked, m = 0 .. D."""
    c = [0.0]
    for m in range(1, D + 1):
        each = [
            -(P * np.log(given(i, set(range(D)) - set(masks)))).sum()
            for masks in itertools.combinations(range(D), m)
            for i in masks
        ]
        c.append(float(np.mean(each)))
    return np.array(c)


def test_the_loss_is_the_divergence_of_the_samples_over_all_orders():
    c = exact_c()
    for left in ([0], [2, 0], [3, 1, 0], [1, 0]):
        found = []
        for order in itertools.permutations(range(D)):
            known, law = set(), np.ones_like(P)
            for rest in left:
                now = order[len(known) : D - rest]
                for i in now:
                    law = law * given(i, frozenset(known))
                known |= set(now)
            found.append((P * (np.log(P) - np.log(law))).sum())
        assert loss(c, left) == pytest.approx(np.mean(found), abs=1e-12)
    assert loss(c, even(D, D)) == pytest.approx(0, abs=1e-12)


def test_the_best_sizes_are_the_best_of_all():
    draw = np.random.default_rng(0)
    for size, calls in ((8, 3), (6, 4), (5, 5), (7, 1), (3, 9)):
        c = np.concatenate([[0], np.sort(draw.random(size))])
        left, value = best(c, calls)
        cuts = itertools.combinations(range(1, size), min(calls, size) - 1)
        least = min(loss(c, [*sorted(cut, reverse=True), 0]) for cut in cuts)
        assert left[-1] == 0 and len(left) == min(calls, size)
        assert value == pytest.approx(least, abs=1e-12) == pytest.approx(loss(c, left), abs=1e-12)
        assert value <= loss(c, even(size, min(calls, size))) + 1e-12


def test_the_entropies_of_a_model_are_measured_from_its_samples():
    np.testing.assert_allclose(entropies(TRUTH, D, 4000, batch=1000), exact_c(), atol=0.02)


def test_the_plan_reveals_its_sizes_and_is_stored(tmp_path):
    net = sf.nets.MLP(4 * 8, 16, 1)
    torch.nn.init.normal_([*net.parameters()][-1], generator=torch.Generator().manual_seed(0))
    model = sf.Denoiser(net, Masked(schedules.Flow(), 4))
    plan = sf.tune(model, 3, points=32)
    sizes = plan.lines[0].solver.sizes
    assert plan.calls == plan.steps == 3 and sizes[0] == 8 and len(sizes) == 4
    assert plan.tuned["error"]["nats"] <= plan.tuned["untuned"]["nats"]
    masks = [int((state.z == 4).sum()) for state in sf.trajectory(model, 1, solver=plan)]
    assert masks == list(sizes)
    assert sf.solvers.Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    model.plans["3"] = plan
    sf.save(model, tmp_path / "model.safetensors")
    again = sf.load(tmp_path / "model.safetensors")
    assert torch.equal(sf.sample(again, 20, steps=3), sf.sample(model, 20, solver=plan))
    with pytest.raises(sf.SfumatoError, match="one by one"):
        sf.tune(model, 8)
    with pytest.raises(sf.SfumatoError, match="of 3 steps, not of 4"):
        sf.sample(model, solver=sf.solvers.Reveal(sizes=sizes), steps=4)
    with pytest.raises(sf.SfumatoError, match="falling numbers"):
        sf.solvers.Reveal(sizes=(3, 3, 0))


def test_a_sequence_is_made_to_grow():
    np.testing.assert_allclose(
        growing(np.array([1, 3, 2, 5, 4.0]), np.array([1, 3, 1, 1, 1])), [1, 2.75, 2.75, 4.5, 4.5]
    )
