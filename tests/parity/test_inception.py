"""Inception features are those of pytorch-fid and of torch-fidelity, with the same weights in all of them
(pip install pytorch-fid torch-fidelity)."""

import pytest
import torch
from torch import Tensor

from inception_cases import weights as random_weights
from sfumato.features import applied, build
from sfumato.metrics import FD

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Random weights that keep the size of what passes through, and a classifier of 1,008 classes."""
    return {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008), **random_weights()}


def pictures(n: int, side: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(n, 3, 5, 5, generator=generator)
    return (255 * torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")).clamp(0, 255).byte()


@pytest.fixture(scope="module")
def ours(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(weights, path)
    return path, build(path, (3, 48, 48), (0, 255))


def test_features_and_fid_are_those_of_pytorch_fid(weights, ours, monkeypatch):
    theirs = pytest.importorskip("pytorch_fid.inception")
    score = pytest.importorskip("pytorch_fid.fid_score")
    monkeypatch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: weights)  # instead of the download
    net, x = theirs.InceptionV3([3]).eval(), pictures(6, 48)
    with torch.no_grad():
        expected = net(x / 255)[0].flatten(1).double()
    found = applied(ours[1], x)
    assert float(expected.std()) > 0.1 and float((found - expected).abs().max()) < 1e-3
    # FID needs more pictures than features: of the first four features here
    a, b, c, d = (part[:, :4] for part in (found, expected, found[:5] + 0.1, expected[:5] + 0.1))
    (m, s), (m2, s2) = ((part.mean(0).numpy(), part.T.cov().numpy()) for part in (b, d))
    assert FD()(a, c).value == pytest.approx(score.calculate_frechet_distance(m, s, m2, s2), rel=1e-3, abs=1e-3)


def test_the_network_is_that_of_torch_fidelity(ours):
    """Which resizes in another way, and scales bytes to (x - 128) / 128: pictures of 299 x 299, scaled so."""
    theirs = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    net = theirs.FeatureExtractorInceptionV3("inception", ["2048"], str(ours[0]))
    x = pictures(2, 299)
    with torch.no_grad():
        (expected,) = net(x)
        found = ours[1].net((x.float() - 128) / 128)
    assert float(expected.std()) > 0.1 and float((found - expected).abs().max()) < 1e-3
