"""Processes of pairs against the exact beliefs of joint Gaussians: laws, couplings, bridges, what a network hears."""

import math

import pytest
import torch

import sfumato as sf
from sfumato.conditions import Conditions, Given
from sfumato.exact import GaussianMixture, Pair
from sfumato.noised import Noised
from sfumato.process import Bridge, Interpolant, RectifiedFlow, from_config
from sfumato.schedules import VE, Cosine, Flow
from sfumato.training.batches import dropped

TURN = torch.tensor([[-0.8, -0.6], [0.6, -0.8]], dtype=torch.float64)


def mixtures():
    """Three modes at x and two at x', coupled so that neither end determines the other."""
    means = torch.tensor([[0.0, 2, -1, 0], [2, -1, 1, 1], [-2, -1, 1, 1]], dtype=torch.float64)
    half = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return Pair([0.5, 0.3, 0.2], means, 0.1 * half @ half.mT + 0.1 * torch.eye(4))


def normals():
    """N(m, A) at x and N(n, B) at x', whose covariances do not commute."""
    x = GaussianMixture([1.0], [[1.0, -0.5]], [[[1.0, 0.6], [0.6, 2.0]]])
    return x, GaussianMixture([1.0], [[0.3, 0.4]], [[[0.7, -0.3], [-0.3, 0.4]]])


def rotated():
    """A joint normal law whose source is a turned x and some noise: Cov(x, x') = A R^T."""
    a = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=torch.float64)
    cross, b = a @ TURN.mT, TURN @ a @ TURN.mT + 0.1 * torch.eye(2)
    return Pair([1.0], [[0.0] * 4], torch.cat((torch.cat((a, cross), 1), torch.cat((cross.mT, b), 1)))[None])


def line(move):
    """(M, m) of a map z -> M z + m of R^2, from three of its values."""
    ends = move(torch.tensor([[0.0, 0], [1, 0], [0, 1]], dtype=torch.float64)).double()
    return (ends[1:] - ends[0]).mT, ends[0]


@pytest.mark.parametrize("schedule", [Flow(), Cosine()], ids=["flow", "cosine"])
@pytest.mark.parametrize("noise", [0.5, 1.5])
def test_an_interpolants_beliefs_satisfy_its_state_its_score_and_the_continuity_equation(schedule, noise):
    pair, process, t, h = mixtures(), Interpolant(schedule, noise=noise), 0.4, 1e-5
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    belief = pair.between(z, t, process)
    parts = zip(process.path(t), (belief.x, belief.source, belief.zeta), strict=True)
    torch.testing.assert_close(sum(c * part for c, part in parts), z, rtol=0, atol=1e-12)
    (score,) = torch.autograd.grad(pair.log_prob(z, t, process).sum(), z, retain_graph=True)
    torch.testing.assert_close(belief.score, score, rtol=1e-9, atol=1e-9)
    slopes = [torch.autograd.grad(belief.velocity[:, i].sum(), z, retain_graph=True)[0][:, i] for i in range(2)]
    change = (pair.log_prob(z, t + h, process) - pair.log_prob(z, t - h, process)) / (2 * h)
    flown = -sum(slopes) - (belief.velocity * belief.score).sum(1)
    torch.testing.assert_close(change, flown, rtol=1e-6, atol=1e-6)


def test_a_rectified_flows_beliefs_satisfy_the_continuity_equation():
    pair, process, t, h = mixtures(), RectifiedFlow(Cosine()), 0.4, 1e-5
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    belief = pair.model(process)(z, t)
    alpha, sigma = process.schedule(t)
    torch.testing.assert_close(alpha * belief.x + sigma * belief.eps, z, rtol=0, atol=1e-12)
    (score,) = torch.autograd.grad(pair.log_prob(z, t, process).sum(), z, retain_graph=True)
    slopes = [torch.autograd.grad(belief.velocity[:, i].sum(), z, retain_graph=True)[0][:, i] for i in range(2)]
    change = (pair.log_prob(z, t + h, process) - pair.log_prob(z, t - h, process)) / (2 * h)
    torch.testing.assert_close(change, -sum(slopes) - (belief.velocity * score).sum(1), rtol=1e-6, atol=1e-6)


