"""Distillation from a file alone: the student of a small teacher comes near to its flow."""

import pytest
import torch

import sfumato as sf
from sfumato.distillation import distill, drawn, ladder, loss_named
from sfumato.flow_map import FlowMap
from sfumato.training.console import Silent


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> sf.Denoiser:
    """Two classes at (-20, 0) and (20, 5), of deviation 3 and 1."""
    torch.manual_seed(0)
    label = torch.arange(1000) % 2
    x = torch.randn(1000, 2) * torch.where(label == 0, 3.0, 1.0)[:, None]
    x = x + torch.tensor([[-20.0, 0.0], [20.0, 5.0]])[label]
    out = tmp_path_factory.mktemp("teacher") / "run"
    names = ["left" if each == 0 else "right" for each in label.tolist()]
    run = sf.train(x, out, labels=names, net="tiny", steps=300, sample_every=0, console=Silent())
    return run.denoiser


def test_from_the_file_alone(teacher: sf.Denoiser, tmp_path: object) -> None:
    path = sf.save(teacher, f"{tmp_path}/teacher.safetensors")
    run = distill(path, f"{tmp_path}/student", samples=512, steps=200, guidance=1.5, sample_every=0, console=Silent())
    student = run.denoiser
    assert isinstance(student, FlowMap) and student.calls == (1, 2, 4)
    label = ["left", "right"] * 128
    rungs = {(rung.calls, rung.how): rung.rms for rung in ladder(student, sf.guide(teacher, 1.5), (1, 4), label=label)}
    assert rungs[1, "student"] < 0.5 * rungs[1, "default"]
    x = sf.sample(student, 64, label="left")
    assert (x[:, 0] < 0).float().mean() > 0.9
    again = sf.load(run.path)
    assert torch.equal(sf.sample(again, 8, label="right"), sf.sample(student, 8, label="right"))


def test_what_the_teacher_draws(teacher: sf.Denoiser) -> None:
    x, label = drawn(teacher, 10, 0)
    assert x.shape == (10, 2) and label == ["left", "right"] * 5


def test_mistakes(teacher: sf.Denoiser, tmp_path: object) -> None:
    with pytest.raises(sf.SfumatoError, match="no method"):
        loss_named("magic", teacher)
    with pytest.raises(sf.SfumatoError, match="no method"):
        loss_named("denoising", teacher)
    with pytest.raises(sf.SfumatoError, match="denoiser"):
        distill(sf.exact.GaussianMixture([1.0], [[0.0]], [[[1.0]]]).denoiser(sf.Gaussian("flow")))
