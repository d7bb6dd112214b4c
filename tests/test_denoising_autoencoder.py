"""The denoising autoencoder of one level: Tweedie, masking as regression, the principal subspace, sampling."""

import itertools
import math

import pytest
import torch
from torch import nn

import sfumato as sf
from sfumato.denoising_autoencoder import DenoisingAutoencoder, GaussianNoise, Masking
from sfumato.errors import SfumatoError
from sfumato.exact import GaussianMixture
from sfumato.objectives import denoising_loss, score_matching
from sfumato.objectives.losses import Plain
from sfumato.training.config import TrainConfig
from sfumato.training.loop import fit
from sfumato.training.state import State

F64 = torch.float64
SIGMA = 0.4
LAW = GaussianMixture([0.35, 0.65], [[-1.0, 0.4], [0.9, -0.2]], [0.15, 0.08])


class Given(nn.Module):
    """A network that is any function of z."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, z, noise_level):
        return self.function(z)


def optimum(law, sigma):
    """D* = E[x | z] in closed form, as the network of an autoencoder (which sees c_in z)."""
    scale = math.sqrt(sigma**2 + 1)
    return Given(lambda z: law.moments(scale * z, alpha=1.0, sigma=sigma).x)


# -- Gaussian noise ---------------------------------------------------------------------------------------------------


def test_the_optimum_is_tweedies_formula():
    """(D* - z) / sigma^2 = grad log p of the noised mixture."""
    dae = DenoisingAutoencoder(optimum(LAW, SIGMA), GaussianNoise(SIGMA))
    z = LAW.noised(1.0, SIGMA).sample(50, seed=1)
    torch.testing.assert_close(dae.score(z), LAW.noised(1.0, SIGMA).score(z), rtol=1e-5, atol=1e-6)
    by_hand = (dae(z) - z) / SIGMA**2
    torch.testing.assert_close(by_hand, LAW.noised(1.0, SIGMA).score(z), rtol=1e-12, atol=1e-12)


def test_no_other_function_has_a_smaller_loss_and_the_least_is_the_posterior_variance():
    """E loss(D) = 1/2 E tr Cov(x|z) + 1/2 E|D - D*|^2: the floor, and what a wrong D adds."""
    x = LAW.sample(200_000, seed=2)
    best = optimum(LAW, SIGMA)
    off = Given(lambda z: best.function(z) + 0.1 * torch.tanh(z))
    floor, error = LAW.mmse(200_000, seed=3, alpha=1.0, sigma=SIGMA)
    losses = [DenoisingAutoencoder(net, GaussianNoise(SIGMA)).losses(x) for net in (best, off)]
    assert abs(float(losses[0].mean()) - floor / 2) < 5 * (error / 2 + float(losses[0].std()) / math.sqrt(len(x)))
    z = LAW.noised(1.0, SIGMA).sample(200_000, seed=4) / math.sqrt(SIGMA**2 + 1)
    extra = 0.5 * float((0.1 * torch.tanh(z)).square().sum(1).mean())
    added = losses[1] - losses[0]
    assert abs(float(added.mean()) - extra) < 5 * float(added.std()) / math.sqrt(len(x))
    assert extra > 1e-3


def test_its_loss_is_the_denoising_loss_at_one_level():
    dae = DenoisingAutoencoder(sf.nets.MLP(2, 16, 1).double(), GaussianNoise(SIGMA), sigma_data=0.8)
    nn.init.normal_(dae.net.output.weight, generator=torch.Generator().manual_seed(0))
    x, index = LAW.sample(6, seed=5), torch.arange(10, 16)
    mine = dae.losses(x, seed=3, index=index)
    torch.testing.assert_close(mine, denoising_loss(dae.denoiser, x, 1.0, seed=3, index=index), rtol=1e-12, atol=0)
    torch.testing.assert_close(mine, denoising_loss(dae.denoiser, x, seed=3, index=index), rtol=1e-4, atol=0)
    score = score_matching.denoising(dae.denoiser, x, t=1.0, seed=3, index=index)
    torch.testing.assert_close(mine, SIGMA**4 * score, rtol=1e-9, atol=0)


def test_langevin_dynamics_samples_the_law_of_a_single_level():
    """The chain of (D(z) - z) / sigma^2 has the noised law; its last step takes the noise away."""
    law = GaussianMixture([0.5, 0.5], [[-0.4, 0.0], [0.4, 0.2]], 0.2)
    dae = DenoisingAutoencoder(optimum(law, 0.5), GaussianNoise(0.5))
    solver = sf.solvers.AnnealedLangevin(updates=80, step=0.2)
    out = sf.sample(dae.denoiser, 3000, 1, solver, z=torch.zeros(3000, 2, dtype=F64), batch=3000)
    moments = law.moments(law.noised(1.0, 0.5).sample(20_000, seed=1), alpha=1.0, sigma=0.5)
    assert float((out.mean(0) - moments.x.mean(0)).abs().max()) < 0.05
    torch.testing.assert_close(out.var(0), moments.x.var(0), rtol=0.12, atol=0)


def rmse(dae):
    """sqrt(E|D - D*|^2 / E|x - D*|^2) over the noised law: the error in terms of the floor's."""
    z = LAW.noised(1.0, SIGMA).sample(4000, seed=9)
    best = LAW.moments(z, alpha=1.0, sigma=SIGMA).x
    with torch.no_grad():
        off = (dae(z.float()).double() - best).square().sum(1).mean()
    return float((off / LAW.total_variance(z, alpha=1.0, sigma=SIGMA).mean()).sqrt())


