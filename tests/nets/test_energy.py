"""An energy network: a gradient field in every target and precision, in training, sampling and from a file."""

import copy
import json

import pytest
import torch

import sfumato as sf
from sfumato.errors import SfumatoError
from sfumato.nets import MLP, DiT, Energy, UNet, build, from_config

F64 = torch.float64
INNER = {
    "mlp": lambda: MLP(5, 16, 2, classes=2),
    "unet": lambda: UNet((2, 3, 4), (16, 16), 1, [1], head_dim=8, classes=2),
    "dit": lambda: DiT((1, 6), 2, 8, 1, 1, classes=2),
}
every = pytest.mark.parametrize("make", INNER.values(), ids=INNER)


def filled(net, seed=0, scale=0.3):
    """The network as if it had learned: no parameter is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p += scale * torch.randn(p.shape, generator=generator, dtype=F64).to(p)
    return net.eval()


def jacobian(function, z):
    """df/dz of one sample, (D, D)."""
    return torch.autograd.functional.jacobian(lambda z: function(z).flatten(), z).reshape(z.numel(), z.numel())


def asymmetry(j):
    """|J - J^T| / |J|."""
    return float((j - j.mT).norm() / j.norm())


@every
def test_the_jacobian_is_symmetric_and_that_of_a_free_network_is_not(make):
    free = filled(make().double())
    net, label, level = Energy(free), torch.tensor([1]), torch.tensor([0.4], dtype=F64)
    x = torch.randn(1, *free.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    assert asymmetry(jacobian(lambda x: net(x, level, label), x)) < 1e-14
    assert asymmetry(jacobian(lambda x: free(x, level, label), x)) > 0.05


@every
def test_the_output_is_the_gradient_of_the_energy(make):
    """By central differences of E, which know nothing of autograd."""
    net, level = Energy(filled(make().double())), torch.tensor([-0.3, 0.8], dtype=F64)
    g = torch.Generator().manual_seed(2)
    x, v = (torch.randn(2, *net.shape, generator=g, dtype=F64) for _ in range(2))
    with torch.no_grad():
        slope = (net.energy(x + 1e-5 * v, level) - net.energy(x - 1e-5 * v, level)) / 2e-5
        torch.testing.assert_close((net(x, level) * v).flatten(1).sum(1), slope, rtol=1e-7, atol=1e-8)


def test_the_line_integral_around_a_loop_is_zero_and_that_of_a_free_network_is_not():
    """int <y, dx> along a circle: the curl that passes through it."""
    free = filled(MLP(2, 24, 2).double())
    angle = torch.arange(200, dtype=F64) * (2 * torch.pi / 200)
    x, dx = torch.stack((angle.cos(), angle.sin()), 1), torch.stack((-angle.sin(), angle.cos()), 1) * 2 * torch.pi / 200
    level = torch.zeros(200, dtype=F64)
    around = {name: float((net(x, level) * dx).sum().detach()) for name, net in (("E", Energy(free)), ("f", free))}
    assert abs(around["E"]) < 1e-10 < 0.01 < abs(around["f"])


@pytest.mark.parametrize("target", ["x", "eps", "score", "v", "velocity", "F"])
def test_the_score_of_any_target_is_conservative(target):
    """d score / dz = the Hessian of log p_t, symmetric; and the energy is what the score is the gradient of."""
    schedule = sf.schedules.LogLinear(-6.0, 6.0)
    denoiser = sf.Denoiser(Energy(filled(MLP(3, 16, 2).double())), sf.Gaussian(schedule), target, sigma_data=0.7)
    z = torch.randn(1, 3, generator=torch.Generator().manual_seed(3), dtype=F64)
    for t in (0.1, 0.5, 0.9):
        assert asymmetry(jacobian(lambda z, t=t: denoiser(z, t).score, z)) < 1e-12
        own = z.clone().requires_grad_()
        (slope,) = torch.autograd.grad(sf.energy(denoiser, own, t).sum(), own)
        torch.testing.assert_close(-slope, denoiser(z, t).score, rtol=1e-10, atol=1e-10)


def test_zero_at_first_and_able_to_learn():
    net = build((1, 4, 4), size="tiny", energy=True)
    x, level = torch.randn(2, 1, 4, 4), torch.zeros(2)
    assert torch.equal(net(x, level), torch.zeros_like(x))
    net(x, level).square().sum().backward()  # of zero: only that it runs
    (net(x, level) - x).square().sum().backward()
    assert float(net.net.output.weight.grad.abs().max()) > 0


def test_modes_of_autograd_agree():
    """Training, no_grad and inference mode give one output; only the first has a graph to the weights and to x."""
    net = filled(Energy(MLP(3, 16, 1, classes=2)))
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(4))
    level, label = torch.zeros(4), torch.zeros(4, dtype=torch.int64)
    y = net(x, level, label)
    assert y.requires_grad
    with torch.no_grad():
        still = net(x, level, label)
    assert not still.requires_grad
    torch.testing.assert_close(still, y.detach(), rtol=1e-5, atol=1e-6)
    with torch.inference_mode():
        torch.testing.assert_close(net(x.clone(), level.clone(), label.clone()), still, rtol=1e-5, atol=1e-6)
    assert x.grad is None and all(p.grad is None for p in net.parameters())
    own = x.clone().requires_grad_()
    y = net(own, level, label)
    (first,) = torch.autograd.grad(y.square().sum(), own)
    assert float(first.abs().max()) > 0
    net.requires_grad_(False)  # as a loaded model is
    torch.testing.assert_close(net(x, level, label), still, rtol=1e-5, atol=1e-6)


def test_training_gradients_are_those_of_finite_differences():
    """d|y|^2/dw, which is a second derivative of E."""
    net = filled(Energy(MLP(2, 8, 1)).double())
    x, level = torch.randn(3, 2, generator=torch.Generator().manual_seed(5), dtype=F64), torch.zeros(3, dtype=F64)
    net(x, level).square().sum().backward()
    p = net.net.layers[0].first.weight
    found, slope = float(p.grad[0, 1]), []
    for h in (1e-5, -1e-5):
        with torch.no_grad():
            p[0, 1] += h
            slope.append(float(net(x, level).square().sum()))
            p[0, 1] -= h
    assert found == pytest.approx((slope[0] - slope[1]) / 2e-5, rel=1e-6)


def test_precisions():
    """float32 is close to float64; bfloat16 under autocast to both; the output has the type of the input."""
    double = filled(Energy(MLP(4, 32, 2)).double(), scale=0.1)
    single = copy.deepcopy(double).float()
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(6), dtype=F64)
    wanted = double(x, torch.zeros(6, dtype=F64)).detach()
    found = single(x.float(), torch.zeros(6)).detach()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    denoiser = sf.Denoiser(single, sf.Gaussian(sf.schedules.Flow()))
    exact = denoiser.predict(x.float(), 0.5).detach()
    denoiser.compute_dtype = torch.bfloat16
    low = denoiser.predict(x.float(), 0.5)
    off = float(((low - exact).norm() / exact.norm()).detach())
    assert low.dtype == torch.float32 and 0 < off < 0.02
    low.sum().backward()


def test_attention_over_many_tokens_trains():
    """The fused kernel, which runs beyond 512 tokens, has no second derivative."""
    net = filled(Energy(DiT((1, 520), patch=1, width=8, depth=1, heads=1)))
    net(torch.randn(1, 1, 520), torch.zeros(1)).square().sum().backward()
    assert float(net.net.blocks[0].qkv.weight.grad.abs().max()) > 0


def test_samples_differentiate_through_every_call():
    """The gradient of a walk with kept graphs is that of one that computes each call anew."""
    net = filled(Energy(MLP(2, 16, 1)).double())
    denoiser = sf.Denoiser(net, sf.Gaussian(sf.schedules.Cosine()))
    found = []
    for checkpoint in (False, True):
        net.zero_grad()
        model, z = sf.differentiable(denoiser, checkpoint=checkpoint), torch.ones(3, 2, dtype=F64)
        out = sf.sample(model, 3, 3, sf.solvers.DDIM(), z=z)
        out.square().sum().backward()
        found.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert found[0] and all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(*found, strict=True))


def test_likelihoods_take_it():
    """log p by the flow needs second derivatives of E at every node."""
    denoiser = sf.Denoiser(Energy(MLP(2, 16, 1)).double(), sf.Gaussian(sf.schedules.Cosine()))
    x = torch.tensor([[0.3, -0.4]], dtype=F64)
    found = sf.log_prob(denoiser, x, trace="exact", steps=32)  # an untrained v-network is the law N(0, 1)
    assert float(found.value) == pytest.approx(
        float(-0.5 * x.square().sum() - torch.log(torch.tensor(2 * torch.pi))), abs=1e-3
    )


def test_config_and_file(tmp_path):
    net = filled(build((1, 5, 6), classes=3, size="tiny", energy=True))
    again = from_config(json.loads(json.dumps(net.config)))
    assert isinstance(again, Energy) and again.config == net.config and again.shape == (1, 5, 6)
    denoiser = sf.Denoiser(net, sf.Gaussian(sf.schedules.Cosine()), "v")
    loaded = sf.load(sf.save(denoiser, tmp_path / "model.safetensors"))
    z, label = torch.randn(2, 1, 5, 6), torch.tensor([0, -1])
    assert torch.equal(loaded(z, 0.3, label=label).x, denoiser(z, 0.3, label=label).x.detach())
    assert torch.equal(sf.energy(loaded, z, 0.3, label=label), sf.energy(denoiser, z, 0.3, label=label).detach())


def test_mistakes():
    with pytest.raises(SfumatoError, match="outputs=1"):
        Energy(MLP(2, 8, 1, outputs=2))
    free = sf.Denoiser(MLP(2, 8, 1), sf.Gaussian(sf.schedules.Cosine()))
    z = torch.zeros(1, 2)
    with pytest.raises(SfumatoError, match="and this one has an MLP"):
        sf.energy(free, z, 0.5)
    held = sf.Denoiser(Energy(MLP(2, 8, 1)), sf.Gaussian(sf.schedules.Cosine()))
    with pytest.raises(SfumatoError, match="not a Rescheduled"):
        sf.energy(sf.Rescheduled(free, sf.schedules.Flow()), z, 0.5)
    with pytest.raises(SfumatoError, match="sigma = 0"):
        sf.energy(held, z, 0.0)
    plain = sf.Denoiser(Energy(torch.nn.Identity()), sf.Gaussian(sf.schedules.Cosine()))
    with pytest.raises(SfumatoError, match="property `config`"):
        sf.save(plain, "nowhere.safetensors")
