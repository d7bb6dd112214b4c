"""The library leaves its caller's process as it is: threads, limits, signals, warnings, environment, random numbers."""

import os
import pickle
import random
import signal
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torch._dynamo  # noqa: F401  (its import, by torch.utils.checkpoint too, sets a variable and a filter by itself)
from torch.nn.modules.module import register_module_forward_pre_hook

import sfumato as sf
from sfumato import schedules
from sfumato.noise import seeded
from sfumato.objectives.tables import TableLoss
from sfumato.training.compiling import compiling
from sfumato.training.config import TrainConfig
from sfumato.training.console import Silent
from sfumato.training.parts import Objects, model_for, suited

TRUTH = sf.exact.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], [0.1, 0.2])
X, LABELS = TRUTH.sample(40, seed=1).float(), ["a", "b"] * 20
FIRST = sf.operators.Mask(torch.tensor([True, False]))
RUN: dict[str, Any] = {"net": "tiny", "batch": 8, "snapshots": 0, "console": Silent()}
TRAINED = {name: value for name, value in RUN.items() if name != "net"}  # of a model that is trained further
# public functions without a case, and why
NO_CASE = {"register": "it adds to the registry, which is all that it is for"}


def process() -> dict[str, Any]:
    """What a caller's process has and no computation changes for its own time."""
    own = psutil.Process()
    limits = [name for name in dir(psutil) if name.startswith("RLIMIT_")]
    score = Path("/proc/self/oom_score_adj")
    return {
        "threads of torch": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "limits": {name: own.rlimit(getattr(psutil, name)) for name in limits},
        "who is ended first without memory": score.read_text() if score.exists() else None,
        "signal handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "environment": dict(os.environ),
        "working folder": os.getcwd(),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "default type and device": (torch.get_default_dtype(), torch.get_default_device()),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
        ),
        "precision of products": torch.get_float32_matmul_precision(),
        "distributed": torch.distributed.is_initialized(),
    }


