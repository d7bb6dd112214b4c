"""The model file: what goes in comes out; every fault is one sentence and leaves nothing behind."""

import dataclasses
import json
import os
import stat
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sfumato as sf
from sfumato import files, guidance, serialization
from sfumato.data import DataSpec
from sfumato.errors import SfumatoError
from sfumato.process import RectifiedFlow

Z = torch.randn(3, 1, 6, 7, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)


def filled(denoiser: sf.Denoiser, seed: int) -> sf.Denoiser:
    """Weights that all differ from zero, so that an output tells them apart."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in denoiser.net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    return denoiser.eval()


def denoiser(seed: int = 1) -> sf.Denoiser:
    x = torch.arange(20 * 42, dtype=torch.int64).reshape(20, 1, 6, 7).remainder(251).to(torch.uint8)
    spec = DataSpec.fit(sf.data.open(x, labels=[f"kind {i % 3}" for i in range(20)]))
    net = sf.nets.UNet((1, 6, 7), channels=(8, 16), blocks=1, classes=3)
    schedule = sf.schedules.Shifted(sf.schedules.Cosine(0.01), 2.0)
    made = sf.Denoiser(net, sf.Gaussian(schedule), "v", 0.9, spec)
    made.plans = {"fast": sf.solvers.Multistep(order=2).plan(schedule, 4)}
    made.provenance = {"seed": 5, "samples_seen": 1234}
    return filled(made, seed)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    raw = denoiser(2).net.state_dict()
    return serialization.save(denoiser(1), tmp_path_factory.mktemp("model") / "m.safetensors", raw)


def test_a_loaded_model_is_the_saved_one(model):
    label = torch.tensor([0, 2, -1])
    for weights, seed in (("ema", 1), ("raw", 2)):
        first, second = denoiser(seed), sf.load(model, weights)
        with torch.no_grad():
            assert torch.equal(first(Z, T, label=label).x, second(Z, T, label=label).x)
        assert second.process == first.process and second.spec == first.spec and second.sigma_data == 0.9
        assert second.plans == first.plans and not second.training
        assert second.provenance["samples_seen"] == 1234


def test_a_second_round_changes_no_bit(model, tmp_path):
    again = serialization.save(sf.load(model), tmp_path / "again.safetensors", sf.load(model, "raw").net.state_dict())
    ours, theirs = load_file(model), load_file(again)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_the_contract_reads_without_weights(model):
    facts = serialization.read_contract(model)
    assert facts["target"] == "v" and facts["net"]["name"] == "UNet" and facts["raw"]
    assert facts["parameters"] == sum(p.numel() for p in denoiser().net.parameters())
    assert facts["conditions"]["label"]["classes"] == ["kind 0", "kind 1", "kind 2"]
    text = "\n".join(serialization.describe(model))
    assert "Shifted" in text and "1,234 samples" in text and f"{facts['parameters']:,}" in text and "kind 2" in text


def test_a_run_folder_stands_for_its_model(model, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(model.read_bytes())
    assert serialization.read_contract(tmp_path)["hash"] == serialization.read_contract(model)["hash"]


def rewrite(source: Path, path: Path, change) -> Path:
    """The file with another contract, its tensors untouched."""
    contract, _ = files.read_header(source)
    save_file(load_file(source), path, metadata={files.KEY: json.dumps(change(contract))})
    return path


def flipped(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda b: b[: len(b) // 2], "cut short"),
        (lambda b: b[:-1], "cut short"),
        (lambda b: b[:300], "cut short"),
        (lambda b: b[:5], "not a model file"),
        (lambda b: b"", "not a model file"),
        (flipped, "do not match its hash"),
        (lambda b: b + b"more", "damaged"),
        (lambda b: b"PK\x03\x04" + bytes(5000), "not a model file"),
        (lambda b: struct.pack("<Q", 12) + b'{"a": 1, "b"', "header is damaged"),
    ],
)
def test_damaged_files_are_refused(model, tmp_path, damage, words):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(damage(model.read_bytes()))
    with pytest.raises(SfumatoError, match=words) as caught:
        sf.load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c | {"version": 99}, "newer version of sfumato .*upgrade"),
        (lambda c: c | {"version": "?"}, "version: expected a whole number from 1"),
        (lambda c: c | {"target": "x"}, "do not match its hash"),
        (lambda c: c | {"hash": "0" * 64}, "do not match its hash"),
        (lambda c: c | {"format": "sfumato checkpoint"}, "not a model file but a sfumato checkpoint"),
        (lambda c: [1], "contract is damaged"),
    ],
)
def test_other_contracts_are_refused(model, tmp_path, change, words):
    with pytest.raises(SfumatoError, match=words):
        sf.load(rewrite(model, tmp_path / "bad.safetensors", change))


def test_a_file_that_is_replaced_while_it_is_opened_is_read_again(model, tmp_path, monkeypatch):
    """It is opened once for its header and once for its tensors, so that these may be of two files."""
    contract, tensors = files.read_sealed(model)
    path, seals = tmp_path / "model.safetensors", []
    for file in (path, tmp_path / "new"):
        files.write_sealed(file, tensors, contract)
    seal = files.seal

    def replaced(tensors, contract):
        seals.append(seal(tensors, contract))
        if len(seals) == 1:
            os.replace(tmp_path / "new", path)
        return "of two files" if len(seals) == 1 else seals[-1]

    monkeypatch.setattr(files, "seal", replaced)
    assert files.read_sealed(path)[0] == contract and len(seals) == 2
    monkeypatch.setattr(files, "seal", lambda *args: "of no file")
    with pytest.raises(SfumatoError, match="damaged: its contents do not match its hash"):
        files.read_sealed(path)


@pytest.mark.parametrize("change", [lambda t: dict(list(t.items())[:-1]), lambda t: t | {"net.more": torch.ones(2)}])
def test_missing_and_foreign_weights_are_refused(model, tmp_path, change):
    # sealed with a right hash, so that only the weights themselves are wrong
    contract, tensors = files.read_sealed(model)
    kept = {name: value for name, value in tensors.items() if name.startswith("net.")}
    files.write_sealed(tmp_path / "bad.safetensors", change(kept), contract)
    with pytest.raises(SfumatoError, match="weights of its network: 1 are missing"):
        sf.load(tmp_path / "bad.safetensors")


def test_tensors_without_a_contract_are_refused(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "t.safetensors")
    with pytest.raises(SfumatoError, match="no sfumato contract"):
        sf.load(tmp_path / "t.safetensors")


@pytest.mark.parametrize("name, words", [("none.safetensors", "does not exist"), (".", "folder without model")])
def test_missing_files_are_one_sentence(tmp_path, name, words):
    with pytest.raises(SfumatoError, match=words):
        sf.load(tmp_path / name)


def test_raw_weights_must_be_there(tmp_path):
    path = serialization.save(denoiser(), tmp_path / "m.safetensors")
    with pytest.raises(SfumatoError, match="has no raw weights"):
        sf.load(path, "raw")
    with pytest.raises(SfumatoError, match="'ema' or 'raw'"):
        sf.load(path, "best")


def test_nothing_is_left_behind_by_a_failure(tmp_path, monkeypatch):
    path = serialization.save(denoiser(), tmp_path / "m.safetensors")
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(SfumatoError, match="cannot be written: no space left"):
        serialization.save(denoiser(2), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["m.safetensors"]


def test_what_would_not_be_read_again_is_not_written(tmp_path):
    model = denoiser()
    model.provenance = {"guidance": "lots"}
    with pytest.raises(SfumatoError, match="would not be read again: provenance.guidance: expected a finite number"):
        sf.save(model, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="devices and pipes of POSIX")
def test_devices_and_pipes_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for name in ("pipe", "link"):
        with pytest.raises(SfumatoError, match="is a pipe or a device"):
            sf.save(denoiser(), tmp_path / name)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and (tmp_path / "link").is_symlink()


def test_names_that_are_not_utf_8_are_refused(tmp_path):
    with pytest.raises(SfumatoError, match="is not a name in UTF-8"):
        sf.save(denoiser(), tmp_path / "\udcff.safetensors")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_refused(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(SfumatoError, match="cannot be written"):
        serialization.save(denoiser(), blocked / "m.safetensors")
    own = sf.Denoiser(torch.nn.Linear(2, 2), sf.Gaussian(sf.schedules.Flow()))
    with pytest.raises(SfumatoError, match="Denoiser contains a Linear.*property `config`"):
        serialization.save(own, tmp_path / "m.safetensors")
    broken = denoiser()
    with torch.no_grad():
        next(broken.net.parameters()).view(-1)[0] = torch.nan
    with pytest.raises(SfumatoError, match="NaN"):
        serialization.save(broken, tmp_path / "m.safetensors")
    assert os.listdir(tmp_path) == ["file"]


def test_files_have_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_sealed(tmp_path / "t.safetensors", {"a": torch.ones(2)}, {})
        files.write_text(tmp_path / "t.txt", "x")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_tied_weights_are_written(tmp_path):
    value = torch.ones(3)
    files.write_sealed(tmp_path / "t.safetensors", {"a": value, "b": value, "c": value.view(3, 1).mT}, {})
    _, tensors = files.read_sealed(tmp_path / "t.safetensors")
    assert all(torch.equal(v.flatten(), value) for v in tensors.values()) and len(tensors) == 3


@sf.register("network", "toy-net")
class ToyNet(torch.nn.Module):
    """A network of a user's that says nothing of how it was made: what is registered remembers it."""

    def __init__(self, dim: int, width: int = 8, rates: tuple[float, ...] = (1.0, 2.0)) -> None:
        super().__init__()
        self.rates = rates
        self.first, self.second = torch.nn.Linear(dim + 2, width), torch.nn.Linear(width, dim)

    def forward(self, x, level, label=None):
        turned = torch.stack([torch.sin(rate * level) for rate in self.rates], 1)
        return self.second(torch.tanh(self.first(torch.cat((x, turned), 1))))


