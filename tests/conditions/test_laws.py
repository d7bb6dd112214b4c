"""Trained networks against the law that they were shown, p(x | c) = N(m(c), s(c)^2), for every kind of condition."""

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato import conditions, noise
from sfumato.conditions import Conditions
from sfumato.guidance import guide
from sfumato.objectives import denoising_loss
from sfumato.training.batches import dropped

COUNT, SHARE = 60_000, 0.1
NAMES = np.array(["tall", "warm", "old"])


def of_label(c):
    return np.array([2.0, 5.0, 9.0])[c], np.array([0.4, 0.8, 1.2])[c]


def of_set(flags):
    return 4 + flags @ np.array([2.0, -1.5, 1.0]), 0.6 * np.prod(np.where(flags, [1.6, 1.0, 0.7], 1), -1)


def of_kelvin(c):
    return 3 + 0.02 * (c - 200), 0.3 + 0.004 * (c - 200)


def of_vector(c):
    return 6 + 0.1 * (c[..., 0] - 50) + 8 * (c[..., 1] - 1), 0.6 * np.exp(0.03 * (c[..., 0] - 50))


def of_field(c):
    """x (.., 1, 8) about a field (.., 1, 4) of half its resolution, wider where the field is high."""
    wide = torch.nn.functional.interpolate(torch.from_numpy(c), size=8, mode="linear").numpy()
    return wide, 0.3 + 0.1 * c.mean((-1, -2), keepdims=True) + 0 * wide


def laws():
    """kind -> (column of conditions, means, widths, [(value to ask, mean, width)])."""
    draw = np.random.default_rng(0)
    label, flags = draw.integers(0, 3, COUNT), draw.random((COUNT, 3)) < 0.5
    kelvin, vectors = draw.uniform(200, 400, COUNT), draw.normal(size=(COUNT, 2)) * [10, 0.1] + [50, 1]
    fields = 1 + draw.normal(size=(COUNT, 1, 4))
    asked = {
        "label": [(k, k) for k in range(3)],
        "multilabel": [(NAMES[row].tolist(), row) for row in np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0]], dtype=bool)],
        "scalar": [(v, v) for v in (220.0, 300.0, 380.0)],
        "vector": [(v, v) for v in np.array([[45.0, 1.05], [58.0, 1.0], [50.0, 0.9]])],
        "field": [(v, v[None]) for v in np.array([[[0.0, 1.0, 2.0, 1.0]], [[2.0, 2.0, 0.5, 1.0]]])],
    }
    columns = {
        "label": (label, label, of_label), "multilabel": ([NAMES[row].tolist() for row in flags], flags, of_set),
        "scalar": (kelvin, kelvin, of_kelvin), "vector": (vectors, vectors, of_vector),
        "field": (fields, fields, of_field),
    }  # fmt: skip
    return {k: (column, *law(c), [(v, *law(a)) for v, a in asked[k]]) for k, (column, c, law) in columns.items()}


def network(kind: str, described: dict) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind == "field":
        return sf.nets.UNet((1, 8), (32,), 1, conditions={"c": described}, middle=0)
    return sf.nets.MLP(1, 64, 2, conditions={"c": described})


def trained(kind: str, steps: int, batch: int = 256, lr: float = 5e-3):
    """(model in deviations of the data, the condition, the mean and deviation of the data, what to ask)."""
    column, mean, width, asked = laws()[kind]
    draw = np.random.default_rng(1)
    x = torch.from_numpy(mean + width * draw.normal(size=np.shape(mean))).float()
    x = x[:, None] if x.ndim == 1 else x
    centre, scale = float(x.mean()), float(x.std())
    condition = conditions.fit(column, kind)
    known = Conditions({"c": condition.encode(column, COUNT)})
    net = network(kind, condition.network())
    model = sf.Denoiser(net, sf.Gaussian(sf.schedules.Flow()), "velocity")
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(0)
    mean_of = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))
    for i in range(steps):
        rows, index = torch.randint(0, COUNT, (batch,), generator=generator), torch.arange(i * batch, (i + 1) * batch)
        cond = dropped(known.rows(rows), noise.Noise(0, index, noise.DROP), SHARE)
        optimizer.param_groups[0]["lr"] = lr * min(1, 2 * (steps - i) / steps)
        optimizer.zero_grad()
        denoising_loss(model, (x[rows] - centre) / scale, index=index, cond=cond).mean().backward()
        optimizer.step()
        mean_of.update_parameters(net)
    net.load_state_dict(mean_of.module.state_dict())
    return model.eval(), condition, centre, scale, asked


def judge(kind: str, steps: int, off_by: float = 0.05, wide_by: float = 0.1) -> None:
    """Conditional means within 5 % of the data's deviation, widths within 10 %; the ends of guidance to 1e-6."""
    model, condition, centre, scale, asked = trained(kind, steps)
    n = 4000 if kind != "field" else 1500
    for value, mean, width in asked:
        x = sf.sample(model, n, cond={"c": condition.encode(value, n)}).double() * scale + centre
        off = (x.mean(0) - torch.as_tensor(mean).reshape(model.shape)).abs() / scale
        assert off.mean() < off_by, (kind, value, off)
        ratio = x.std(0) / torch.as_tensor(width).reshape(-1)[:1].reshape(1, *[1] * (x.ndim - 2))
        assert abs(float(ratio.mean()) - 1) < wide_by, (kind, value, ratio)
    z, t = torch.randn(5, *model.shape, generator=torch.Generator().manual_seed(3)), torch.linspace(0.1, 0.9, 5)
    given = condition.encode(asked[0][0], 5)
    with torch.no_grad():
        for scale, wanted in ((0.0, model(z, t)), (1.0, model(z, t, c=given))):
            for scales in (scale, {"c": scale}):
                assert (guide(model, scales)(z, t, c=given).eps - wanted.eps).abs().max() < 1e-6, (kind, scale)
        apart = model(z, t, c=given).eps - model(z, t).eps
        assert apart.abs().max() > 0.05, f"{kind}: the condition says something"


def test_a_number_moves_the_mean_and_the_width():
    judge("scalar", 600, 0.12, 0.2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["label", "multilabel", "scalar", "vector", "field"])
def test_every_kind_moves_the_mean_and_the_width(kind):
    judge(kind, 2500 if kind != "field" else 1000)