def moments(pair, process, eta, steps):
    """(mean and covariance of the states at t = 0.5, Cov(z, x') there) by steps of `Between.to` from the law of x'."""
    mean, cov, cross = pair.source.means[0], pair.source.covs[0], pair.source.covs[0]
    times = torch.linspace(1, 0.5, steps + 1, dtype=torch.float64)
    for t, s in zip(times[:-1], times[1:], strict=True):

        def move(z, noise=0.0, t=t, s=s):
            return pair.between(z, t, process).to(s, eta, torch.full_like(z, noise))

        (gain, shift), std = line(move), (move(mean[None], 1.0) - move(mean[None]))[0, 0]
        mean, cov = gain @ mean + shift, gain @ cov @ gain.mT + std**2 * torch.eye(2)
        cross = gain @ cross
    return mean, cov, cross


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 2.0])
def test_every_diffusion_has_the_law_of_the_interpolant(eta):
    pair, process = Pair.optimal(*normals(), noise=0.8), Interpolant(Flow(), noise=0.8)
    seen = torch.cat([c * torch.eye(2, dtype=torch.float64) for c in process.path(0.5)[:2]], 1)
    mean = seen @ pair.joint.means[0]
    cov = seen @ pair.joint.covs[0] @ seen.mT + process.path(0.5).gamma ** 2 * torch.eye(2)
    off = []
    for steps in (40, 80):
        found = moments(pair, process, eta, steps)
        torch.testing.assert_close(found[0], mean, rtol=0, atol=0.3 / steps)
        off.append(float((found[1] - cov).norm() / cov.norm()))
    assert off[1] < 0.06
    assert off[1] < max(0.6 * off[0], 1e-12)  # of order 1; with the bridge's own noise exact


def test_the_schroedinger_coupling_with_its_noise_is_the_schroedinger_bridge():
    x, source = normals()
    s = 0.8
    pair, process = Pair.optimal(x, source, noise=s), Interpolant(Flow(), noise=s)
    precision = torch.linalg.inv(pair.joint.covs[0])
    torch.testing.assert_close(precision[:2, 2:], -torch.eye(2, dtype=torch.float64) / s**2, rtol=0, atol=1e-11)
    # the bridge is Markov: its SDE carries the covariance of z_t = t x' + (1 - t) x + noise with its start
    wanted = 0.5 * (pair.joint.covs[0][2:, 2:] + pair.joint.covs[0][:2, 2:])
    torch.testing.assert_close(moments(pair, process, 1.0, 7)[2], wanted, rtol=0, atol=1e-12)  # in steps of any size
    assert (moments(pair, process, 0.0, 50)[2] - wanted).norm() / wanted.norm() > 0.05  # the ODE has other paths


