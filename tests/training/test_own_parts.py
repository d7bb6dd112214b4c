"""Networks, models and losses of the caller's: they train, resume, are saved and load with all of the engine."""

import json
import types

import pytest
import torch
from torch import nn

import sfumato as sf
from sfumato import registry, serialization
from sfumato.errors import SfumatoError
from sfumato.objectives.times import UniformTime
from sfumato.training.checkpoint import latest

SHORT = {"steps": 12, "batch": 16, "precision": "float32", "sample_every": 0, "snapshots": 0, "optimizer": "adamw"}
X = torch.randn(120, 2, generator=torch.Generator().manual_seed(0)) @ torch.tensor([[2.0, 0.0], [1.0, 0.3]])
BITS = (X > 0).to(torch.uint8)
Y = [f"kind {i % 3}" for i in range(120)]


class Told(nn.Module):
    """A network that says by `config` how it was made."""

    def __init__(self, dim: int, width: int = 16, classes: int = 0) -> None:
        super().__init__()
        self.config = {"dim": dim, "width": width, "classes": classes}
        self.first, self.label = nn.Linear(dim + 1, width), nn.Embedding(classes + 1, width)
        self.second = nn.Linear(width, dim)

    def forward(self, x, level, label=None):
        told = self.first(torch.cat((x, level[:, None]), 1))
        told = told + self.label(torch.zeros_like(level).long() if label is None else label + 1)
        return self.second(torch.nn.functional.silu(told))


@sf.register("network", "remembered")
class Remembered(Told):
    """One that is registered, and has no `config`: its arguments are remembered."""

    def __init__(self, dim: int, classes: int = 0, *, power: float = 1.0) -> None:
        super().__init__(dim, 16, classes)
        del self.config
        self.power = power