def steps(dae, count, lr, batch=256):
    optimizer = torch.optim.Adam(dae.parameters(), lr=lr)
    x = LAW.sample(count * batch, seed=1).float()
    for step in range(count):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / count)
        index = torch.arange(step * batch, (step + 1) * batch)
        optimizer.zero_grad()
        dae.losses(x[index], index=index).mean().backward()
        optimizer.step()
    return dae


def test_training_tends_to_the_closed_form():
    """The distance from D to D* falls with the steps of plain training."""
    found = []
    for count in (0, 30, 250):
        torch.manual_seed(0)
        dae = DenoisingAutoencoder(sf.nets.Bottleneck((2,), 32, (64,)), GaussianNoise(SIGMA))
        found.append(rmse(steps(dae, count, 5e-3)))
    assert found[0] > found[1] > found[2] and found[2] < 0.4 < found[1], found


@pytest.mark.slow
def test_longer_training_comes_closer():
    torch.manual_seed(0)
    dae = DenoisingAutoencoder(sf.nets.Bottleneck((2,), 64, (128,)), GaussianNoise(SIGMA))
    assert rmse(steps(dae, 3000, 5e-3)) < 0.1


def test_the_loop_of_the_package_trains_it():
    """The same loop as that of any denoiser, with its average and its validation."""
    torch.manual_seed(0)
    dae = DenoisingAutoencoder(sf.nets.Bottleneck((2,), 32, (64,)), GaussianNoise(SIGMA))
    config = TrainConfig(steps=150, batch=256, lr=5e-3, optimizer="adamw", weight_decay=0.0)
    goal = Plain(lambda model, batch: model.losses(batch.x, index=batch.index))
    state = State(dae, config, goal)
    before, x = rmse(dae), LAW.sample(60_000, seed=1).float()
    last = list(fit(dae, x, config, state=state))[-1]
    assert last.done and rmse(state.best) < 0.6 < before


def test_files_keep_it(tmp_path):
    dae = DenoisingAutoencoder(sf.nets.Bottleneck((1, 4, 4), 5), GaussianNoise(0.3), sigma_data=0.8)
    nn.init.normal_(dae.net.decoder.output.weight, generator=torch.Generator().manual_seed(0))
    loaded = sf.load(sf.save(dae.denoiser, tmp_path / "dae.safetensors"))
    again = DenoisingAutoencoder.from_denoiser(loaded)
    z = torch.randn(3, 1, 4, 4)
    torch.testing.assert_close(again(z), dae(z).detach())
    torch.testing.assert_close(again.encode(z), dae.encode(z).detach())
    torch.testing.assert_close(loaded(z, 1.0).x, again(z))
    assert again.noise.sigma == pytest.approx(0.3, rel=1e-12)
    with pytest.raises(SfumatoError, match="many levels"):
        DenoisingAutoencoder.from_denoiser(sf.Denoiser(loaded.net, sf.Gaussian(sf.schedules.VE()), "x"))


