"""Each loss on a bandit whose answer is known: N(0, 1), the reward -(x - a)^2 / 2, whose tilt is N(a / 2, 1 / 2)."""

import copy
import math

import pytest
import torch
from torch import Tensor

import sfumato as sf
from bandits import Law, batch, moments, policy, train
from sfumato.reinforce.feedback import Preferences, Reward, Rollouts, effective
from sfumato.reinforce.losses import Direct, FlowPolicy, Negative, Preferred, RewardWeighted, asymmetric, clipped
from sfumato.reinforce.ratio import contraction
from sfumato.reinforce.walks import StepPolicy

A = 1.0


def reward(x: Tensor) -> Tensor:
    return -((x - A) ** 2).sum(1) / 2


def pairs_of(model: sf.Denoiser, count: int, seed: int = 0) -> Preferences:
    """Draws of N(0, 1), of each two the winner with the odds that their rewards give."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, count, 1, generator=generator)
    first = torch.rand(count, generator=generator) < torch.sigmoid(reward(x) - reward(y))
    return Preferences(model, torch.where(first[:, None], x, y), torch.where(first[:, None], y, x))


def test_at_the_reference_dpo_is_log_two_and_its_gradient_the_true_one() -> None:
    """The gradient of -log sigmoid(m) is that of -m / 2: -(x_w - x_l) / 2 in the mean of N(mean, 1)."""
    model = policy([0.0])
    pairs = Preferences(model, torch.full((4096, 1), 1.5), torch.full((4096, 1), -0.5))
    loss = Preferred(copy.deepcopy(model), pairs)
    losses = loss.losses(model, batch(0, 4096))
    assert torch.allclose(losses, torch.full((4096,), math.log(2)))
    losses.mean().backward()
    assert float(model.net.means.grad) == pytest.approx(-1.0, abs=0.05)
    assert float(model.net.log_v.grad) == pytest.approx(-(1.5**2 - 0.5**2) / 4, abs=0.05)
    assert torch.allclose(
        Preferred(copy.deepcopy(model), pairs, "ipo").losses(model, batch(0, 8)), torch.full((8,), 0.25)
    )
    assert torch.allclose(Preferred(copy.deepcopy(model), pairs, "kto").losses(model, batch(0, 8)), torch.ones(8))


@pytest.mark.slow
def test_dpo_finds_the_tilt_and_the_flow_weight_contracts() -> None:
    model = policy([0.0])
    pairs = pairs_of(model, 20_000)
    found = moments(train(Preferred(copy.deepcopy(model), pairs), policy([0.0]), 200, 256))
    assert found == pytest.approx((A / 2, 0.5), abs=0.07)
    # beta for which the reference's curvature is that of its density, pi / 4 against 1 / 2
    biased = Preferred(copy.deepcopy(model), pairs, beta=2 / math.pi, weight="flow", draws=8)
    found = moments(train(biased, policy([0.0]), 200, 256))
    assert found == pytest.approx((A / 2, contraction("flow")), abs=0.07)


def test_ipo_is_a_least_squares_fit_of_the_margin() -> None:
    """m(w, l) = s (w - l) + c (w^2 - l^2) to 1/2 over all pairs, with s = mean / v and c = (1 - 1 / v) / 2."""
    model = policy([0.0])
    pairs = pairs_of(model, 4000)
    w, loser = pairs.winner, pairs.loser
    s, c = (
        torch.linalg.lstsq(torch.cat((w - loser, w**2 - loser**2), 1), torch.full((4000, 1), 0.5))
        .solution[:, 0]
        .tolist()
    )
    v = 1 / (1 - 2 * c)
    found = moments(train(Preferred(copy.deepcopy(model), pairs, "ipo", draws=8), policy([0.0]), 100))
    assert found == pytest.approx((s * v, v), abs=0.05)


def test_kto_prefers_winners() -> None:
    model = policy([0.0])
    loss = Preferred(copy.deepcopy(model), pairs_of(model, 4000), "kto")
    trained = train(loss, policy([0.0]), 100)
    assert 0.1 < moments(trained)[0] < 1.5
    assert float(loss.losses(trained, batch(0, 1024)).detach().mean()) < 0.95


def test_samples_are_compared_within_their_class() -> None:
    """What a class is worth drops out of weights and advantages, but where a class has few samples."""
    x = torch.linspace(-1, 1, 40)[:, None]
    spec = sf.data.DataSpec.fit(sf.data.open(x, labels=["a", "b"] * 20))
    model = sf.Denoiser(sf.nets.MLP(1, 8, 1, classes=2), sf.Gaussian("flow"), spec=spec)
    worth = Reward(lambda x: 50.0 * (torch.arange(len(x)) % 2) + torch.sin(torch.arange(len(x)).double()))
    many, few = Rollouts(model, worth, 64), Rollouts(model, worth, 12)
    for k in (0, 1):
        own = many.rewards[k::2]
        assert torch.allclose(many.weights(0.5)[k::2], torch.softmax(own / 0.5, 0) * 32)
        assert torch.allclose(many.relative(many.rewards)[k::2], own - own.mean())
    assert torch.allclose(few.relative(few.rewards), few.rewards - few.rewards.mean())
    assert float(few.weights(0.5)[::2].sum()) < 1e-9


def test_reward_weighted_regression_is_the_tilts_denoiser() -> None:
    reference = policy([0.0])
    loss = RewardWeighted(copy.deepcopy(reference), Reward(reward), samples=4096)
    x, weights = loss.rollouts.x[:, 0].double(), loss.rollouts.weights(1.0)
    mean = float((weights * x).mean())
    variance = float((weights * (x - mean) ** 2).mean())
    found = moments(train(loss, policy([0.0]), 250))
    assert found == pytest.approx((A / 2, 0.5), abs=0.06)
    assert found == pytest.approx((mean, variance), abs=0.05)
    # (E w)^2 / E w^2 for this reward: w ~ exp(-(x - 1)^2 / 2)
    share = (math.exp(-1 / 4) / math.sqrt(2)) ** 2 / (math.exp(-1 / 3) / math.sqrt(3))
    assert effective(weights) / 4096 == pytest.approx(share, abs=0.03)


@pytest.mark.first(1)
@pytest.mark.parametrize("clip, each", [(0.2, False), (None, False), (0.2, True)])
def test_policy_gradients_of_the_elbo_find_the_tilt(clip: float | None, each: bool) -> None:
    reference = policy([0.0])
    loss = FlowPolicy(copy.deepcopy(reference), Reward(reward), every=10, clip=clip, each=each, draws=4)
    found = moments(train(loss, policy([0.0]), 250))
    assert found == pytest.approx((A / 2, 0.5), abs=0.08)
    assert loss.rollouts.age == 24 and float(loss.kl.mean()) == pytest.approx(0.2216, abs=0.08)


@pytest.mark.parametrize("kind", [FlowPolicy, StepPolicy])
def test_the_ratio_is_one_at_the_old_policy(kind: type) -> None:
    """Each loss is then minus the advantage; a ratio beyond the clip has no gradient where it would go further."""
    model = policy([0.0])
    loss = kind(copy.deepcopy(model), Reward(reward), samples=64)
    rows = loss.rows(torch.arange(32), 64)
    times = loss.calls - 1 if kind is StepPolicy else 1
    losses = loss.losses(model, batch(0, 32))
    assert torch.allclose(losses.double(), -times * loss.advantages[rows], atol=1e-5)
    assert losses.requires_grad
    log_ratio = torch.tensor([0.5, 0.5, -0.5], requires_grad=True)
    clipped(log_ratio, torch.tensor([1.0, -1.0, 1.0]), 0.2).sum().backward()
    assert (log_ratio.grad != 0).tolist() == [False, True, True]


def test_ratios_of_draws_are_one_at_the_old_policy_with_the_same_gradient() -> None:
    """FPO and FPO++ differ away from the old policy alone: by the mean of ratios, and by how far they may move."""
    model = policy([0.0])
    rows, found = torch.arange(32), []
    for each in (False, True):
        loss = FlowPolicy(copy.deepcopy(model), Reward(reward), samples=64, each=each, draws=8)
        model.zero_grad()
        losses = loss.losses(model, batch(0, 32))
        assert torch.allclose(losses.double(), -loss.advantages[loss.rows(rows, 64)], atol=1e-5)
        losses.mean().backward()
        found.append(float(model.net.means.grad))
    # 8 levels in one estimate are drawn in strata, those of 8 estimates each anew
    assert found[0] == pytest.approx(found[1], abs=0.3) and found[0] * found[1] > 0
    with pytest.raises(sf.SfumatoError, match="needs a clip"):
        FlowPolicy(model, Reward(reward), clip=None, each=True)


def test_the_asymmetric_bound_pulls_back() -> None:
    """Its least value for A < 0 is at r = 1 - clip; for A >= 0 it is the clipped one."""
    r = torch.linspace(0.5, 1.5, 101, dtype=torch.float64)
    down = asymmetric(r.log(), -torch.ones(101, dtype=torch.float64), 0.2)
    assert float(r[down.argmin()]) == pytest.approx(0.8)
    assert torch.allclose(down, r + (r - 1) ** 2 / 0.4)
    up = torch.ones(101, dtype=torch.float64)
    assert torch.equal(asymmetric(r.log(), up, 0.2), clipped(r.log(), up, 0.2))


def test_the_gradient_of_steps_varies_more() -> None:
    """Gradients in the mean from 64 samples, over 40 batches."""
    model, spread = policy([0.0]), {}
    for kind in (FlowPolicy, StepPolicy):
        loss, found = kind(copy.deepcopy(model), Reward(reward), samples=4096), []
        for step in range(40):
            model.zero_grad()
            u = torch.rand(64, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
            loss.losses(model, batch(step, 64, u)).mean().backward()
            found.append(float(model.net.means.grad))
        spread[kind] = torch.tensor(found).std()
    assert spread[StepPolicy] > 1.2 * spread[FlowPolicy]


def test_nft_is_guidance_towards_the_rewarded_set() -> None:
    """x_old + (2 / strength) E[R | z] (x_rewarded - x_old), at one level by 400,000 draws: the loss has its minimum
    along that direction at 1."""
    strength, alpha, sigma = 0.5, math.sqrt(0.5), math.sqrt(0.5)
    generator = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 400_000, generator=generator, dtype=torch.float64)
    z, share = alpha * x + sigma * eps, torch.sigmoid(2 * x)
    old = alpha * z
    nodes = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    grid = torch.linspace(-5, 5, 501, dtype=torch.float64)
    law = torch.softmax(-((nodes - alpha * grid[:, None]) ** 2) / (2 * sigma**2), 1)
    toward = (law * torch.sigmoid(2 * nodes)).sum(1), (law * torch.sigmoid(2 * nodes) * nodes).sum(1)
    shift = 2 / strength * (toward[1] - toward[0] * alpha * grid)
    place = ((z + 5) / 0.02).round().long().clamp(0, 500)
    found = []
    for size in (0.9, 1.0, 1.1):
        step = strength * size * shift[place]
        found.append(float((share * (x - old - step) ** 2 + (1 - share) * (x - old + step) ** 2).mean()))
    assert found[1] < min(found[0], found[2])
    # the loss itself at the reference: plus and minus are the same
    model = policy([0.0])
    loss = Negative(copy.deepcopy(model), Reward(reward), samples=64)
    plain = loss.bound(model, loss.rollouts.x[loss.rows(torch.arange(32), 64)], batch(0, 32).cond, torch.arange(32))
    assert torch.allclose(loss.losses(model, batch(0, 32)), plain, rtol=1e-4)
    assert (loss.optimality.min(), loss.optimality.max()) >= (0, 0.5) and loss.optimality.max() <= 1
    assert 0.1 < moments(train(loss, policy([0.0]), 60))[0]


def test_both_modes_stay() -> None:
    """sum_k w_k N(m_k, v) tilted by e^(c x): means m_k + c v, weights prop. to e^(c m_k). One Gaussian has one mode."""
    c, v = 0.3, 0.1
    reference = policy([-2.0, 2.0], v)
    loss = RewardWeighted(copy.deepcopy(reference), Reward(lambda x: c * x[:, 0]), samples=4096)
    model = train(loss, policy([-2.0, 2.0], v), 200)
    share = torch.softmax(model.net.logits, 0).detach()
    assert torch.allclose(share, torch.softmax(torch.tensor([-2 * c, 2 * c]), 0), atol=0.05)
    assert torch.allclose(model.net.means.detach(), torch.tensor([-2 + c * v, 2 + c * v]), atol=0.08)
    x = sf.sample(model, 400)
    assert 0.1 < float((x < -1).float().mean()) < 0.4 and float((x > 1).float().mean()) > 0.6


@pytest.mark.first(1)
@pytest.mark.parametrize("kind", [RewardWeighted, FlowPolicy])
def test_symbols_find_the_tilt(kind: type) -> None:
    """One masked symbol of three, uniform at first: e^r / sum e^r."""
    nats = torch.tensor([0.0, 1.0, -0.5])
    start = sf.Denoiser(Law(3), sf.Masked("cosine", 3))
    loss = kind(copy.deepcopy(start), Reward(lambda x: nats[x[:, 0].long()]), samples=2048)
    model = train(loss, start, 120, size=256)
    assert torch.allclose(torch.softmax(model.net.logits, 0), torch.softmax(nats, 0), atol=0.06)


def test_direct_gradients_go_to_the_mode() -> None:
    """The gradient of one Gaussian's samples in its mean is 1: that of the reward is a - mean x."""
    model = policy([0.0])
    loss = Direct(copy.deepcopy(model), Reward(reward), calls=10)
    losses = loss.losses(model, batch(0, 512))
    losses.mean().backward()
    assert float(model.net.means.grad) == pytest.approx(-A, abs=0.15)
    found = moments(train(loss, policy([0.0]), 60, size=32, lr=0.1))
    assert found[0] == pytest.approx(A, abs=0.15) and found[1] < 0.3
    with pytest.raises(sf.SfumatoError, match="no gradient"):
        Direct(model, Reward(lambda x: x.detach().numpy()[:, 0])).losses(model, batch(0, 4))


