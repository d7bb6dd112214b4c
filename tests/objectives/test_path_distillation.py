"""Paths of a teacher that are kept: the exact map is their fixed point, and the teacher walks each of them once."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import sfumato as sf
from map_cases import LAW, ExactMap, batch
from sfumato.conditions import Conditions
from sfumato.distributed import ALONE
from sfumato.errors import SfumatoError
from sfumato.flow_map import FlowMap
from sfumato.objectives.flow_maps import Semigroup
from sfumato.objectives.path_distillation import PathDistillation, pseudo_huber
from sfumato.training.console import Silent


def samples(count: int, first: int = 0, **cond: Any) -> SimpleNamespace:
    found = batch(LAW, count)
    found.index, found.cond, found.world = found.index + first, Conditions(cond), ALONE
    return found


def test_the_exact_map_is_the_fixed_point() -> None:
    """Up to the error of a method of second order, whose square falls sixteenfold as its steps double, whatever the
    schedules."""
    exact: Any = ExactMap(LAW, sf.Gaussian("cosine"))
    found = []
    for steps in (24, 48, 96):
        loss = PathDistillation(
            LAW.denoiser(sf.Gaussian("flow")), paths=16, every=1, steps=steps, calls=(1, 2, 4), huber=0
        )
        found.append(float(loss.losses(exact, samples(64)).mean()))
    assert found[2] < 1e-6 and found[0] > 8 * found[1] > 64 * found[2]
    doubled: Any = SimpleNamespace(process=exact.process, mean=lambda *args, **cond: 1.1 * exact.mean(*args, **cond))
    assert float(loss.losses(doubled, samples(64)).mean()) > 1e-3, "and of no other map"


def test_the_error_of_a_path_that_is_not_kept_is_that_of_direct_distillation() -> None:
    torch.manual_seed(0)
    teacher = LAW.denoiser(sf.Gaussian("flow"))
    model = FlowMap.student(sf.Denoiser(sf.nets.MLP(2, 16, 1), sf.Gaussian("flow", target="F")))
    ours, direct = PathDistillation(teacher, steps=4), Semigroup(teacher, short="teacher", cut=1.0, steps=4)
    path, _ = ours.paths(model, samples(16))
    found = ours.error(model, path)
    assert torch.allclose(found, direct.error(model, path)) and float(found.mean()) > 1e-3


def test_the_loss_of_a_large_error_has_its_least_at_a_median() -> None:
    """And that of a small one is its square; where three of four targets agree, the answer is theirs."""
    small, large = torch.full((2, 5), 1e-3), torch.full((2, 5), 10.0)
    assert torch.allclose(pseudo_huber(small, 0.05), small.square().mean(1), rtol=1e-3)
    assert torch.allclose(pseudo_huber(large, 0.05), 0.1 * large.mean(1), rtol=1e-2)
    assert torch.equal(pseudo_huber(large, 0.0), large.square().mean(1))
    answers, target = torch.linspace(-1, 1, 201)[:, None], torch.tensor([0.0, 0.0, 0.0, 1.0])
    for huber, least in ((0.05, 0.0), (0.0, 0.25)):
        found = pseudo_huber((answers - target).T[..., None].flatten(0, 1), huber).reshape(4, -1).mean(0)
        assert abs(float(answers[found.argmin()]) - least) < 0.03, huber


class Counting:
    """A teacher that says how many samples it was asked of, and with which labels."""

    def __init__(self) -> None:
        self.process, self.model = sf.Gaussian("flow"), LAW.denoiser(sf.Gaussian("flow"))
        self.labels: list[torch.Tensor] = []

    def __call__(self, z: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> sf.Estimate:
        self.labels.append(label)
        return self.model(z, t)


def test_each_path_is_walked_once_under_its_own_conditions() -> None:
    torch.manual_seed(0)
    teacher, net = Counting(), sf.nets.MLP(2, 16, 1, classes=3)
    model = FlowMap.student(sf.Denoiser(net, sf.Gaussian("flow", target="F")))
    loss = PathDistillation(teacher, paths=8, every=1, steps=4)
    label = torch.arange(8) % 3
    first = loss.losses(model, samples(8, label=label))
    assert len(teacher.labels) == 4 and all(torch.equal(each, label) for each in teacher.labels)
    first.sum().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in model.net.parameters())
    later = samples(8, 8, label=torch.zeros(8, dtype=torch.int64))
    found = loss.losses(model, later)
    assert len(teacher.labels) == 4 and torch.equal(loss._conditions(torch.arange(8))["label"], label)
    again = PathDistillation(teacher, paths=8, every=1, steps=4)
    again.load(loss.tensors())
    assert len(again.tensors()["w"]) == 8
    parts = [samples(8, 8, label=later.cond["label"]) for _ in range(2)]
    for part, rows in zip(parts, (slice(0, 3), slice(3, 8)), strict=True):
        part.x, part.u, part.index, part.cond = part.x[rows], part.u[rows], part.index[rows], part.cond.rows(rows)
    whole = torch.cat([again.losses(model, part) for part in parts])
    assert torch.allclose(whole, found, atol=1e-6) and len(teacher.labels) == 4, "a checkpoint holds the paths"


def test_one_sample_of_so_many_walks_a_new_path_and_the_others_learn_from_those_before() -> None:
    torch.manual_seed(0)
    teacher = Counting()
    model = FlowMap.student(sf.Denoiser(sf.nets.MLP(2, 16, 1, classes=3), sf.Gaussian("flow", target="F")))
    loss = PathDistillation(teacher, paths=40, every=2, steps=2)
    walked = []
    for first in range(0, 128, 16):
        which, new = loss._which(torch.arange(first, first + 16)), {0: 0, 16: 16, 64: 32}.get(first)
        assert new is None or which[:8].tolist() == list(range(new, new + 8))
        loss.losses(model, samples(16, first, label=torch.arange(first, first + 16) % 3))
        walked.append(sum(len(each) for each in teacher.labels) // 2)
    assert walked == [16, 32, 32, 32, 40, 40, 40, 40]
    assert int(loss._which(torch.arange(32, 64)).max()) < 32, "of those before"
    later = loss._which(torch.arange(72, 4072))
    assert torch.bincount(later, minlength=40).min() > 60 and int(later.max()) == 39, "all are learned from alike"
    of = torch.cat((torch.arange(32), torch.arange(64, 72)))
    assert torch.equal(loss._conditions(torch.arange(40))["label"], of % 3)


def test_numbers_of_calls_are_learned_from_as_often_as_their_steps_are_long() -> None:
    """Of calls (1, 2, 4) four, two and one of seven, and the steps of one number alike."""
    loss = PathDistillation(LAW.denoiser(sf.Gaussian("flow")), steps=8, calls=(1, 2, 4, 3))
    first, last = loss._ends(torch.arange(14000))
    wanted = {(k, k + long): 125 * long**2 for long in (8, 4, 2) for k in range(0, 8, long)}
    found = {(k, end): int(((first == k) & (last == end)).sum()) for k, end in wanted}
    assert sum(found.values()) == 14000
    assert all(abs(found[each] - wanted[each]) < 5 * wanted[each] ** 0.5 for each in wanted), found


def test_held_out_samples_are_measured_from_the_ends_of_the_teachers_paths() -> None:
    """Walked in the steps of those that are kept, once; the exact map is there but for their error, and no other is."""
    process, teacher = sf.Gaussian("flow"), Counting()
    exact: Any = ExactMap(LAW, process)
    other: Any = SimpleNamespace(process=process, mean=lambda *args, **cond: 1.1 * exact.mean(*args, **cond))
    found = []
    for steps in (16, 32, 64):
        loss, part, asked = PathDistillation(teacher, steps=steps, calls=(1, 2)), samples(64), len(teacher.labels)
        part.cond = Conditions({"label": torch.zeros(64, dtype=torch.int64)})
        found.append(float(loss.held(exact, part).mean()))
        assert float(loss.held(other, part).mean()) > 1e-3 and len(teacher.labels) == asked + steps
    assert found[2] < 1e-5 and found[0] > 6 * found[1] > 36 * found[2]


def test_mistakes() -> None:
    model = FlowMap.student(sf.Denoiser(sf.nets.MLP(2, 8, 1), sf.Gaussian("flow")))
    with pytest.raises(sf.SfumatoError, match="teacher"):
        PathDistillation().suits(model)
    with pytest.raises(sf.SfumatoError, match="paths"):
        PathDistillation(LAW.denoiser(sf.Gaussian("flow")), paths=0)
    with pytest.raises(sf.SfumatoError, match="huber"):
        PathDistillation(LAW.denoiser(sf.Gaussian("flow")), huber=-1)
    many = samples(4)
    many.world = SimpleNamespace(size=2)
    with pytest.raises(sf.SfumatoError, match="in one process"):
        PathDistillation(LAW.denoiser(sf.Gaussian("flow"))).losses(model, many)


def test_a_run_goes_on_exactly(tmp_path: Path) -> None:
    """Stopped before all its paths are walked."""
    words = {"sample_every": 0, "snapshots": 0, "batch": 16, "console": Silent(), "precision": "float32"}
    x = LAW.sample(256, 0).float()
    file = sf.train(x, tmp_path / "teacher", net="MLP(width=16, depth=1)", steps=20, **words).path
    how = {"method": "path-distillation(paths=48)", "calls": (1, 2), "decay": 0.0, "samples": 64, **words}
    whole = sf.distill(file, tmp_path / "whole", steps=6, **how)
    sf.distill(file, tmp_path / "parts", steps=1, **how)
    parts = sf.resume(tmp_path / "parts", steps=6, console=Silent())
    ours, theirs = (dict(run.denoiser.net.state_dict()) for run in (whole, parts))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("huber", [-1.0, 1e-300, 1e20, float("inf"), float("nan")])
def test_a_threshold_at_which_nothing_is_learned_is_refused(huber: float) -> None:
    with pytest.raises(SfumatoError, match="from 1e-6 to 1e6"):
        PathDistillation(LAW.denoiser(sf.Gaussian("flow")), huber=huber)
