"""The base of losses that learn from a teacher, a model that is not trained, and whose students sample in few calls."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from sfumato.errors import whole
from sfumato.guidance import GuidedByCondition
from sfumato.objectives.loss import Loss

Teacher = Any  # a model; in settings the name of one, file('runs/photos')


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