# -- masking ----------------------------------------------------------------------------------------------------------

COV = torch.tensor([[1.0, 0.6, 0.2], [0.6, 0.8, -0.3], [0.2, -0.3, 0.5]], dtype=F64)


def points(cov):
    """2 D points of equal weight with the covariance `cov`, exact for what is quadratic in x."""
    root = torch.linalg.cholesky(cov) * math.sqrt(len(cov))
    return torch.cat((root.T, -root.T))


def solve(dae, x, z, weight):
    """Train a linear network to the minimum of its mean loss, by a second-order method in double precision."""
    optimizer = torch.optim.LBFGS(dae.parameters(), max_iter=4000, tolerance_grad=1e-13, tolerance_change=1e-18,
                                  history_size=40, line_search_fn="strong_wolfe")  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = (weight * dae.losses(x, z)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)


def linear_map(dae, dim):
    with torch.no_grad():
        return (dae(torch.eye(dim, dtype=F64)) - dae(torch.zeros(1, dim, dtype=F64))).T


@pytest.mark.parametrize("kept", [k for n in (1, 2) for k in itertools.combinations(range(3), n)], ids=str)
def test_masking_of_a_gaussian_is_the_regression_on_what_is_left(kept):
    """A linear D trained on one pattern of masks: D = C[:, U] C[U, U]^-1 on the unmasked U, to 1e-6."""
    torch.manual_seed(0)
    dae = DenoisingAutoencoder(sf.nets.Bottleneck((3,), 3, ()).double(), Masking(0.5))
    x = points(COV)
    z = x.clone()
    z[:, [i for i in range(3) if i not in kept]] = 0
    solve(dae, x, z, torch.full((6,), 1 / 6, dtype=F64))
    left = list(kept)
    wanted = COV[:, left] @ torch.linalg.inv(COV[left][:, left])
    torch.testing.assert_close(linear_map(dae, 3)[:, left], wanted, rtol=0, atol=1e-6)


def all_masks(x, rate):
    """Every mask of every point: clean, corrupted, weight."""
    dim = x.shape[1]
    masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=dim)), dtype=F64)
    chance = (rate ** (1 - masks) * (1 - rate) ** masks).prod(1)
    clean = x.repeat(len(masks), 1)
    return clean, clean * masks.repeat_interleave(len(x), 0), chance.repeat_interleave(len(x)) / len(x)


def linear_best(rate):
    q = 1 - rate
    return q * COV @ torch.linalg.inv(q**2 * COV + q * (1 - q) * torch.diag(COV.diagonal()))


def test_the_best_linear_map_over_all_masks():
    """A* = q C (q^2 C + q (1 - q) diag C)^-1, q = 1 - rate: one linear map cannot know which entries are masked."""
    torch.manual_seed(0)
    rate = 0.3
    dae = DenoisingAutoencoder(sf.nets.Bottleneck((3,), 3, ()).double(), Masking(rate))
    solve(dae, *all_masks(points(COV), rate))
    torch.testing.assert_close(linear_map(dae, 3), linear_best(rate), rtol=0, atol=1e-6)


def test_a_perceptron_comes_nearer_to_all_regressions_than_any_linear_map():
    """D*(z) = E[x | x_U], U the entries of z that are not 0: no linear map of z, and with a jump where z_i = 0."""
    torch.manual_seed(0)
    rate, batch, count = 0.3, 256, 500
    dae = DenoisingAutoencoder(sf.nets.Bottleneck((3,), 32, (64,)), Masking(rate))
    law = GaussianMixture([1.0], torch.zeros(1, 3), COV[None])
    x, optimizer = law.sample(count * batch, seed=1).float(), torch.optim.Adam(dae.parameters(), lr=5e-3)
    for step in range(count):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / count)
        index = torch.arange(step * batch, (step + 1) * batch)
        optimizer.zero_grad()
        dae.losses(x[index], index=index).mean().backward()
        optimizer.step()
    clean = law.sample(2000, seed=7)
    z = dae.corrupt(clean, seed=8)
    best, linear = torch.zeros_like(z), z @ linear_best(rate).T
    for i, row in enumerate(z):
        left = torch.nonzero(row)[:, 0]
        best[i] = COV[:, left] @ torch.linalg.solve(COV[left][:, left], row[left])
    with torch.no_grad():
        off = float((dae(z.float()).double() - best).square().sum(1).mean())
    assert off < 0.75 * float((linear - best).square().sum(1).mean())


