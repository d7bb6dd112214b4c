"""The fault suite: every fault is named by its own code and by no other, and healthy runs by none."""

import json
from pathlib import Path

import pytest
import yaml

import sfumato as sf
from fault_cases import FAULTS, HEALTHY, QUICK, own_denoiser, own_loop
from sfumato.diagnostics.checks import CHECKS, CODES
from sfumato.objectives.flow_maps import Semigroup

DOCS = Path(__file__).parents[3] / "docs/faults"
FAST_HEALTHY = ("points", "a table with classes")


def cases(names, fast):
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", cases(FAULTS, [name for name, fault in FAULTS.items() if fault.fast]))
def test_a_fault_is_named_by_its_code_alone(name, tmp_path):
    fault = FAULTS[name]
    report = fault.case(tmp_path)
    assert report.codes == {fault.code}, str(report)
    (finding,) = report.findings
    assert finding.what and finding.cure and finding.evidence
    assert json.loads(json.dumps(report.to_dict()))["findings"][0]["page"] == f"docs/faults/{fault.code}.md"
    for config in tmp_path.rglob("config.yaml"):
        assert yaml.safe_load(config.read_text())["steps"] <= 500


@pytest.mark.parametrize("name", cases(HEALTHY, FAST_HEALTHY))
def test_a_healthy_run_is_given_no_code(name, tmp_path):
    report = HEALTHY[name](tmp_path)
    assert report.healthy, str(report)
    assert set(report.checked) == {check.code for check in CHECKS if not check.of_maps}, "all could be looked for"
    assert not (tmp_path / "run/health.json").exists(), "and the run itself said nothing"


@pytest.mark.slow
def test_a_healthy_flow_map_is_given_no_code():
    x, denoiser = own_denoiser("F")
    own_loop(denoiser, x)
    student = sf.FlowMap.student(denoiser)
    own_loop(student, x, Semigroup(denoiser, "teacher", cut=0.1).losses)
    report = sf.doctor(student, x)
    assert report.healthy, str(report)
    assert {"map-collapsed", "until-dead", "target"} <= set(report.checked)


def test_there_are_enough_of_both():
    assert QUICK["steps"] <= 500
    assert len({fault.code for fault in FAULTS.values()}) >= 14 and len(HEALTHY) >= 6
    named = "lr-high range ema-stale sign-flipped schedule labels-shuffled half-overflow condition-dead frozen".split()
    named += ["double-normalised", "identical", "axes"]
    assert set(named) <= {fault.code for fault in FAULTS.values() if fault.fast}


def test_every_code_has_a_page_a_check_and_a_fault():
    pages = {path.stem for path in DOCS.glob("*.md")} - {"README"}
    assert pages == set(CODES) == {check.code for check in CHECKS} == {fault.code for fault in FAULTS.values()}
    for code in CODES:
        text = (DOCS / f"{code}.md").read_text(encoding="utf-8")
        assert text.startswith(f"# {code}: {CODES[code]}\n")
        assert all(f"\n## {part}\n" in text for part in ("How it is detected", "How it comes about", "Cure"))


def test_what_explains_stands_before_what_it_explains():
    order = [check.code for check in CHECKS]
    for check in CHECKS:
        assert check.explains <= set(CODES)
    assert len(set(order)) == len(order)
