"""`distill`: from a model file to a run whose model samples in few calls, with a table and advice."""

import json

import numpy as np
import pytest

import sfumato as sf
from sfumato.training import teacher_samples


def test_a_student_from_a_file(call, models, workplace):
    words = (
        "distill",
        models["points"],
        "--minutes",
        "0.02",
        "--samples",
        "64",
        "--steps",
        "2,1",
        "-o",
        "few",
        "--json",
    )
    status, out, err = call(*words)
    assert status == 0, err
    done = json.loads(out.splitlines()[-1])
    assert done["event"] == "done" and {rung["calls"] for rung in done["ladder"]} == {1, 2, 4, 8}
    assert {rung["how"] for rung in done["ladder"]} == {"student", "multistep"}
    assert "Distance to the model's own fine solution" in err and "MMD of these samples beside" in err
    (one,) = [rung for rung in done["ladder"] if rung["calls"] == 1 and rung["how"] == "student"]
    assert f"{one['value']:.3g}±{(one['high'] - one['low']) / 2:.2g}" in err
    status, out, err = call("sample", "few", "-n", "3", "-o", "x.npy", "--json")
    assert status == 0, err
    assert json.loads(out.splitlines()[-1])["manifest"]["calls"] == 2
    status, out, err = call("info", "few")
    assert status == 0 and "FlowMap" in out and "2 or 1 calls" in out


def test_a_plan_keeps_nothing(call, models, workplace):
    status, out, err = call("distill", models["points"], "--samples", "32", "--plan", "-o", "few", "--json")
    assert status == 0, err
    assert json.loads(out.splitlines()[-1])["fits"] and not (workplace / "few").exists()


def test_a_range_of_guidance_is_a_flag_of_samples(call, workplace):
    spec = sf.data.DataSpec.fit(sf.data.open(np.random.default_rng(0).normal(size=(80, 2)), labels=["a", "b"] * 40))
    model = sf.Denoiser(sf.nets.MLP(2, 16, 1, classes=2), sf.Gaussian("flow"), spec=spec)
    words = ("--minutes", "0.02", "--samples", "64", "--guidance", "1:4", "-o", "few", "--json")
    status, out, err = call("distill", sf.save(model, workplace / "model.safetensors"), *words)
    assert status == 0 and "Compared at a guidance of 1, 2.5, 4 in turn." in err, err
    status, out, err = call("sample", "few", "-n", "3", "--guidance", "3", "-o", "x.npy", "--json")
    assert status == 0, err
    facts = json.loads(out.splitlines()[-1])["manifest"]
    assert facts["conditions"] == {"guidance_scale": "3"} and "guidance" not in facts