def test_masks_have_their_rate_and_belong_to_their_sample():
    noise, x = Masking(0.3), torch.ones(4000, 5)
    z = noise.corrupt(x, 1, torch.arange(4000))
    assert set(z.unique().tolist()) == {0.0, 1.0}
    assert abs(float((z == 0).double().mean()) - 0.3) < 5 * math.sqrt(0.21 / z.numel())
    assert torch.equal(noise.corrupt(x[:2], 1, torch.tensor([3999, 7])), z[[3999, 7]])


# -- the bottleneck ---------------------------------------------------------------------------------------------------


def test_a_linear_bottleneck_spans_the_principal_subspace():
    """The best D of rank k is U_k diag(l / (l + sigma^2)) U_k^T; the code sees the same subspace."""
    torch.manual_seed(0)
    sigma, k = 0.5, 2
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(3), dtype=F64))[0]
    spectrum = torch.tensor([3.0, 1.5, 0.4, 0.1], dtype=F64)
    cov = turn @ torch.diag(spectrum) @ turn.T
    dae = DenoisingAutoencoder(sf.nets.Bottleneck((4,), k, ()).double(), GaussianNoise(sigma))
    joint = points(torch.block_diag(cov, torch.eye(4, dtype=F64)))
    x, z = joint[:, :4], joint[:, :4] + sigma * joint[:, 4:]
    solve(dae, x, z, torch.full((16,), 1 / 16, dtype=F64))
    top = turn[:, :k]
    wanted = top @ torch.diag(spectrum[:k] / (spectrum[:k] + sigma**2)) @ top.T
    torch.testing.assert_close(linear_map(dae, 4), wanted, rtol=0, atol=1e-6)
    with torch.no_grad():
        rows = dae.encode(torch.eye(4, dtype=F64)) - dae.encode(torch.zeros(1, 4, dtype=F64))
    seen = torch.linalg.qr(rows).Q
    cosines = torch.linalg.svdvals(seen.T @ top)
    assert float((1 - cosines).max()) < 1e-10 and rows.shape == (4, k)


@pytest.mark.parametrize("shape, code, widths", [((5,), 2, (16,)), ((1, 3, 4), 20, (8, 6)), ((2, 3), 1, ())], ids=str)
def test_bottleneck_is_a_network_of_the_room(shape, code, widths):
    net = sf.nets.Bottleneck(shape, code, widths)
    x = torch.randn(3, *shape)
    assert torch.equal(net(x, torch.zeros(3)), torch.zeros_like(x))
    assert sf.nets.from_config(net.config).config == net.config
    nn.init.normal_(net.decoder.output.weight)
    assert net.encode(x).shape == (3, code) and torch.equal(net.decode(net.encode(x)), net(x))
    assert sf.Denoiser(net, sf.Gaussian(sf.schedules.Cosine()))(x, 0.5).x.shape == x.shape


def test_mistakes_are_said_in_one_sentence():
    masked = DenoisingAutoencoder(sf.nets.MLP(2, 8, 1), Masking(0.5))
    cases = [
        (lambda: masked.score(torch.zeros(1, 2)), "no score"),
        (lambda: masked.encode(torch.zeros(1, 2)), "nets.Bottleneck"),
        (lambda: GaussianNoise(0.0), "above 0"),
        (lambda: Masking(1.0), "between 0 and 1"),
        (lambda: sf.nets.Bottleneck((2,), 0), "positive sizes"),
        (lambda: sf.nets.Bottleneck((2,), 1)(torch.zeros(1, 3)), "built for samples of shape"),
    ]
    for call, words in cases:
        with pytest.raises(SfumatoError, match=words):
            call()
