"""An adversary on the teacher's encoder: what it leaves alone, what it tells apart, and that a run with it is exact."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import sfumato as sf
from map_cases import LAW
from sfumato.conditions import Conditions
from sfumato.distributed import ALONE
from sfumato.objectives.adversary import Adversary
from sfumato.objectives.path_distillation import PathDistillation
from sfumato.process.angles import unit
from sfumato.training.console import Silent

NUMBERS = torch.arange(8)


def pictures(count: int, side: int = 8) -> Tensor:
    """uint8 squares of several sizes on black."""
    x = torch.zeros(count, 1, side, side, dtype=torch.uint8)
    for i in range(count):
        a = 1 + i % 3
        x[i, :, a : side - a, 1 + i % 2 : side - 2] = 120 + 15 * (i % 9)
    return x


def untrained() -> sf.Denoiser:
    torch.manual_seed(0)
    net = sf.nets.UNet((1, 8, 8), (8, 16), 1, attention=(1,))
    for p in net.parameters():
        p.data = p.data + 0.1 * torch.randn_like(p)
    return sf.Denoiser(net, sf.Gaussian("cosine", target="F")).eval()


def test_pairs_of_equal_samples_teach_the_heads_nothing_and_no_sample_is_moved() -> None:
    """So that a student at its teacher's paths stays there."""
    judge = Adversary(untrained(), 0)
    x = torch.randn(8, 1, 8, 8)
    assert not bool(judge.pull(x, x.clone(), NUMBERS, 0, Conditions({})).any()), "D is 0 at first"
    for head in judge.heads:
        torch.nn.init.normal_(head.last.weight)
    assert bool(judge.pull(x, x.clone(), NUMBERS, 0, Conditions({})).any())
    found = torch.autograd.grad(judge.losses(NUMBERS).sum(), list(judge.parameters()))
    assert max(float(each.abs().max()) for each in found) < 1e-6


def test_heads_learn_what_a_student_has_smoothed_away_and_pull_it_back() -> None:
    judge = Adversary(untrained(), 0)
    opt = torch.optim.AdamW(judge.parameters(), 3e-3)
    true = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    smooth = torch.nn.functional.avg_pool2d(true, 3, 1, 1)
    for step in range(40):
        index = torch.arange(8) + 8 * (step % 8)
        judge.pull(smooth[index], true[index], index + 64 * step, 0, Conditions({}))
        opt.zero_grad()
        judge.losses(index + 64 * step).mean().backward()
        opt.step()
        judge.end()
    pull = judge.pull(smooth[:8], true[:8], NUMBERS, 0, Conditions({}))
    before = float(judge.losses(NUMBERS).mean().detach())
    assert before < 0.3, "log 2 = .69 at first"
    moved = smooth[:8] - 0.5 * pull / pull.norm() * smooth[:8].norm()
    judge.pull(moved, true[:8], NUMBERS, 0, Conditions({}))
    assert float(judge.losses(NUMBERS).mean().detach()) > 2 * before, "what follows the pull is harder to tell"


def test_its_gradient_has_the_size_that_is_asked_for() -> None:
    teacher = untrained()
    teacher.spec = SimpleNamespace(kind="image", bounds=None)
    model: Any = sf.FlowMap.student(teacher, (1, 2), 0.0, "ddim")
    torch.nn.init.normal_(model.net.output.weight, std=0.1)
    grads: list[list[Tensor]] = []
    batch = SimpleNamespace(
        x=torch.randn(8, 1, 8, 8), index=NUMBERS, cond=Conditions({}), world=ALONE, u=torch.linspace(0, 1, 8)
    )
    seen = []
    for share in (0.0, 1.0, 2.0):
        loss = PathDistillation(teacher, paths=8, steps=2, calls=(1,), adversary=share, every=1, alone=0)
        loss.suits(model)
        for head in () if loss.judge is None else loss.judge.heads:
            torch.nn.init.constant_(head.last.weight, 0.3)
        outputs: list[Tensor] = []

        def kept(*args: Any, outputs: list[Tensor] = outputs, **cond: Any) -> Tensor:
            outputs.append(model.mean(*args, **cond))
            return outputs[-1]

        watched: Any = SimpleNamespace(process=model.process, spec=None, mean=kept)
        for _ in range(
            2
        ):  # the sizes of the gradients are those of the step before, and the first step sets the scales
            loss.observe(batch, loss.losses(watched, batch))
        outputs.clear()
        found = loss.losses(watched, batch)
        seen.append(found.detach())
        grads.append(list(torch.autograd.grad(found.sum(), outputs)))
    own, once, twice = (each[0] for each in grads)
    assert torch.allclose(seen[0], seen[1]), "its value is that of the error"
    assert abs(float((once - own).norm() / own.norm()) - 1) < 1e-4
    assert torch.allclose(twice - own, 2 * (once - own), rtol=1e-4, atol=1e-9)


