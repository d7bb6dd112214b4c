"""Distillation from a file alone: a run like any other, whose student comes near to its teacher's flow."""

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import sfumato as sf
from consoles import Heard
from map_cases import LAW
from sfumato import noise
from sfumato.diagnostics.checks.of_paths import rising
from sfumato.diagnostics.validation import taken
from sfumato.distillation import OF_PICTURES, _chosen, loss_named
from sfumato.distributed import World
from sfumato.flow_map import FlowMap
from sfumato.folder import read
from sfumato.metrics import MMD
from sfumato.objectives.flow_maps import Semigroup
from sfumato.objectives.loss import Batch, Loss
from sfumato.training import State, TrainConfig
from sfumato.training.config import from_yaml
from sfumato.training.console import Console, Silent
from sfumato.training.ladder import Rung, advice, ladder
from sfumato.training.loop import Progress
from sfumato.training.run import Interrupted
from sfumato.training.session import Session
from sfumato.training.validation import judge


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> sf.Denoiser:
    """Two classes at (-20, 0) and (20, 5), of deviation 3 and 1."""
    torch.manual_seed(0)
    label = torch.arange(1000) % 2
    x = torch.randn(1000, 2) * torch.where(label == 0, 3.0, 1.0)[:, None]
    x = x + torch.tensor([[-20.0, 0.0], [20.0, 5.0]])[label]
    out = tmp_path_factory.mktemp("teacher") / "run"
    names = ["left" if each == 0 else "right" for each in label.tolist()]
    run = sf.train(x, out, labels=names, net="tiny", steps=300, sample_every=0, console=Silent())
    return run.denoiser


SHORT = {"samples": 64, "sample_every": 0, "console": Silent()}


def test_from_the_file_alone(teacher: sf.Denoiser, tmp_path: object, told: Any) -> None:
    path = sf.save(teacher, f"{tmp_path}/teacher.safetensors")
    run = sf.distill(path, f"{tmp_path}/student", steps=200, guidance=1.5, **{**SHORT, "samples": 512})
    student = run.denoiser
    assert isinstance(student, FlowMap) and student.calls == (1, 2, 4)
    kept = json.loads((run.path / "ladder.json").read_text())
    rungs = {(rung["calls"], rung["how"]): rung["rms"] for rung in kept["rungs"]}
    assert rungs[1, "student"] < 0.5 * rungs[1, "multistep"]
    again = [Rung(**rung) for rung in kept["rungs"] if rung["calls"] == 4]
    assert again == ladder(student, sf.guide(teacher, 1.5), (4,)) and kept["advice"].startswith("The student")
    assert max(each.done for each in told if "fine solution" in each.what) == 127  # 64 steps of Heun, the last of Euler
    page = (run.path / "report.html").read_text()
    assert "Quality by the number of calls" in page and f"{rungs[1, 'student']:.3f}" in page
    assert "Hold-out loss" in page and "Nothing was held out" not in page and "not measured by noise level" in page
    assert "1, 2 or 4 calls" in " ".join(sf.serialization.describe(run.path))
    x = sf.sample(student, 64, label="left")
    assert (x[:, 0] < 0).float().mean() > 0.9
    beside = {(rung["calls"], rung["how"]): rung for rung in kept["rungs"]}
    assert {rung["metric"] for rung in kept["rungs"]} == {"mmd"} and "MMD, student" in page and "MMD beside" in page
    assert (
        beside[1, "student"]["high"] < beside[1, "multistep"]["low"] and f"{beside[2, 'student']['value']:.3g}±" in page
    )
    watched = [line for line in run.metrics if "valid_mmd" in line]
    assert all(line["valid_mmd_low"] < line["valid_mmd"] < line["valid_mmd_high"] for line in watched)
    assert all("valid_mmd" in line for line in run.metrics if "valid_ema" in line)
    assert all(watched[-1][key] < watched[0][key] for key in ("valid_mmd", "valid_mmd_2", "valid_mmd_4"))
    assert all(name in page for name in ("the first number of calls", "2 calls", "4 calls"))
    distances = [line["valid_ema"] for line in run.metrics if "valid_ema" in line]
    assert distances[-1] < 0.25 * distances[0] and distances[-1] < 4 * rungs[1, "student"] ** 2