@pytest.mark.parametrize(
    "words, said",
    [
        (("--steps", "0"), "numbers of calls"),
        (("--method", "magic"), "no method"),
        (("--samples", "1"), "samples"),
        (("--guidance", "4:1"), "lowest and highest"),
        (("--guidance", "1:x"), "range of scales, 1:4"),
        (("--data", "nowhere"), "does not exist"),
        (("--method", "path-distillation(adversary=1)"), "leave adversary= out"),
        (("--method", "sdtt"), "process='masked'"),
        (("--samples", str(10**15)), "16,000,000.0 GB of memory"),
        (("--samples", str(10**15), "--plan"), "16,000,000.0 GB of memory"),
        (("--method", "path-distillation(paths=1000000000000000)"), "72,000,000.0 GB of memory"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(refused, models, monkeypatch, words, said):
    monkeypatch.setattr("sfumato.machine.available", lambda: 2e10)  # it changes from call to call
    assert said in refused("distill", models["points"], "--minutes", "0.02", *words)


def test_a_refusal_leaves_what_was_there(call, models, workplace):
    for there in ("few/mine.txt", "runs/other/mine.txt"):
        (workplace / there).parent.mkdir(parents=True)
        (workplace / there).touch()
    for out in (("-o", "few"), ()):
        status, *_ = call("distill", models["points"], "--samples", "1", *out)
        assert status == 2
    assert (workplace / "few/mine.txt").exists() and [each.name for each in (workplace / "runs").iterdir()] == ["other"]


def test_the_same_command_goes_on_where_one_without_a_folder_was_stopped(call, models, workplace, monkeypatch):
    real = teacher_samples._write

    def stopping(path, made):
        real(path, made)
        if path.name.endswith("-00256.npz"):
            raise KeyboardInterrupt

    words = ("distill", models["points"], "--minutes", "0.02", "--samples", "600")
    with monkeypatch.context() as faulty:
        faulty.setattr(teacher_samples, "_write", stopping)
        assert call(*words)[0] == 130
    first = workplace / "runs" / "points-distilled"
    part = first / "teacher_samples-00000.npz"
    marked = np.load(part)["x"]
    np.savez(part, x=np.full_like(marked, 101.5))
    for more, folder in ((("--seed", "1"), "points-distilled-2"), ((), "points-distilled")):
        status, out, err = call(*words, *more, "--json")
        assert status == 0 and json.loads(out.splitlines()[-1])["run"] == f"runs/{folder}", err
        assert ("512 samples of the teacher are there already, in runs/points-distilled." in err) == (not more)
    assert (np.load(first / "teacher_samples.npz")["x"][:256] == 101.5).all()


def test_a_run_that_is_stopped_while_samples_are_drawn_goes_on_with_those_that_are_there(
    call, models, workplace, monkeypatch
):
    real, written = teacher_samples._write, []

    def stopping(path, made):
        real(path, made)
        written.append(path.name)
        if written[-1].endswith("-00256.npz"):
            raise KeyboardInterrupt

    words = ("distill", models["points"], "--minutes", "0.02", "--samples", "600", "-o", "few")
    with monkeypatch.context() as faulty:
        faulty.setattr(teacher_samples, "_write", stopping)
        status, _, err = call(*words)
    assert status == 130 and err.count("To resume: sfumato resume few") == 1, err
    for command in ("sample", "info", "evaluate", "likelihood"):
        status, out, err = call(command, "few", *((models["points"],) if command == "likelihood" else ()))
        assert "sfumato resume few" in out + err, (command, out, err)
    part = workplace / "few" / "teacher_samples-00000.npz"
    marked = np.load(part)["x"]
    marked[0] = 101.5
    np.savez(part, x=marked)
    status, out, err = call("resume", "few")
    assert status == 0 and "Distance to the model's own fine solution" in out, err
    x = np.load(workplace / "few" / "teacher_samples.npz")["x"]
    assert x.shape == (600, 2) and (x[0] == 101.5).all() and not part.exists()
    assert np.allclose(x[1:], np.asarray(sf.sample(sf.load(models["points"]), 600))[1:], atol=1e-4)


def test_samples_that_are_there_serve_the_same_request_alone(models, tmp_path, monkeypatch):
    teacher, told = sf.load(models["points"]), {"samples": 300, "minutes": 1.0}
    with monkeypatch.context() as faulty:
        faulty.setattr(teacher_samples, "_join", lambda file, parts: None)  # as if it were stopped here
        teacher_samples.ask(tmp_path, teacher, "one", told)
        teacher_samples.draw(tmp_path, teacher)
    part, stray = (tmp_path / f"teacher_samples-{name}.npz" for name in ("00256", "mine"))
    good = part.read_bytes()
    for spoilt in (b"", good[:100]):
        part.write_bytes(spoilt)
        with pytest.raises(sf.SfumatoError, match="00256.npz was spoilt, and is deleted"):
            teacher_samples.draw(tmp_path, teacher)
        assert not part.exists()
    for wrong in ({"x": np.zeros((3, 2))}, {"y": np.zeros((44, 2))}):
        np.savez(part, **wrong)
        with pytest.raises(sf.SfumatoError, match="00256.npz was spoilt, and is deleted"):
            teacher_samples.draw(tmp_path, teacher)
    np.savez(part, x=np.full((44, 2), 101.5))
    np.savez(stray, x=np.zeros((44, 2)))
    file = teacher_samples.ask(tmp_path, teacher, "one", told)
    assert teacher_samples.awaited(tmp_path)
    teacher_samples.draw(tmp_path, teacher)
    assert (np.load(file)["x"] == 101.5).all(1).sum() == 44 and not part.exists()
    assert teacher_samples.ask(tmp_path, teacher, "one", told).exists() and not teacher_samples.awaited(tmp_path)
    for words, more in (("two", {}), ("one", {"seed": 1}), ("one", {"samples": 30})):
        file.touch()
        assert not teacher_samples.ask(tmp_path, teacher, words, {**told, **more}).exists()


def test_the_number_of_samples_follows_the_minutes(call, models, workplace, monkeypatch):
    """A fifth of them, from 256 to 4,096."""
    assert [teacher_samples.number(*each) for each in ((0.01, 1), (1, 1), (1e-6, 5), (0, 1))] == [1200, 256, 4096, 4096]
    monkeypatch.setattr(teacher_samples, "SHARE", 1e-9)  # no machine draws a sample in that time
    status, _, err = call("distill", models["points"], "--minutes", "0.02", "-o", "few")
    assert status == 0 and err.count("The student learns from 256 samples of the teacher") == 1, err
    assert len(np.load(workplace / "few" / "teacher_samples.npz")["x"]) == 256


def test_a_student_says_how_it_was_distilled(call, workplace):
    """At the first lines of the run, in `info`, and where its guidance, which is fixed, is set."""
    spec = sf.data.DataSpec.fit(sf.data.open(np.random.default_rng(0).normal(size=(80, 2)), labels=["a", "b"] * 40))
    model = sf.Denoiser(sf.nets.MLP(2, 16, 1, classes=2), sf.Gaussian("flow"), spec=spec)
    file = sf.save(model, workplace / "model.safetensors")
    words = ("--minutes", "0.005", "--samples", "16", "--guidance", "2.5", "--steps", "1", "-o", "few")
    status, _, err = call("distill", file, *words)
    said = f"A student of {file} by trajectory-consistency, at a guidance of 2.5."
    assert status == 0 and said in err, err
    status, out, _ = call("info", "few")
    assert said in out and "made to sample in 1 call of" in out, out
    for given in ((), ("--class", "a"), ("--solver", "map")):
        status, _, err = call("sample", "few", "-n", "1", "--guidance", "3", *given)
        assert status == 2 and "in its weights: it was distilled at a guidance of 2.5; leave --guidance out" in err, err
    status, _, err = call("sample", "few", "-n", "1", "--class", "a", "--guidance", "3", "--solver", "euler")
    assert status == 0, "a student is a denoiser, too"


def test_a_model_of_pairs_is_distilled_with_its_pairs(call, workplace):
    """By two files whose rows belong together; its plan is told what a sample starts from."""
    x = np.random.default_rng(0).normal(size=(80, 2)).astype(np.float32)
    np.save(workplace / "source.npy", x)
    np.save(workplace / "x.npy", 0.5 * x + 1)
    sf.train(
        "x.npy", "pairs", sources="source.npy", pairs="row", process="rectified-flow", net="tiny", steps=3, batch=8
    )
    words = (
        "distill",
        "pairs",
        "--from",
        "source.npy",
        "--data",
        "x.npy",
        "--pairs",
        "row",
        "--steps",
        "1",
        "-o",
        "few",
    )
    status, _, err = call(*words, "--minutes", "0.02", "--plan")
    assert status == 0 and not (workplace / "few").exists(), err
    status, out, err = call(*words, "--minutes", "0.02")
    assert status == 0 and "Distance to the model's own fine solution" in out, err
    assert "sfumato translate few source.npy" in out
    assert "cond={&#39;input&#39;: sources}" in (workplace / "few" / "report.html").read_text(encoding="utf-8")
    status, _, err = call("translate", "few", "source.npy", "-o", "there.npz")
    assert status == 0 and np.load(workplace / "there.npz")["x"].shape == (80, 2), err
    status, _, err = call("distill", "pairs", "-o", "none")
    assert status == 2 and "has the condition 'input', whose values only data have" in err
