"""The base of losses that learn from a teacher, a model that is not trained, and whose students sample in few calls."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from sfumato.errors import whole
from sfumato.guidance import GuidedByCondition
from sfumato.objectives.loss import Loss

Teacher = Any  # a model; in settings the name of one, file('runs/photos')
JOINS = 8192  # samples after which an adversary joins


class Lesson(NamedTuple):
    """What the setting of a loss says of a student.

    teacher: its file. guidance: one scale, one per condition, or the ends of a range; 1 for none. joins: the samples
    after which an adversary joins, None for none. interval: the levels of logsnr between which guidance acts.
    """

    method: str
    teacher: str
    guidance: Any = 1.0
    joins: int | None = None
    interval: tuple[float, float] | None = None

    def words(self, seen: int | None = None) -> str:
        """A sentence. seen: the samples that a trained student has seen."""
        said = f"A student of {self.teacher} by {self.method}, {self.guided()}"
        if self.joins is None:
            return f"{said}."
        if seen is not None and seen <= self.joins:
            return f"{said}; its adversary joins after {self.joins:,} samples, and has not yet."
        return f"{said}, with an adversary after {self.joins:,} samples."

    def guided(self) -> str:
        """In words, after "distilled"."""
        if isinstance(self.guidance, tuple):
            return f"at a guidance of {self.guidance[0]:g} to {self.guidance[1]:g}, as samples ask"
        each = self.guidance.items() if isinstance(self.guidance, Mapping) else ()
        scale = ", ".join(f"{w:g} to {name}" for name, w in each) or f"{self.guidance:g}"
        return "without guidance" if scale == "1" else f"at a guidance of {scale}"


def lesson(loss: Any) -> Lesson | None:
    """What a setting such as "semigroup(teacher=file('runs/photos', guidance=2), calls=(1, 2))" says; None for losses
    without the file of a teacher."""
    name, _, own = str(loss).partition("(")
    try:
        call: Any = ast.parse(f"_({own}", mode="eval").body
        args = {each.arg: each.value for each in call.keywords}
        teacher = args.pop("teacher")
        if teacher.func.id != "file":
            return None
        known = {each.arg: ast.literal_eval(each.value) for each in teacher.keywords}
        args.pop("calls", None)
        said = {key: ast.literal_eval(value) for key, value in args.items()}
        joins = int(said.get("alone", JOINS)) if said.get("adversary") else None
        method = ", ".join([*map(ast.unparse, call.args), *(f"{key}={value!r}" for key, value in said.items())])
        file, guidance = ast.literal_eval(teacher.args[0]), known.get("guidance", 1.0)
        found = Lesson(f"{name}({method})" if method else name, str(file), guidance, joins, known.get("interval"))
        found.words()
        return found
    except (SyntaxError, ValueError, TypeError, AttributeError, LookupError, RecursionError, MemoryError):
        return None  # a file may say anything


class TaughtLoss(Loss):
    """A loss with a `teacher`, perhaps None, and the numbers of calls that its student is for.

    settings: those of a run in which `sf.distill` differs from `sf.train`.
    """

    settings: ClassVar[dict[str, Any]] = {}

    def __init__(self, teacher: Teacher | None, calls: tuple[int, ...], seed: int) -> None:
        super().__init__()
        self.calls = tuple(whole("calls", count, least=1) for count in calls)
        self.seed = seed
        self._teacher = (teacher,)  # in a tuple, so that its weights are not the loss's state

    @property
    def teacher(self) -> Any:
        return self._teacher[0]

    def beside(self, z: Tensor) -> Any:
        """The teacher, on the device of z."""
        net = getattr(self.teacher, "net", None)
        if net is not None:
            net.to(z.device)
        return self.teacher

    def suits(self, model: Any) -> None:
        if isinstance(self.teacher, GuidedByCondition):
            self._teacher = (self.teacher.encoded_by(model.spec),)
