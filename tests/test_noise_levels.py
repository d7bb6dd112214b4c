"""A network is asked at noise levels that it was trained at: their range belongs to the model and its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sfumato as sf
from sfumato.errors import SfumatoError
from sfumato.files import read_sealed, write_sealed
from sfumato.objectives import times
from sfumato.objectives.density import drawn_levels
from sfumato.process import Gaussian, Masked, Product
from sfumato.schedules import Cosine, Flow

CENTRES = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
STEPS = 400


class Echo(nn.Module):
    """Answers with the noise level that it heard."""

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return level.to(x)[:, None].expand_as(x)


@pytest.fixture(scope="module")
def classes() -> dict[str, np.ndarray]:
    label = np.arange(900) % 3
    x = CENTRES[torch.from_numpy(label)] + 0.3 * torch.randn(900, 2, generator=torch.Generator().manual_seed(0))
    return {"x": x.numpy(), "label": label}


@pytest.fixture(scope="module")
def run(classes: dict[str, np.ndarray], tmp_path_factory: Any) -> Any:
    return sf.train(
        classes, steps=STEPS, net="tiny", out=str(tmp_path_factory.mktemp("levels") / "run"), sample_every=0
    )


def test_beyond_its_levels_a_network_hears_the_nearer_end() -> None:
    plain, held = sf.Denoiser(Echo(), Gaussian(Flow())), sf.Denoiser(Echo(), Gaussian(Flow()), noise_levels=(-0.9, 0.8))
    t, z = torch.tensor([0.0, 1e-6, 0.3, 0.7, 0.999, 1.0]), torch.randn(6, 2)
    assert torch.equal(held.predict(z, t), plain.predict(z, t).clamp(-0.9, 0.8))
    assert torch.equal(held.predict(z, t)[2:4], plain.predict(z, t)[2:4])  # within them nothing changes
    assert float(plain.predict(z, 1.0)[0, 0]) == 5 and float(held.predict(z, 1.0)[0, 0]) == pytest.approx(0.8)
    assert float(held.scaling(1.0, z.device)[1]) == pytest.approx(0.8)


@pytest.mark.parametrize("levels", [(0.8, -0.9), (0.5, 0.5), (0.0, float("inf")), (float("nan"), 1.0)])
def test_levels_that_are_no_range_are_refused(levels: tuple[float, float]) -> None:
    with pytest.raises(SfumatoError, match="the lower first"):
        sf.Denoiser(Echo(), Gaussian(Flow()), noise_levels=levels)


@pytest.mark.parametrize("name", ["logit-normal", "uniform", "uniform-logsnr", "edm", "mode", "cosmap"])
def test_all_but_a_few_draws_lie_between_the_drawn_levels(name: str) -> None:
    density, process = times.named(name), Gaussian(Cosine())
    low, high = drawn_levels(density, process)
    u = torch.rand(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = -density.logsnr(u, process.schedule) / 8
    assert 2e-5 < float((drawn < low).double().mean()) < 3e-4
    assert 2e-5 < float((drawn > high).double().mean()) < 3e-4


def test_a_density_that_moves_draws_all_levels_and_a_product_hears_its_first_part() -> None:
    process = Product({"kind": Masked(Flow(), 3), "height": Gaussian(Flow())})
    assert drawn_levels(times.named("adaptive"), Gaussian(Flow())) == (-15 / 8, 15 / 8)
    assert drawn_levels(times.named("uniform"), process) == drawn_levels(times.named("uniform"), Masked(Flow(), 3))


def test_the_first_call_knows_the_class(run: Any) -> None:
    """At t = 1 the mean of x given its class is the class's own: less than 2/3 of the error at an unheard level."""
    model = run.denoiser
    known, error = model.noise_levels, {}
    assert known == drawn_levels(times.named("logit-normal"), model.process)
    z = torch.randn(256, 2, generator=torch.Generator().manual_seed(2))
    try:
        for levels in (known, None):
            model.noise_levels = levels
            wrong = [
                model(z, 1.0, label=torch.full((256,), k)).x - model.spec.normalise(CENTRES[k : k + 1])
                for k in range(3)
            ]
            error[levels] = float(torch.stack(wrong).square().mean().sqrt())
    finally:
        model.noise_levels = known
    assert error[known] < 2 / 3 * error[None]


def test_the_range_is_in_the_file_and_found_for_files_without_it(run: Any, tmp_path: Path) -> None:
    levels = run.denoiser.noise_levels
    assert sf.load(run.path).noise_levels == levels
    contract, tensors = read_sealed(run.path / "model.safetensors")
    assert tuple(contract["model"]["args"].pop("noise_levels")) == levels
    write_sealed(tmp_path / "old.safetensors", tensors, contract)
    assert sf.load(tmp_path / "old.safetensors").noise_levels == levels
    del contract["provenance"]["times"]
    write_sealed(tmp_path / "bare.safetensors", tensors, contract)
    assert sf.load(tmp_path / "bare.safetensors").noise_levels is None


def test_unknown_levels_stay_unknown(run: Any, classes: dict[str, np.ndarray], tmp_path: Path) -> None:
    """A loss with levels of its own does not draw by `times`; and a density may be one that is not registered here."""
    bound = sf.train(classes, loss="vlb", steps=2, net="tiny", out=str(tmp_path / "vlb"), sample_every=0)
    assert bound.denoiser.noise_levels is None and sf.load(bound.path).noise_levels is None
    contract, tensors = read_sealed(run.path / "model.safetensors")
    del contract["model"]["args"]["noise_levels"]
    contract["provenance"]["times"] = "mine(2)"
    write_sealed(tmp_path / "own.safetensors", tensors, contract)
    assert sf.load(tmp_path / "own.safetensors").noise_levels is None


def test_training_on_widens_the_range(run: Any, classes: dict[str, np.ndarray], tmp_path: Path) -> None:
    more = sf.train(classes, init=run.denoiser, times="edm", steps=2, out=str(tmp_path / "more"), sample_every=0)
    first, edm = run.denoiser.noise_levels, drawn_levels(times.named("edm"), run.denoiser.process)
    assert more.denoiser.noise_levels == (edm[0], edm[1])
    assert edm[0] < first[0] and edm[1] > first[1]