def test_rollouts_and_their_state() -> None:
    """A loss that is loaded goes on with the same numbers."""
    first, model = FlowPolicy(policy([0.0]), Reward(reward), samples=64, every=3), policy([0.0])
    train(first, model, 7, size=16)
    second = FlowPolicy(policy([0.0]), Reward(reward), samples=64, every=3)
    second.load(first.tensors())
    assert second.rollouts.age == first.rollouts.age == 2
    assert torch.equal(first.losses(model, batch(7, 16)), second.losses(model, batch(7, 16)))
    assert not torch.equal(
        Rollouts(policy([0.0]), Reward(reward), 8, seed=1).x, Rollouts(policy([0.0]), Reward(reward), 8).x
    )


@pytest.mark.parametrize(
    "function, said",
    [
        (lambda x: x, "shape"),
        (lambda x: torch.full((len(x),), math.nan), "nan for sample 0"),
        (lambda x: "good", "failed"),
        (3, "function"),
    ],
)
def test_rewards_that_are_none(function: object, said: str) -> None:
    with pytest.raises(sf.SfumatoError, match=said):
        Reward(function)(torch.zeros(3, 1))  # type: ignore[arg-type]


def test_what_a_loss_needs() -> None:
    model = policy([0.0])
    for make, said in (
        (lambda: Preferred(), "needs a reference"),
        (lambda: Preferred(model), "needs a pairs"),
        (lambda: FlowPolicy(model), "needs a reward"),
        (lambda: RewardWeighted(model, Reward(reward), beta=0), "temperature"),
        (lambda: FlowPolicy(model, Reward(reward), every=0), "every"),
        (lambda: Preferred(model, pairs_of(model, 4), "best"), "Unknown form"),
        (lambda: Preferences(model, torch.zeros(3, 1), torch.zeros(2, 1)), "as many winners"),
    ):
        with pytest.raises(sf.SfumatoError, match=said):
            make()
