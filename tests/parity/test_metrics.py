"""The figures of prdc and torchmetrics on the same sets (pip install prdc torchmetrics)."""

import pytest
import torch

from sfumato.metrics import FD, KID, Coverage, Density, Precision, Recall

pytestmark = pytest.mark.parity


class Given(torch.nn.Module):
    """Features that are given as they are."""

    num_features = 8

    def forward(self, x):
        return x.flatten(1)


def sets(n: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.randn(2, n, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return 1.3 * drawn[0] + 0.4, drawn[1]


@pytest.mark.parametrize("k", [3, 5])
def test_balls_are_those_of_prdc(k):
    prdc = pytest.importorskip("prdc")
    x, y = sets()
    theirs = prdc.compute_prdc(y.numpy(), x.numpy(), nearest_k=k)
    for name, of in (("precision", Precision), ("recall", Recall), ("density", Density), ("coverage", Coverage)):
        assert of(k)(x, y).value == pytest.approx(float(theirs[name]), rel=1e-12), name


def test_fd_is_that_of_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")
    x, y = sets()
    theirs = fid.FrechetInceptionDistance(feature=Given(), normalize=True, input_img_size=(8,))
    theirs.set_dtype(torch.float64)
    theirs.update(y, real=True)
    theirs.update(x, real=False)
    assert FD()(x, y).value == pytest.approx(float(theirs.compute()), rel=1e-5)


def test_kid_is_that_of_torchmetrics():
    kid = pytest.importorskip("torchmetrics.image.kid")
    x, y = sets()
    theirs = kid.KernelInceptionDistance(feature=Given(), subsets=1, subset_size=len(x), normalize=True)
    theirs.real_features, theirs.fake_features = [y], [x]
    assert KID()(x, y).value == pytest.approx(float(theirs.compute()[0]), rel=1e-5)