def test_a_ladder_is_of_models_or_their_files(teacher: sf.Denoiser, tmp_path: Path) -> None:
    student = FlowMap.student(teacher, (1, 2))
    files = [sf.save(each, tmp_path / f"{i}.safetensors") for i, each in enumerate((student, teacher))]
    found = sf.ladder(*files, (1, 2), samples=32)
    assert found == sf.ladder(student, teacher, (1, 2), samples=32) != sf.ladder(student, teacher, (1, 2), samples=16)
    assert [(rung.calls, rung.how) for rung in found] == [(n, how) for n in (1, 2) for how in ("student", "multistep")]
    # a student that was not trained yet is a step of DDIM, as it starts
    ddim = sf.sample(teacher, 32, 2, "ddim", 1, normalised=True, cond={"label": ["left", "right"] * 16}).double()
    fine = sf.sample(teacher, 32, 64, "heun", 1, normalised=True, cond={"label": ["left", "right"] * 16}).double()
    distance = float((ddim - fine).square().mean().sqrt() / fine.square().mean().sqrt())
    (own,) = (r.rms for r in sf.ladder(FlowMap.student(teacher, form="ddim"), teacher, (2,), samples=32)[:1])
    assert math.isclose(own, distance, rel_tol=1e-4)
    left = sf.ladder(student, teacher, (1,), samples=32, label="left")
    assert left[0].rms != found[0].rms
    symbols = sf.Denoiser(sf.nets.Transformer((3, 4), 16, 1), sf.Masked(sf.schedules.Flow(), 3))
    other = sf.Denoiser(sf.nets.MLP(3, 8, 1), teacher.process)
    wrong = [(symbols, teacher, {}, "Masked has none"), (other, teacher, {}, "other data")]
    wrong += [(student, teacher, {"samples": 1}, "samples"), (student, teacher, {"calls": (0,)}, "calls")]
    wrong += [(student, teacher, {"calls": calls}, "several whole numbers") for calls in (2, None, ())]
    wrong += [(teacher, student, {}, "is a flow map")]
    for one, two, words, said in wrong:
        with pytest.raises(sf.SfumatoError, match=said):
            sf.ladder(one, two, **words)


@pytest.mark.parametrize("guidance", [3.0, (1.0, 4.0)])
def test_a_ladder_has_the_guidance_of_the_student(teacher: sf.Denoiser, guidance: Any, tmp_path: Path) -> None:
    """A student has it for good: beside the teacher without it, it would be far from what it was to learn."""
    file = sf.save(teacher, tmp_path / "teacher.safetensors")
    run = sf.distill(file, tmp_path / "run", guidance=guidance, calls=(1, 2), steps=2, **SHORT)
    kept = [Rung(**rung) for rung in json.loads((run.path / "ladder.json").read_text())["rungs"]]
    assert sf.ladder(run.path, file, (1, 2, 4, 8)) == kept


def test_the_numbers_of_calls_are_several(tmp_path: Path, teacher: sf.Denoiser) -> None:
    with pytest.raises(sf.SfumatoError, match="calls must be several whole numbers"):
        sf.distill(teacher, tmp_path / "run", calls=2, steps=2, **SHORT)  # type: ignore[arg-type]


def test_a_student_is_no_teacher(teacher: sf.Denoiser, tmp_path: Path) -> None:
    """What it samples in its few calls is no fine solution: the sentence names the teacher that it has."""
    student = FlowMap.student(teacher, (1, 2))
    with pytest.raises(sf.SfumatoError, match="a flow map already.*sf.train") as unknown:
        sf.distill(sf.save(student, tmp_path / "map.safetensors"), tmp_path / "again", steps=2, **SHORT)
    assert str(unknown.value).count(". ") == 0 and not (tmp_path / "again").exists()
    student.provenance = {"loss": "semigroup(teacher=file('runs/first'), calls=(1, 2))"}
    for one in (student, sf.save(student, tmp_path / "student.safetensors")):
        with pytest.raises(sf.SfumatoError, match=r"distil its own teacher, runs/first, and .*init"):
            sf.distill(one, tmp_path / "again", steps=2, **SHORT)


