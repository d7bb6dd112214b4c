"""`train` and `demo`: training runs, with progress in words or as lines of JSON."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sfumato import serialization
from sfumato.cli.parse import chosen, parse
from sfumato.cli.process import Follower, at_work, limited, outliving_output, signals
from sfumato.cli.run import Voice
from sfumato.cli.sample import draw
from sfumato.cli.text import shown
from sfumato.cli.write import free
from sfumato.data import open as open_data
from sfumato.diagnostics import summary
from sfumato.diagnostics.text_bits import known_words
from sfumato.errors import SfumatoError, SfumatoWarning, an, counted
from sfumato.folder import is_held
from sfumato.nets.lora import trainable, unadapted
from sfumato.objectives.taught import lesson
from sfumato.progress import QUIET_SECONDS, Count
from sfumato.training.console import Console
from sfumato.training.control import say
from sfumato.training.grids import GRID_STEPS
from sfumato.training.hooks import Between
from sfumato.training.loop import Progress
from sfumato.training.run import Run
from sfumato.training.session import Session
from sfumato.training.stages import train as train_run
from sfumato.trees import name_of

GRID = "grid.png"
MINUTES, CAPTION_MINUTES = 2.0, 10.0  # of the demos
# of `demo --text-to-image`: names of emoji, and words that no emoji has together (red heart, blue car)
CAPTIONS = (
    "a red heart", "blue heart", "smiling face with sunglasses", "crying face", "dog face", "cat face", "red apple",
    "slice of pizza", "sunflower", "palm tree", "full moon symbol", "large blue circle", "rocket", "umbrella",
    "clock face three oclock", "a blue car",
)  # fmt: skip
CAPTION_NET = "UNet(channels=(48, 64, 64), blocks=1, attention=(1, 2), patch=2, middle=0, embed_dim=128)"
# of `demo --text`: symbols a window, the network
VERSE, VERSE_NET = 128, "Transformer(width=128, depth=2, local=15, neighbours=true)"


class CountLines:
    """Counts as lines of JSON on stdout."""

    every = QUIET_SECONDS

    def __init__(self, voice: Voice) -> None:
        self.voice = voice

    def __call__(self, count: Count) -> None:
        self.voice.emit({"event": "count", **count.to_dict()})


class Lines(Console):
    """Progress as lines of JSON on stdout; notes stay words on stderr."""

    def __init__(self, voice: Voice) -> None:
        super().__init__()
        self.voice, self.count = voice, CountLines(voice)

    def __call__(self, progress: Progress) -> None:
        if progress.loss is not None:
            self.voice.emit({"event": "progress", **progress.to_dict()})


def console(voice: Voice) -> Console:
    return Lines(voice) if voice.json else Console()


@contextmanager
def working(voice: Voice) -> Iterator[Callable[[Session], None]]:
    """Set up the process for training; yields a function to call before the first step, which announces the run."""

    def begin(session: Session) -> None:
        listen(session.path)
        # a run in steps must be reproducible to the last bit, and rounding depends on the number of threads
        if session.config.steps is None and session.config.threads is None and session.world.size == 1:
            session.hooks.append(Between(Follower()))
        net: Any = session.denoiser.net
        parameters, trained = trainable(session.denoiser)
        some = f", of which {trained:,} are trained," if trained < parameters else ""
        steps, minutes = session.config.steps, session.config.minutes or 0.0
        budget = counted(steps, "step") if steps else counted(minutes, "minute")
        voice.note(
            f"Training {an(name_of(unadapted(net)))} of {counted(parameters, 'parameter')}{some} for {budget} on "
            f"{session.source.name} ({counted(len(session.source), 'sample')}), in {session.path}. Ctrl-C stops and "
            "saves."
        )
        if (taught := lesson(session.config.loss)) is not None:
            voice.note(taught.words())

    with at_work(), limited(), signals() as listen:
        yield begin


@outliving_output()
def train(options: Any, voice: Voice) -> None:
    settings = chosen(options)
    data, out = settings.pop("data"), settings.pop("out", None)
    with working(voice) as begin:
        run = train_run(data, out, console=console(voice), on_start=begin, **settings)
    finish(run, voice)


def control(options: Any, voice: Voice) -> None:
    path = say(options.folder, options.word)
    trains = is_held(path)
    voice.emit({"run": str(path), "word": options.word, "trains": trains})
    if trains:
        voice.say(f"Sent {options.word} to {path}; the process that trains it acts on it within a second or a step.")
    else:
        voice.say(f"Sent {options.word} to {path}, which no process seems to train: it may have ended.")


@outliving_output()
def demo(options: Any, voice: Voice) -> None:
    folder = free(options.out)
    if Path(folder) != Path(options.out):
        voice.note(f"{options.out} already exists: this run goes to {folder}.")
    if options.text and options.text_to_image:
        raise SfumatoError("--text and --text-to-image are two demos: give one of them")
    minutes = (CAPTION_MINUTES if options.text_to_image else MINUTES) if options.minutes is None else options.minutes
    if options.text or options.text_to_image:
        (_verse if options.text else _pictures)(minutes, voice, folder)
        return
    with working(voice) as begin:
        run = train_run("fashion", folder, console=console(voice), on_start=begin, minutes=minutes)
    grid = run.path / GRID
    voice.note("Drawing ten samples of each class.")
    draw(parse("sample", [folder, f"--out={grid}", f"--steps={GRID_STEPS}"]), lambda line: None)
    finish(run, voice, {"grid": str(grid)})


def _pictures(minutes: float, voice: Voice, folder: str) -> None:
    """The demo of captions: train on emoji and their names, and draw some from words."""
    with working(voice) as begin:
        run = train_run(
            "emoji", folder, console=console(voice), on_start=begin, minutes=minutes, batch=64,
            net=CAPTION_NET, conditions={"caption": "text", "label": "ignore"},
        )  # fmt: skip
    grid = run.path / GRID
    voice.note(f"Drawing {len(CAPTIONS)} captions.")
    asked = [f"--caption={caption}" for caption in CAPTIONS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SfumatoWarning)  # of "a", which no name of an emoji has
        draw(parse("sample", [folder, f"--out={grid}", f"-n{len(CAPTIONS)}", *asked]), lambda line: None)
    finish(run, voice, {"grid": str(grid)})


def _verse(minutes: float, voice: Voice, folder: str) -> None:
    """The demo of text: train on the works of Shakespeare, print verse, and judge its words by works held out."""
    with working(voice) as begin:
        run = train_run(
            "shakespeare", folder, console=console(voice), on_start=begin, minutes=minutes, length=VERSE,
            batch=8, net=VERSE_NET,
        )  # fmt: skip
    voice.note("Drawing four verses.")
    file = run.path / "verse.txt"
    order = ["--order=left-to-right", f"--steps={VERSE}", "--temperature=0.7"]
    made = draw(parse("sample", [folder, f"--out={file}", *order]), lambda line: None)
    source = open_data("shakespeare", length=VERSE)
    text = source.text
    assert text is not None
    train, held = (text.decode(source.x[rows].flatten().tolist()) for rows in source.split())
    share, usual = known_words(made["texts"], held), known_words([train], held)
    voice.say(*shown(made["texts"]))
    voice.say(
        f"{share:.0%} of these words occur in the works that were held out, as {usual:.0%} of Shakespeare's in the "
        "others do. Their letters were drawn one after the other, at a temperature of 0.7."
    )
    finish(run, voice, {"verse": str(file)})


def finish(run: Run, voice: Voice, more: dict[str, str] | None = None) -> None:
    """Print where everything is, and commands to run next."""
    folder = run.path
    facts = serialization.read_contract(folder)
    places = {**(more or {}), "report": str(folder / "report.html"), "model": facts["path"]}
    voice.emit({"event": "done", "run": str(folder), **places, "hash": facts["hash"]})
    voice.say("", f"Done: the run is in {folder}", *(f"  {name:<7} {path}" for name, path in places.items()))
    voice.say(*following(folder))


def following(run: Path) -> list[str]:
    """Commands to run next, as lines of text."""
    said = summary.load(run)
    return ["", "Next:", *(f"  {line}" for line in (said["next"] if said else ()))]
