"""The command line, `sfumato COMMAND`; the mathematics is in the library.

`main` only knows the commands' names; flags are built when a command is called, and torch is loaded only when one runs.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress

from sfumato import __version__
from sfumato.cli.every import split
from sfumato.errors import SfumatoError, shown, suggest
from sfumato.streams import lasting

COMMANDS = {
    "demo": "train on the built-in clothes for two minutes and draw a grid of ten per class",
    "train": "train a model on a folder of images, a .npy or .npz file, or a built-in set",
    "plan": "predict the memory, time and disk space that a training run needs",
    "resume": "resume an interrupted run",
    "control": "tell a run in progress to save, sample, pause, continue or stop",
    "sample": "draw samples from a model into .png, .npz, .npy or a folder/",
    "impute": "fill the empty cells of a table by a model of it",
    "translate": "turn pictures or arrays into those of another kind, by a model of pairs",
    "doctor": "find faults in a run or a model, each with a code that the docs explain",
    "runs": "compare runs side by side, and list their differences",
    "merge": "make one plain model of a model and its adapters",
    "average": "make a model whose weights are averaged over another part of its run",
    "tune": "fit a plan of few steps to a model, so that sampling takes less time",
    "distill": "train a student that samples in one or a few calls of its network",
    "align": "train a model further by a reward or by preferences",
    "likelihood": "measure the likelihood of a data set under a model, in nats and bits",
    "evaluate": "measure samples against real data, beside what real data score",
    "audit": "measure what a model violates of what holds for every conditional expectation",
    "views": "show what a model is in eight languages, as one page",
    "memorization": "check whether samples repeat the training data",
    "info": "describe a model: data, process, network, classes, origin",
    "inspect": "check a data set before training on it",
    "explain-objective": "show how a training objective weighs noise levels, and whether it is an ELBO",
    "explain-guidance": "show what law guidance samples, beside the one that it is taken for",
    "certify": "measure solvers on exact models: order, calls, stability, law",
}
OK, OTHER, MISTAKE, INTERRUPTED = 0, 1, 2, 130

_EXAMPLES = (
    "sfumato train photos/ --minutes 10",
    "sfumato sample runs/photos -n 64 -o grid.png",
    "sfumato inspect photos/",
)


def usage() -> str:
    """The output of `sfumato --help`."""
    lines = ["usage: sfumato COMMAND [ARGUMENTS]", "", "Train a diffusion model on your own data, and sample it.", ""]
    lines += [f"  {name:<18} {words}" for name, words in COMMANDS.items()]
    lines += ["", "for example", *(f"  {line}" for line in _EXAMPLES), ""]
    lines += [
        "  sfumato COMMAND --help   the arguments of one command",
        "  --json                   with any command: the result as JSON on stdout, all else on stderr",
        "  --modules FILE           with any command: your own Python files, whose registered parts can be named",
        "  --debug                  with any command: a traceback if something fails",
        "  --version                the version",
        "",
        "exit status",
        "  0    done",
        "  2    a mistake in the command or its input (explained in one sentence)",
        "  130  interrupted by Ctrl-C; training saves a checkpoint first",
        "  1    anything else; certify: a solver breaks a promise; doctor: a fault was found",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    _open_missing()
    with redirect_stderr(lasting(sys.stderr)):  # no command fails because its notes cannot be written
        status = _status(list(sys.argv[1:] if argv is None else argv))
    _drop_unwritten()
    return status


def _status(arguments: list[str]) -> int:
    """The exit status of a command, which is run here; errors are printed."""
    debug = "--debug" in arguments
    try:
        return _dispatch(arguments)
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        return OTHER
    except KeyboardInterrupt as interrupt:
        if debug:
            raise
        return _fail(str(interrupt) or "Interrupted.", INTERRUPTED, arguments, said=bool(interrupt.args))
    except Exception as error:
        if debug:
            raise
        return _fail(*_sentence(error), arguments)


def _dispatch(arguments: list[str]) -> int:
    for word in arguments:
        if "\0" in word:
            raise SfumatoError(f"There is a NUL character in {word!r:.80}, which no name has: leave it out")
    every, words = split(arguments)
    name = words[0] if words else "--help"
    if name in ("-h", "--help", "help"):
        print(usage())
        return OK
    if name in ("-V", "--version"):
        print(f"sfumato {__version__}")
        return OK
    if name not in COMMANDS:
        what = "flag" if name.startswith("-") else "command"
        raise SfumatoError(f"There is no {what} {name!r}: {suggest(name, COMMANDS)}")
    for path in every.modules.split(","):  # before building flags, whose help lists registered names
        if path.strip():
            from sfumato.registry import add_file

            add_file(path.strip())
    from sfumato.cli.run import run

    return run(name, words[1:], every.json)


def _sentence(error: Exception) -> tuple[str, int]:
    """(message, exit status) of an error."""
    if isinstance(error, SfumatoError):
        return str(error), MISTAKE
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {(error.strerror or str(error)).lower()}.", MISTAKE
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):  # of stdout
        return f"The output cannot be written: {(error.strerror or str(error)).lower()}.", OTHER
    text = " ".join(str(error).split()) or "no message"
    # as in sfumato.machine, which needs torch
    scarce = ("out of memory", "DefaultCPUAllocator", "bad_alloc", "size calculation overflowed")
    if isinstance(error, MemoryError) or any(word in text for word in scarce):
        return f"There is not enough memory ({text[:200]}): use a smaller --batch or --size.", OTHER
    return f"Something went wrong within sfumato ({type(error).__name__}: {text[:300]}): --debug shows where.", OTHER


def _fail(sentence: str, status: int, arguments: Sequence[str], said: bool = False) -> int:
    """Print the error as one sentence on stderr, and with --json also as an object; returns the status.

    said: whether the message has been printed already, as by an interrupted run.
    """
    sentence = shown(" ".join(sentence.split()))
    sentence += "" if sentence.endswith((".", "?", "!")) else "."
    if "--json" in arguments:
        import json

        with suppress(OSError):
            print(json.dumps({"event": "error", "error": sentence, "status": status}), flush=True)
    if not said:
        print(sentence if status == INTERRUPTED else f"sfumato: error: {sentence}", file=sys.stderr)
    return status


def _open_missing() -> None:
    """Open /dev/null for streams that were closed (2>&-), lest a file of the run take the number of one."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))


def _drop_unwritten() -> None:
    """Keep the interpreter from failing at its end over text that a closed pipe or a full disk does not take."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