def test_a_plan_of_fewer_calls_is_a_way_of_its_own(teacher: sf.Denoiser) -> None:
    """And the solver of the teacher stands at each number of calls, also after it."""
    tuned = copy.copy(teacher)
    tuned.plans = {"tuned-2": sf.solvers.DDIM().plan(teacher.process, 2)}
    found = ladder(FlowMap.student(teacher, (1, 2)), tuned, (1, 2, 4))
    ways = [(rung.calls, rung.how) for rung in found]
    both = [(calls, how) for calls in (1, 2, 4) for how in ("student", "multistep")]
    assert sorted(ways) == sorted([*both, (2, "tuned-2")])
    plain = {(rung.calls, rung.how): rung for rung in ladder(FlowMap.student(teacher, (1, 2)), teacher, (1, 2, 4))}
    assert all(plain[rung.calls, rung.how] == rung for rung in found if rung.how != "tuned-2")


def test_a_student_is_watched_at_no_second_solve_of_its_teacher(teacher: sf.Denoiser) -> None:
    """The metric takes the teacher's samples that the distance has, and each number of the student's calls."""
    loss, counts = Semigroup(teacher, "teacher", cut=0.1, calls=(1, 2)), {"teacher": 0, "student": 0}
    student = FlowMap.student(teacher, (1, 2))
    x, cond = torch.randn(20, 2), {"label": torch.arange(20) % 2}
    config = TrainConfig(steps=10, batch=16, precision="float32")
    measure = judge(State(student, config, loss), config, x, cond)

    def count(name: str) -> Any:
        return lambda *_: counts.__setitem__(name, counts[name] + 1)

    handles = [
        each.net.register_forward_hook(count(name)) for name, each in (("teacher", teacher), ("student", student))
    ]
    first = measure.measure(student, None)
    parts = -(-len(measure.draws.index) // 16)
    assert counts == {"teacher": 2 * 16 * parts, "student": 2 * (1 + 2) * parts}
    second = measure.measure(student, None).further
    assert counts == {"teacher": 2 * 16 * parts, "student": 4 * (1 + 2) * parts} and second == first.further
    found, in_two = second["mmd"], second["mmd_2"]
    rows = taken(measure.draws, torch.arange(len(measure.draws.index)))
    ours, theirs = loss.drawn(student, rows), loss.taught(student, rows)
    assert list(second) == ["mmd", "mmd_2"] and found.value == pytest.approx(
        MMD().paired(ours[1].double(), theirs.double()).value, rel=1e-4
    )
    assert in_two.value == pytest.approx(MMD().paired(ours[2].double(), theirs.double()).value, rel=1e-4) != found.value
    for each in handles:
        each.remove()
    said = first.to_dict()
    assert said["valid_mmd"] == found.value and said["valid_mmd_low"] == found.low < found.high
    assert said["valid_mmd_2"] == in_two.value and said["valid_mmd_2_high"] == in_two.high
    line = Console()._validated(first)
    assert f"mmd {found.value:.3g}±{found.half:.2g}" in line and "mmd_2" not in line
    assert not judge(State(student, config, Semigroup(calls=(1,))), config, x, cond).measure(student, None).further


def test_a_resumed_run_is_the_same_run(teacher: sf.Denoiser, tmp_path: object) -> None:
    """The settings name the teacher's file and its hash; a teacher that has changed is refused."""
    whole = sf.distill(teacher, f"{tmp_path}/whole", steps=20, decay=0.0, **SHORT)
    sf.distill(teacher, f"{tmp_path}/parts", steps=10, decay=0.0, **SHORT)
    parts = sf.resume(f"{tmp_path}/parts", steps=20, console=Silent())
    ours, theirs = (dict(run.denoiser.net.state_dict()) for run in (whole, parts))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (whole.path / "ladder.json").read_text() == (parts.path / "ladder.json").read_text()
    kept = json.loads((parts.path / "ladder.json").read_text())
    for steps in (24, 28):  # stopped before their ends
        console = Stops("parts", steps - 2)
        with pytest.raises(Interrupted):
            sf.resume(parts.path, steps=steps, console=console, on_start=console.begun)
        again = json.loads((parts.path / "ladder.json").read_text())
        said = f"Of step 20, before the run went on: {kept['advice']}"
        assert again["rungs"] == kept["rungs"] and again["advice"] == said
        assert said in (parts.path / "report.html").read_text()
    sf.save(sf.Denoiser(teacher.net, sf.Gaussian("cosine"), spec=teacher.spec), parts.path / "teacher.safetensors")
    with pytest.raises(sf.SfumatoError, match="no longer the teacher"):
        sf.resume(parts.path, steps=30, console=Silent())


def test_a_student_by_law_resumes_with_its_player(teacher: sf.Denoiser, tmp_path: Path) -> None:
    """It renews noise between calls, is trained by small steps, and its player's weights and moments are kept."""
    words = {"method": "distribution-matching(turns=2)", "calls": (2, 1), "decay": 0.0, **SHORT}
    whole = sf.distill(teacher, tmp_path / "whole", steps=8, **words)
    sf.distill(teacher, tmp_path / "parts", steps=4, **words)
    parts = sf.resume(tmp_path / "parts", steps=8, console=Silent())
    ours, theirs = (dict(run.denoiser.net.state_dict()) for run in (whole, parts))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    student = sf.load(whole.path)
    assert student.gamma == 1 and student.default_solver == "map(gamma=1)"
    assert not torch.equal(sf.sample(student, 8, label="left"), sf.sample(student, 8, label="left", solver="map"))
    settings = (whole.path / "config.yaml").read_text()
    assert "optimizer: adamw" in settings and "lr: 0.001" in settings


class Stops(Silent):
    """Interrupts a run of a name at a step."""

    def __init__(self, stage: str, step: int = 4) -> None:
        super().__init__()
        self.stage, self.step, self.at = stage, step, ""

    def __call__(self, progress: Progress) -> None:
        if self.at == self.stage and progress.step == self.step:
            raise KeyboardInterrupt

    def begun(self, session: Session) -> None:
        self.at = session.path.name


@pytest.mark.slow
def test_a_student_in_two_stages_goes_on_with_the_one_that_was_stopped(teacher: sf.Denoiser, tmp_path: Path) -> None:
    words = {"calls": (1, 2), "decay": 0.0, "steps": 20, **SHORT}
    words["method"] = "trajectory-consistency(cut=0.3) + distribution-matching(turns=1)"
    whole = sf.distill(teacher, tmp_path / "whole", **words)
    first = sf.load(whole.path / "paths")
    assert first.gamma == 0 and sf.load(whole.path).gamma == 1 and len(whole.metrics) and whole.config.steps == 12
    assert not (whole.path / "paths" / "ladder.json").exists() and (whole.path / "ladder.json").exists()
    for stage in ("paths", "run"):
        console, out = Stops(stage), tmp_path / stage / "run"
        with pytest.raises(Interrupted, match=str(out)):
            sf.distill(teacher, out, **{**words, "console": console}, on_start=console.begun)
        again = sf.resume(out, console=Silent())
        ours, theirs = (dict(run.denoiser.net.state_dict()) for run in (whole, again))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), stage
    by_hand = {**words, "method": "distribution-matching(turns=1)", "steps": 12, "init": str(whole.path / "paths")}
    alone = sf.distill(teacher, tmp_path / "alone", whole.path / "teacher_samples.npz", **by_hand)
    ours, theirs = (dict(run.denoiser.net.state_dict()) for run in (whole, alone))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours), "a run from the first stage's file"


