"""Audits: 0 within their error on exact models, and each fault found by those that should find it."""

import json

import pytest
import torch

import sfumato as sf
from audit_faults import EXACT, FAULTS, LAW, MEAN, PROCESS, Faulty
from sfumato.conditions import Conditions
from sfumato.diagnostics.audit import measured
from sfumato.diagnostics.bins import make
from sfumato.diagnostics.draws import Draws, Trivial
from sfumato.diagnostics.identities import DEFAULT, IDENTITIES
from sfumato.objectives.times import UniformTime
from sfumato.process import Bridge, RectifiedFlow

BINS = [0.0, 1.0, 2.0, 3.0]
# which audits find which fault at some level, of those that are run by default
FOUND = {
    "gain": {"slope", "orthogonality", "gradient"},
    "level": {"slope", "orthogonality", "gradient", "martingale"},
    "curl": {"orthogonality", "curl"},
    "bump": {"slope", "orthogonality", "gradient", "martingale", "negative"},
    "narrow": {"orthogonality", "gradient", "martingale", "negative"},
    "shrink": {"slope", "orthogonality", "gradient", "tweedie"},
}


@pytest.mark.parametrize("schedule", [sf.schedules.Cosine(), sf.schedules.EDM(), sf.schedules.Flow()])
def test_exact_models_violate_nothing(schedule):
    found = sf.audit(LAW.denoiser(sf.Gaussian(schedule)), LAW, bins=[-2, 0, 1, 3, 5], samples=1024, audits="all")
    assert set(found.findings) == set(IDENTITIES) - {"semigroup"}
    assert not found.violated, str(found)
    for name, finding in found.findings.items():
        for one in finding.value:
            assert abs(one.value) < 0.2 and one.stderr < 0.1, name
    assert all(one.value < 1e-20 for one in found.findings["curl"].value)
    assert all(one.value == 0 for one in found.findings["negative"].value)


def test_an_exact_bridge_violates_nothing_and_a_flow_of_pairs_is_refused():
    """Given its source the state of a bridge has normal noise; that of a rectified flow has none."""
    cov = torch.tensor([[1.0, 0.2, 0.6, 0.0], [0.2, 0.5, 0.1, 0.3], [0.6, 0.1, 1.0, 0.0], [0.0, 0.3, 0.0, 0.8]])
    pair, bridge = sf.exact.Pair([1.0], [[2.0, -1.0, 0.0, 1.0]], cov[None]), Bridge(sf.schedules.Flow())
    x, source = pair.sample(2000)
    bins = make([-2, 0, 1, 3, 5], UniformTime(), bridge.schedule)
    draws = Draws(x, Conditions({"input": source}), bridge, bins, 1024, 0, 256)
    guess, wanted = Trivial(bridge, x.mean(0), float(x.var(0).mean())), {name: IDENTITIES[name] for name in DEFAULT}
    found = measured(pair.model(bridge), draws, guess, wanted)
    assert set(found.findings) == set(DEFAULT) and not found.violated, str(found)
    flow = pair.model(RectifiedFlow(sf.schedules.Flow()))
    for ask in (sf.audit, sf.views):
        with pytest.raises(sf.SfumatoError, match="also holds a source, which its network does not hear"):
            ask(flow, {"x": x, "input": source})


def test_exact_pictures_violate_nothing_and_a_shrunk_one_is_found():
    law = sf.exact.GaussianField((1, 8, 8))
    exact = law.denoiser(PROCESS)
    assert not sf.audit(exact, law, bins=4, samples=256, audits="all").violated
    found = sf.audit(Faulty(lambda belief, z: 0.9 * belief.x, exact), law, bins=4, samples=256)
    assert {"slope", "orthogonality", "gradient", "tweedie"} <= set(found.violated)
    # x lies a ninth further out than 0.9 E[x|z]; at high noise, the last level, that is hardly to be seen
    assert all(abs(one.value - 1 / 9) < 4 * one.stderr for one in found.findings["slope"].value)


@pytest.mark.first(3)
@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found(name):
    found = sf.audit(Faulty(FAULTS[name]), LAW, bins=BINS, samples=8192)
    violated, text = set(found.violated), str(found)
    assert violated >= FOUND[name], text
    assert ("curl" in violated) == (name == "curl")
    assert ("negative" in violated) == (name in ("bump", "narrow"))
    assert ("gradient" in violated) == (name != "curl")
    assert all(f"{each}: {IDENTITIES[each].means}." in text for each in FOUND[name])


