"""Laws that the tests of the exact models share."""

import pytest

from sfumato import schedules
from sfumato.exact import GaussianMixture
from sfumato.process import Gaussian

PROCESSES = {
    "vp": Gaussian(schedules.LinearBeta()),
    "subvp": Gaussian(schedules.SubVP()),
    "edm": Gaussian(schedules.EDM()),
    "flow": Gaussian(schedules.Flow()),
}


@pytest.fixture(params=PROCESSES)
def process(request):
    return PROCESSES[request.param]


@pytest.fixture
def mixture():
    """Three Gaussians in the plane with full covariances; the first two are class 0."""
    covs = [[[0.30, 0.25], [0.25, 0.40]], [[0.02, 0.00], [0.00, 1.50]], [[0.60, -0.30], [-0.30, 0.20]]]
    return GaussianMixture([0.2, 0.5, 0.3], [[-1.5, 0.5], [1.0, 0.0], [0.5, 2.0]], covs, labels=[0, 0, 1])


@pytest.fixture
def line():
    """Two Gaussians on a line."""
    return GaussianMixture([0.3, 0.7], [[-1.0], [0.8]], [0.05, 0.3])
