"""What a denoiser keeps of a time is what it would compute anew, and belongs to its process, target and device."""

import copy

import torch

from sfumato import Denoiser
from sfumato.process import Gaussian
from sfumato.schedules import EDM, Cosine, Flow


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.7))

    def forward(self, z, level):
        return torch.sin(self.scale * z) + level.reshape(-1, *[1] * (z.ndim - 1))


def same(a, b):
    for name in ("x", "eps", "v", "velocity", "alpha", "sigma", "t", "logsnr"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=0)


def test_a_time_asked_again_gives_the_same_belief():
    z = torch.linspace(-2, 2, 12).reshape(3, 4)
    for curve in (Cosine(), Flow(), EDM()):
        for target in ("x", "v", "F"):
            model = Denoiser(Net(), Gaussian(curve), target)
            for t in (1.0, 0.5, 0.0, 0):
                first = model(z, t)
                same(model(z, t), first)
                same(model(z, torch.tensor(float(t))), first)  # a tensor is never kept


def test_another_process_or_target_is_read_anew():
    z = torch.ones(2, 3)
    model = Denoiser(Net(), Gaussian(Cosine()), "v")
    model(z, 0.4)
    model.process = Gaussian(Flow())
    same(model(z, 0.4), Denoiser(Net(), Gaussian(Flow()), "v")(z, 0.4))
    model.process = Gaussian(Flow(), "x")
    same(model(z, 0.4), Denoiser(Net(), Gaussian(Flow()), "x")(z, 0.4))
    model.process = Gaussian(Flow(), "x", 0.5)
    same(copy.deepcopy(model)(z, 0.4), Denoiser(Net(), Gaussian(Flow()), "x", 0.5)(z, 0.4))


def test_gradients_after_inference():
    """What was kept under inference_mode serves a backward pass."""
    model = Denoiser(Net(), Gaussian(Cosine()), "v")
    z = torch.ones(2, 3)
    with torch.inference_mode():
        model(z, 0.3).x.sum()
    model(z, 0.3).x.sum().backward()
    kept = model.net.scale.grad.clone()
    model.net.scale.grad = None
    model(z, torch.tensor(0.3, dtype=torch.float64)).x.sum().backward()
    torch.testing.assert_close(kept, model.net.scale.grad, rtol=0, atol=0)
