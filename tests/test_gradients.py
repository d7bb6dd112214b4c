"""E1: gradients through sampling, of the whole walk or its last calls, with checkpointing or without."""

import math

import pytest
import torch

import sfumato as sf
from sfumato.belief import Estimate
from sfumato.compose import Unrolled
from sfumato.errors import SfumatoError
from sfumato.process import Gaussian
from sfumato.sampling import trajectory
from sfumato.schedules import VE, Cosine, Flow
from sfumato.solvers import DDPM, Heun, Multistep, UniPC

F64 = torch.float64
SOLVERS = {"multistep": Multistep(3), "heun": Heun(), "unipc": UniPC(2), "ddpm": DDPM()}


class Linear(torch.nn.Module):
    """E[x|z] of data N(theta, v): linear in theta. The flow's map is Phi = theta + (z - alpha theta) sd(s) / sd(t)."""

    def __init__(self, curve, theta=(0.3, -0.7), v=0.25):
        super().__init__()
        self.process, self.shape, self.v = Gaussian(curve), (2,), v
        self.theta = torch.nn.Parameter(torch.tensor(theta, dtype=F64))

    def gain(self, t):
        alpha, sigma = (float(c) for c in self.process.schedule(t))
        return alpha * self.v / (alpha**2 * self.v + sigma**2)

    def forward(self, z, t):
        alpha, sigma = self.process.schedule(t)
        x = self.theta + alpha * self.v / (alpha**2 * self.v + sigma**2) * (z - alpha * self.theta)
        return Estimate(z, t, self.process.schedule, x=x)


class Deep(Linear):
    """The same with a layer whose activations weigh more than the state."""

    def __init__(self, curve, width=400):
        super().__init__(curve)
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.Tanh(), torch.nn.Linear(width, 2)).double()

    def forward(self, z, t):
        return Estimate(z, t, self.process.schedule, x=super().forward(z, t).x + 0.1 * self.net(z.double()))


def prior(model, n=5):
    return model.process.prior(torch.randn(n, 2, dtype=F64, generator=torch.Generator().manual_seed(0)))


def sample(model, *given, grad_calls=None, checkpoint=True, **how):
    """Samples of a model, which have gradients where `grad_calls` says through which of its calls."""
    model = model if grad_calls is None else sf.differentiable(model, grad_calls, checkpoint)
    return sf.sample(model, *given, **how)


def gradient(model, **options):
    model.zero_grad()
    sample(model, **options).square().sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("curve", [Flow(), VE(), Cosine()], ids=lambda c: type(c).__name__)
def test_the_gradient_is_that_of_the_flow(curve):
    """dPhi/dtheta = alpha_s - alpha_t sd_s / sd_t, approached at the solver's order."""
    model = Linear(curve)
    z, stop = prior(model), float(curve.time(4.0))
    start = float(curve.time(-3.0))
    (a_t, s_t), (a_s, s_s) = (tuple(map(float, curve(t))) for t in (start, stop))
    exact = a_s - a_t * math.sqrt((a_s**2 * model.v + s_s**2) / (a_t**2 * model.v + s_t**2))
    errors = []
    for steps in (20, 40, 80):
        x = sample(model, z=z, steps=steps, solver=Multistep(2), t_start=start, t_stop=stop, grad_calls="all")
        (found,) = torch.autograd.grad(x.sum(0)[0], model.theta)
        errors.append(abs(float(found[0]) / len(z) - exact))
        assert float(found[1]) == 0
    assert errors[-1] < 1e-3 * abs(exact)
    assert math.log2(errors[1] / errors[2]) > 1.6


@pytest.mark.parametrize("calls", [1, 3, 8])
def test_the_last_calls_alone(calls):
    """The recursion of the table by hand: dz_{k+1} = sum a_kj dz_j + sum b_kj dx_j, dx_j = 0 before the last K."""
    model = Linear(Cosine())
    plan = Multistep(2).plan(Cosine(), 8)
    (found,) = torch.autograd.grad(
        sample(model, z=prior(model), solver=plan, grad_calls=calls)[:, 0].sum(), model.theta
    )
    dz, dx = [0.0], []
    for k, (t, line) in enumerate(zip(plan.times, plan.lines, strict=True)):
        gain = model.gain(t)
        dx.append(gain * dz[k] + 1 - gain * float(Cosine().alpha(t)) if k >= plan.calls - calls else 0.0)
        dz.append(sum(c * dz[j] for j, c in line.z.items()) + sum(c * dx[j] for j, c in line.x.items()))
    assert float(found[0]) / 5 == pytest.approx(dz[-1], rel=1e-10)


