"""Choose the plan for sampling a model: the caller's, one stored with the model, or a solver's."""

from __future__ import annotations

from typing import Any

from sfumato.compose import Wrapped
from sfumato.errors import SfumatoError, whole
from sfumato.guidance import Guided, Scale
from sfumato.model import Model
from sfumato.registry import make
from sfumato.solvers import Plan, Solver, default

DEFAULT_STEPS = 20
AnySolver = Solver | Plan | str  # a name is resolved to a solver or plan


def make_plan(
    model: Model,
    steps: int | None,
    solver: AnySolver | None,
    t_start: float = 1.0,
    t_stop: float = 0.0,
    guidance: Scale | None = None,
    interval: tuple[float, float] | None = None,
) -> Plan:
    """The plan that `sample` runs: `solver` if it is a Plan, else the solver's; by default one stored in the model."""
    chosen: Any = make("solver", solver)
    if isinstance(chosen, Plan):
        if steps is not None and steps != chosen.steps:
            raise SfumatoError(f"The plan has {chosen.steps} steps and cannot run with {steps}: leave steps out.")
        chosen.check(model)
        return chosen
    if chosen is not None and not hasattr(chosen, "plan"):
        raise SfumatoError(f"solver must be a solver, its name or a plan, not {solver!r:.80}.")
    steps = usual_steps(model) if steps is None else whole("steps", steps)
    stored = stored_plan(model, steps, t_start, t_stop, guidance, interval) if chosen is None else None
    plan: Plan = stored or (chosen or usual_solver(model)).plan(model.process, steps, t_start, t_stop)
    return plan


def usual_steps(model: Any) -> int:
    """The default number of steps of a model."""
    return int(getattr(model, "default_steps", DEFAULT_STEPS))


def usual_solver(model: Any) -> Any:
    """The default solver of a model, by its kind, its process and whether it is exact."""
    name = getattr(model, "default_solver", model.process.default_solver)
    return default(exact=getattr(model, "exact", False)) if name == "multistep" else make("solver", name)


def stored_plan(
    model: Model,
    steps: int,
    t_start: float = 1.0,
    t_stop: float = 0.0,
    guidance: Scale | None = None,
    interval: tuple[float, float] | None = None,
) -> Plan | None:
    """The model's stored plan for this number of steps, range and guidance and for its schedule, or None."""
    needed = guidance_of(model, guidance, interval)
    for plan in getattr(model, "plans", {}).values():
        ends = (plan.times[0], plan.stop)
        if plan.steps == steps and ends == (t_start, t_stop) and plan.fits(model) and plan.guidance in (None, needed):
            return plan
    return None


def guidance_of(
    model: Model, guidance: Scale | None = None, interval: tuple[float, float] | None = None
) -> tuple[Scale | str, tuple[float, float] | None]:
    """(scale, interval) of the guidance: the arguments, or those of a `Guided` in the model; (1, None) without any. A
    guidance that is not plain is described in words."""
    guided = None if guidance is None else Guided(model, guidance, interval)
    while guided is None and isinstance(model, Wrapped):
        guided = model if isinstance(model, Guided) else None
        model = model.inner
    return (1.0, None) if guided is None or guided.scale == 1 else guided.settings()