def test_a_student_that_was_killed_after_its_samples_is_resumed(teacher: sf.Denoiser, tmp_path: Path) -> None:
    def killed(session: Session) -> None:
        raise ConnectionError

    words = {"calls": (1, 2), "steps": 6, **SHORT}
    whole = sf.distill(teacher, tmp_path / "whole", **words)
    with pytest.raises(ConnectionError):
        sf.distill(teacher, tmp_path / "run", **words, on_start=killed)
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    again = sf.resume(tmp_path / "run", console=Silent())
    ours, theirs = (dict(run.denoiser.net.state_dict()) for run in (whole, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours) and again.config.steps == 6


def test_auto_of_small_pictures_is_kept_paths_with_an_adversary(tmp_path: Path) -> None:
    """Of students that answer by the step of DDIM; of large pictures, other networks and in several processes, no paths
    are kept."""
    x = torch.randint(0, 256, (64, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    net = sf.nets.UNet((1, 8, 8), (16,), 1, (), 16)
    words = {"sample_every": 0, "snapshots": 0, "batch": 8, "console": Silent()}
    file = sf.train(x, tmp_path / "teacher", net=net, steps=2, **words).path
    run = sf.distill(file, tmp_path / "student", x, calls=(1, 2), steps=3, **words)
    assert sf.load(run.path).form == "ddim"
    assert run.config.loss.startswith("path-distillation(paths=4096, adversary=1, ")
    assert "its adversary joins after 8,192 samples, and has not yet" in " ".join(sf.serialization.describe(run.path))
    model = sf.load(file)
    assert _chosen(model, World(rank=0, size=2)) == OF_PICTURES
    large = SimpleNamespace(process=model.process, spec=model.spec, shape=(3, 64, 64))
    assert _chosen(large, World()) == OF_PICTURES
    other = sf.Denoiser(sf.nets.DiT((1, 8, 8), 2, 16, 1), model.process)
    other.spec = model.spec
    assert _chosen(other, World()) == OF_PICTURES


@pytest.mark.slow
def test_a_student_hears_the_scale_of_guidance(teacher: sf.Denoiser, tmp_path: Path) -> None:
    """Its data have a column of scales; its samples follow the guided teacher at each, and without one the plain."""
    words = {**SHORT, "samples": 512, "batch": 64}
    run = sf.distill(teacher, tmp_path / "student", steps=200, guidance=(1, 3), calls=(2, 1), **words)
    scale = np.load(run.path / "teacher_samples.npz")["guidance_scale"]
    assert 1 <= scale.min() < 1.1 and 2.9 < scale.max() <= 3 and abs(scale.mean() - 2) < 0.02
    student = sf.load(run.path)
    assert set(student.spec.conditions) == {"label", "guidance_scale"}
    kept = json.loads((run.path / "ladder.json").read_text())
    rungs = {(rung["calls"], rung["how"]): rung["rms"] for rung in kept["rungs"]}
    assert rungs[1, "student"] < 0.5 * rungs[1, "multistep"] and kept["advice"].endswith("of 1, 2, 3 in turn.")
    for w in (1.0, 2.0, 3.0, None):
        asked = {"label": "left"} if w is None else {"label": "left", "guidance_scale": w}
        there = sf.sample(sf.guide(teacher, w or 1.0), 256, label="left", normalised=True)
        near = (sf.sample(student, 256, normalised=True, **asked) - there).square().mean().sqrt()
        assert float(near / there.std()) < 0.5, w
    plain = sf.sample(student, 4, label="left")
    assert torch.equal(plain, sf.sample(student, 4, label="left", guidance_scale=1.0))
    with pytest.raises(sf.SfumatoError, match="leave data out"):
        sf.distill(teacher, tmp_path / "other", torch.randn(40, 2), guidance=(1, 3), **SHORT)


def test_masked_symbols_are_distilled_from_the_file_alone(tmp_path: Path) -> None:
    """By auto, resumed exactly; of text the samples are kept as text."""
    x = (torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).cumsum(1) > 0).to(torch.uint8).numpy()
    words = {"sample_every": 0, "snapshots": 0, "batch": 16, "console": Silent(), "precision": "float32"}
    told = {"net": "MLP(width=16, depth=1)", "process": "masked"}
    first = sf.train(x, tmp_path / "teacher", steps=20, **told, **words)
    whole = sf.distill(first.path, tmp_path / "whole", steps=12, decay=0.0, samples=64, **words)
    sf.distill(first.path, tmp_path / "parts", steps=6, decay=0.0, samples=64, **words)
    parts = sf.resume(tmp_path / "parts", steps=12, console=Silent())
    ours, theirs = (dict(run.denoiser.net.state_dict()) for run in (whole, parts))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert "sdtt" in (whole.path / "config.yaml").read_text() and not (whole.path / "ladder.json").exists()
    assert sf.sample(sf.load(whole.path), 3, 2).shape == (3, 4)
    text = ["the cat sat on the mat. " * 4, "a dog ate the log. " * 4, "the log sat on a cat. " * 4]
    tiny = "Transformer(width=16, depth=1)"
    spoken = sf.train(text, tmp_path / "text", steps=12, net=tiny, length=16, **words)
    run = sf.distill(spoken.path, tmp_path / "few", steps=4, samples=8, **words)
    assert len((run.path / "teacher_samples.jsonl").read_text().splitlines()) >= 8, "cut where a document ends"
    assert sf.load(run.path).spec.text == spoken.denoiser.spec.text


SCRIPT = """
import sys
import sfumato as sf
from sfumato.training.console import Silent
words = {"samples": 32, "batch": 16, "precision": "float32", "sample_every": 0}
sf.distill(sys.argv[1], sys.argv[2], steps=4, console=Silent(), **words)
"""


@pytest.mark.slow
def test_two_processes_make_the_student_of_one(teacher: sf.Denoiser, tmp_path: Path) -> None:
    """The teacher's samples are drawn and written once, each process trains on its share, one writes the ladder."""
    file, script = sf.save(teacher, tmp_path / "teacher.safetensors"), tmp_path / "script.py"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, str(script), str(file), str(tmp_path / "two")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    drawn = tmp_path / "two" / "teacher_samples.npz"
    one = sf.distill(file, tmp_path / "one", drawn, steps=4, batch=16, precision="float32", **SHORT)
    ours, theirs = (model.net.state_dict() for model in (one.denoiser, sf.load(tmp_path / "two")))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)
    assert (tmp_path / "two" / "ladder.json").exists()
    x = sf.sample(teacher, 32, seed=0, cond={"label": ["left", "right"] * 16})
    assert torch.allclose(torch.from_numpy(np.load(drawn)["x"]), x, atol=1e-3)


@pytest.mark.slow
def test_the_default_comes_near_to_its_teacher(tmp_path: Path) -> None:
    """Three modes in the plane, from the file: bars above what 285 steps once reached by a fifth to two thirds."""
    words = {"sample_every": 0, "snapshots": 0, "batch": 256, "console": Silent()}
    x = LAW.sample(8192, 0).float()
    file = sf.train(x, tmp_path / "teacher", net="MLP(width=128, depth=3)", steps=600, **words).path
    calls = (1, 2, 4, 8)
    run = sf.distill(file, tmp_path / "student", calls=calls, steps=600, **words)
    kept = json.loads((run.path / "ladder.json").read_text())["rungs"]
    rungs = {(rung["calls"], rung["how"]): rung["rms"] for rung in kept}
    for count, bar in zip(calls, (0.15, 0.11, 0.08, 0.05), strict=True):
        assert rungs[count, "student"] < bar, count
    assert rungs[1, "student"] < 0.3 * rungs[1, "multistep"] and rungs[2, "student"] < 0.6 * rungs[2, "multistep"]


class Away(Loss):
    """Drives a denoiser away from its samples, and watches how far it is."""

    watched = "the distance"

    def losses(self, model: sf.Denoiser, batch: Batch) -> torch.Tensor:
        return -torch.log1p(self.held(model, batch))

    def held(self, model: sf.Denoiser, batch: Batch) -> torch.Tensor:
        return (model(batch.x, torch.full_like(batch.u, 0.5)).F - batch.x).square().mean(1)


def test_a_run_whose_distance_keeps_rising_stops(tmp_path: object) -> None:
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(sf.SfumatoError, match=r"step \d+: the distance rose in 3 evaluations"):
        sf.train(x, f"{tmp_path}/run", loss=Away(), net="tiny", steps=200, sample_every=0, console=Silent())
    found = [line["valid_ema"] for line in read(Path(f"{tmp_path}/run/metrics.jsonl")) if "valid_ema" in line]
    assert len(found) == 4 and rising(found)


def test_three_rises_near_the_lowest_are_no_divergence() -> None:
    assert not rising([1.0, 1.2, 1.4, 1.6, 1.9])
    assert rising([1.0, 1.2, 1.4, 1.6, 1.9, 2.1])
    assert not rising([1.0, 5.0, 4.0, 4.5, 5.0]) and not rising([1.0, 3.0, 9.0])


def test_a_student_under_conditions_that_only_data_have_ends_with_a_ladder(tmp_path: Path) -> None:
    """Numbers and classes of held-out samples; the same ladder as by hand under them."""
    place, mass = np.random.default_rng(0), np.linspace(-20, 20, 400).astype(np.float32)
    x = (mass[:, None] + place.normal(size=(400, 2))).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, mass=mass, labels=np.array([f"{k % 2}" for k in range(400)]))
    words = {"sample_every": 0, "snapshots": 0, "console": Silent()}
    file = sf.train(tmp_path / "data.npz", tmp_path / "teacher", net="tiny", steps=30, **words).path
    with pytest.raises(sf.SfumatoError, match="whose values only data have"):
        sf.distill(file, tmp_path / "no", steps=4, **words)
    run = sf.distill(file, tmp_path / "student", tmp_path / "data.npz", steps=10, calls=(1, 2), **words)
    kept = json.loads((run.path / "ladder.json").read_text())
    teacher, source = sf.load(file), sf.data.open(tmp_path / "data.npz")
    rows = source.split(run.config.holdout)[1]
    assert kept["held_out"] == len(rows) > 10
    rows = rows[noise.permutation(run.config.seed, 0, len(rows))][torch.arange(256) % len(rows)].numpy()
    cond = {"mass": mass[rows], "label": [f"{k % 2}" for k in rows]}
    assert [Rung(**rung) for rung in kept["rungs"]] == ladder(run.denoiser, teacher, (1, 2, 4, 8), **cond)
    assert kept["rungs"] != [rung._asdict() for rung in ladder(run.denoiser, teacher, (1, 2, 4, 8), mass=0.0)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["caption", "field"])
