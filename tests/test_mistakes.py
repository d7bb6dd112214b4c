"""Mistakes of type in Python end in one sentence that names the argument, and not in a traceback from within."""

import numpy as np
import torch

import sfumato as sf
from sfumato.errors import an, counted
from sfumato.schedules import Flow
from sfumato.training import TrainConfig

MODEL = sf.Denoiser(sf.nets.MLP(3, 16, 1), sf.Gaussian(Flow()))
X = torch.zeros(4, 3)
LABELLED = sf.Denoiser(sf.nets.MLP(3, 16, 1, classes=3), sf.Gaussian(Flow()))
IN_UNITS = sf.Denoiser(MODEL.net, MODEL.process, spec=sf.data.DataSpec.fit(sf.data.open(np.random.rand(40, 3))))
BROKEN = X.clone()
BROKEN[1, 2] = torch.nan


class Forgetful(sf.solvers.Solver):
    def build(self, builder):
        builder.call(0)


def train(out="run", **settings):
    return sf.train(X.numpy(), out, **{"net": "tiny", "steps": 1, **settings})


CASES = {
    "a fraction of samples": (lambda: sf.sample(MODEL, 2.5), "number of samples, must be a whole number, not 2.5"),
    "n as text": (lambda: sf.sample(MODEL, "3"), "must be a whole number, not '3'"),
    "no samples": (lambda: sf.sample(MODEL, 0), "must be at least 1, not 0"),
    "half a step": (lambda: sf.sample(MODEL, 2, 2.5), "steps must be a whole number, not 2.5"),
    "steps as text": (lambda: sf.sample(MODEL, 2, "x"), "steps must be a whole number"),
    "seed as text": (lambda: sf.sample(MODEL, 2, 2, seed="a"), "seed must be a whole number, not 'a'"),
    "no solver": (lambda: sf.sample(MODEL, 2, 2, solver=5), "solver must be a solver, its name or a plan, not 5"),
    "half a batch": (lambda: sf.sample(MODEL, 2, 2, batch=1.5), "batch must be a whole number, not 1.5"),
    "samples beyond counting": (lambda: sf.sample(MODEL, 10**30), "n, the number of samples, must be below 2^63"),
    "no batch of a likelihood": (lambda: sf.log_prob(MODEL, X, batch=-1), "batch must be at least 1, not -1"),
    "probes as text": (lambda: sf.log_prob(MODEL, X, probes="x"), "probes must be a whole number, not 'x'"),
    "a method by number": (lambda: sf.log_prob(MODEL, X, method=0), "Unknown method 0 of log_prob"),
    "kinds as text": (lambda: sf.data.open(X.numpy(), conditions="x"), "conditions are names and kinds"),
    "a huge size": (lambda: sf.data.open("digits", size=10**30), "size must be one number of pixels from 1 to 65536"),
    "a folder to save to": (lambda: sf.save(MODEL, "."), ". cannot be written"),
    "an average of nothing": (lambda: train(ema=1e-320), "The width of a moving average must be from 1e-09 to 0.289"),
    "no model": (lambda: sf.sample(None, 2), "sample takes a model, such as sf.load(path)"),
    "a network": (lambda: sf.sample(MODEL.net, 2), "not an MLP"),
    "a path": (lambda: sf.log_prob("runs/x", X), "log_prob takes a model, such as sf.load(path)"),
    "a path in the place of samples": (
        lambda: sf.log_prob(MODEL, "held-out.npz"),
        "log_prob takes numbers (B, ...), not a str",
    ),
    "a path in the place of a model": (
        lambda: sf.tune("runs/x", 6),
        "tune takes a model, such as sf.load(path)",
    ),
    "a path of draws": (lambda: sf.draws("runs/x", X), "asked of a model, such as sf.load(path) gives"),
    "an interval alone": (lambda: sf.sample(MODEL, 2, 2, interval=(0, 1)), "sample takes no interval"),
    "guidance of another time": (
        lambda: sf.encode(MODEL, X, guidance=2.0),
        "encode takes no guidance: pass the guided",
    ),
    "a misspelt option": (lambda: sf.tune(MODEL, 2, point=64), "tune has no argument 'point': did you mean 'points'?"),
    "another": (lambda: sf.sample(MODEL, 2, step=3), "sample has no argument 'step': did you mean 'steps'?"),
    "no training data": (
        lambda: sf.memorization("runs/x"),
        "memorization needs the data that the model was trained on",
    ),
    "no scale": (lambda: sf.guide(MODEL, None), "guidance scale must be a finite number"),
    "a list of scales": (lambda: sf.guide(MODEL, [1, 2]), "guidance scale must be a finite number"),
    "no path": (lambda: sf.load(5), "A model file or a run folder must be a path, not 5"),
    "nowhere": (lambda: sf.save(MODEL, 5), "The destination of a model must be a path"),
    "no run": (lambda: sf.resume(5), "A run folder must be a path"),
    "no data": (lambda: sf.train(None), "None"),
    "a number as run folder": (lambda: train(out=3), "The run folder must be a path, not 3"),
    "endless minutes": (lambda: train(minutes=float("inf"), steps=None), "minutes must be a number from 0.001"),
    "endless steps": (lambda: train(steps=float("inf")), "steps must be a whole number, not inf"),
    "half a step of training": (lambda: train(steps=2.5), "steps must be a whole number, not 2.5"),
    "too large a batch": (lambda: train(batch=1e300), "batch must be a number from 1"),
    "no rate": (lambda: train(lr=None), "lr must be a number, not None"),
    "no seed": (lambda: train(seed=None), "seed must be a number, not None"),
    "a list of networks": (lambda: train(net=["tiny"]), "net takes a name or a torch.nn.Module"),
    "a list of optimisers": (lambda: train(optimizer=[]), "optimizer must be text"),
    "a list of dashboards": (lambda: train(loggers=["x"]), "loggers must be text"),
    "a function as weight": (lambda: train(weight=lambda level: level), "register the weight and pass its name"),
    "a scale as text": (lambda: sf.guide(MODEL, "2"), "guidance scale must be a finite number"),
    "no schedule": (lambda: sf.Gaussian(None), "A noise schedule must be one of sf.schedules or its name, not None"),
    "no target": (lambda: sf.Gaussian(Flow(), None), "There is no target 'None'"),
    "no network": (lambda: sf.Denoiser(None, sf.Gaussian(Flow())), "called as net(input, noise_level)"),
    "a schedule as process": (lambda: sf.Denoiser(MODEL.net, Flow()), "such as sf.Gaussian(schedule)"),
    "states as text": (lambda: sf.Masked(Flow(), "a"), "states of a masked process must be a whole number"),
    "one state": (lambda: sf.Uniform(Flow(), 1), "states of a uniform process must be at least 2"),
    "a list of parts": (lambda: sf.Product([1]), "A product needs a dict"),
    "another schedule": (lambda: sf.Rescheduled(MODEL, 5), "A noise schedule must be one of sf.schedules"),
    "NaN in log_prob": (lambda: sf.log_prob(MODEL, BROKEN), "log_prob got 1 value that is NaN or infinite"),
    "where": (lambda: sf.vlb(MODEL, BROKEN), "the first at (1, 2)"),
    "NaN to encode": (lambda: sf.encode(MODEL, BROKEN), "encode got 1 value"),
    "text": (lambda: sf.log_prob(MODEL, "abc"), "log_prob takes numbers (B, ...), not a str"),
    "one sample": (lambda: sf.log_prob(MODEL, X[0]), "takes samples (B, ...)"),
    "half a step of the flow": (
        lambda: sf.encode(MODEL, X, steps=2.5),
        "steps of the probability flow must be a whole",
    ),
    "an index as text": (lambda: sf.sample(MODEL, 2, 2, index="ab"), "numbers of samples must be one axis of integers"),
    "a mapping as index": (lambda: sf.sample(MODEL, 2, 2, index={}), "a bool mask, not {}"),
    "a mapping as label": (lambda: sf.sample(LABELLED, 2, 2, label={}), "The condition 'label': {} is not a number"),
    "an interval as text": (lambda: sf.guide(LABELLED, 2.0, "ab"), "two increasing logsnr values, got 'ab'"),
    "half an interval": (lambda: sf.guide(LABELLED, 2.0, (None, 1)), "two increasing logsnr values"),
    "three ends": (lambda: sf.guide(LABELLED, 2.0, (1, 2, 3)), "two increasing logsnr values"),
    "an absurd scale": (lambda: sf.guide(LABELLED, 1e30), "of at most 1e+06"),
    "features as text": (lambda: sf.memorization(MODEL, X, X + 1, features="x"), "features must be a function"),
    "a number as density": (lambda: sf.draws(MODEL, X, times=5), "times must be a time density"),
    "draws by half a seed": (lambda: sf.draws(MODEL, X, seed=1.5), "seed must be a whole number, not 1.5"),
    "text to encode": (lambda: sf.encode(MODEL, "abc"), "encode takes numbers (B, ...), not a str"),
    "text to encode in units": (lambda: sf.encode(IN_UNITS, "abc"), "a batch is numbers (B, ...), not a str"),
    "more samples than memory": (lambda: sf.sample(MODEL, 2**63 - 1), "GB of memory"),
    "a billion steps": (lambda: sf.sample(MODEL, 2, 10**9), "steps must be at most 100,000"),
    "a solver without a plan": (
        lambda: Forgetful().plan(Flow(), 2),
        "Forgetful.build must return a plan",
    ),
    "sigma_data as text": (lambda: sf.Gaussian(Flow(), sigma_data="x"), "sigma_data must be a number"),
    "no sigma_data": (lambda: sf.Gaussian(Flow(), sigma_data=0.0), "sigma_data must be above 0"),
    "half a call": (lambda: sf.tune(MODEL, 2.5), "steps must be a whole number, not 2.5"),
}


