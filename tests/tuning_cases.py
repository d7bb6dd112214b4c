"""What the tests of tuning share."""

import torch

import sfumato as sf


def network() -> sf.Denoiser:
    """A network of float32 with classes and weights that are not zero, in the units of its data."""
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    spec = sf.data.DataSpec.fit(sf.data.open(x, labels=["a", "b", "c"] * 20))
    torch.manual_seed(0)
    net = sf.nets.MLP(3, width=16, depth=2, classes=3)
    torch.nn.init.normal_(net.output.weight, std=0.3)
    return sf.Denoiser(net, sf.Gaussian(sf.schedules.Cosine()), "v", 1.0, spec).eval().requires_grad_(False)