def test_pictures_under_captions_and_fields_end_with_a_ladder(tmp_path: Path, name: str) -> None:
    """By KID; a student whose data lack what its teacher hears has none."""
    draw, words = np.random.default_rng(0), ["a red heart", "one dog", "smiling face with glasses"]
    told = {
        "caption": np.array([words[k % 3] for k in range(120)]),
        "field": draw.normal(size=(120, 1, 8, 8)).astype(np.float32),
    }
    x = draw.integers(0, 256, (120, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x=x, **{name: told[name]})
    few = {"sample_every": 0, "snapshots": 0, "batch": 8, "steps": 3, "console": Silent()}
    file = sf.train(tmp_path / "data.npz", tmp_path / "teacher", net="tiny", **few).path
    run = sf.distill(file, tmp_path / "student", tmp_path / "data.npz", calls=(1,), **few)
    kept = json.loads((run.path / "ladder.json").read_text())
    assert kept["held_out"] > 2 and {rung["metric"] for rung in kept["rungs"]} == {"kid"}
    bare = sf.distill(file, tmp_path / "bare", x, calls=(1,), **few)
    assert not (bare.path / "ladder.json").exists() and any("valid_kid" in line for line in bare.metrics)


def test_two_stages_share_the_default_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the shares that given minutes have."""
    monkeypatch.setattr("sfumato.training.config.budget", lambda samples, elements: samples * elements / 2e4)
    net, x = sf.nets.MLP(2, 8, 1), torch.randn(200, 2)
    model = sf.Denoiser(net, sf.Gaussian("flow"), spec=sf.data.DataSpec.fit(sf.data.open(x)))
    words = {"method": "trajectory-consistency + direct-distillation(steps=1)", "calls": (1,), "console": Heard()}
    words |= {"sample_every": 0, "snapshots": 0}
    run = sf.distill(sf.save(model, tmp_path / "model.safetensors"), tmp_path / "run", x, **words)
    first = from_yaml(str(run.path / "paths" / "config.yaml"))
    assert math.isclose(first.minutes or 0, 0.4 * 0.02) and math.isclose(run.config.minutes or 0, 0.6 * 0.02)
    assert any("40% of 0.02 minutes, chosen from the data size" in line for line in words["console"].said)
    with pytest.raises(sf.SfumatoError, match="trained from files"):
        sf.distill(model, tmp_path / "object", x, init=FlowMap.student(model), steps=5, **words)


def test_advice_goes_by_the_metric_where_its_intervals_are_apart() -> None:
    def rung(calls: int, how: str, rms: float, value: float) -> Rung:
        return Rung(calls, how, rms, "kid", value, value - 0.1, value + 0.1)

    near = [rung(1, "student", 0.1, 0.3), rung(1, "multistep", 0.9, 0.35), rung(2, "student", 0.3, 0.2)]
    law = [*near, rung(2, "multistep", 0.2, 0.5), rung(4, "student", 0.1, 0.5), rung(4, "multistep", 0.2, 0.1)]
    assert advice(near) == "The student is nearer with 1 or 2 calls."
    assert advice(law) == (
        "Take the student with 1 or 2 calls; with 4 calls take the teacher. With 2 or 4 calls this is by KID, whose "
        "intervals are apart, against the distance."
    )
    assert advice(law[-2:]) == (
        "With 4 calls take the teacher. With 4 calls this is by KID, whose intervals are apart, against the distance."
    )
    tuned = [rung(2, "student", 0.3, 0.2), rung(2, "multistep", 0.2, 0.5), rung(2, "tuned-2", 0.25, 0.3)]
    assert "keep sampling it" in advice(tuned), "one way of the teacher may be as good"


def test_advice_names_where_the_student_wins() -> None:
    rungs = [Rung(1, "student", 0.1), Rung(1, "multistep", 0.9), Rung(4, "student", 0.05), Rung(4, "tuned-4", 0.04)]
    assert advice(rungs) == "The student is nearer with 1 call; with 4 calls take the teacher."
    assert "keep sampling it" in advice(rungs[3:])


class Farther(sf.compose.Wrapped):
    """A model whose samples lie far outside the data."""

    def __call__(self, z: torch.Tensor, t: Any, /, **cond: Any) -> Any:
        return self.inner(5 * z, t, **cond)


@pytest.mark.parametrize("far", ["student", "teacher"])
def test_warnings_of_the_ladder_say_whose_samples_they_are_about(teacher: sf.Denoiser, far: str) -> None:
    """A teacher's samples in few calls are left out: their distance says it."""
    models = {"student": teacher, "teacher": teacher} | {far: Farther(teacher)}
    with pytest.warns(sf.SfumatoWarning) as found:
        ladder(models["student"], models["teacher"], (1, 2))
    owners = {str(each.message).partition(":")[0] for each in found}
    all_of = {
        "student": {"The student in 1 call", "The student in 2 calls"},
        "teacher": {"The model's own fine solution"},
    }
    assert owners == all_of[far], owners


def test_mistakes(teacher: sf.Denoiser, tmp_path: object) -> None:
    for method in ("magic", "denoising"):
        with pytest.raises(sf.SfumatoError, match="no method"):
            loss_named(method, "file('x')", (1,))
    with pytest.raises(sf.SfumatoError, match="one stage or in two"):
        sf.distill(teacher, f"{tmp_path}/run", method="semigroup + semigroup + semigroup", **SHORT)
    with pytest.raises(sf.SfumatoError, match="denoiser"):
        law = sf.exact.GaussianMixture([1.0], [[0.0]], [[[1.0]]])
        sf.distill(law.denoiser(sf.Gaussian("flow")), f"{tmp_path}/run")
    with pytest.raises(sf.SfumatoError, match="at least 1"):
        sf.distill(teacher, f"{tmp_path}/run", calls=(0,), **SHORT)
