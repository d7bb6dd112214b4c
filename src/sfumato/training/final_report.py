"""Writes report.json at the end of a run, for which it measures samples, what conditions say, and bits of text."""

from __future__ import annotations

import math
import time
from importlib.util import find_spec

from torch import Tensor

from sfumato import noise
from sfumato.conditions import of_data
from sfumato.coupling_flow import CouplingFlow
from sfumato.diagnostics import report, summary
from sfumato.diagnostics.checks.evidence import Evidence, information
from sfumato.diagnostics.information import Information
from sfumato.diagnostics.memorization import Memorization, choose, compare, drawn, of_cells, pairs_picture, tells_apart
from sfumato.diagnostics.nearest import Space
from sfumato.diagnostics.text_bits import CALLS, TextBits, text_bits
from sfumato.errors import SfumatoError, an
from sfumato.files import remove
from sfumato.metrics import Evaluator, Metric
from sfumato.metrics.reference import ORDER
from sfumato.model import unordered
from sfumato.noised import evaluating
from sfumato.pictures import save_png
from sfumato.training.evaluation_schedule import COPIES, INFORMATION, TEXT
from sfumato.training.grids import GRID_STEPS
from sfumato.training.health import Health
from sfumato.training.session import Hook, Session

_LEAST_COPIES, _MOST_COPIES = 16, 512  # samples checked for copies of training samples
_LEAST_MEASURED = 64  # samples whose metrics say something
_LEAST_DRAWS, _MOST_DRAWS = 256, 8192  # noised samples for the information of the conditions
_LEAST_WINDOWS, _MOST_WINDOWS = 16, 512  # windows of text whose bits are measured
_QUICK = ("kid", "lengths", "precision", "recall", "sliced-wasserstein", "total-variation", "kolmogorov", "rows-c2st")
_SLOW = {"rows-c2st": ("sklearn", 300.0)}  # what it needs, and the seconds of training of which it is about 1 %
_NUMBERS = 6e4  # of samples that may be measured per second of training: at most about 1 % of the time
_SEARCH = 1e9  # multiplications that the search for copies may take per second of training: about 1 % of the time


class FinalReport(Hook):
    """Measures the information of the conditions and the samples, writes report.json and prints its sentences."""

    def __init__(self, health: Health) -> None:
        self.health = health

    def start(self, session: Session) -> None:
        if session.world.leads:
            remove(session.path / summary.FILE)  # out of date once the run goes on

    def end(self, session: Session) -> None:
        if session.world.leads:
            remove(session.path / "report.html")  # of a checkpoint; once there is one again, the run is complete
        informed = _conditions(session)
        if isinstance(informed, Information):
            self.health.judge(Evidence(information=informed), session.state.step)
        made, bits = _drawn(session), _bits(session)
        copied, measured = _copies(session, made), _metrics(session, made)
        self._write(session, copied, informed, bits, measured, time.monotonic() - session.began)

    def stop(self, session: Session) -> None:
        if session.finished:  # only the end of the run is missing, which a resumed one makes
            return
        informed = f"the run was stopped ({_by_hand(session)})" if _known(session) else None
        stopped = f"the run was stopped (sfumato memorization {session.path} measures it)"
        self._write(session, stopped, informed, None, None, 0.0)

    def _write(
        self, session: Session, copied: Memorization | str, informed: Information | str | None,
        bits: TextBits | str | None, measured: dict[str, Metric] | str | None, ending: float,
    ) -> None:  # fmt: skip
        """ending: seconds since the end of the budget."""
        if not session.world.leads:
            return
        session.look()
        nearest = pairs_picture(copied, session.denoiser.spec) if isinstance(copied, Memorization) else None
        if nearest is not None:
            save_png(nearest, session.path / "samples" / report.NEAREST)
        spent = {**session.state.spent, "ending": ending}
        memorisation = copied.to_dict() if isinstance(copied, Memorization) else copied
        conditions = informed.to_dict() if isinstance(informed, Information) else informed
        text = bits.to_dict() if isinstance(bits, TextBits) else bits
        metrics = {name: each.to_dict() for name, each in measured.items()} if isinstance(measured, dict) else measured
        marginals = None if session.calibration is None else session.calibration.to_dict()
        settings = session.config.to_dict()
        facts = summary.write(session.path, settings, spent, memorisation, conditions, text, metrics, marginals)
        for line in summary.words(facts):
            session.console.note(line)


