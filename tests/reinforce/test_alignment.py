"""Alignment from file to file: rewards and pairs reach the model, the report tells what it gained and cost."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import sfumato as sf
from bandits import policy
from consoles import Heard
from sfumato.intervals import Interval
from sfumato.reinforce import Preferences, Reward, RewardError, align, resume
from sfumato.reinforce.alignment import FILE, doubts, frozen, of_weight, of_weights
from sfumato.reinforce.losses import FlowPolicy, RewardWeighted
from sfumato.training.console import Silent
from sfumato.training.run import Interrupted
from sfumato.training.teacher_samples import drawn

QUIET = {"batch": 64, "lr": 4e-3, "sample_every": 0, "console": Silent()}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a model of N((10, 0), diag(9, 1))."""
    x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 1.0])
    out = tmp_path_factory.mktemp("start") / "run"
    run = sf.train(x + torch.tensor([10.0, 0.0]), out, net="tiny", steps=200, **QUIET)
    return run.path


def test_a_reward_from_file_to_file(path: Path, tmp_path: Path) -> None:
    """The linear reward x / 3: the tilt moves the mean by 3 and the reward by 1."""
    found = align(
        path,
        reward=lambda x: x[:, 0] / 3,
        judge=lambda x: -x[:, 0],
        out=tmp_path / "run",
        samples=1024,
        steps=150,
        **QUIET,
    )
    report = found.report
    assert report.before is not None and report.after is not None
    assert report.after.value - report.before.value > 0.4 and report.kl.low > 0.05
    assert 0.6 < report.diversity < 1.5 and any("judge fell" in line for line in report.doubts)
    kept = json.loads((tmp_path / "run" / FILE).read_text())
    assert kept["kl"]["value"] == report.kl.value and len(kept["judge"]) == 2
    assert "KL to the reference" in str(report)
    again = sf.load(tmp_path / "run")
    x, old = sf.sample(again, 256, seed=3), sf.sample(sf.load(path), 256, seed=3)
    assert float((x - old)[:, 0].mean()) > 1


def test_pairs_of_a_file_are_learnt(path: Path, tmp_path: Path) -> None:
    """200 pairs of samples, of which the one with the larger second number wins."""
    x = sf.sample(sf.load(path), 400, seed=5).numpy().reshape(200, 2, 2)
    order = np.argsort(x[:, :, 1], axis=1)
    loser, winner = (np.take_along_axis(x, order[:, k, None, None], 1)[:, 0] for k in (0, 1))
    lines = [json.dumps({"winner": w.tolist(), "loser": v.tolist()}) for w, v in zip(winner, loser, strict=True)]
    place = tmp_path / "pairs.jsonl"
    place.write_text("\n".join(lines) + "\n")
    np.savez(tmp_path / "pairs.npz", winner=winner, loser=loser)
    read = [Preferences.read(sf.load(path), tmp_path / f"pairs.{ending}") for ending in ("jsonl", "npz")]
    assert torch.equal(read[0].winner, read[1].winner) and torch.equal(read[0].loser, read[1].loser)
    report = align(path, preferences=place, out=tmp_path / "run", samples=256, steps=40, **QUIET).report
    assert report.margin is not None and report.margin.low > 0.1 and report.before is None
    x, old = (sf.sample(sf.load(each), 256, seed=3) for each in (tmp_path / "run", path))
    assert float((x - old)[:, 1].mean()) > 0.1


def test_it_resumes_with_the_loss(path: Path, tmp_path: Path) -> None:
    model = sf.load(path)
    data, _ = drawn(model, 256, 1)

    def loss() -> FlowPolicy:
        return FlowPolicy(model, Reward(lambda x: x[:, 1]), samples=64, every=4)

    whole = sf.train(data, tmp_path / "whole", init=model, loss=loss(), steps=12, **QUIET)
    with pytest.raises(Interrupted):
        sf.train(data, tmp_path / "half", init=model, loss=loss(), steps=12, **QUIET | {"console": Heard(stop=6)})
    rest = sf.resume(tmp_path / "half", data=data, loss=loss(), console=Silent())
    one, two = whole.denoiser.state_dict(), rest.denoiser.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


FLAKY = """
from pathlib import Path

calls = 0


def second(x):
    global calls
    calls += 1
    limit = Path(__file__).with_name("limit")
    if limit.exists() and calls > int(limit.read_text()):
        raise RuntimeError("the judge is offline")
    return x[:, 1]
"""