class Told(torch.nn.Module):
    """One that is not registered, and has `config`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.config = {"dim": dim}
        self.map = torch.nn.Linear(dim, dim)

    def forward(self, x, level, label=None):
        return self.map(x)


class Silent(torch.nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.map = torch.nn.Linear(dim, dim)


def test_models_of_any_kind_and_wrapped_ones_go_and_come_back(tmp_path):
    """The same answers, to the last bit, and the contract of the innermost; a second round is the same file."""
    flow, z, t = sf.Gaussian(sf.schedules.Flow()), torch.randn(4, 3), torch.tensor([0.2, 0.4, 0.6, 0.8])
    plain = sf.Denoiser(ToyNet(3, rates=(0.5, 3.0)), flow)
    classes = sf.Denoiser(sf.nets.MLP(3, 8, 1, classes=2), flow, "v")
    label = {"label": torch.tensor([0, 1, 1, 0])}
    classifier = guidance.NoisyClassifier(sf.nets.ClassifierNet(sf.nets.MLP(3, 8, 1), 2))
    plan = dataclasses.replace(sf.solvers.DDIM().plan(flow, 4), times=(0.8, 0.6, 0.4, 0.2))
    cases = {
        "network of a user's": (plain, {}),
        "not registered": (sf.Denoiser(Told(3), flow), {}),
        "energy of a user's": (sf.Denoiser(sf.nets.Energy(ToyNet(3)), flow), {}),
        "rescheduled": (sf.Rescheduled(plain, sf.schedules.Cosine(0.01)), {}),
        "guided": (sf.Guided(classes, 2.5, (-4.0, 6.0)), label),
        "scheduled": (sf.Guided(classes, ((-2.0, 1.0), (3.0, 4.0)), None, {"label": 1}), label),
        "rescaled": (guidance.Rescaled(classes, 2.0, (-4.0, 6.0), share=0.5, row="eps"), label),
        "zero": (guidance.CFGZero(classes, 2.0, zeroed=0.3), label),
        "apg": (guidance.APG(classes, 2.0, radius=1.5, momentum=-0.5), label),
        "decoupled": (guidance.FrequencyDecoupled(classes, 2.0, low=0.1), label),
        "perp-neg": (guidance.PerpNeg(classes, 2.0, negative={"label": 0}), label),
        "plus plus": (guidance.CFGPlusPlus(classes, 0.6, plan), label),
        "autoguided": (guidance.Autoguided(plain, sf.Denoiser(ToyNet(3), flow), 2.0), {}),
        "experts": (sf.Experts(classes, sf.Denoiser(sf.nets.MLP(3, 8, 1, classes=2), flow, "v"), 0.5, 2.0), label),
        "classifier": (guidance.ClassifierGuided(plain, classifier, 2.0), label),
        "both": (sf.Guided(sf.Rescheduled(classes, sf.schedules.VE()), 2.0), label),
    }
    for name, (model, cond) in cases.items():
        path = sf.save(model, tmp_path / "m.safetensors")
        again = sf.load(path, modules=[Told])
        assert type(again) is type(model) and again.process == model.process, name
        assert torch.equal(again(z, t, **cond).x, model(z, t, **cond).x), name
        second = sf.save(again, tmp_path / "n.safetensors")
        assert files.read_sealed(second)[0]["model"] == files.read_sealed(path)[0]["model"], name
        facts = serialization.read_contract(path)
        assert facts["process"]["name"] == "Gaussian" and facts["parameters"] > 0, name
        assert ("in a Guided of a Rescheduled" in serialization.describe(path)[0]) == (name == "both"), name


def test_raw_weights_of_a_wrapped_model_are_those_of_its_network(tmp_path):
    model, raw = sf.Rescheduled(denoiser(1), sf.schedules.VE()), denoiser(2).net.state_dict()
    path = sf.save(model, tmp_path / "m.safetensors", raw)
    assert torch.equal(sf.load(path, "raw").net.state_dict()["input.weight"], raw["input.weight"])
    assert not torch.equal(sf.load(path).net.state_dict()["input.weight"], raw["input.weight"])


def test_what_nobody_could_make_again_is_refused(tmp_path):
    flow = sf.Gaussian(sf.schedules.Flow())
    with pytest.raises(SfumatoError, match="contains a Silent.*property `config`.*@sf.register"):
        sf.save(sf.Denoiser(Silent(3), flow), tmp_path / "m.safetensors")
    with pytest.raises(SfumatoError, match="A file holds a model .*, not a ToyNet"):
        sf.save(ToyNet(3), tmp_path / "m.safetensors")
    assert not os.listdir(tmp_path)


def test_a_class_that_is_not_here_is_asked_for(tmp_path):
    class Elsewhere(Told):
        pass

    path = sf.save(sf.Denoiser(Elsewhere(3), sf.Gaussian(sf.schedules.Flow())), tmp_path / "m.safetensors")
    with pytest.raises(SfumatoError, match=r"no network 'Elsewhere' here.*modules=\[Elsewhere\]"):
        sf.load(path)
    assert type(sf.load(path, modules=[Elsewhere]).net) is Elsewhere
    with pytest.raises(SfumatoError, match="modules must be classes"):
        sf.load(path, modules=["Elsewhere"])


def test_a_plan_is_stored_in_a_file_of_version_1_and_in_one_of_a_wrapped_model(tmp_path):
    old = Path(__file__).parent / "fixtures/v1_classes.safetensors"
    (tmp_path / "old.safetensors").write_bytes(old.read_bytes())
    wrapped = sf.save(sf.Rescheduled(denoiser(), sf.schedules.Cosine()), tmp_path / "wrapped.safetensors")
    for path in (tmp_path / "old.safetensors", wrapped):
        model = sf.load(path)
        plan = sf.solvers.Heun().plan(model.process.schedule, 3)
        assert serialization.store_plan(path, plan) == "3" and sf.load(path).plans["3"] == plan
        assert serialization.read_contract(path)["version"] == 2


def test_weights_keep_their_dtype(tmp_path):
    """Of either format; what is drawn is what was drawn."""
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        first = filled(sf.Denoiser(sf.nets.MLP(2, 8, 1), sf.Gaussian(sf.schedules.Flow())), 3).to(dtype)
        second = sf.load(sf.save(first, tmp_path / "m.safetensors"))
        for (name, ours), theirs in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), (dtype, name)
        assert torch.equal(sf.sample(first, 3, 4), sf.sample(second, 3, 4)), dtype
        contract, tensors = files.read_sealed(Path(__file__).parent / "fixtures/v1_classes.safetensors")
        tensors = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
        files.write_sealed(tmp_path / "old.safetensors", tensors, contract)
        old = sf.load(tmp_path / "old.safetensors")
        assert {p.dtype for p in old.parameters()} == {dtype}
        assert torch.equal(old.net.state_dict()["input.weight"], tensors["net.input.weight"])


def test_a_rectified_flow_of_before_hears_its_state_at_the_scale_that_it_was_trained_at(tmp_path):
    flow = RectifiedFlow(sf.schedules.Flow())
    path = sf.save(sf.Denoiser(sf.nets.MLP(3, width=8, depth=1), flow), tmp_path / "new.safetensors")
    assert not sf.load(path).process.scaled
    contract, tensors = files.read_sealed(path)
    del contract["model"]["args"]["process"]["args"]["scaled"]
    files.write_sealed(tmp_path / "old.safetensors", tensors, contract)
    old, t = sf.load(tmp_path / "old.safetensors").process, torch.tensor([0.3])
    torch.testing.assert_close(old.scaling(t, t.device)[0], sf.Gaussian(sf.schedules.Flow()).scaling(t, t.device)[0])