@pytest.mark.parametrize("name", ["bump", "level", "shrink"])
def test_the_gradient_part_bounds_the_error_and_repairs_it(name):
    """Its held-out gain is at most the loss above the floor, and the corrected model lies nearer to the exact one."""
    model = Faulty(FAULTS[name])
    found = sf.audit(model, LAW, bins=BINS, samples=8192, audits="gradient")
    repaired = found.corrected(model)
    for logsnr, gain in zip(found.logsnr, found.findings["gradient"].gain, strict=True):
        t = PROCESS.schedule.time(logsnr)
        z = LAW.sample(4096, seed=5, process=PROCESS, t=t)
        exact, loss = EXACT(z, t).x, float(LAW.total_variance(z, process=PROCESS, t=t).mean())
        off, left = (float((m(z, t).x - exact).square().sum(1).mean()) / loss for m in (model, repaired))
        assert gain.value < off + 4 * gain.stderr
        if gain.value > 4 * gain.stderr:
            assert left < 0.7 * off


def test_a_curl_has_no_gradient_part():
    found = sf.audit(Faulty(FAULTS["curl"]), LAW, bins=BINS, samples=8192, audits=["gradient", "orthogonality"])
    assert all(abs(one.value) < 3 * one.stderr for one in found.findings["gradient"].value)
    assert all(one.value > 3 * one.stderr for one in found.findings["orthogonality"].value)


def test_the_gain_of_the_slope_is_what_correcting_it_brings():
    """x_hat = m + 0.9 (E[x|z] - m): the slope is 1 / 0.9 - 1, and the corrected model is nearly exact."""
    model = Faulty(FAULTS["shrink"])
    found = sf.audit(model, LAW, bins=BINS, samples=4096, audits="slope")
    assert all(abs(one.value - 1 / 9) < 4 * one.stderr for one in found.findings["slope"].value)
    repaired = found.corrected(model, "slope")
    t = PROCESS.schedule.time(found.logsnr[1])
    z = LAW.sample(2048, seed=5, process=PROCESS, t=t)
    exact = EXACT(z, t).x
    before, after = ((m(z, t).x - exact).square().sum(1).mean() for m in (model, repaired))
    assert after < 0.02 * before
    loss = LAW.total_variance(z, process=PROCESS, t=t).mean() + before
    gain = found.findings["slope"].gain[1]
    assert abs(gain.value - float(before / loss)) < 4 * gain.stderr


@pytest.mark.parametrize("name", ["stein", "continuity"])
def test_audits_on_request_find_a_wrong_scale(name):
    found = sf.audit(Faulty(FAULTS["shrink"]), LAW, bins=BINS, samples=2048, audits=name)
    assert found.violated == [name]


def test_published_residuals_grow_with_the_square_of_a_fault():
    """Consistent Diffusion's and FP-Diffusion's, for x_hat = 0.5 E[x|z]: both residuals are then known to be large."""
    halved = Faulty(lambda belief, z: MEAN + 0.5 * (belief.x - MEAN))
    found = sf.audit(halved, LAW, bins=[-1, 0, 1], samples=4096, audits=["reverse-martingale", "generator"])
    assert set(found.violated) == {"reverse-martingale", "generator"}


def test_two_steps_of_an_untrained_flow_map_are_not_one():
    law = sf.exact.GaussianMixture([1.0], [[0.0, 0.0]], [1.0])
    torch.manual_seed(0)
    net = sf.nets.MLP(2, 16, 2, conditions={"until": {"kind": "scalar"}})
    model = sf.FlowMap(sf.Denoiser(net, PROCESS, "F"))
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    exact = sf.audit(model, law, bins=3, samples=64, audits="semigroup")
    assert not exact.violated  # a network that answers 0 is the exact map of this law
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    assert sf.audit(model, law, bins=3, samples=64, audits="semigroup").violated == ["semigroup"]


def test_a_network_is_audited_in_its_own_precision_and_left_as_it_was():
    torch.manual_seed(0)
    model = sf.Denoiser(sf.nets.MLP(2, 16, 2), PROCESS, "v").train()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = sf.audit(model, LAW, bins=3, samples=64)
    assert set(found.findings) == set(DEFAULT) and found.violated
    assert model.training and all(torch.equal(v, before[name]) for name, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    facts = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert facts["violated"] == found.violated and len(facts["audits"]["slope"]["value"]) == 3


def test_mistakes_are_named():
    with pytest.raises(sf.SfumatoError, match="There is no audit 'slop' of this model.*slope"):
        sf.audit(EXACT, LAW, audits=["slop"])
    with pytest.raises(sf.SfumatoError, match="only of flow maps"):
        sf.audit(EXACT, LAW, audits="semigroup")
    with pytest.raises(sf.SfumatoError, match="at least 8 samples"):
        sf.audit(EXACT, torch.zeros(5, 2))
    with pytest.raises(sf.SfumatoError, match="no correction 'curl'"):
        sf.audit(EXACT, LAW, samples=8, bins=1, audits="curl").corrected(EXACT, "curl")
