"""The rules of the house, read from the syntax trees: layers, circles, optional packages, pickle, devices, lengths."""

import ast
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
PACKAGE = sorted((SRC / "sfumato").rglob("*.py"))
PLACES = ["src", "scripts", "tests", "benchmarks", "recipes"]
EVERYTHING = [path for place in PLACES for path in sorted((ROOT / place).rglob("*.py"))]
PICKLERS = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
LONGEST_FUNCTION, LONGEST_FILE = 60, 500


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def shown(path: Path, node: ast.AST | None = None) -> str:
    line = f":{node.lineno}" if isinstance(node, ast.stmt | ast.expr) else ""
    return f"{path.relative_to(ROOT)}{line}"


def module_of(path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in PACKAGE}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(path: Path, *, typing: bool = True, inner: bool = True) -> list[tuple[ast.stmt, str]]:
    """(statement, dotted module) of every import, those only for typing and those inside functions included or not."""

    def walk(node: ast.AST) -> list[tuple[ast.stmt, str]]:
        if isinstance(node, ast.Import):
            return [(node, alias.name) for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module_of(path).split(".") if path.name == "__init__.py" else module_of(path).split(".")[:-1]
                base = ".".join([*here[: len(here) - node.level + 1], *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" for alias in node.names]
            return [(node, name if name in MODULES or base == "sfumato" else base) for name in names]
        if (not typing and is_type_checking(node)) or (
            not inner and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        ):
            return []
        return [found for child in ast.iter_child_nodes(node) for found in walk(child)]

    return walk(tree(path))


def room(module: str) -> str:
    """The part of the package that `module` belongs to; '' for the front door."""
    return module.split(".")[1] if "." in module else ""


@cache
def layers() -> dict[str, int]:
    """Room -> height, from the block in docs/design.md; the lowest line is 0."""
    block = re.search(r"```layers\n(.*?)```", (ROOT / "docs/design.md").read_text(encoding="utf-8"), re.S)
    assert block, "docs/design.md has no ```layers block"
    lines = block.group(1).strip().splitlines()
    heights = {name: height for height, line in enumerate(reversed(lines)) for name in line.split()}
    assert len(heights) == sum(len(line.split()) for line in lines), "docs/design.md names a room on two lines"
    return heights


def test_every_room_has_its_line_in_the_design():
    rooms = {room(module) for module in MODULES} - {""}
    assert rooms - set(layers()) == set(), "rooms that the layers of docs/design.md do not name"
    assert set(layers()) - rooms == set(), "rooms that docs/design.md names and the package lacks"


def test_imports_only_point_down():
    wrong = []
    for module, path in MODULES.items():
        for node, target in imports(path):
            here, there = room(module), room(target)
            if not target.startswith("sfumato") or not here or here == there:
                continue
            if target == "sfumato" or target not in MODULES:
                if target != "sfumato.__version__":
                    wrong.append(f"{shown(path, node)} goes through the front door: {target}")
            elif not {here, there} <= set(layers()):
                continue  # the test above says so
            elif layers()[there] >= layers()[here]:
                wrong.append(f"{shown(path, node)} imports {target}, which is not below {here}")
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself_through_others():
    graph = {
        module: {target for _, target in imports(path, typing=False) if target in MODULES and target != "sfumato"}
        for module, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        assert module not in trail, "a circle of imports: " + " -> ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for target in sorted(graph[module]):
                visit(target, [*trail, module])
            done.add(module)

    for module in graph:
        visit(module, [])


@cache
def distributions() -> tuple[set[str], set[str]]:
    """Import names of the (hard, optional) dependencies that pyproject.toml declares."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    renamed = {
        "pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn", "huggingface-hub": "huggingface_hub",
        "pywavelets": "pywt",
    }  # fmt: skip

    def names(requirements: list[str]) -> set[str]:
        found = (re.split(r"[^A-Za-z0-9_.-]", requirement)[0].lower() for requirement in requirements)
        return {renamed.get(name, name.replace("-", "_")) for name in found}

    return names(project["dependencies"]), names(sum(project["optional-dependencies"].values(), []))


def test_only_hard_dependencies_are_imported_at_the_top():
    hard, _ = distributions()
    allowed = hard | set(sys.stdlib_module_names) | {"sfumato"}
    wrong = [
        f"{shown(path, node)} imports {target}"
        for path in PACKAGE
        for node, target in imports(path, typing=False, inner=False)
        if target.split(".")[0] not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_what_is_imported_inside_functions_is_named_by_an_extra():
    hard, optional = distributions()
    allowed = hard | optional | set(sys.stdlib_module_names) | {"sfumato"}
    wrong = [
        f"{shown(path, node)} imports {target}, which no extra of pyproject.toml installs"
        for path in PACKAGE
        for node, target in imports(path)
        if target.split(".")[0] not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def calls(path: Path) -> list[tuple[ast.Call, str]]:
    """(call, its function as written) of every call in a file."""
    return [(node, ast.unparse(node.func)) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]


def keyword(call: ast.Call, name: str) -> object:
    """The constant value of a keyword argument, or None."""
    return next((k.value.value for k in call.keywords if k.arg == name and isinstance(k.value, ast.Constant)), None)


def test_nothing_is_pickled():
    wrong = []
    for path in PACKAGE:
        wrong += [shown(path, node) for node, target in imports(path) if target.split(".")[0] in PICKLERS]
        for call, function in calls(path):
            if (
                function == "torch.save"
                or (function == "torch.load" and keyword(call, "weights_only") is not True)
                or keyword(call, "allow_pickle") is True
            ):
                wrong.append(shown(path, call))
    assert not wrong, "a pickle is written, or read without restriction: " + ", ".join(wrong)


def test_devices_are_arguments():
    wrong = [shown(path, call) for path in PACKAGE for call, function in calls(path) if function.endswith(".cuda")]
    assert not wrong, "use .to(device): " + ", ".join(wrong)


def test_a_function_fits_a_screen():
    wrong = [
        f"{shown(path, node)} {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path in EVERYTHING
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno
        and node.end_lineno - node.lineno >= LONGEST_FUNCTION
    ]
    assert not wrong, "\n".join(wrong)


def test_a_file_has_one_subject():
    code = [path for path in EVERYTHING if ROOT / "tests" not in path.parents]
    lengths = {path: path.read_text(encoding="utf-8").count("\n") for path in code}
    wrong = [f"{shown(path)} has {n} lines" for path, n in lengths.items() if n > LONGEST_FILE]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("rule", ["imports", "layers"])
def test_the_rules_see_something(rule):
    """The checks above hold of an empty list as well: there is something for them to read."""
    seen = [found for path in PACKAGE for found in imports(path)] if rule == "imports" else list(layers())
    assert len(seen) > 10
