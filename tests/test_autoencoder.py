"""A codec: user units in and out, numbered codes, and its file."""

from pathlib import Path

import pytest
import torch

import sfumato as sf
from sfumato.data import DataSpec
from sfumato.nets import Autoencoder


@pytest.fixture(scope="module")
def pictures() -> tuple[torch.Tensor, DataSpec]:
    source = sf.data.open("digits")
    return source.x[:64], DataSpec.fit(source)


@pytest.mark.parametrize("bottleneck", ["kl", "vq"])
def test_units_are_the_users(pictures: tuple[torch.Tensor, DataSpec], bottleneck: str) -> None:
    x, spec = pictures
    codec = sf.Codec(Autoencoder(spec.shape, 3, (8, 8), bottleneck=bottleneck, codes=7), spec)
    y = codec.encode(x)
    assert y.shape == (64, *codec.latent_shape) == (64, 3, 4, 4)
    back = codec.decode(y)
    assert back.dtype == x.dtype and back.shape == x.shape and int(back.max()) <= 16
    inner = codec.net(spec.normalise(x))
    assert torch.equal(back, spec.denormalise(inner)) and torch.equal(codec(x), back)


def test_numbered_codes_are_all_that_is_kept(pictures: tuple[torch.Tensor, DataSpec]) -> None:
    x, spec = pictures
    codec = sf.Codec(Autoencoder(spec.shape, 3, (8, 8), bottleneck="vq", codes=7), spec)
    codes = codec.codes(x)
    assert codes.shape == (64, 4, 4) and codes.dtype == torch.int64
    assert torch.equal(codec.decode(codes), codec.decode(codec.encode(x)))


@pytest.mark.parametrize("bottleneck", ["kl", "vq"])
def test_a_file_gives_back_the_same_codec(
    pictures: tuple[torch.Tensor, DataSpec], bottleneck: str, tmp_path: Path
) -> None:
    x, spec = pictures
    codec = sf.Codec(Autoencoder(spec.shape, 3, (8, 8), bottleneck=bottleneck, codes=7), spec)
    codec.provenance = {"samples_seen": 123}
    path = sf.save(codec, tmp_path / "codec.safetensors")
    again = sf.load(path)
    assert again.spec == spec and again.provenance["samples_seen"] == 123 and not again.training
    assert torch.equal(again.encode(x), codec.encode(x)) and torch.equal(again(x), codec(x))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(sf.SfumatoError):
        sf.load(path)


def test_without_a_spec_units_are_plain(tmp_path: Path) -> None:
    codec, x = sf.Codec(Autoencoder((5,), 2, (8,))), torch.randn(3, 5)
    assert torch.equal(codec(x), codec.net(x)) and codec.shape == (5,)
    again = sf.load(sf.save(codec, tmp_path / "plain.safetensors"))
    assert again.spec is None and torch.equal(again.encode(x), codec.encode(x))


def test_mistakes_are_said(pictures: tuple[torch.Tensor, DataSpec], tmp_path: Path) -> None:
    x, spec = pictures
    with pytest.raises(sf.SfumatoError, match="shape"):
        sf.Codec(Autoencoder((1, 4, 4), 3, (8,)), spec)
    codec = sf.Codec(Autoencoder(spec.shape, 3, (8, 8)), spec)
    with pytest.raises(sf.SfumatoError, match="has 'kl'"):
        codec.codes(x)
    with pytest.raises(sf.SfumatoError, match="Integers are code indices"):
        codec.decode(torch.zeros(1, 4, 4, dtype=torch.int64))
    with torch.no_grad():
        codec.net.log_variance.fill_(float("nan"))
    with pytest.raises(sf.SfumatoError, match="log_variance"):
        sf.save(codec, tmp_path / "broken.safetensors")


def test_a_model_that_no_file_describes_is_refused(tmp_path: Path) -> None:
    exact = sf.exact.GaussianMixture([1.0], [[0.0]], 1.0).denoiser(sf.Gaussian(sf.schedules.Flow()))
    with pytest.raises(sf.SfumatoError, match="A file holds a model .*, not a ExactDenoiser"):
        sf.save(exact, tmp_path / "exact.safetensors")