def test_mistakes_are_one_sentence_and_leave_no_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong = []
    for name, (call, words) in CASES.items():
        try:
            call()
            wrong.append(f"{name}: no error")
        except sf.SfumatoError as error:
            if words not in str(error) or str(error).count("\n"):
                wrong.append(f"{name}: {error}")
        except Exception as error:
            wrong.append(f"{name}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_and_devices_of_torch_are_settings():
    config = TrainConfig(steps=np.int64(2), lr=np.float32(0.5), batch=8.0, device=torch.device("cpu"))
    assert (config.steps, config.lr, config.batch, config.device) == (2, 0.5, 8, "cpu")
    assert type(config.steps) is type(config.batch) is int and type(config.lr) is float


def test_a_schedule_may_be_named():
    named = sf.Gaussian("ve(sigma_max=80)").schedule
    assert named == sf.schedules.VE(sigma_max=80.0) and sf.Masked("flow", 3).schedule == Flow()
    assert sf.Rescheduled(MODEL, "cosine").schedule == sf.schedules.Cosine()


def test_numbers_and_articles_agree_with_their_words():
    assert [counted(n, "image") for n in (0, 1, 2000)] == ["0 images", "1 image", "2,000 images"]
    assert counted(1, "file was", "files were") == "1 file was" and counted(3, "entry", "entries") == "3 entries"
    assert [an(name) for name in ("MLP", "DiT", "UNet", "Energy", "Uniform", "int")] == [
        "an MLP", "a DiT", "a UNet", "an Energy", "a Uniform", "an int",
    ]  # fmt: skip