class Silent(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.map = nn.Linear(dim, dim)

    def forward(self, x, level):
        return self.map(x)


@sf.register("loss", "robust")
class Robust(nn.Module):
    """A loss of the caller's with a learned scale of its own, which a second optimiser steps."""

    def __init__(self, delta: float = 1.0) -> None:
        super().__init__()
        self.delta, self.scale = delta, nn.Parameter(torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def losses(self, model, batch):
        t = batch.u.float().clamp(0.01, 0.99)
        eps = torch.randn(batch.x.shape, generator=torch.Generator().manual_seed(int(batch.index[0])))
        z = model.process.corrupt(batch.x, t, eps)
        error = nn.functional.huber_loss(model(z, t, **batch.cond).x, batch.x, reduction="none", delta=self.delta)
        return error.mean(1) * torch.exp(-self.scale) + 0.1 * self.scale

    def observe(self, batch, losses):
        self.seen += len(losses)

    def players(self):
        return [self.scale]


def same(first, second, label=None):
    how = {"label": label} if label is not None else {}
    return torch.equal(sf.sample(first, 8, 4, **how), sf.sample(second, 8, 4, **how))


@pytest.mark.parametrize("kind", ["told", "remembered", "by name"])
def test_a_network_of_ones_own_trains_stops_resumes_and_loads(tmp_path, kind):
    """Half a run and the other half are the whole, to the last bit; the file loads where the class is given."""

    def net():
        torch.manual_seed(3)
        return {"told": lambda: Told(2, 16, 3), "remembered": lambda: Remembered(2, 3, power=2.0)}.get(
            kind, lambda: "remembered(power=2)"
        )()

    whole = sf.train(X, tmp_path / "whole", labels=Y, net=net(), decay=0, **SHORT)
    half = {**SHORT, "steps": 6}
    sf.train(X, tmp_path / "half", labels=Y, net=net(), decay=0, **half)
    again = sf.resume(tmp_path / "half", data=X, labels=Y, steps=12, modules=[Told])
    assert same(whole.denoiser, again.denoiser, "kind 1")
    assert type(again.denoiser.net) is (Told if kind == "told" else Remembered)
    loaded = sf.load(tmp_path / "whole", modules=[Told])
    assert same(whole.denoiser, loaded, "kind 1") and getattr(loaded.net, "power", 2.0) == 2.0
    facts = serialization.read_contract(tmp_path / "whole")
    assert facts["net"]["name"] == type(loaded.net).__name__ and facts["net"]["args"]["classes"] == 3
    assert json.dumps(latest(tmp_path / "half")[0]["model"])


def test_what_cannot_be_kept_is_said_before_a_run_begins(tmp_path):
    cases = [
        ({"net": Silent(2)}, "No file could describe Silent well enough to rebuild it.*config"),
        ({"net": "remembred"}, "net cannot be 'remembred': did you mean 'remembered'"),
        ({"net": "remembered(powr=1)"}, "has no argument 'powr': did you mean 'power'"),
        ({"net": Told(5)}, "Told could not be called.*called as net"),
        ({"net": 3}, "net takes a name or a torch.nn.Module"),
        ({"loss": "robst"}, "loss cannot be 'robst': did you mean 'robust'"),
        ({"loss": nn.Linear(2, 2)}, "A loss is a module with `losses"),
        ({"init": sf.Denoiser(Told(2), sf.Gaussian(sf.schedules.Flow())), "target": "x"}, "leave out target"),
        ({"init": sf.Denoiser(Silent(2), sf.Gaussian(sf.schedules.Flow()))}, "Silent"),
        ({"init": str(tmp_path / "nowhere")}, "does not exist"),
    ]
    for settings, words in cases:
        with pytest.raises(SfumatoError, match=words):
            sf.train(X, tmp_path / "run", **{**SHORT, **settings})
        assert not (tmp_path / "run").exists(), words


def test_a_model_goes_on_with_new_data(tmp_path):
    """Its process, target and units stay; the run is a copy, resumes, and a wrapped one leaves a wrapped one."""
    first = sf.train(X, tmp_path / "first", net="MLP(width=16, depth=1)", schedule="cosine", target="v", **SHORT)
    before = {name: value.clone() for name, value in first.denoiser.net.state_dict().items()}
    tuned = sf.train(X[:60], tmp_path / "tuned", init=str(tmp_path / "first"), decay=0, **SHORT)
    assert tuned.denoiser.process == first.denoiser.process and tuned.denoiser.spec == first.denoiser.spec
    assert not same(tuned.denoiser, first.denoiser) and tuned.config.target == "v"
    wrapped = sf.Rescheduled(first.denoiser, sf.schedules.VE())
    whole = sf.train(X[:60], tmp_path / "whole", init=wrapped, decay=0, **SHORT)
    sf.train(X[:60], tmp_path / "half", init=wrapped, decay=0, **{**SHORT, "steps": 6})
    again = sf.resume(tmp_path / "half", data=X[:60], steps=12)
    assert isinstance(again.denoiser, sf.Rescheduled) and same(whole.denoiser, again.denoiser)
    assert registry.make("schedule", again.config.schedule) == sf.schedules.VE() and again.config.target == "v"
    assert all(torch.equal(value, before[name]) for name, value in first.denoiser.net.state_dict().items())


def test_a_loss_of_ones_own_learns_and_is_kept(tmp_path):
    """Its buffers, its player and that one's optimiser are in the checkpoint: two halves are the whole."""
    settings = {"net": "MLP(width=16, depth=1)", "decay": 0, **SHORT}
    whole = sf.train(X, tmp_path / "whole", loss=Robust(0.5), **settings)
    sf.train(X, tmp_path / "half", loss="robust(delta=0.5)", **{**settings, "steps": 6})
    again = sf.resume(tmp_path / "half", data=X, steps=12)
    assert same(whole.denoiser, again.denoiser)
    tensors = latest(tmp_path / "half")[1]
    assert int(tensors["goal.module.seen"]) == 12 * 16 and float(tensors["goal.module.scale"]) != 0
    assert {name for name in tensors if name.startswith("players.0.")} == {
        "players.0.step", "players.0.exp_avg", "players.0.exp_avg_sq",
    }  # fmt: skip
    assert whole.metrics[-1]["valid_raw"] > 0 and "bins_logsnr" not in whole.metrics[-1]


class Critic(nn.Module):
    """A player with losses of its own: it learns the mean of x, which the network's loss then holds."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(2))

    def losses(self, model, batch):
        z = torch.zeros_like(batch.x)
        return (model.predict(z, 0.5) - self.mean.detach()).square().mean(1)

    def player_losses(self, model, batch):
        return (batch.x - self.mean).square().mean(1)

    def players(self):
        return self.parameters()


def test_a_player_learns_by_its_own_losses(tmp_path):
    from sfumato.training.config import TrainConfig
    from sfumato.training.loop import fit
    from sfumato.training.state import State

    model, x = sf.Denoiser(sf.nets.MLP(2, 8, 1), sf.Gaussian(sf.schedules.Flow())), X + torch.tensor([3.0, -1.0])
    found = {}
    for micro in (16, 5):
        torch.manual_seed(0)
        config = TrainConfig(**{**SHORT, "steps": 300, "lr": 0.05, "decay": 1.0, "micro": micro})
        model = sf.Denoiser(sf.nets.MLP(2, 8, 1), sf.Gaussian(sf.schedules.Flow()))
        state = State(model, config, Critic())
        for _ in fit(model, x, config, state=state):
            pass
        found[micro] = state.loss.module.mean.detach()
        said = state.best.predict(torch.zeros(1, 2), 0.5)[0]
        assert torch.allclose(found[micro], x.mean(0), atol=0.3) and torch.allclose(said, found[micro], atol=0.3)
    assert torch.allclose(found[16], found[5], atol=1e-5)


LOSSES = {
    "denoising": "Denoiser", "hybrid(share=0.01)": "Denoiser", "vlb(steps=20)": "Denoiser",
    "score-matching": "Denoiser", "score-matching(form=implicit)": "Denoiser",
    "score-matching(form=denoising)": "Denoiser",
    "denoising-autoencoder(sigma=0.5)": "Denoiser", "denoising-autoencoder(masking=0.3)": "DenoisingAutoencoder",
    "autoencoding(beta=0.5)": "Codec", "nonequilibrium(steps=8)": "Denoiser", "masked": "Denoiser",
    "d3pm(steps=8)": "Denoiser", "score-entropy": "Denoiser", "sundae": "Denoiser", "mask-predict": "Denoiser",
    "maskgit": "Denoiser", "self-conditioned": "Denoiser",
}  # fmt: skip


def test_every_loss_by_name_leaves_a_file_that_loads(tmp_path):
    own = {
        "robust",
        "autoregressive",
        "ratio-matching",
        "cross-entropy",
        "table",
        "classification",
        *("semigroup", "shortcut", "trajectory-consistency", "consistency-distillation", "consistency-training"),
        *("direct-distillation", "progressive-distillation", "lagrangian", "mean-flow", "improved-mean-flow"),
        *("spectral", "coupled", "consistent-diffusion", "fp-diffusion", "maximum-likelihood", "upscaling", "decoding"),
        "coupling-flow",
        *("distribution-matching", "moment-matching", "score-identity", "sdtt", "path-distillation"),
        *("reward-weighted", "fpo", "advantage-weighted", "nft", "ddpo", "direct", "dpo", "ipo", "kto"),
        *("fpo++", "flow-grpo", "diffu-grpo", "adjoint-matching"),
    }  # have tests of their own
    processes = dict.fromkeys(("nonequilibrium", "d3pm", "score-entropy", "sundae"), "uniform")
    processes |= dict.fromkeys(("masked", "mask-predict", "maskgit"), "masked")
    ours = {name for name in registry.names("loss") if registry.ships("loss", name)}  # not those of other tests
    assert {registry.bare(word) for word in LOSSES} == ours - own
    for i, (word, kind) in enumerate(LOSSES.items()):
        name = registry.bare(word)
        settings = {"process": processes[name]} if name in processes else {}
        settings |= {"variance": "learned", "times": "uniform"} if name == "hybrid" else {}
        data = BITS if "process" in settings else X
        net = "auto" if kind == "Codec" else "MLP(width=16, depth=1)"
        run = sf.train(data, tmp_path / str(i), loss=word, net=net, **settings, **SHORT)
        made = sf.load(run.path)
        assert type(made).__name__ == kind, word
        assert run.metrics[-1]["valid_raw"] > 0 or word.startswith("score"), word
        again = sf.resume(run.path, data=data, steps=14)
        assert type(again.denoiser).__name__ == kind, word
        if kind == "Denoiser":
            assert sf.sample(made, 3, 2).shape == (3, 2), word
        else:
            assert made(X[:3]).shape == (3, 2), word


def test_symbols_are_a_setting_and_a_healthy_run_of_them_has_no_faults(tmp_path):
    for name in ("masked", "uniform"):
        run = sf.train("digits", tmp_path / name, process=name, net="tiny", **SHORT)
        assert run.denoiser.process.states == 17 and type(run.denoiser.process).__name__.lower() == name
        assert not (run.path / "health.json").exists() and sf.doctor(run.path).healthy, name
        assert sf.sample(run.denoiser, 3, 2, label="4").dtype == torch.uint8
        assert type(sf.resume(run.path, steps=14).denoiser.process) is type(run.denoiser.process)


def test_a_loss_that_a_process_cannot_have_is_said_before_a_run_begins(tmp_path):
    flow, symbols = sf.schedules.Flow(), {"process": "uniform", "net": "MLP(width=16, depth=1)"}
    product = sf.Product({"a": sf.Gaussian(flow), "b": sf.Gaussian(flow)})
    gaussian = sf.Denoiser(sf.nets.MLP(2, 8, 1), sf.Gaussian(flow))
    codec = sf.train(X, tmp_path / "codec", loss="autoencoding", **SHORT).denoiser
    cases = [(loss, {**symbols, "process": kind}, "only for a Gaussian process, not for (Uniform|Masked)")
             for loss in ("vlb", "score-matching") for kind in ("uniform", "masked")]  # fmt: skip
    cases += [
        ("hybrid", {**symbols, "times": "uniform"}, "only for a Gaussian process, not for Uniform"),
        ("hybrid", {"model": gaussian, "times": "uniform"}, "pass variance='learned'"),
        ("autoencoding", {"model": gaussian}, "needs a Codec, but the model is a Denoiser"),
        ("autoencoding", {"process": "masked"}, "builds its own model, which cannot use the process 'masked'"),
        ("denoising-autoencoder(sigma=0.5)", {"model": gaussian}, "has many levels"),
        ("denoising-autoencoder(sigma=0.5)", {"process": "uniform"}, "builds its own model"),
        ("nonequilibrium", {"model": gaussian}, "needs a process of symbols"),
        ("denoising", {"model": codec}, "a Codec has none"),
        ("vlb", {"model": codec}, "not of a Codec"),
    ]
    for loss, how, words in cases:
        data = BITS if "process" in how else X
        with pytest.raises(SfumatoError, match=words) as caught:
            sf.train(data, tmp_path / "run", loss=loss, **{**SHORT, **how})
        assert not (tmp_path / "run").exists() and "\n" not in str(caught.value), (loss, how)
    for word in ("hybrid", "vlb", "score-matching", "denoising-autoencoder", "autoencoding", "nonequilibrium"):
        loss = registry.make("loss", word, {"times": UniformTime(), "weight": None, "seed": 0})
        with pytest.raises(SfumatoError):
            loss.suits(types.SimpleNamespace(process=product))


class Shaped(nn.Module):
    """A loss that gives what it is told to give, in training or of held-out samples."""

    def __init__(self, shape, held=None) -> None:
        super().__init__()
        self.shape, self.of_held = shape, held or (lambda found: found)

    def losses(self, model, batch):
        return self.shape((model.predict(batch.x, 0.5) - batch.x).square())

    def held(self, model, batch):
        return self.of_held((model.predict(batch.x, 0.5) - batch.x).square().mean(1))


def test_what_a_loss_gives_is_one_number_a_sample(tmp_path):
    cases = [
        (
            Shaped(lambda e: e.mean()),
            r"losses of Shaped returned a tensor of shape \(\) for 16 samples: .*shape \(16,\)",
        ),
        (Shaped(lambda e: e.mean(1, keepdim=True)), r"of shape \(16, 1\) for 16"),
        (Shaped(lambda e: e), r"of shape \(16, 2\) for 16"),
        (Shaped(lambda e: None), "returned a NoneType for 16"),
        (Shaped(lambda e: float(e.detach().mean())), "returned a float for 16"),
        (Shaped(lambda e: e.mean(1).detach()), r"of shape \(16,\) without a gradient for 16"),
        (Shaped(lambda e: e.mean(1), lambda e: e.mean()), r"held of Shaped returned a tensor of shape \(\)"),
    ]
    for i, (loss, words) in enumerate(cases):
        with pytest.raises(SfumatoError, match=words) as caught:
            sf.train(X, tmp_path / str(i), loss=loss, net="MLP(width=16, depth=1)", **SHORT)
        assert "\n" not in str(caught.value)
