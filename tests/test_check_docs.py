"""The map from equations to code is in order, and its checker notices when it is not."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
check = runpy.run_path(str(ROOT / "scripts" / "check_docs.py"))["check"]

GOOD = "| A7 | `x \\| z` | `src/core.py` `Law` `Law.mean` `TABLE` | `tests/test_core.py::test_law` |"


def write(root: Path, row: str) -> Path:
    (root / "docs").mkdir()
    (root / "src").mkdir()
    (root / "tests").mkdir()
    (root / "src/core.py").write_text("TABLE: dict = {}\nclass Law:\n    def mean(self): return 0\n")
    (root / "tests/test_core.py").write_text("def test_law(): pass\n")
    (root / "docs/equations.md").write_text(f"# Map\n\n| row | formula | code | test |\n|---|---|---|---|\n{row}\n")
    return root


def test_the_map_of_this_project_is_in_order():
    assert check(ROOT) == []


def test_a_good_row_has_no_fault(tmp_path):
    assert check(write(tmp_path, GOOD)) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("core.py` `Law`", "gone.py` `Law`", "src/gone.py does not exist"),
        ("Law.mean", "Law.median", "src/core.py defines no `Law.median`"),
        ("TABLE", "TABEL", "src/core.py defines no `TABEL`"),
        ("::test_law", "::test_lore", "tests/test_core.py defines no `test_lore`"),
        ("tests/test_core.py", "tests/test_gone.py", "tests/test_gone.py does not exist"),
        ("`tests/test_core.py::test_law`", "by hand", "the test cell names no test"),
        ("::test_law", "::law", "is not of the form"),
        (" `Law` `Law.mean` `TABLE`", "", "no name follows src/core.py"),
        ("`src/core.py` ", "", "stands before any file"),
        ("A7", "7", "'7' is not a list of METHODS rows"),
        ("\\|", "|", "5 cells and not 4"),
    ],
)
def test_a_fault_is_one_sentence_that_names_its_line(tmp_path, old, new, said):
    assert old in GOOD
    faults = check(write(tmp_path, GOOD.replace(old, new)))
    assert any(said in fault and fault.startswith("docs/equations.md:5: ") for fault in faults), faults


def test_an_empty_map_is_a_fault(tmp_path):
    assert "the map is gone" in check(write(tmp_path, ""))[0]
