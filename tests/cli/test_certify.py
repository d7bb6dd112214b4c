"""`certify`: the table, the JSON, the exit status, and what is refused."""

import dataclasses
import json

from sfumato.schedules import Cosine
from sfumato.solvers import NAMES, Multistep


def test_one_solver(call):
    status, out, err = call("certify", "heun", "--quick")
    assert status == 0 and err == ""
    assert out.startswith("heun: order 2, deterministic: passed")
    for word in ("VP", "VE", "flow", "2 K - 1", "bounded from"):
        assert word in out


def test_one_solver_in_json(call):
    status, out, _ = call("certify", "ddim", "--quick", "--json")
    facts = json.loads(out)
    assert status == 0 and facts["passed"] and facts["declared"] == 1 and not facts["stochastic"]
    assert [one["schedule"] for one in facts["findings"]] == ["VP", "VE", "flow"]
    assert all(abs(one["order"] - 1) < 0.15 for one in facts["findings"])


def test_a_plan_and_a_spoilt_plan(call):
    """Status 0 and 1; what is wrong is said in words."""
    plan = Multistep(2).plan(Cosine(), 6)
    plan.save("plan.json")
    assert call("certify", "plan.json")[0] == 0
    line = plan.lines[4]
    lines = (*plan.lines[:4], line._replace(x={j: 1.5 * c for j, c in line.x.items()}), *plan.lines[5:])
    dataclasses.replace(plan, lines=lines).save("spoilt.json")
    status, out, err = call("certify", "spoilt.json")
    assert status == 1 and err == "" and "FAILED" in out
    assert "from call 4 the table leads to another level" in out and "DDIM on the same calls" in out
    assert json.loads(call("certify", "spoilt.json", "--json")[1])["passed"] is False


def test_all_of_them(call, monkeypatch):
    """One line each, the faults below; three stand for all here."""
    some = {name: NAMES[name] for name in ("ddim", "ddpm", "multistep")}
    monkeypatch.setattr("sfumato.solvers.NAMES", some)
    status, out, err = call("certify")
    lines = out.splitlines()
    assert status == 0 and len(lines) == 4 and "VP, VE, flow" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == list(some) and all("passed" in line for line in lines[1:])
    assert "ddpm ..." in err


def test_mistakes(refused):
    assert "there is no solver or plan file 'huen'" in refused("certify", "huen")
    assert "Cannot read a solver plan" in refused("certify", "missing.json")