def _drawn(session: Session) -> Tensor | str:
    """As many samples of the model as the run can afford, under the conditions of `_twins`; or why there are none."""
    best = session.best
    steps = None if isinstance(best, CouplingFlow) else GRID_STEPS
    if steps is not None and not hasattr(best, "process"):
        return f"{an(type(best).__name__)} has no samples to compare here"
    if session.source.text is not None:
        return "distances between texts say little"
    if session.source.layout and any(session.source.missing):
        return "missing steps have no distances between sequences"
    count = min(_MOST_COPIES, int(3 * COPIES * session.total / (steps or 1)))
    if count < _LEAST_COPIES or len(session.train) < 2:
        return f"the run was too short (sfumato memorization {session.path} measures it)"
    try:
        with session.state.spending("memorisation"), evaluating(best):
            cond = of_data(best, session.source, _twins(session, count))
            return drawn(best, count, steps, session.config.seed, cond, world=session.world)
    except SfumatoError as error:
        return str(error).rstrip(".")


def _twins(session: Session, count: int) -> Tensor:
    """Training samples, first those that metrics take for the floor (`Reference.rest`)."""
    return choose(session.train, count, ORDER)


def _copies(session: Session, made: Tensor | str) -> Memorization | str:
    """Compares samples of the model with its training samples; or says why it cannot."""
    best, source, seed, count = session.best, session.source, session.config.seed, len(made)
    if not len(session.holdout):
        return "nothing was held out"
    if isinstance(made, str) or not session.world.leads:
        return made if isinstance(made, str) else ""
    most = int(_SEARCH * session.state.elapsed / (4 * count * math.prod(source.shape)))
    try:
        with session.state.spending("memorisation"), evaluating(best):
            space, chance = Space(best.spec, None, best.device, unordered(best)), source.table is not None
            if source.table is not None:
                made, source, _, space = of_cells(made, source, source, None)
            unseen, twins = (source, session.holdout), _twins(session, count)
            told = tells_apart(best)
            return compare(made, source, session.train, unseen, twins, space, seed, max(2, most), told, chance)
    except SfumatoError as error:
        return str(error).rstrip(".")


def _metrics(session: Session, made: Tensor | str) -> dict[str, Metric] | str | None:
    """Quick metrics of the samples beside real data, as `sfumato evaluate` measures them; or why there are none."""
    best, source, elapsed = session.best, session.source, session.state.elapsed
    if isinstance(made, str) or not session.world.leads:
        return made if isinstance(made, str) else None
    n = min(len(made), len(session.train) // 2, int(_NUMBERS * elapsed / math.prod(source.shape)))
    if n < _LEAST_MEASURED:
        return f"the run was too short (sfumato evaluate {session.path} measures them)"
    best.provenance = session.provenance()  # says which of the data it was trained on
    try:
        with session.state.spending("metrics"), evaluating(best):
            evaluator = Evaluator(best, source, n=n, weights="ema")
            left = {name for name, (needs, least) in _SLOW.items() if elapsed < least or find_spec(needs) is None}
            kept = {name: each for name, each in evaluator.metrics.items() if name in _QUICK and name not in left}
            evaluator.metrics = kept
            return evaluator(GRID_STEPS, seed=session.config.seed, samples=made)
    except SfumatoError as error:
        return str(error).rstrip(".")


def _bits(session: Session) -> TextBits | str | None:
    """The bits per character of as many held-out windows as the run can afford; or why they were not measured."""
    if session.source.text is None:
        return None
    if len(session.holdout) < 2:
        return "nothing was held out"
    count = max(_LEAST_WINDOWS, min(_MOST_WINDOWS, int(3 * TEXT * session.total / CALLS)))
    best = session.best
    try:
        with session.state.spending("bits"), evaluating(best):
            return text_bits(best, session.source, session.train, session.holdout, count, session.config.seed)
    except SfumatoError as error:
        return str(error).rstrip(".")


def _by_hand(session: Session) -> str:
    """The Python call for the information of the conditions, if a run did not measure it."""
    data = repr(str(session.config.data)) if session.config.data else "data"
    return f"sf.information(sf.load({str(session.path)!r}), {data}) measures it in Python"


def _known(session: Session) -> list[str]:
    """The conditions of the data that the model knows."""
    return [name for name in session.best.spec.conditions if name in session.source.conditions]


def _conditions(session: Session) -> Information | str | None:
    """The information of each condition, from as many draws as the run can afford; or why it was not measured."""
    best, known = session.best, _known(session)
    rows = session.holdout[noise.permutation(session.config.seed, 0, len(session.holdout))]
    draws = min(_MOST_DRAWS, int(3 * INFORMATION * session.total / (1 + len(known) + (len(known) > 1))))
    if not known:
        return None
    if not len(rows):
        return f"nothing was held out ({_by_hand(session)})"
    if not hasattr(best, "predict"):
        return f"{an(type(best).__name__)} has no noise levels"
    if draws < _LEAST_DRAWS:
        return f"the run was too short ({_by_hand(session)})"
    try:
        with session.state.spending("conditions"), evaluating(best):
            found = information(best, session.source, rows, session.config.seed, draws, session.world)
        return found or f"it needs real numbers, and {type(best.process).__name__} has other states"
    except SfumatoError as error:
        return str(error).rstrip(".")
