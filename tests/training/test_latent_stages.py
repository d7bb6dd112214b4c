"""Runs of two stages: the autoencoder, then the denoiser of its codes."""

import shutil

import pytest
import torch

import sfumato as sf
from consoles import Heard
from sfumato.data import DataSpec
from sfumato.errors import SfumatoError
from sfumato.nets import Autoencoder
from sfumato.noise import TRAIN_NOISE, Noise
from sfumato.training import codes
from sfumato.training.batches import Batches
from sfumato.training.console import Silent
from sfumato.training.run import Interrupted

ROOT = torch.randn(3, 6, generator=torch.Generator().manual_seed(2))
X = torch.randn(300, 3, generator=torch.Generator().manual_seed(0)) @ ROOT
HOW = {
    "batch": 16, "net": "MLP(width=16, depth=1)", "precision": "float32", "snapshots": 0, "sample_every": 0,
    "reconstruction": 0.0, "holdout": 0.2,
}  # fmt: skip
NET = "Autoencoder(latent=2, channels=())"


def train(out, data=X, console=None, **changes):
    return sf.train(data, out, console=console or Silent(), **{"steps": 20, **HOW, **changes})


def principal(scale: float = 1.0) -> sf.Codec:
    """The first three principal components of the data, with noise of 0.1 in the codes, all times a scale."""
    spec = DataSpec.fit(sf.data.open(X))
    axes = torch.linalg.eigh(spec.normalise(X).T.cov()).eigenvectors[:, -3:].T
    net = Autoencoder((6,), 3, (), variance=0.01)
    with torch.no_grad():
        net.encoder.output.weight.copy_(torch.cat([scale * axes, torch.zeros(3, 6)]))
        net.encoder.output.bias.copy_(torch.tensor([0.0] * 3 + [2 * torch.tensor(0.1 * scale).log()] * 3))
        net.decoder.output.weight.copy_(axes.T / scale)
        net.decoder.output.bias.zero_()
    return sf.Codec(net, spec)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of both stages that nothing disturbed."""
    return train(tmp_path_factory.mktemp("whole") / "run", latent=True, autoencoder=NET)


def weights(path) -> dict[str, torch.Tensor]:
    model = sf.load(path)
    return {**model.inner.state_dict(), **{f"ae.{k}": v for k, v in model.autoencoder.state_dict().items()}}


def same(one, other) -> bool:
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_one_command_trains_both_and_one_file_holds_them(whole, tmp_path) -> None:
    assert isinstance(whole.denoiser, sf.Latent)
    assert whole.metrics[-1]["step"] == 12  # three fifths of the budget
    assert sf.training.run.folder.read(whole.path / "autoencoder" / "metrics.jsonl")[-1]["step"] == 8
    shutil.copy(whole.path / "model.safetensors", tmp_path / "alone.safetensors")
    model = sf.load(tmp_path / "alone.safetensors")
    x = sf.sample(model, 8, 4)
    assert x.shape == (8, 6) and torch.equal(x, sf.sample(whole.denoiser, 8, 4))
    assert torch.allclose(x[2:5], sf.sample(model, index=[2, 3, 4], steps=4), atol=1e-4)


@pytest.mark.parametrize("stage", ["autoencoder", "denoiser"])
def test_a_run_goes_on_with_the_stage_that_was_stopped(stage, whole, tmp_path) -> None:
    out = tmp_path / "run"

    class Stops(Heard):
        def __call__(self, progress):
            done = (out / "autoencoder" / "latents.npy").exists()
            if progress.step == 4 and done == (stage == "denoiser"):
                raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=str(out)):
        train(out, console=Stops(), latent=True, autoencoder=NET)
    moved = out.rename(tmp_path / "elsewhere")
    sf.resume(moved, X, console=Silent())
    assert same(moved, whole.path)


def test_another_autoencoder_after_the_codes_is_refused_by_hash(whole, tmp_path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(out, console=Heard(4), autoencoder=principal())
    file = out / "autoencoder" / "model.safetensors"
    before = codes.file_hash(file)
    sf.save(principal(2.0), file)
    with pytest.raises(SfumatoError, match=f"begins with {codes.file_hash(file)[:12]}, and was {before[:12]}"):
        sf.resume(out, X, console=Silent())
    for name in ("latents.npy", "latents.json"):  # the checkpoint knows it too
        (out / "autoencoder" / name).unlink()
    with pytest.raises(SfumatoError, match=f"was {before[:12]}"):
        sf.resume(out, X, console=Silent())


def test_an_autoencoder_times_37_trains_to_the_same_loss(tmp_path) -> None:
    losses = [
        [line["loss"] for line in train(tmp_path / str(scale), autoencoder=principal(scale)).metrics if "loss" in line]
        for scale in (1.0, 37.0)
    ]
    assert len(losses[0]) > 1
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_codes_are_drawn_anew_in_each_epoch_and_stored_as_they_would_be_computed(tmp_path) -> None:
    codec, source = principal(), sf.data.open(X)
    place = sf.save(codec, tmp_path / "model.safetensors")
    kept = codes.stored(place, source, codec)
    assert torch.allclose(kept, codes.encoded(codec, X), atol=1e-6)
    train_rows, _ = source.split(0.2)
    spec = codes.spec_of(kept, codec, codec.spec, train_rows)
    law = kept[train_rows, :3].double()
    wanted = (law.var(0, correction=0) + 0.01).sqrt()  # Var of the mean, and the mean of the variance
    assert torch.allclose(torch.tensor(spec.normaliser.std, dtype=torch.float64), wanted, rtol=1e-5)
    model = sf.Latent(GAUSS, codec)
    model.inner.spec = spec
    batches = Batches(codes.Codes(kept[:10], 3), None, model.spec, 0, 0.0, torch.device("cpu"))
    epochs = [batches.take(start, 10) for start in (0, 10)]
    order = [torch.argsort(batches.rows(start, 10)) for start in (0, 10)]
    (one, *_), (other, *_) = epochs
    one, other = one[order[0]], other[order[1]]  # the same samples
    noise = (one - other) * torch.tensor(spec.normaliser.std) / 0.1
    assert 0.8 < float(noise.std()) / 2**0.5 < 1.3
    again = batches.take(3, 4)[0]  # a draw belongs to the number of the sample in the run
    assert torch.equal(again, epochs[0][0][3:7])
    rows = batches.rows(3, 4)
    eps = Noise(0, torch.arange(3, 7), TRAIN_NOISE).fold("code").normal((3,))
    assert torch.allclose(again, spec.normalise(kept[rows, :3] + 0.1 * eps), atol=1e-6)


GAUSS = sf.Denoiser(sf.nets.MLP(3, 8, 1), sf.Gaussian(sf.schedules.LogLinear(-9.0, 9.0)))


def test_an_autoencoder_that_reconstructs_or_spreads_badly_is_refused(tmp_path) -> None:
    with pytest.raises(SfumatoError, match=r"explains -?\d.* and at least 99\.\d%"):
        train(tmp_path / "floor", latent=True, autoencoder=NET, reconstruction=0.999)
    source, codec = sf.data.open(X), principal()
    place, (rows, held) = sf.save(codec, tmp_path / "model.safetensors"), source.split(0.2)
    kept = codes.stored(place, source, codec)
    spec = codes.spec_of(kept, codec, codec.spec, rows)
    assert codes.check(codec, kept, spec, source, held, 0.99) > 0.99
    wide = kept.clone()
    wide[held] *= 1.6
    with pytest.raises(SfumatoError, match="instead of 1"):
        codes.check(codec, wide, spec, source, held, 0.0)
    still = kept.clone()
    still[:, 1], still[:, 4] = 0.0, -torch.inf
    with pytest.raises(SfumatoError, match="Channel 1 of the codes is the same"):
        codes.check(codec, still, codes.spec_of(still, codec, codec.spec, rows), source, held, 0.0)


def test_what_is_no_latent_run_is_refused_in_a_sentence(tmp_path, whole) -> None:
    with pytest.raises(SfumatoError, match="holds a Denoiser"):
        path = sf.save(GAUSS, tmp_path / "denoiser.safetensors")
        train(tmp_path / "a", autoencoder=path)
    with pytest.raises(SfumatoError, match=r"takes samples of shape \(6,\)"):
        train(tmp_path / "b", data=X[:, :4], autoencoder=principal())
    with pytest.raises(SfumatoError, match="make another"):
        train(tmp_path / "c", autoencoder=principal(), loss="autoencoding", net=NET)
