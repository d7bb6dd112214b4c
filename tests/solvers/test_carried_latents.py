"""E4: the latents of a RIN are carried by the walk from call to call; without them it is the plain network."""

import pytest
import torch
from torch import nn

import sfumato as sf
from sfumato.conditions import CARRIED, Conditions, Given
from sfumato.errors import SfumatoError
from sfumato.nets import RIN, UNet
from sfumato.objectives.loss import Batch
from sfumato.objectives.losses import Denoising, SelfConditioned
from sfumato.solvers import DDPM, Multistep

SHAPE = (1, 6, 6)


def network(trained: bool = True, classes: int = 2) -> RIN:
    """A small RIN; trained: no parameter is zero, so that it hears what is carried."""
    torch.manual_seed(0)
    net = RIN(SHAPE, 2, 32, 4, 32, 1, 1, classes)
    if trained:
        for p in net.parameters():
            nn.init.normal_(p, std=0.2)
    return net.eval()


def denoiser(trained: bool = True) -> sf.Denoiser:
    return sf.Denoiser(network(trained), sf.Gaussian(sf.schedules.Cosine(), "v"))


def start(n: int = 5) -> torch.Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(1))


class Forgetful:
    """The same model without memory: it is never told what was carried."""

    def __init__(self, inner):
        self.inner, self.process, self.shape = inner, inner.process, inner.shape

    def __call__(self, z, t, /, **cond):
        return self.inner(z, t, **sf.conditions.uncarried(cond))


def test_absent_latents_are_the_plain_network_and_latents_start_the_next_call():
    net, x, level = network(), start(3), torch.linspace(-1, 1, 3)
    plain, latents = net(x, level, carry=True)
    assert torch.equal(plain, net(x, level)) and latents.shape == (3, 4, 32)
    known = {CARRIED: torch.tensor([True, False, True])}
    warm = net(x, level, carried=latents, present=known)
    assert torch.equal(warm[1], plain[1])
    assert (warm - plain).abs().flatten(1).amax(1)[[0, 2]].min() > 1e-3
    alone = net(x[:1], level[:1], carried=latents[:1])
    torch.testing.assert_close(alone, warm[:1], rtol=1e-5, atol=1e-5)
    new = network(trained=False)  # before training the latents of any call are ignored
    assert torch.equal(new._begun(3, latents, None), new.latents.expand(3, -1, -1))


def test_no_gradient_flows_into_the_call_before():
    net, level = network(), torch.zeros(2)
    _, latents = net(start(2), level, carry=True)
    assert latents.requires_grad
    latents.retain_grad()
    net(start(2), level, carried=latents).square().sum().backward()
    assert latents.grad is None and all(p.grad.abs().sum() > 0 for p in (net.scale.weight, net.warm.first.weight))


def test_the_walk_carries_them_from_call_to_call():
    model, calls = denoiser(), []
    model.net.register_forward_pre_hook(lambda m, args, kw: calls.append(kw.get(CARRIED)), with_kwargs=True)
    walk = Multistep(2).plan(model.process, 4).start(model, start())
    beliefs = []
    with torch.no_grad():
        while not walk.done:
            beliefs.append(walk.advance())
    assert calls[0] is None
    for told, before in zip(calls[1:], beliefs, strict=False):
        assert torch.equal(told, before.carried)
    forgetful = sf.sample(Forgetful(model), solver=Multistep(2).plan(model.process, 4), z=start())
    assert float((walk.z - forgetful).abs().max()) > 0.01


def test_an_untrained_memory_changes_nothing():
    """A RIN that was never trained with carried latents samples as without them."""
    model = denoiser(trained=False)
    nn.init.normal_(model.net.output.weight, std=0.2)
    plan = Multistep(2).plan(model.process, 4)
    assert torch.equal(sf.sample(model, solver=plan, z=start()), sf.sample(Forgetful(model), solver=plan, z=start()))


