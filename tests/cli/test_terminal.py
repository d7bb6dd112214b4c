"""Runs outlive their terminal: closed pipes, full disks, signals, a folder that goes."""

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest

import sfumato as sf
from sfumato.cli.parse import parse
from sfumato.errors import SfumatoError
from sfumato.folder import newest_step

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes and signals of POSIX")
COMMAND = [sys.executable, "-m", "sfumato.cli"]
SMALL = ["--net", "MLP(width=16, depth=1)", "--batch", "8", "--precision", "float32", "--sample-every", "0"]
ENDLESS = ["train", "x.npy", "--steps", "10000000", "-o", "run", *SMALL]  # never over by itself
TRAIN = ["train", "x.npy", "--steps", "200", "-o", "run", *SMALL]


@pytest.fixture(autouse=True)
def data(workplace) -> None:
    np.save("x.npy", np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32))


def listening() -> None:
    """In a child: signals have their usual effect, also where the tests run in the background or under nohup."""
    for name in ("SIGHUP", "SIGTERM", "SIGINT", "SIGUSR1"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)


def endless() -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, *ENDLESS, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=listening
    )


def done() -> bool:
    return sf.load("run").provenance["steps"] == 200 and Path("run/report.json").exists()


@pytest.mark.slow
def test_training_goes_on_when_its_reader_has_read_enough():
    """sfumato train --json | head -1"""
    with subprocess.Popen([*COMMAND, *TRAIN, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert json.loads(run.stdout.readline())["event"] == "progress"
        run.stdout.close()
        assert run.wait() == 0 and run.stderr.read().count(b"Traceback") == 0
    assert done()


@pytest.mark.first(1)
@pytest.mark.parametrize("where", ["2>&-", ">&- 2>&- <&-"])
def test_training_goes_on_without_streams(where):
    words = ["sh", "-c", f'exec "$@" {where}', "sh", *COMMAND, *TRAIN]
    assert subprocess.run(words).returncode == 0 and done()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's file that is always full")
def test_a_result_that_cannot_be_written_is_one_sentence():
    with open("/dev/full", "w") as full:
        ran = subprocess.run([*COMMAND, "inspect", "x.npy"], stdout=full, stderr=subprocess.PIPE)
    assert ran.returncode == 1
    assert ran.stderr == b"sfumato: error: The output cannot be written: no space left on device.\n"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's file that is always full")
def test_training_goes_on_when_the_disk_of_its_log_is_full():
    with open("/dev/full", "w") as full:
        ran = subprocess.run([*COMMAND, *TRAIN], stdout=full, stderr=full)
    assert ran.returncode == 0 and done()


def test_other_commands_end_quietly_with_their_reader():
    with subprocess.Popen([*COMMAND, "certify", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        run.stdout.close()
        assert run.wait() == 0 and run.stderr.read() == b""


@pytest.mark.first(2)
@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM", "SIGINT", "SIGUSR1"])
def test_two_signals_save_once_after_a_whole_step(name):
    with endless() as run:
        while json.loads(run.stdout.readline())["step"] < 10:
            pass
        for _ in range(2):
            run.send_signal(getattr(signal, name))
        _, err = run.communicate()
    assert run.returncode == 130 and b"the checkpoint is saved" in err and b"Traceback" not in err
    assert newest_step(Path("run")) >= 10 and sf.load("run").provenance["steps"] == newest_step(Path("run"))


@pytest.mark.slow
def test_a_terminal_that_is_closed_saves_the_run():
    """The system then sends SIGHUP, and every write to the terminal fails."""
    child, terminal = pty.fork()
    if not child:
        listening()
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))
        os.execv(COMMAND[0], [*COMMAND, *ENDLESS])
    try:
        heard = b""
        while b"loss" not in heard:
            heard += os.read(terminal, 1000)
        os.close(terminal)
        _, status = os.waitpid(child, 0)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    assert os.waitstatus_to_exitcode(status) == 130
    assert newest_step(Path("run")) > 0 and Path("run/report.json").exists()


def test_a_folder_that_is_renamed_is_status_2():
    with endless() as run:
        while json.loads(run.stdout.readline())["step"] < 10:
            pass
        os.rename("run", "away")
        out, err = run.communicate()
    words = err.decode().splitlines()[-1]
    assert run.returncode == 2 and "run is gone" in words and json.loads(out.splitlines()[-1])["status"] == 2
    assert newest_step(Path(words.rpartition("sfumato resume ")[2].rstrip("."))) >= 10


@pytest.mark.parametrize(("word", "number"), [("1e3", 1000), ("64", 64), ("2.0", 2), ("1_000", 1000)])
def test_a_whole_number_may_be_written_in_any_way(word, number):
    assert parse("sample", ["run", "-n", word]).number == number


@pytest.mark.parametrize("word", ["1.5", "inf", "nan", "1e-3", "many", "1e30"])
def test_what_is_no_whole_number_is_one_sentence(word):
    with pytest.raises(SfumatoError, match="invalid int value"):
        parse("sample", ["run", "-n", word])