def test_all_calls_are_more_than_the_last_ones():
    model = Deep(Flow())
    options = {"n": 4, "steps": 6, "solver": Multistep(2)}
    whole = gradient(model, grad_calls="all", **options)
    torch.testing.assert_close(gradient(model, grad_calls=6, **options), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient(model, grad_calls=60, **options), whole, rtol=1e-12, atol=1e-12)
    assert float((gradient(model, grad_calls=2, **options) - whole).abs().max()) > 1e-3


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("calls", ["all", 3])
def test_checkpointed_is_full(name, calls):
    model = Deep(Flow())
    options = {"z": prior(model, 6), "steps": 5, "solver": SOLVERS[name], "batch": 4, "grad_calls": calls}
    full, checked = (gradient(model, checkpoint=c, **options) for c in (False, True))
    assert float(full.abs().max()) > 1e-2
    torch.testing.assert_close(checked, full, rtol=1e-10, atol=1e-10)
    plain = sample(model, **{**options, "grad_calls": None})
    torch.testing.assert_close(sample(model, **options).detach(), plain, rtol=1e-12, atol=1e-12)


def kept(model, **options):
    """Bytes that the graph of a sample keeps, each storage once."""
    seen = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        x = sample(model, **options)
    return sum(seen.values()), x


def test_memory_is_that_of_few_calls():
    """What is kept: every activation without checkpointing; with it the states; the last calls alone with K."""
    model = Deep(Flow())
    options = {"z": prior(model, 64), "steps": 12, "solver": Multistep(2)}
    full, a = kept(model, grad_calls="all", checkpoint=False, **options)
    checked, b = kept(model, grad_calls="all", checkpoint=True, **options)
    short, c = kept(model, grad_calls=2, checkpoint=False, **options)
    assert checked < full / 10 and short < full / 4
    for other in (b, c):
        torch.testing.assert_close(other, a, rtol=1e-12, atol=1e-12)


def test_the_noise_itself_has_a_gradient():
    """dPhi/dz = sd_s / sd_t of the whole walk; of its last calls none."""
    model = Linear(Flow()).requires_grad_(False)
    z = prior(model).requires_grad_()
    x = sample(model, z=z, steps=200, solver=Multistep(2), t_stop=0.1, grad_calls="all")
    (found,) = torch.autograd.grad(x.sum(), z)
    exact = math.sqrt(0.9**2 * model.v + 0.1**2)
    torch.testing.assert_close(found, torch.full_like(z, exact), rtol=1e-3, atol=0)
    assert not sample(model, z=z, steps=5, grad_calls=2).requires_grad


def test_nothing_is_differentiated_unless_asked():
    model = Linear(Flow())
    assert not sample(model, 3, steps=3).requires_grad
    assert sample(model, 3, steps=3, grad_calls=1).requires_grad
    assert all(state.z.requires_grad == (state.t == 0) for state in trajectory(sf.differentiable(model, 1), 3, 3))


def test_user_units_are_not_rounded_where_there_is_a_gradient():
    x = torch.randint(0, 256, (50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    spec = sf.data.DataSpec.fit(sf.data.open(x))
    torch.manual_seed(0)
    net = sf.nets.MLP(3, width=8, depth=1)
    torch.nn.init.normal_(net.output.weight)
    model = sf.Denoiser(net, sf.Gaussian(sf.schedules.Flow()), "v", 1.0, spec)
    smooth, plain = sample(model, 4, steps=3, grad_calls=1), sample(model, 4, steps=3)
    assert smooth.requires_grad and smooth.dtype == torch.float32 and plain.dtype == torch.uint8
    assert torch.equal(smooth.detach().clamp(*spec.bounds or (0, 255)).round().to(torch.uint8), plain)
    smooth.sum().backward()
    assert float(net.output.weight.grad.abs().max()) > 0


@pytest.mark.parametrize("wrong", [0, -1, "last", 1.5])
def test_mistakes(wrong):
    with pytest.raises(SfumatoError, match="grad_calls"):
        sample(Linear(Flow()), 2, steps=2, grad_calls=wrong)


def test_variance_is_still_known():
    law = sf.exact.GaussianMixture([1.0], [[0.0, 0.0]], 0.5)
    model = law.denoiser(Gaussian(Flow()))
    z = prior(model)
    torch.testing.assert_close(Unrolled(model)(z, 0.4).variance, model(z, 0.4).variance)