def test_each_row_keeps_its_latents_however_the_batch_is_split():
    model = denoiser()
    plan, z = Multistep(2).plan(model.process, 5), start()
    with torch.no_grad():
        *_, whole = plan.run(model, z)
        walk = plan.start(model, z)
        walk.advance()
        walk.advance([0, 3])
        walk.advance([3, 1])
        walk.select([3, 1, 0, 3])
        while not walk.done:
            walk.advance()
    torch.testing.assert_close(walk.z, whole.z[[3, 1, 0, 3]], rtol=1e-4, atol=1e-5)
    noisy = DDPM().plan(model.process, 4)
    both = [sf.sample(model, 6, solver=noisy, seed=2, batch=batch, label=1) for batch in (6, 2)]
    torch.testing.assert_close(both[0], both[1], rtol=1e-4, atol=1e-5)


def test_guidance_tells_both_beliefs_the_latents_of_the_conditional_one():
    model, calls = denoiser(), []
    model.net.register_forward_pre_hook(lambda m, args, kw: calls.append(kw.get(CARRIED)), with_kwargs=True)
    walk = Multistep(2).plan(model.process, 3).start(sf.guide(model, 2.0), start(), label=torch.tensor([0, 1, 0, 1, 0]))
    with torch.no_grad():
        first = walk.advance()
        walk.advance()
        conditional = model(start(), walk.plan.moments[0], label=torch.tensor([0, 1, 0, 1, 0]))
    torch.testing.assert_close(first.carried, conditional.carried, rtol=1e-4, atol=1e-5)
    assert torch.equal(calls[1], torch.cat([first.carried, first.carried]))


def test_experts_do_not_hear_the_latents_of_each_other():
    torch.manual_seed(1)
    other = sf.Denoiser(UNet(SHAPE, (16,), 1, classes=2), sf.Gaussian(sf.schedules.Cosine(), "v"))
    found = sf.sample(sf.Experts(denoiser(), other, 0.0), 3, steps=4, solver="ddim")
    assert found.isfinite().all()


def batch(n: int = 400) -> Batch:
    x = torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(3))
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return Batch(x, Conditions({"label": torch.arange(n) % 2}), torch.arange(n), u)


def test_training_gives_latents_to_a_share_of_the_samples():
    """With share 0.9 nine in ten losses are those with the latents of a first call, the others the plain ones."""
    model, data = denoiser(), batch()
    loss = SelfConditioned(sf.times.logit_normal(), None, 0, share=0.9)
    plain = Denoising(sf.times.logit_normal(), None, 0)
    loss.suits(model)
    with torch.no_grad():
        heard = (loss.losses(model, data) - plain.losses(model, data)).abs() > 1e-7
    assert abs(float(heard.double().mean()) - 0.9) < 0.05
    told = loss.told(model, data, torch.full((len(data.x),), 0.5, dtype=torch.float64))
    assert isinstance(told[CARRIED], Given) and torch.equal(told[CARRIED].present, heard)
    assert not told[CARRIED].values.requires_grad
    with pytest.raises(SfumatoError, match="share"):
        SelfConditioned(sf.times.logit_normal(), None, 0, share=0.0)


def test_a_run_trains_it_and_its_file_samples(tmp_path):
    x = torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(5))
    net = "RIN(width=16, latents=4, inner=16, depth=1, layers=1)"
    sf.train(
        {"x": x}, tmp_path / "run", loss="self-conditioned(share=0.9)", net=net, steps=3, batch=16, sample_every=0,
        precision="float32", snapshots=0,
    )  # fmt: skip
    model = sf.load(tmp_path / "run")
    assert model.carries and not model.remembers and "previous" not in model.net.given
    assert float(model.net.scale.weight.detach().abs().max()) > 0  # what is carried is heard by now
    both = [sf.sample(model, 4, steps=3, seed=1, batch=size) for size in (4, 2)]
    torch.testing.assert_close(both[0], both[1], rtol=1e-4, atol=1e-5)
