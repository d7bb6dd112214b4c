"""Small models of many kinds, each with the contract that its file holds."""

from pathlib import Path
from typing import Any

import torch

import sfumato as sf
from sfumato import schedules
from sfumato.data import DataSpec
from sfumato.denoising_autoencoder import DenoisingAutoencoder, GaussianNoise
from sfumato.process import Masked, Product, Uniform

OLD = Path(__file__).parent.parent / "fixtures"
FLOW = schedules.Flow()


def mlp(dim: int, **args: Any) -> sf.nets.MLP:
    torch.manual_seed(0)
    net = sf.nets.MLP(dim, 8, 1, **args)
    for part in net.parameters():
        torch.nn.init.normal_(part, std=0.1)
    return net


def full() -> sf.Denoiser:
    """One with everything that a contract can hold: conditions of three kinds, two plans, provenance."""
    draw = torch.Generator().manual_seed(0)
    x, mass, way = (torch.randn(60, *shape, generator=draw).numpy() for shape in ((2,), (), (3,)))
    spec = DataSpec.fit(sf.data.open({"x": x, "label": ["a", "b", "c"] * 20, "mass": mass + 300, "way": way}))
    kinds = {name: each.network() for name, each in spec.conditions.items()}
    process = sf.Gaussian(schedules.Shifted(schedules.Cosine(0.01), 2.0))
    model = sf.Denoiser(mlp(2, conditions=kinds), process, "v", 0.9, spec)
    model.plans = {"ode": sf.solvers.Multistep(order=2).plan(process, 3), "sde": sf.solvers.DDPM().plan(process, 2)}
    model.provenance = {
        "seed": 5, "samples_seen": 1234, "guidance": 2.0, "times": "logit-normal", "weight": "plain", "holdout": 0.1,
        "data": "x", "samples": 60, "steps": 3, "seconds": 1.0, "precision": "float32", "threads": 1,
    }  # fmt: skip
    return model


def product() -> sf.Denoiser:
    parts = Product({"x": sf.Gaussian(FLOW), "label": Masked(FLOW, 2)}, {"x": (2,), "label": (1,)})
    return sf.Denoiser(mlp(parts.net_shape()[0]), parts)


def guided() -> sf.Guided:
    inner = sf.Denoiser(mlp(3, classes=2), sf.Gaussian(FLOW), "v")
    return sf.Guided(sf.Rescheduled(inner, schedules.EDM()), 2.0, (-4.0, 6.0))


def transformer() -> sf.Denoiser:
    return sf.Denoiser(sf.nets.DiT((1, 8, 8), width=16, depth=1, heads=2, patch=2, classes=2), sf.Gaussian(FLOW))


def unet() -> sf.Denoiser:
    return sf.Denoiser(sf.nets.UNet((1, 8, 8), (8, 16), 1, (1,)), sf.Gaussian(schedules.VE()), "F")


def autoencoder() -> DenoisingAutoencoder:
    return DenoisingAutoencoder(sf.nets.Bottleneck((4,), 2, (8,)), GaussianNoise(0.3))


MADE = {
    "full": full, "guided": guided, "product": product, "transformer": transformer, "unet": unet,
    "masked": lambda: sf.Denoiser(mlp(6), Masked(FLOW, 3)), "uniform": lambda: sf.Denoiser(mlp(6), Uniform(FLOW, 3)),
    "autoencoder": autoencoder,
}  # fmt: skip
WRITTEN = ("v1_classes", "v1_codec", "v1_energy", "v1_learned_variance")
