"""The FID's network from a file: its closed forms, what a file may be, what it sees, and the word FID."""

import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import sfumato as sf
from inception_cases import weights
from sfumato.features import applied, build, identity
from sfumato.metrics.inception import tensors
from sfumato.nets import inception


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same weights in both kinds of files, in half precision."""
    folder, state = tmp_path_factory.mktemp("weights"), weights()
    state = {name: each.half() if each.is_floating_point() else each for name, each in state.items()}
    save_file(state, folder / "inception.safetensors")
    torch.save({**state, "fc.weight": torch.zeros(1008, 1), "fc.bias": torch.zeros(1008)}, folder / "inception.pth")
    return folder


@pytest.fixture(scope="module")
def grey(files):
    return build(str(files / "inception.safetensors"), (1, 20, 24), (0, 255))


def pictures(n: int = 2, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, 20, 24), dtype=torch.uint8, generator=generator)


def test_its_size_is_that_of_the_paper():
    """94 convolutions; 21,785,568 parameters without the classifiers."""
    with torch.device("meta"):
        net = inception.Inception()
    assert sum(isinstance(each, nn.Conv2d) for each in net.modules()) == 94
    assert sum(each.numel() for each in net.parameters()) == 21_785_568


def block(branches, largest: bool) -> inception.Block:
    """A block whose convolutions of 1 x 1 are means over the channels, all other weights zero."""
    made = inception.Block(4, branches, largest).eval()
    for each in made.modules():
        if isinstance(each, nn.Conv2d):
            nn.init.constant_(each.weight, 1 / each.in_channels if each.kernel_size == (1, 1) else 0.0)
        if isinstance(each, nn.BatchNorm2d):
            each.running_var.fill_(1 - each.eps)
    return made


@torch.no_grad()
def test_pools_leave_out_the_padding():
    """The mean of ones is one also in the corners, where 5 of 9 places are padding."""
    found = block(inception._a(8), False)(torch.ones(1, 4, 5, 5))
    assert found.shape == (1, 64 + 64 + 96 + 8, 5, 5)
    assert torch.allclose(found[:, -8:], torch.ones(1, 8, 5, 5), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("largest, value", [(False, 1 / 9), (True, 1.0)])
def test_the_last_block_takes_the_maximum(largest, value):
    spike = torch.zeros(1, 4, 7, 7)
    spike[:, :, 3, 3] = 1
    found = block(inception._E, largest)(spike)[0, -1]
    expected = torch.zeros(7, 7)
    expected[2:5, 2:5] = value
    assert torch.allclose(found, expected, atol=1e-6)
    with torch.device("meta"):
        net = inception.Inception()
    assert [name for name in inception._BLOCKS if net.get_submodule(name).largest] == ["Mixed_7c"]


def test_both_kinds_of_files_are_one_network(files, grey):
    state = torch.random.get_rng_state()
    other = build(f"inception('{files / 'inception.pth'}')", (3, 20, 24), (0, 255))
    known = identity(other, str(files))
    assert known["features"] == "Inception-v3" and known == identity(grey, "elsewhere")
    assert torch.equal(torch.random.get_rng_state(), state) and not other.training


def test_pictures_are_grey_or_rgb_in_any_units(files, grey):
    """The same pictures in bytes, in 0..1 and in three equal channels."""
    x = pictures(2, 1)
    found = applied(grey, x)
    assert found.shape == (2, 2048) and found.isfinite().all() and float(found.std()) > 0.1
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(grey, "high", 1.0)
        assert torch.allclose(applied(grey, x[:1] / 255), found[:1], rtol=1e-3, atol=1e-4)
    assert torch.equal(applied(grey, x[:1].expand(-1, 3, -1, -1)), applied(grey, x[:1]))
    for shape, bounds in (((4, 20, 24), (0, 255)), ((3, 20), (0, 255)), ((3, 20, 24), None)):
        with pytest.raises(sf.SfumatoError, match="those of grey or RGB pictures with known bounds"):
            build(str(files / "inception.pth"), shape, bounds)


def test_files_of_torch_before_1_6_are_read(tmp_path):
    torch.save({"w": torch.arange(3.0), "epoch": 7}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert {name: each.tolist() for name, each in tensors(str(tmp_path / "old.pt")).items()} == {"w": [0, 1, 2]}


class Scripted(nn.Module):
    def forward(self, x):
        return x


def test_other_files_are_one_sentence(files, tmp_path):
    def refused(path, words: str) -> None:
        with pytest.raises(sf.SfumatoError, match=words):
            build(str(path), (3, 20, 24), (0, 255))

    refused(tmp_path / "none.pth", "does not exist")
    torch.save(Scripted(), tmp_path / "object.pth")
    refused(tmp_path / "object.pth", "objects of Python, which are never loaded")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(Scripted()), str(tmp_path / "script.pt"))
    refused(tmp_path / "script.pt", "script.pt is TorchScript, which is code and is never run")
    (tmp_path / "words.pth").write_bytes(b"hello")  # to pickle a number that is looked up in vain
    refused(tmp_path / "words.pth", "cannot be read as a state dict: it is damaged, or of another kind")
    (tmp_path / "empty.pth").write_bytes(b"")
    refused(tmp_path / "empty.pth", "it ends too early")
    torch.save([1], tmp_path / "list.pth")
    refused(tmp_path / "list.pth", "holds no state dict")
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "imagenet.pth")
    refused(tmp_path / "imagenet.pth", "tell 1,000 classes apart, but those of the FID tell 1,008")
    torch.save({"x": torch.zeros(3)}, tmp_path / "other.pth")
    refused(tmp_path / "other.pth", "no Inception-v3 as that of the FID: Conv2d_1a_3x3.conv.weight is missing")
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(3)}, tmp_path / "shape.pth")
    refused(tmp_path / "shape.pth", r"Conv2d_1a_3x3.conv.weight has the shape \(3,\)")
    for name in ("inception.safetensors", "inception.pth"):
        whole, cut = (files / name).read_bytes(), tmp_path / f"cut-{name}"
        cut.write_bytes(whole[: len(whole) // 2])
        refused(cut, "cannot be read as a state dict")


def test_the_word_fid_is_for_inception_alone(grey):
    x = pictures(60, 1)
    with pytest.raises(sf.SfumatoError, match="fid is a distance of Inception-v3 features alone: give the file"):
        sf.metrics.evaluate(x[:20], x, "fid", 20)
    with pytest.raises(sf.SfumatoError, match="fid of 2,048 features needs more than 2,048 samples, and there are 3"):
        sf.metrics.evaluate(x[:3], x[:6], "fid", 3, features=grey)
    kid = sf.metrics.evaluate(x[:3], x[:6], "kid", 3, features=grey)["kid"]
    assert kid.protocol["features"] == "Inception-v3" and kid.protocol["features_hash"]
    assert kid.protocol["preprocessing"] == "bilinear to 299 x 299"
