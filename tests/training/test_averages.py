"""Averages of any width after the run: the least squares of the profiles, and what they make of weights."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import sfumato as sf
from sfumato import nets, noise
from sfumato.errors import SfumatoError
from sfumato.files import write_sealed
from sfumato.folder import step_of
from sfumato.model import Denoiser
from sfumato.objectives.losses import Plain
from sfumato.process import Gaussian
from sfumato.schedules import Flow
from sfumato.training import EMA, State, TrainConfig, averages
from sfumato.training.averages import Profile, combination, due, overlap
from sfumato.training.ema import exponent


@pytest.mark.parametrize("a", [Profile(3.0, 0.4), Profile(17.0, 1.0), Profile(0.5, 1.0)])
@pytest.mark.parametrize("b", [Profile(6.9, 1.0), Profile(2.0, 0.7)])
def test_overlap_by_quadrature(a, b):
    n = (np.arange(400_000) + 0.5) / 400_000

    def p(of):
        return np.where(n <= of.samples, (of.gamma + 1) * (n / of.samples) ** of.gamma / of.samples, 0.0)

    assert overlap(a, b) == pytest.approx((p(a) * p(b)).mean(), rel=1e-4)


def test_a_width_that_is_known_is_itself():
    known = [Profile(exponent(w), n) for n in (0.5, 1.0) for w in averages.WIDTHS]
    c, error = combination(known, Profile(exponent(0.05), 1.0))
    np.testing.assert_allclose(c, [0, 0, 1, 0], atol=1e-9)
    assert error < 1e-6


@pytest.mark.parametrize(("width", "limit"), [(0.03, 0.05), (0.06, 0.005), (0.08, 0.005), (0.15, 0.02), (0.2, 0.07)])
def test_snapshots_of_the_default_number_make_other_widths(width, limit):
    count = TrainConfig().snapshots
    known = [Profile(exponent(w), math.sqrt((k + 1) / count)) for k in range(count) for w in averages.WIDTHS]
    c, error = combination(known, Profile(exponent(width), 1.0))
    assert sum(c) == pytest.approx(1) and error < limit


def test_snapshots_fall_where_they_should():
    edges = [n / 1000 for n in range(1001)]
    hits = [b for a, b in zip(edges, edges[1:], strict=False) if due(a, b, 8)]
    assert len(hits) == 8 and hits[-1] == 1.0
    assert all(abs(h - math.sqrt((k + 1) / 8)) < 2e-3 for k, h in enumerate(hits))
    assert not any(due(a, b, 0) for a, b in zip(edges, edges[1:], strict=False))


def test_the_reconstructed_average_is_the_one_that_was_followed(tmp_path):
    """Weights that wander, 400 steps of a random walk: width 0.08 is made from snapshots of two others."""
    torch.manual_seed(0)
    model = Denoiser(nets.MLP(3, width=8, depth=1), Gaussian(Flow()), "velocity")
    direct, two, steps, batch = EMA(model, 0.08), [EMA(model, w) for w in averages.WIDTHS], 400, 64
    for step in range(1, steps + 1):
        with torch.no_grad():
            for i, p in enumerate(model.net.parameters()):
                p += 0.1 * noise.normal(step, [i], p.shape, noise.DATA)[0]
        for each in (direct, *two):
            each.update((step - 1) * batch, step * batch)
        if due((step - 1) / steps, step / steps, 8):
            averages.write(tmp_path, averages.tensors(two), step, step * batch)
    parts = [(load_file(path), *each) for path in averages.found(tmp_path) for each in averages.contents(path)]
    assert len(parts) == 16 and parts[-1][1].samples == steps * batch
    c, _ = combination([profile for _, profile, _ in parts], Profile(exponent(0.08), steps * batch))
    for name, wanted in direct.state_dict().items():
        made = sum(w * read[start + name].double() for w, (read, _, start) in zip(c, parts, strict=True))
        assert float((made - wanted).norm() / wanted.norm()) < 0.01, name


def test_a_run_gives_a_model_of_any_width(tmp_path):
    x = noise.normal(0, range(200), (4,), noise.DATA).numpy()
    run = sf.train(x, out=str(tmp_path / "run"), steps=60, net="tiny", precision="float32")
    assert len(averages.found(run.path)) == 8
    made = averages.average(run.path, 0.06)
    mine, own = made.net.state_dict(), run.denoiser.net.state_dict()
    gap = sum(float((mine[n] - own[n]).square().sum()) for n in own)
    assert math.sqrt(gap / sum(float(own[n].square().sum()) for n in own)) < 0.01
    assert made.provenance["average"]["width"] == 0.06
    with pytest.raises(SfumatoError, match="cannot reconstruct an average of width 0.001"):
        averages.average(run.path, 0.001)
    bare = sf.train(x, out=str(tmp_path / "bare"), steps=3, net="tiny", snapshots=0, precision="float32")
    with pytest.raises(SfumatoError, match="kept no snapshots"):
        averages.average(bare.path, 0.1)


def test_a_snapshot_holds_each_average_in_half_precision_where_that_can_hold_it(tmp_path):
    weights = {"w": torch.randn(8, 40), "large": torch.tensor([1e6 + 64, -3.0]), "count": torch.tensor(70_000)}
    made = {f"{width:g}.{name}": value + width for width in averages.WIDTHS for name, value in weights.items()}
    made |= {name: weights["count"] for name in ("0.05.count", "0.1.count")}
    path = averages.write(tmp_path, made, 10, 640)
    assert path.stat().st_size < 2 * 2 * 320 + 1500
    assert averages.found(tmp_path) == [path] and path.name == "step_00000010.safetensors"
    assert averages.contents(path) == [(Profile(exponent(width), 640), f"{width:g}.") for width in averages.WIDTHS]
    read = load_file(path)
    assert read.keys() == made.keys()
    for name, value in made.items():
        assert torch.equal(read[name], value.half() if name.endswith(".w") else value)


def test_snapshots_of_a_part_of_the_run_that_was_lost_are_deleted(tmp_path):
    for step in (1, 2, 3, 4, 3):
        averages.write(tmp_path, {"0.05.w": torch.ones(3), "0.1.w": torch.ones(3)}, step, 10 * step)
    assert [step_of(path) for path in averages.found(tmp_path)] == [1, 2, 3]


def test_snapshots_of_an_earlier_version_are_refused_and_do_not_stop_the_run(tmp_path):
    path = tmp_path / averages.FOLDER / "step_00000002.safetensors"
    contract = {"format": "sfumato averages", "step": 2, "samples": 20, "widths": [0.05, 0.1], "base": None}
    write_sealed(path, {"0.05.whole.w": torch.ones(3).half(), "0.1.whole.w": torch.ones(3).half()}, contract)
    averages.write(tmp_path, {"0.05.w": torch.ones(3), "0.1.w": torch.ones(3)}, 3, 30)
    with pytest.raises(SfumatoError, match=r"step_00000002.safetensors was written by another version of sfumato"):
        averages.average(tmp_path, 0.06)


def test_a_swap_ends_with_its_block():
    torch.manual_seed(0)
    model = Denoiser(nets.MLP(3, width=8, depth=1), Gaussian(Flow()), "velocity")
    ema = EMA(model, 0.06)
    ema.update(0, 1)
    with torch.no_grad():
        for p in model.net.parameters():
            p += 1
    raw = {n: v.clone() for n, v in model.net.state_dict().items()}
    mean = {n: v.clone() for n, v in ema.state_dict().items()}
    held = model.net  # whoever holds the network sees the average within the block
    with pytest.raises(RuntimeError, match="within"), ema.swapped():
        assert all(torch.equal(v, mean[n]) for n, v in held.state_dict().items())
        raise RuntimeError("within")
    assert all(torch.equal(v, raw[n]) for n, v in model.net.state_dict().items())
    assert all(torch.equal(v, mean[n]) for n, v in ema.state_dict().items())
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in model.net.parameters())


class _Steps(nn.Module):
    """A model whose weights say which step made them: the k-th is 1 after step k, all others 0; the 0-th at first."""

    device = torch.device("cpu")

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.net = nn.Linear(steps + 1, 1, bias=False)
        self.after(0)

    def after(self, step: int) -> None:
        with torch.no_grad():
            self.net.weight.copy_(torch.eye(self.net.in_features)[step : step + 1])


@pytest.mark.parametrize("width", [0.001, 0.01, 0.05, 0.06, 0.1, 0.2, 0.28])
@pytest.mark.parametrize(("steps", "skipped"), [(10, 0), (1000, 0), (30, 2)])
def test_the_start_has_no_part_in_any_average(width, steps, skipped):
    """After a tenth of any run its weight is below 1 %, whatever `ema` is, also where the first steps are skipped."""
    config = TrainConfig(steps=steps, ema=width, optimizer="adamw")
    model = _Steps(steps)
    state = State(model, config, Plain(lambda model, batch: batch.x.mean(1)))
    for step in range(1, steps + 1):
        model.after(step)
        if step <= skipped:
            state.unseen += config.batch
            state.step, state.samples = step, state.samples + config.batch
            continue
        state.average(config.batch)
        for ema in (state.ema, *state.averages):
            weights = ema.denoiser.net.weight[0]
            assert float(weights[: skipped + 1].sum()) == 0.0 or step < steps / 10
            assert float(weights.sum()) == pytest.approx(1, abs=1e-4)