def test_beyond_the_bounds_of_the_data_a_sample_has_no_error(tmp_path: Path) -> None:
    """As it is cut there: black may be said as anything below it."""
    run = sf.train(pictures(64), tmp_path / "t", net="tiny", steps=1, sample_every=0, snapshots=0, console=Silent())
    teacher = sf.load(run.path)
    model = sf.FlowMap.student(teacher, (1,), 0.0, "ddim")
    model.spec = teacher.spec
    loss = PathDistillation(teacher, paths=4, every=1, steps=2, calls=(1,), huber=0)
    batch = SimpleNamespace(
        x=torch.zeros(4, 1, 8, 8), index=torch.arange(4), cond=Conditions({}), world=ALONE, u=torch.rand(4)
    )
    loss.losses(model, batch)
    low = float(teacher.spec.normalise(torch.zeros(1, 1, 8, 8)).min())
    loss._kept["w"][:, -1] = low - 0.3  # the teacher's paths end below black
    process, theta = model.process, loss._angle(model, torch.zeros(4))
    for below, least, most in ((1.0, 0.0, 1e-12), (-0.5, 0.01, 1.0)):  # a student that ends below, and above black

        def ends(z: Tensor, t: Tensor, s: Tensor, end: float = low - below) -> Tensor:
            return (end - unit(process, z, t)) / theta[:, None, None, None]

        answer: Any = SimpleNamespace(process=process, spec=teacher.spec, mean=ends)
        assert least <= float(loss.losses(answer, batch).mean()) <= most


def test_a_run_goes_on_exactly(tmp_path: Path) -> None:
    words = {"sample_every": 0, "snapshots": 0, "batch": 16, "console": Silent(), "precision": "float32"}
    file = sf.train(pictures(64), tmp_path / "teacher", net="UNet(channels=[8, 8], blocks=1)", steps=3, **words).path
    method = "path-distillation(paths=48, every=4, steps=4, adversary=1, alone=32)"
    how = {"method": method, "calls": (1, 2), "decay": 0.0, "samples": 64, **words}
    whole = sf.distill(file, tmp_path / "whole", steps=7, **how)
    plain = sf.distill(
        file, tmp_path / "plain", steps=7, **{**how, "method": method.replace("adversary=1", "adversary=0")}
    )
    sf.distill(file, tmp_path / "parts", steps=3, **how)
    parts = sf.resume(tmp_path / "parts", steps=7, console=Silent())
    ours, theirs, without = (dict(run.denoiser.net.state_dict()) for run in (whole, parts, plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(not torch.equal(ours[name], without[name]) for name in ours), "and it does something"


def test_mistakes() -> None:
    with pytest.raises(sf.SfumatoError, match="U-Net"):
        Adversary(sf.Denoiser(sf.nets.MLP(2, 8, 1), sf.Gaussian("flow")), 0)
    with pytest.raises(sf.SfumatoError, match="adversary"):
        PathDistillation(LAW.denoiser(sf.Gaussian("flow")), adversary=-1)


def test_it_joins_little_by_little() -> None:
    teacher = untrained()
    loss = PathDistillation(teacher, paths=8, every=1, steps=2, calls=(1,), adversary=1.0, alone=16)
    model: Any = sf.FlowMap.student(teacher, (1,), 0.0, "ddim")
    loss.suits(model)
    for head in loss.judge.heads if loss.judge is not None else ():
        torch.nn.init.constant_(head.last.weight, 0.3)
    batch = SimpleNamespace(x=torch.randn(24, 1, 8, 8), index=torch.arange(24), cond=Conditions({}), world=ALONE)
    mean = torch.randn(24, 1, 8, 8).requires_grad_()
    answer: Any = SimpleNamespace(process=model.process, mean=lambda *args, **cond: mean)
    for _ in range(2):
        loss.observe(batch, loss.losses(answer, batch))
    (grad,) = torch.autograd.grad(loss.losses(answer, batch).sum(), mean)
    alone = PathDistillation(teacher, paths=8, every=1, steps=2, calls=(1,))
    (own,) = torch.autograd.grad(alone.losses(answer, batch).sum(), mean)
    part = (grad - own).flatten(1).norm(dim=1)
    assert not bool(part[:16].any()) and 0 < float(part[16]) and float(part[16]) < float(part[20:].mean())


def test_parts_of_a_batch_change_nothing(tmp_path: Path) -> None:
    words = {"sample_every": 0, "snapshots": 0, "batch": 16, "console": Silent(), "precision": "float32"}
    file = sf.train(pictures(64), tmp_path / "teacher", net="UNet(channels=[8, 8], blocks=1)", steps=3, **words).path
    how = {"method": "path-distillation(paths=48, every=4, steps=4, adversary=1, alone=0)", "calls": (1,), **words}
    found = [
        sf.distill(file, tmp_path / str(micro), pictures(64), steps=5, micro=micro, **how).denoiser.net.state_dict()
        for micro in (None, 4)
    ]
    assert max(float((found[0][name] - found[1][name]).abs().max()) for name in found[0]) < 1e-4