@pytest.mark.first(1)
@pytest.mark.parametrize("calls, said", [(2, "step 8 is saved: sfumato resume"), (3, "lacks alignment.json alone")])
def test_a_reward_that_fails_loses_nothing(path: Path, tmp_path: Path, calls: int, said: str) -> None:
    """Rewards of rounds at steps 0, 4 and 8, and of the report: the run goes on to the same weights and report."""
    (tmp_path / "flaky.py").write_text(FLAKY)
    asked = {"reward": f"{tmp_path}/flaky.py:second", "method": "fpo(every=4)", "samples": 64, "steps": 12, **QUIET}
    whole = align(path, out=tmp_path / "whole", **asked)
    (tmp_path / "limit").write_text(str(calls))
    with pytest.raises(RewardError, match="second failed .* the judge is offline") as caught:
        align(path, out=tmp_path / "half", **asked)
    assert said in str(caught.value)
    (tmp_path / "limit").unlink()
    rest = resume(tmp_path / "half", console=Silent())
    one, two = whole.run.denoiser.state_dict(), rest.run.denoiser.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert rest.report == whole.report and (tmp_path / "half" / FILE).exists()


def test_what_is_in_memory_is_passed_again(path: Path, tmp_path: Path) -> None:
    def reward(x: torch.Tensor) -> torch.Tensor:
        return x[:, 1]

    with pytest.raises(Interrupted):
        align(path, reward, out=tmp_path / "run", samples=64, steps=6, **QUIET | {"console": Heard(stop=3)})
    with pytest.raises(sf.SfumatoError, match="reward=..."):
        resume(tmp_path / "run")
    assert resume(tmp_path / "run", reward, console=Silent()).report.after is not None
    with pytest.raises(sf.SfumatoError, match="no run of sf.align"):
        resume(path)


def test_the_reference_computes_as_the_run(path: Path) -> None:
    """In the run's precision, and the caller's model keeps its own."""
    model = sf.load(path)
    reference = frozen(model, "cpu", "bfloat16")
    assert reference.compute_dtype is torch.bfloat16 and model.compute_dtype is None and reference.net is model.net


def test_a_reward_that_hangs() -> None:
    """It is left behind; one that is in time keeps its gradients, and an error of its own is told apart."""
    woken = threading.Event()
    with pytest.raises(RewardError, match="longer than 0.2 seconds .* raise reward_seconds"):
        Reward(lambda x: woken.wait(60), seconds=0.2)(torch.zeros(3, 2))
    woken.set()
    x = torch.ones(3, 2, requires_grad=True)
    assert Reward(lambda x: 2 * x[:, 0], seconds=60)(x).requires_grad

    def slow(x: torch.Tensor) -> torch.Tensor:
        raise TimeoutError("no answer from the judge")

    with pytest.raises(RewardError, match="failed .* no answer from the judge"):
        Reward(slow, seconds=60)(x)
    with pytest.raises(sf.SfumatoError, match="above 0"):
        Reward(slow, seconds=0)


def test_doubts() -> None:
    def about(value: float) -> Interval:
        return Interval(value, value - 0.1, value + 0.1)

    assert list(doubts(about(1.0), about(0.5), 1.0, 0.9, None, None)) == []
    assert "less than beta KL" in next(doubts(about(0.3), about(0.6), 1.0, 0.9, None, None))
    assert "0.2 times" in next(doubts(about(1.0), about(0.5), 1.0, 0.2, None, None))
    assert "less likely, too" in next(doubts(None, about(0.5), 1.0, 0.9, about(-1.0), None))


def test_doubts_of_settings() -> None:
    """A weight that ends elsewhere, and a temperature at which a few samples carry all the weight."""
    few = RewardWeighted(policy([0.0]), Reward(lambda x: x[:, 0]), beta=0.05, samples=512)
    many = RewardWeighted(policy([0.0]), Reward(lambda x: x[:, 0]), beta=1.0, samples=512)
    assert "512 samples are worth" in of_weights(few)[0] and of_weights(many) == []
    assert "variance 0.25 " in of_weight("flow")[0] and of_weight("elbo") == []


def test_mistakes(path: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"winner": [1, 2], "loser": [3, 4]}\n[1]\n')
    (tmp_path / "short.jsonl").write_text('{"winner": [1, 2]}\n')
    (tmp_path / "pairs.txt").write_text("")
    model = sf.load(path)
    for make, said in (
        (lambda: align(model), "one of the two"),
        (lambda: align(model, lambda x: x[:, 0], method="dpo"), "no method 'dpo' that learns from rewards"),
        (lambda: align(model, preferences=tmp_path / "bad.jsonl"), "line 2"),
        (lambda: align(model, preferences=tmp_path / "short.jsonl"), "winner and loser"),
        (lambda: align(model, preferences=tmp_path / "pairs.txt"), ".npz or .jsonl"),
        (lambda: align(model, lambda x: x), "one number for each"),
        (lambda: Preferences(model, [["a"]], [["b"]]), "numbers of one shape"),
        (lambda: sf.train(torch.randn(50, 2), tmp_path / "no", loss="fpo", steps=1), "needs a reference"),
    ):
        with pytest.raises(sf.SfumatoError, match=said):
            make()
