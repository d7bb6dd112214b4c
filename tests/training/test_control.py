"""Words to a run under way, through its folder."""

import os
import threading

import numpy as np
import pytest

import sfumato as sf
from sfumato import folder
from sfumato.cli import main
from sfumato.errors import SfumatoError
from sfumato.training import checkpoint, control
from sfumato.training.console import Silent
from sfumato.training.run import Interrupted

DATA = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)


class Speaker(Silent):
    """Says words to the run after chosen steps."""

    def __init__(self, path, words) -> None:
        super().__init__()
        self.path, self.words, self.said = path, words, []

    def note(self, text):
        self.said.append(text)

    def __call__(self, progress):
        if progress.step in self.words:
            control.say(self.path, self.words[progress.step])


@pytest.fixture(autouse=True)
def looks_after_each_step(monkeypatch):
    monkeypatch.setattr(control, "_LOOK_SECONDS", 0.0)


def train(path, words, **changes):
    speaker = Speaker(path, words)
    how = {"steps": 8, "batch": 8, "net": "tiny", "precision": "float32", "snapshots": 0, "sample_every": 0}
    return speaker, sf.train(DATA, out=str(path), console=speaker, **{**how, **changes})


def test_save_and_sample(tmp_path):
    speaker, run = train(tmp_path / "run", {3: "save", 5: "sample"})
    assert any("Saved at step 3" in line for line in speaker.said)
    assert [p.stem for p in checkpoint.found(run.path)] == ["step_00000008", "step_00000003"]
    assert sorted(p.stem for p in (run.path / "samples").iterdir()) == ["step_00000005", "step_00000008"]
    assert not any((run.path / "control").iterdir())


def test_stop_saves_and_ends(tmp_path):
    with pytest.raises(Interrupted, match="Stopped at step 4"):
        train(tmp_path / "run", {4: "stop"})
    assert checkpoint.latest(tmp_path / "run")[0]["counters"]["step"] == 4


def test_a_pause_is_no_training_time(tmp_path, monkeypatch):
    def long_wait(ear):
        (ear.folder / "pause").unlink()
        return 1000.0

    monkeypatch.setattr(control.Commands, "wait", long_wait)
    speaker, run = train(tmp_path / "run", {3: "pause"})
    assert any("Paused at step 3" in line for line in speaker.said)
    assert run.metrics[-1]["step"] == 8 and run.metrics[-1]["elapsed"] < 0  # the clock stood for all that was waited


def test_a_pause_ends_with_its_file(tmp_path):
    commands = control.Commands(tmp_path)
    (tmp_path / control.FOLDER).mkdir()
    lying = tmp_path / control.FOLDER / "pause"
    lying.touch()
    assert commands.words() == ["pause"]
    found = []
    waiting = threading.Thread(target=lambda: found.append(commands.wait()))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    lying.unlink()
    waiting.join(60)
    assert found[0] > 0


def test_words_for_an_earlier_process_are_not_heard(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path / "run", {4: "stop"})
    control.say(tmp_path / "run", "stop")
    run = sf.resume(tmp_path / "run", data=DATA, console=Silent())
    assert run.metrics[-1]["step"] == 8


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_a_word_that_no_process_hears_is_said_to_be_so(tmp_path, capsys):
    with pytest.raises(Interrupted):
        train(tmp_path / "run", {4: "stop"})
    words = ["control", str(tmp_path / "run"), "save"]
    assert main(words) == 0 and "which no process seems to train" in capsys.readouterr().out
    with folder.held(tmp_path / "run"):
        assert main(words) == 0 and "acts on it within a second" in capsys.readouterr().out


def test_mistakes_are_one_sentence(tmp_path, capsys):
    with pytest.raises(SfumatoError, match="did you mean 'save'"):
        control.say(tmp_path, "sav")
    assert main(["control", str(tmp_path / "none"), "save"]) == 2
    assert "not a run folder" in capsys.readouterr().err
