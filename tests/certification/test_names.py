"""Every solver that the command line names keeps what it promises."""

import pytest

from sfumato.certification import certify, summary
from sfumato.errors import SfumatoError
from sfumato.schedules import Flow, LinearBeta
from sfumato.solvers import NAMES, Adaptive, SymbolSolver

CALLS = {
    "annealed-langevin": lambda k: 10 * k + 1,
    "deis": lambda k: k + 1,
    "dpm++2s": lambda k: 2 * k - 1,
    "dpm++3m": lambda k: k + 1,
    "dpm++3s": lambda k: 3 * k - 2,
    "dpm2": lambda k: 2 * k - 1,
    "dpm3": lambda k: 3 * k - 2,
    "heun": lambda k: 2 * k - 1,
    "churn": lambda k: 2 * k - 1,
    "lms": lambda k: k + 4,
    "midpoint": lambda k: 2 * k,
    "plms": lambda k: k + 1,
    "pndm": lambda k: k + 9 if k > 3 else 4 * (k - 1) + 1,
    "predictor-corrector": lambda k: 2 * k - 1,
    "rk4": lambda k: 4 * k - 1,
}


OF_SYMBOLS = [name for name in NAMES if isinstance(NAMES[name](), SymbolSolver)]
NAMED = [name for name in NAMES if name not in ("adaptive", "ddpm-learned", "map", *OF_SYMBOLS)]


@pytest.mark.first(12)
@pytest.mark.parametrize("name", NAMED)
def test_every_name_is_certified(name):
    found = certify(NAMES[name](), name=name, calls=CALLS.get(name, 1), schedules={"VP": LinearBeta()}, quick=True)
    assert found.passed, str(found)
    assert found.declared is not None and found.findings[0].order is not None
    assert name in summary({name: found}) and found.to_dict()["passed"]


def test_a_solver_of_symbols_is_not_certified_on_numbers():
    assert {"reveal", "maskgit", "tau-leaping", "theta-trapezoid"} <= set(OF_SYMBOLS)
    for name in OF_SYMBOLS:
        with pytest.raises(SfumatoError, match="Only masked symbols are revealed|Rates are those of symbols"):
            certify(NAMES[name](), schedules={"VP": LinearBeta()}, quick=True)


def test_an_adaptive_solver_has_no_order_to_certify():
    with pytest.raises(SfumatoError, match="tolerances"):
        certify(Adaptive())


def test_a_certificate_reads():
    found = certify(NAMES["ddpm"](), schedules={"flow": Flow()}, quick=True)
    text = str(found)
    assert text.splitlines()[0].startswith("DDPM: order 1, stochastic: passed")
    assert "law / floor" in text and "mean, variance" in text and "/" in text.splitlines()[-1]