def test_the_flow_of_an_optimal_coupling_is_the_map_of_bures_in_one_step():
    x, source = normals()
    pair = Pair.optimal(x, source)
    flow = pair.model(RectifiedFlow(Flow()))
    gain, shift = line(lambda z: sf.sample(flow, 3, 1, "euler", input=z))
    torch.testing.assert_close(gain, gain.mT, rtol=0, atol=1e-6)  # the gradient of a convex function
    torch.testing.assert_close(gain @ source.covs[0] @ gain.mT, x.covs[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(gain @ source.means[0] + shift, x.means[0], rtol=0, atol=1e-6)
    cost = (x.means[0] - source.means[0]).square().sum() + (x.covs[0] + source.covs[0] - 2 * pair.joint.covs[0][:2, 2:]
                                                           ).trace()  # fmt: skip
    root = sf.exact.pair.square_root(x.covs[0])
    middle = sf.exact.pair.square_root(root @ source.covs[0] @ root)
    bures = (x.means[0] - source.means[0]).square().sum() + (x.covs[0] + source.covs[0] - 2 * middle).trace()
    assert float(cost) == pytest.approx(float(bures), abs=1e-12)


def test_a_flow_keeps_both_laws_and_loses_the_pairs_and_a_bridge_keeps_them():
    pair = rotated()
    a, cross, b = pair.joint.covs[0][:2, :2], pair.joint.covs[0][:2, 2:], pair.joint.covs[0][2:, 2:]
    flow = pair.model(RectifiedFlow(Flow()))
    gain, _ = line(lambda z: sf.sample(flow, 3, 100, "heun", input=z))
    torch.testing.assert_close(gain @ b @ gain.mT, a, rtol=0, atol=1e-3)
    assert (gain @ b - cross).norm() / cross.norm() > 0.3
    bridge, source = pair.model(Bridge(Flow(), noise=0.7)), torch.tensor([[0.0, 0], [1, 0], [0, 1]])
    still = torch.zeros(3, 2, dtype=torch.float64)
    kept, _ = line(lambda z: sf.sample(bridge, 3, 100, "heun", z=still, input=z))
    torch.testing.assert_close(kept @ b, cross, rtol=0, atol=1e-4)
    spread, _ = line(lambda z: sf.sample(bridge, 3, 100, "heun", z=z, input=source[:1]))
    torch.testing.assert_close(
        spread @ spread.mT, a - cross @ torch.linalg.inv(b) @ cross.mT, rtol=0, atol=1e-3
    )  # the law of x given x'


def unheard(pair, process, steps):
    """(Cov(x), Cov(x, x')) at the end of the reverse chain of a bridge that does not hear its source."""
    model, cov = pair.model(process), pair.source.covs[0]
    cross, times = cov, torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    for t, s in zip(times[:-1], times[1:], strict=True):

        def move(z, source, noise=0.0, t=t, s=s):
            known = process.given({"input": source})
            zero, one = (known.position(torch.full_like(z, value), t) for value in (0.0, 1.0))
            w = z if t == 1 else (z - zero) / (one - zero)
            return known.position(model(w, t, input=source).to(s, 1.0, torch.full_like(z, noise)), s)

        def alone(z, noise=0.0, t=t, move=move):  # at t = 1 the state is the source
            return move(z, z if t == 1 else torch.zeros_like(z), noise)

        (gain, _), one = line(alone), torch.ones(1, 2, dtype=torch.float64)
        if t < 1:
            torch.testing.assert_close(move(one, 5 * one), alone(one), rtol=0, atol=1e-9)  # no x' in the step
        cov = gain @ cov @ gain.mT + float((alone(one, 1.0) - alone(one))[0, 0]) ** 2 * torch.eye(2)
        cross = gain @ cross
    return cov, cross


def test_a_bridge_that_does_not_hear_its_source_keeps_both_laws_and_makes_its_own_pairs():
    """The correlation exp(-s^2 / 2 int_0^1 du / Var z_u) of normal numbers, their own in the Schroedinger coupling."""
    one, (a, b, c, s) = torch.eye(2, dtype=torch.float64), (1.5, 0.8, 0.1, 0.7)
    process = Bridge(Flow(), target="x", noise=s, hears_source=False)
    cov = torch.cat((torch.cat((a * one, c * one), 1), torch.cat((c * one, b * one), 1)))
    pair = Pair([1.0], [[0.0] * 4], cov[None])
    u = torch.linspace(0, 1, 10001, dtype=torch.float64)
    variance = u**2 * a + (1 - u) ** 2 * b + (2 * c + s**2) * u * (1 - u)
    kept = math.sqrt(a * b) * math.exp(-(s**2) / 2 * float(torch.trapezoid(1 / variance, u)))
    assert kept > 5 * c  # the pairs of the coupling are lost
    off = []
    for steps in (60, 120):
        cov, cross = unheard(pair, process, steps)
        off.append((abs(float(cov[0, 0]) / a - 1), abs(float(cross[0, 0]) / kept - 1)))
    assert max(off[1]) < 0.05, off
    assert all(fine < 0.65 * coarse for coarse, fine in zip(*off, strict=True)), off  # of order 1
    schroedinger = Pair.optimal(*normals(), noise=s)
    wanted = schroedinger.joint.covs[0][:2, 2:]
    assert float((unheard(schroedinger, process, 120)[1] - wanted).norm() / wanted.norm()) < 0.03
    wanted = rotated().joint.covs[0][:2, 2:]
    assert float((unheard(rotated(), process, 120)[1] - wanted).norm() / wanted.norm()) > 0.3


def test_a_bridge_that_does_not_hear_its_source_is_sampled_by_the_reverse_chain_alone():
    pair, process = mixtures(), Bridge(Flow(), target="x", noise=0.7, hears_source=False)
    x, source = pair.sample(2000, seed=4)
    model = pair.model(process)
    found = sf.sample(model, 2000, 60, input=source)
    assert float((found.double().T.cov() - x.T.cov()).norm() / x.T.cov().norm()) < 0.15
    assert torch.equal(found[7:9], sf.sample(model, 2, 60, "ancestral", input=source[7:9], index=[7, 8]))
    for asked in (
        lambda: sf.sample(model, 2, 4, "heun", input=source[:2]),
        lambda: sf.sample(model, 2, 4, "ddim", input=source[:2]),
        lambda: sf.log_prob(model, x[:2], input=source[:2]),
        lambda: sf.encode(model, x[:2], input=source[:2]),
    ):
        with pytest.raises(sf.SfumatoError, match="no ODE"):
            asked()
    with pytest.raises(sf.SfumatoError, match="target=x"):
        Bridge(Flow(), hears_source=False)


def test_a_bridges_likelihood_is_that_of_x_given_its_source():
    pair = rotated()
    x, source = pair.sample(4, seed=2)
    found = sf.log_prob(pair.model(Bridge(Flow())), x, input=source, sigma_min=1e-3, steps=100)
    wanted = pair.joint.log_prob(torch.cat((x, source), 1)) - pair.source.log_prob(source)
    torch.testing.assert_close(found.value.double(), wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize("base", [VE(sigma_max=3.0), VE(sigma_max=0.5)])
def test_the_bridge_of_a_schedule_is_a_bridge_up_to_clock_and_scale(base):
    """DDBM (2309.16948): alpha (1 - r), (alpha / alpha_1) r, sigma sqrt(1 - r), r = SNR_1 / SNR."""
    (first, last), t = base(1.0), torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    alpha, sigma = base(t)
    r = (first / last * sigma / alpha) ** 2
    theirs = torch.stack((alpha * (1 - r), alpha / first * r, sigma * torch.sqrt(1 - r)))
    process = Bridge(Flow(), noise=float(last / first.sqrt()))
    level = 2 * (theirs[0] / theirs[2]).log()
    ours = torch.stack(process.path(process.schedule.time(level)))
    torch.testing.assert_close(ours / ours[0], theirs / theirs[0], rtol=1e-10, atol=0)


def test_a_bridges_state_and_its_place_between_the_ends_say_the_same():
    generator = torch.Generator().manual_seed(0)
    x, source, zeta = torch.randn(3, 4, 2, generator=generator, dtype=torch.float64)
    process = Bridge(Cosine(), noise=0.6).given({"input": source})
    t = torch.tensor([0.0, 0.3, 0.8, 1.0], dtype=torch.float64)
    parts = zip(process.path(t), (x, source, zeta), strict=True)
    wanted = sum(c[:, None] * part for c, part in parts)
    torch.testing.assert_close(process.position(process.corrupt(x, t, zeta), t), wanted, rtol=0, atol=1e-6)


def test_indi_and_deblending_are_ddim_on_the_linear_path():
    pair = mixtures()
    flow, (_, source) = pair.model(RectifiedFlow(Flow())), pair.sample(3)
    for state in sf.trajectory(flow, 3, 4, sf.solvers.DDIM(), input=source):
        if state.belief is None:
            break
        z, x, start, t, s = state.z.double(), state.belief.x, state.belief.eps, state.t, state.t - 0.25
        indi = (t - s) / t * x + s / t * z  # 2303.11435, Eq. 5
        blended = z + (t - s) * (x - start)  # 2305.03486, Algorithm 4
        torch.testing.assert_close(indi, blended, rtol=0, atol=1e-6)
        torch.testing.assert_close(state.belief.to(s), indi, rtol=0, atol=1e-6)


# -- a network ---------------------------------------------------------------------------------------------------------


class Net(torch.nn.Module):
    """Remembers what it was given; `outputs` times as many numbers as the state has."""

    def __init__(self, outputs=1):
        super().__init__()
        self.layer, self.outputs = torch.nn.Linear(2, 2 * outputs), outputs

    def forward(self, x, noise_level, input=None, label=None):  # noqa: A002  (a condition of this name)
        self.heard = {"x": x, "input": input, "label": label}
        return self.layer(x)


PROCESSES = [
    RectifiedFlow(Flow()),
    Interpolant(Cosine(), noise=0.5),
    Bridge(Flow(), noise=0.5),
    Bridge(Flow(), target="x", noise=0.5, hears_source=False),
]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_the_network_hears_the_source_of_a_bridge_alone_and_the_loss_compares_what_was_drawn(process):
    model = sf.Denoiser(Net(getattr(process, "outputs", 1)), process)
    x, source, zeta = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0))
    t = torch.full((5,), 0.3, dtype=torch.float64)
    loss = sf.denoising_loss(model, x, t, eps=zeta, input=source, label=torch.zeros(5, dtype=torch.int64))
    assert model.net.heard["label"] is not None
    assert (model.net.heard["input"] is not None) == process.hears_source
    known = process.given({"input": source})
    z = known.corrupt(x, t, zeta)
    belief = model(z, t, input=source)
    if isinstance(process, Interpolant):
        error = torch.cat((belief.x - belief.source - (x - source), belief.zeta - zeta), 1)
    elif process.target == "x":
        error = belief.x - x
    else:
        alpha, sigma = process.schedule.rates(0.3) if process.target == "velocity" else (-0.3, 0.7)
        error = belief.v - (alpha * x + sigma * (source if isinstance(process, RectifiedFlow) else zeta))
    torch.testing.assert_close(loss, 0.5 * error.square().sum(1), rtol=1e-5, atol=1e-5)
    assert from_config(process.config()) == process


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_a_sample_without_its_source_is_refused(process):
    model = sf.Denoiser(Net(getattr(process, "outputs", 1)), process)
    model.net.shape = (2,)
    with pytest.raises(sf.SfumatoError, match="starts from the source of each sample"):
        sf.sample(model, 2)
    with pytest.raises(sf.SfumatoError, match="some have no 'input'"):
        sf.sample(model, 2, input=Given(torch.zeros(2, 2), torch.tensor([True, False])))
    with pytest.raises(sf.SfumatoError, match="both ends"):
        sf.sample(model, 2, input=torch.zeros(2, 3))


def test_held_out_losses_compare_a_flows_sources_with_the_belief():
    pair = mixtures()
    x, source = (each.float() for each in pair.sample(64))
    model, t = pair.model(RectifiedFlow(Flow())), torch.full((64,), 0.5, dtype=torch.float64)
    draws = Noised(model.process, x, {"input": source}, torch.arange(64), t, sf.Noise(0, torch.arange(64)), 64)
    found = draws.take(torch.arange(64))
    torch.testing.assert_close(found.eps, source)
    torch.testing.assert_close(found.z, 0.5 * x + 0.5 * source)


def test_what_pairs_cannot_have_is_said():
    with pytest.raises(sf.SfumatoError, match="must go from"):
        RectifiedFlow(VE())
    with pytest.raises(sf.SfumatoError, match="take RectifiedFlow"):
        Bridge(Flow(), noise=0)
    model = sf.Denoiser(Net(), RectifiedFlow(Flow()))
    with pytest.raises(sf.SfumatoError, match="density of its sources is unknown"):
        sf.log_prob(model, torch.zeros(2, 2), input=torch.zeros(2, 2))
    with pytest.raises(sf.SfumatoError, match="outputs=2"):
        sf.Denoiser(Net(1), Interpolant(Flow()))


def test_what_compares_beliefs_without_conditions_is_refused():
    model = sf.Denoiser(Net(), Bridge(Flow()))
    with pytest.raises(sf.SfumatoError, match="not defined for a Bridge"):
        sf.information(model, torch.zeros(4, 2), input=torch.zeros(4, 2))
    with pytest.raises(sf.SfumatoError, match="has no likelihood"):
        sf.log_prob(sf.Denoiser(Net(2), Interpolant(Flow())), torch.zeros(2, 2), input=torch.zeros(2, 2))


def test_training_never_drops_a_source():
    cond = Conditions({"input": torch.ones(50, 2), "mass": torch.ones(50), "label": torch.zeros(50, dtype=torch.int64)})
    found = dropped(cond, sf.Noise(0, torch.arange(50)), 0.5, "input")
    assert bool(found.given("input").present.all())
    assert 0 < int(found.given("mass").present.sum()) < 50


def test_guidance_leaves_the_source_where_it_is():
    model = sf.Denoiser(Net(), RectifiedFlow(Flow()))
    source, label = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(3, dtype=torch.int64)
    plain = sf.sample(model, 3, 2, z=source, input=source, label=label)
    guided = sf.sample(sf.guide(model, 3.0), 3, 2, z=source, input=source, label=label)
    torch.testing.assert_close(plain, guided)  # this network ignores labels
    with pytest.raises(sf.SfumatoError, match="Guidance needs a condition"):
        sf.sample(sf.guide(model, 3.0), 3, 2, z=source, input=source)


def test_the_diffusion_of_a_step_is_that_of_the_formula():
    pair, process, dt = mixtures(), Interpolant(Flow(), noise=0.9), 1e-6
    z = torch.zeros(1, 2, dtype=torch.float64)
    belief, eta = pair.between(z, 0.6, process), 1.3
    moved = belief.to(0.6 - dt, eta, torch.zeros_like(z))
    std = float((belief.to(0.6 - dt, eta, torch.ones_like(z)) - moved)[0, 0])
    epsilon = (eta * 0.9) ** 2 / 2
    assert std == pytest.approx(math.sqrt(2 * epsilon * dt), rel=1e-4)
    drift = belief.velocity - epsilon * belief.score
    torch.testing.assert_close((z - moved) / dt, drift, rtol=1e-4, atol=1e-4)


def test_the_network_of_a_rectified_flow_hears_the_state_at_the_scale_of_both_ends():
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    process = RectifiedFlow(Flow()).given({"input": x})
    for t in (0.0, 0.5, torch.tensor([0.0, 0.3, 0.6, 1.0], dtype=torch.float64)):
        z = process.corrupt(x, t, torch.zeros(4, 3))
        torch.testing.assert_close(process.inputs(z, t)[0], x)
