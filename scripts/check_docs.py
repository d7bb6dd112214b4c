"""Checks docs/equations.md, the map from equations to code: fails when a file, a name or a test in it is gone.

A row of the map is ``| METHODS id | formula | code | test |``. `code` holds a file and names in it, each in backticks
(`src/sfumato/target.py` `solve` `rows`); a name may be dotted (`Cosine.rates`) and belongs to the last file before it.
`test` holds ``tests/FILE.py::NAME`` (or ``::CLASS::NAME``), each in backticks. Names are looked up in the syntax tree,
so nothing is imported. Run ``python scripts/check_docs.py``; it prints one sentence a fault and exits with 1.
"""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from pathlib import Path

TABLE = "docs/equations.md"
HEAD = ["row", "formula", "code", "test"]


def cells(line: str) -> list[str]:
    r"""The cells of one line of a table; a bar inside a cell is written ``\|``."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def rows(text: str) -> list[tuple[int, list[str]]]:
    """(line number, cells) of every table row below a heading row of `HEAD`."""
    found: list[tuple[int, list[str]]] = []
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("|"):
            inside = False
        elif [cell.lower() for cell in cells(line)] == HEAD:
            inside = True
        elif inside and not set(line) <= set("|-: "):
            found.append((number, cells(line)))
    return found


def defined(body: list[ast.stmt], prefix: str = "") -> set[str]:
    """Every class, function and assigned name in `body`, members as ``Class.member``, whatever block it stands in."""
    names: set[str] = set()
    for node in body:
        if isinstance(node, ast.ClassDef):
            names |= {prefix + node.name} | defined(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(prefix + node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {prefix + leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)}
        else:
            for block in ("body", "orelse", "finalbody"):
                names |= defined(getattr(node, block, []), prefix)
    return names


@cache
def names_in(path: Path) -> frozenset[str]:
    return frozenset(defined(ast.parse(path.read_text(encoding="utf-8")).body))


def missing(root: Path, file: str, name: str) -> str | None:
    """What is wrong with `name` in `file`, or None."""
    path = root / file
    if not path.is_file():
        return f"{file} does not exist"
    return None if name in names_in(path) else f"{file} defines no `{name}`"


def faults_of_code(root: Path, cell: str) -> list[str]:
    """Faults of a `code` cell: it needs a file, every file a name in it, and all of them must exist."""
    faults: list[str] = []
    file, named = "", True
    for word in re.findall(r"`([^`]+)`", cell):
        if word.endswith(".py"):
            if not named:
                faults.append(f"no name follows {file}")
            file, named = word, False
        elif not file:
            faults.append(f"`{word}` stands before any file")
        else:
            named = True
            faults += filter(None, [missing(root, file, word)])
    if not file:
        faults.append("the code cell names no file")
    elif not named:
        faults.append(f"no name follows {file}")
    return faults


def faults_of_test(root: Path, cell: str) -> list[str]:
    """Faults of a `test` cell: at least one ``tests/FILE.py::NAME``, whose name starts with test and exists."""
    faults: list[str] = []
    words = re.findall(r"`([^`]+)`", cell)
    if not words:
        faults.append("the test cell names no test")
    for word in words:
        file, _, name = word.partition("::")
        if not name.split("::")[-1].startswith("test") or not file.startswith("tests/"):
            faults.append(f"`{word}` is not of the form tests/FILE.py::test_NAME")
        else:
            faults += filter(None, [missing(root, file, name.replace("::", "."))])
    return faults


def check(root: Path, table: str = TABLE) -> list[str]:
    """One sentence for each fault of the map under `root`; empty when it is in order."""
    path = root / table
    if not path.is_file():
        return [f"{table}: the file is gone; it maps every equation to its code and its test"]
    found = rows(path.read_text(encoding="utf-8"))
    if not found:
        return [f"{table}: no table with the heading | {' | '.join(HEAD)} | has a row; the map is gone"]
    faults: list[str] = []
    for number, row in found:
        where = f"{table}:{number}"
        if len(row) != len(HEAD):
            faults.append(f"{where}: the row has {len(row)} cells and not {len(HEAD)}; write a bar in a formula as \\|")
            continue
        ids, formula, code, test = row
        if not re.fullmatch(r"[A-Z]\d+([ ,]+[A-Z]\d+)*", ids):
            faults.append(f"{where}: '{ids}' is not a list of METHODS rows such as A7 or C1, C2")
        if not formula:
            faults.append(f"{where}: the row of {ids} has no formula")
        wrong = faults_of_code(root, code) + faults_of_test(root, test)
        faults += [f"{where}: {fault}; mend the row of {ids}, or bring it back" for fault in wrong]
    return faults


def main() -> int:
    root = Path(__file__).resolve().parent.parent
    faults = check(root)
    for fault in faults:
        print(f"check_docs: {fault}", file=sys.stderr)
    if not faults:
        print(f"check_docs: {TABLE}: {len(rows((root / TABLE).read_text(encoding='utf-8')))} rows, every name found")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