def state() -> dict[str, Any]:
    """All that a call must leave as it was."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return process() | {
        "torch's random numbers": torch.get_rng_state().numpy().tobytes(),
        "numpy's random numbers": pickle.dumps(np.random.get_state()),
        "Python's random numbers": random.getstate(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "autocast": [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")
        ]
        + [torch.is_autocast_cache_enabled()],
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
        "attention": (
            cuda.flash_sdp_enabled(),
            cuda.mem_efficient_sdp_enabled(),
            cuda.math_sdp_enabled(),
            cuda.cudnn_sdp_enabled(),
        ),
        "mkldnn": (torch.backends.mkldnn.enabled, torch.backends.mkldnn.deterministic),
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [name for name, value in before.items() if after[name] != value]


def model(outputs: int = 1, **options: Any) -> sf.Denoiser:
    """A network of two classes with the spec of X."""
    torch.manual_seed(0)
    net = sf.nets.MLP(2, 16, 1, classes=2, outputs=outputs)
    for part in net.parameters():
        torch.nn.init.normal_(part, std=0.3)
    spec = sf.data.DataSpec.fit(sf.data.open(X, labels=LABELS))
    return sf.Denoiser(net, sf.Gaussian(schedules.LinearBeta(), "v", **options), spec=spec)


def latent(inner: sf.Denoiser) -> sf.Latent:
    """A denoiser of codes as if it were trained on those of an autoencoder."""
    return sf.Latent(inner, sf.Codec(sf.nets.Autoencoder((2,), 2, ()), inner.spec))


def pair() -> sf.UnCLIP:
    """An untrained prior and decoder, with an embedder of two numbers."""
    heard = {"embedding": {"kind": "vector", "size": 2}}
    with seeded(0), torch.device("cpu"):
        prior = sf.Denoiser(sf.nets.MLP(2, 16, 1), sf.Gaussian(schedules.LinearBeta()))
        decoder = sf.Denoiser(sf.nets.MLP(2, 16, 1, conditions=heard), sf.Gaussian(schedules.LinearBeta()))
    return sf.UnCLIP(prior, decoder, sf.Embedder.fit(X, "numbers"))


def of_text() -> sf.Denoiser:
    """An untrained network of text, with a tokeniser."""
    source = sf.data.open(["to be or not to be. " * 9], length=6)
    torch.manual_seed(0)
    net = sf.nets.Transformer((source.text.size, 6), 8, 1)
    process = sf.Masked(schedules.Flow(), source.text.size)
    return sf.Denoiser(net, process, spec=sf.data.DataSpec.fit(source))


def of_a_table() -> sf.Denoiser:
    """An untrained network of a table of a number and a category."""
    table = pytest.importorskip("pyarrow").table
    with seeded(0), torch.device("cpu"):
        source = sf.data.open(table({"size": np.arange(40.0), "kind": ["ash", "oak"] * 20}))
        spec = sf.data.DataSpec.fit(source)
        settings = suited(TrainConfig(net="tiny"), spec)
        return model_for(Objects(), settings, source, spec, TableLoss(), torch.device("cpu"))


def of_actions() -> sf.Denoiser:
    """An untrained policy of the point mass."""
    with seeded(0), torch.device("cpu"):
        spec = sf.data.DataSpec.fit(sf.data.open(sf.reinforce.explore(sf.reinforce.PointMass(), 2)))
        net = sf.nets.MLP(1, 16, 1, conditions={name: each.network() for name, each in spec.conditions.items()})
    return sf.Denoiser(net, sf.Gaussian(schedules.Flow()), spec=spec)


def calibrate() -> None:
    sf.calibrate(of_a_table(), torch.zeros(400, 2, device="cpu"), 256)


def impute() -> None:
    table = pytest.importorskip("pyarrow").table
    sf.impute(of_a_table(), table({"size": [1.0, None], "kind": [None, "oak"]}), steps=2)


class Place:
    """What the calls work on."""

    def __init__(self, folder: Path) -> None:
        self.model, self.learned, self.out = model(), model(2, variance="learned"), folder / "out"
        self.other = model()
        self.exact = TRUTH.denoiser(sf.Gaussian(schedules.Flow()))
        torch.manual_seed(0)
        self.text = of_text()
        self.latent = latent(self.model)
        self.energy = sf.Denoiser(sf.nets.Energy(sf.nets.MLP(2, 16, 1)), sf.Gaussian(schedules.Flow()))
        self.adapted = sf.Denoiser(sf.nets.Adapted(sf.nets.MLP(2, 16, 1), 2), sf.Gaussian(schedules.Flow()))
        self.saved = sf.save(self.model, folder / "model.safetensors")
        self.run, self.policy = folder / "run", of_actions()

    def trained(self, **settings: Any) -> Any:
        usual = TRAINED if "init" in settings else RUN
        return sf.train(X, self.run, LABELS, **{"steps": 2, **usual, **settings})

    def before(self, name: str) -> None:
        """The run that a case goes on with."""
        if name in ("resume", "doctor of a run"):
            self.trained()
        if name == "reinforce.resume":
            sf.align(self.model, lambda x: x[:, 0], out=self.run, samples=32, steps=2, **TRAINED)

    def entered(self) -> None:
        with sf.joined():
            pass


CASES: dict[str, Callable[[Place], Any]] = {
    "align": lambda p: sf.align(p.model, lambda x: x[:, 0], out=p.out, samples=32, steps=2, **TRAINED),
    "attribute": lambda p: sf.attribute(p.model, X[:4], X[4:8], steps=2),
    "audit": lambda p: sf.audit(p.model, X, bins=2, samples=8),
    "board": lambda p: sf.board(p.model, X, bins=2, samples=4, gradients=2, labels=LABELS),
    "bound_gap": lambda p: sf.bound_gap(p.exact, TRUTH, 8, 4),
    "certify": lambda p: sf.certify("ddim", quick=True),
    "condition_on": lambda p: sf.sample(sf.condition_on(p.exact, X[0, :1], FIRST, 0.1), 2, 3),
    "decode": lambda p: sf.decode(p.model, X[:2], steps=2),
    "denoising_loss": lambda p: sf.denoising_loss(p.model, X),
    "density_gap": lambda p: sf.density_gap(p.model, X[:3], 0.5, steps=4),
    "differentiable": lambda p: sf.sample(sf.differentiable(p.model, 2), 2, 3),
    "distill": lambda p: sf.distill(
        p.model, p.out, samples=40, steps=2, **{k: v for k, v in RUN.items() if k != "net"}
    ),
    "doctor": lambda p: sf.doctor(p.model, X, LABELS),
    "draws": lambda p: sf.draws(p.model, X, 2, 0, label=LABELS),
    "encode": lambda p: sf.encode(p.model, X[:2], steps=2),
    "energy": lambda p: sf.energy(p.energy, X, 0.5),
    "error_budget": lambda p: sf.error_budget(p.exact, steps=4, n=50),
    "explain_guidance": lambda p: sf.explain_guidance(p.model, 2.0, n=8, steps=2, directions=1, label="a"),
    "forecast": lambda p: sf.forecast(X, labels=LABELS, steps=2, net="tiny", batch=8),
    "guide": lambda p: sf.sample(sf.guide(p.model, 2.0), 2, 3, label="a"),
    "hybrid_loss": lambda p: sf.hybrid_loss(p.learned, X, steps=5),
    "impute": lambda p: impute(),
    "calibrate": lambda p: calibrate(),
    "uncalibrated": lambda p: sf.uncalibrated(of_a_table()),
    "information": lambda p: sf.information(p.model, X, 16, label=LABELS),
    "interpolate": lambda p: sf.interpolate(p.model, X[:2], X[2:4], [0.5], steps=2),
    "joined": lambda p: p.entered(),
    "ladder": lambda p: sf.ladder(p.model, p.model, (1,), samples=8),
    "load": lambda p: sf.load(p.saved),
    "log_ratio": lambda p: sf.log_ratio(p.model, p.other, X[:4], draws=4),
    "log_prob": lambda p: sf.log_prob(p.model, X[:4], steps=2),
    "merge": lambda p: sf.merge(p.adapted),
    "memorization": lambda p: sf.memorization(p.model, X[:30], X[30:], samples=8, steps=2),
    "posterior": lambda p: sf.posterior(p.exact, X[0, :1], FIRST, 0.1, n=2, steps=2),
    "prior_kl": lambda p: sf.prior_kl(p.model.process, X),
    "rate_split": lambda p: sf.rate_split(p.latent, X[:4], 2, 2),
    "resume": lambda p: sf.resume(p.run, X, LABELS, console=Silent(), steps=3),
    "sample": lambda p: sf.sample(p.model, 4, 3, label="a"),
    "sample_text": lambda p: sf.sample_text(p.text, 2, length=9, prompt="to"),
    "save": lambda p: sf.save(p.model, p.out),
    "variations": lambda p: sf.variations(pair(), X[0], 2, steps=2),
    "slerp": lambda p: sf.slerp(X[:2], X[2:4], 0.5),
    "tilt": lambda p: sf.tilt([(p.model, {"label": "a"}, 2.0), (p.model, {}, -1.0)]).sample(2, particles=4, steps=2),
    "train": lambda p: p.trained(),
    "trajectory": lambda p: list(sf.trajectory(p.model, 2, 3)),
    "tune": lambda p: sf.tune(p.model, 3, points=16, rounds=1),
    "views": lambda p: sf.views(p.model, X, samples=16),
    "vlb": lambda p: sf.vlb(p.model, X[:4], steps=4),
    "vlb_loss": lambda p: sf.vlb_loss(p.learned, X, steps=5),
    # beyond the list of public functions
    "data.open": lambda p: sf.data.open(X, labels=LABELS),
    "data.inspect": lambda p: sf.data.inspect("digits"),
    "reinforce.explore": lambda p: sf.reinforce.explore(sf.reinforce.Grid(3), 2),
    "reinforce.path_kl": lambda p: sf.reinforce.path_kl(p.model, p.other, X[:4], levels=2),
    "reinforce.play": lambda p: sf.reinforce.play(p.policy, sf.reinforce.PointMass(), 2),
    "reinforce.resume": lambda p: sf.reinforce.resume(p.run, lambda x: x[:, 0], console=Silent(), steps=3),
    "train with threads": lambda p: p.trained(threads=torch.get_num_threads() + 1),
    "train adapters": lambda p: p.trained(init=p.model, lora=2),
    "train with dropout": lambda p: p.trained(net="MLP(width=16, depth=1, dropout=0.5)"),
    "doctor of a run": lambda p: sf.doctor(p.run, X, LABELS),
}


def test_every_public_function_has_a_case():
    public = {name: getattr(sf, name) for name in sf.__all__}
    functions = {name for name, value in public.items() if callable(value) and not isinstance(value, type | ModuleType)}
    missing = functions - set(CASES) - set(NO_CASE)
    assert not missing, f"give {', '.join(sorted(missing))} a case in CASES, or a reason in NO_CASE"


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_a_call_leaves_the_process_as_it_was(name, place):
    """Before and after it, and, of what no computation changes for its own time, whenever a network is called in it."""
    place.before(name)
    within: set[str] = set()
    before, threads = state(), set(threading.enumerate())

    def look(module: torch.nn.Module, _: Any) -> None:
        if isinstance(module, sf.nets.MLP):
            within.update(changed(process(), before))

    hook = register_module_forward_pre_hook(look)
    try:
        CASES[name](place)
    finally:
        hook.remove()
    assert changed(before, state()) == []
    assert not set(threading.enumerate()) - threads
    assert within <= ({"threads of torch"} if name == "train with threads" else set())


@pytest.mark.parametrize("name", ["board", "differentiable", "energy", "log_prob", "sample", "train", "tune"])
def test_a_call_serves_in_inference_mode(name, place):
    before = state()
    with torch.inference_mode():
        CASES[name](place)
    assert changed(before, state()) == []


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(("certify", "train with"))])
def test_a_call_serves_under_any_default_device(name, place):
    """Meta computes nothing: whatever is made on it fails where it is used."""
    place.before(name)
    torch.set_default_device("meta")
    try:
        before = state()
        CASES[name](place)
        assert changed(before, state()) == []
    finally:
        torch.set_default_device(None)


def test_the_default_device_changes_no_value(place):
    with torch.device("meta"):
        walk = [state.z for state in sf.trajectory(sf.load(place.saved), 2, 3)]
    assert torch.equal(walk[-1], [state.z for state in sf.trajectory(sf.load(place.saved), 2, 3)][-1])


def test_inference_mode_changes_no_value(place):
    with torch.inference_mode():
        x = X[:4].clone()
        within = sf.log_prob(sf.load(place.saved), x, steps=2).value
    assert torch.equal(within, sf.log_prob(sf.load(place.saved), X[:4], steps=2).value)


def test_a_call_that_fails_leaves_the_process_as_it_was(place):
    def fail(*_: Any) -> None:
        raise KeyError("in the network")

    place.model.net.register_forward_hook(fail)
    before = state()
    for call in (
        lambda: sf.sample(place.model, 4, 3),
        lambda: sf.log_prob(place.model, X[:4], steps=2),
        lambda: sf.train(X, place.run, LABELS, steps=2, **RUN, threads=1, on_start=lambda session: fail()),
    ):
        with pytest.raises(KeyError, match="in the network"):
            call()
        assert changed(before, state()) == []


def test_a_run_leaves_modes_as_it_found_them_and_a_thread_too(place):
    """The caller's modes are his own, and those of a run its own, in this thread and in another one."""
    found: dict[str, Any] = {}

    def within() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            before = state()
            sf.train(X, place.run / threading.current_thread().name, LABELS, steps=2, **RUN)
            found[threading.current_thread().name] = changed(before, state())

    torch.set_default_dtype(torch.float64)
    try:
        within()
        thread = threading.Thread(target=within, name="another")
        thread.start()
        thread.join()
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == {"MainThread": [], "another": []}


def test_a_run_that_compiles_names_its_cache_to_torch_while_it_lasts(place, monkeypatch):
    """torch's compiler itself leaves threads and variables in the process; this one is the library's."""
    monkeypatch.setenv("SFUMATO_CACHE", str(place.out))
    before = state()
    with compiling(True):
        assert changed(before, state()) == ["environment"]
        assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).is_relative_to(place.out)
    assert changed(before, state()) == []


def test_the_library_leaves_the_allocator_alone():
    """What mallopt was told cannot be read back, so that this reads the library's text."""
    source = Path(sf.__file__).parent
    named = {path.relative_to(source) for path in source.rglob("*.py") if "mallopt" in path.read_text("utf-8")}
    assert named == {Path("cli/process.py")}
