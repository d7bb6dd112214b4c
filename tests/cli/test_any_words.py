"""Any flags of any command with any values: help, or one sentence that says what is wrong; never a traceback."""

import contextlib
import functools
import io
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.cli import COMMANDS, main

# right for some flag and wrong for the others
VALUES = (
    "0", "3", "-1", "2.5", "-0.0", "1e999", "nan", "inf", "99999999999999999999", "two", "", " ", "-", "None", "true",
    "auto", "cpu", "cuda:77", "float32", "ema", "raw", "flow", "cosine", "Flow(", "mlp(1, 2", "multistep", "x.npz",
    "missing/x.png", "c.yaml", "temperature=300", "temperature:scalar", "=3", "a=", "1,2", "[1", "-3 3", "é☃", "\x00",
)  # fmt: skip


def said(*words: str) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of the command line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(words)
    return status, out.getvalue(), err.getvalue()


@functools.cache
def flags(command: str) -> tuple[str, ...]:
    """Those that its help lists, without --help itself, and without --debug, which asks for a traceback."""
    listed = re.findall(r"^\W*(?:-\w(?: \S+)*, )?(--[a-z][\w-]*)", said(command, "--help")[1], re.MULTILINE)
    return tuple(sorted(set(listed) - {"--debug", "--help"}))


@functools.cache
def places(command: str) -> int:
    """How many words it takes beside the flags."""
    usage = said(command, "--help")[1].splitlines()[0]
    return len(set(re.findall(r"[A-Z]{2,}", usage)) - {"FLAGS"})


@st.composite
def words(draw: st.DrawFn, command: str) -> list[str]:
    """Up to four flags of a command, each alone, with a value after it, or with one after =."""
    found: list[str] = []
    for _ in range(draw(st.integers(0, 4))):
        flag, value = draw(st.sampled_from(flags(command))), draw(st.sampled_from(VALUES))
        found += draw(st.sampled_from(([flag], [flag, value], [f"{flag}={value}"])))
    return found


def check_sentence(status: int, out: str, err: str, given: list[str]) -> None:
    last = err.splitlines()[-1] if err else ""
    assert status == 2 and last.startswith("sfumato: error: "), (given, status, out, err)
    assert "Traceback" not in err and "Something went wrong" not in err, (given, err)
    assert last.removeprefix("sfumato: error: ").strip(" ."), (given, err)


@pytest.mark.parametrize("command", COMMANDS)
@settings(max_examples=12)
@given(data=st.data())
def test_flags_are_explained_or_refused(command, data):
    """With --help at the end nothing runs, and with words that are refused, such as a file that is not there."""
    assert {"--json", "--modules"} <= set(flags(command))
    chosen = data.draw(words(command))
    status, out, err = said(command, *chosen, "--help")
    if status == 0:
        assert out.startswith(f"usage: sfumato {command}") and err == "", (chosen, err)
    else:
        check_sentence(status, out, err, chosen)
    # no place is there; the demo, which takes none, gets a last word that is no number
    refused = ["no/such/place"] * places(command) + chosen + ["--minutes", "two"] * (command == "demo")
    check_sentence(*said(command, *refused), refused)
    assert not list(Path().iterdir()), "a mistake leaves nothing behind"
