"""`import sfumato` is free, its public names are the promised ones, and `sfumato --help` answers without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sfumato
from loops import every

PROMISED = set(
    "Gaussian Denoiser Estimate schedules solvers weights times denoising_loss sample trajectory guide exact nets data "
    "train resume load save SfumatoError".split()
)
OPTIONAL = {"matplotlib", "scipy", "sklearn", "pytest", "hypothesis", "diffusers"}


def python(code: str) -> str:
    """What a fresh interpreter prints; its failure is the test's."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return done.stdout


def packages(code: str) -> set[str]:
    """The modules of packages, not of Python itself, that running the code brings along."""
    before, after = "import sys; before = set(sys.modules)", "print('\\n', *(set(sys.modules) - before))"
    names = python("\n".join((before, code, after))).splitlines()[-1].split()
    return {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}


def test_import_brings_nothing_along():
    """Neither torch, numpy nor a room of its own: what it costs does not depend on the machine."""
    assert packages("import sfumato") == {"sfumato"}


def test_public_names_are_the_promised_ones():
    assert set(dir(sfumato)) >= PROMISED and set(sfumato.__all__) >= PROMISED


@every(name=sorted(set(sfumato.__all__) | PROMISED))
def test_public_name_resolves(name):
    assert getattr(sfumato, name) is not None
    assert getattr(sfumato, name) is getattr(sfumato, name)


def test_public_names_are_their_homes():
    import sfumato.objectives.weights
    import sfumato.process.gaussian
    import sfumato.schedules

    assert sfumato.schedules is sys.modules["sfumato.schedules"]
    assert sfumato.weights is sfumato.objectives.weights
    assert sfumato.Gaussian is sfumato.process.gaussian.Gaussian
    assert sfumato.Gaussian(sfumato.schedules.Cosine()).schedule == sfumato.schedules.Cosine()


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'sfumato' has no attribute 'gaussian_process'"):
        sfumato.gaussian_process  # noqa: B018


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(sfumato.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {}
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                module = node.module if node.module != "sfumato" else None
                typed[alias.asname or alias.name] = (module, alias.name)
    for name, where in sfumato._PUBLIC.items():
        module, _, attribute = where.partition(":")
        home, inner = typed.pop(name)
        assert f"{home}:{inner}" in (where, f"None:{name}", f"{module.rpartition('.')[0]}:{name}"), name
    assert not typed


def test_public_names_need_no_optional_package():
    code = (
        "import sys, sfumato; [getattr(sfumato, name) for name in sfumato.__all__]; "
        f"print(*({OPTIONAL!r} & set(sys.modules)))"
    )
    assert python(code).split() == []


def test_help_brings_nothing_along():
    """The command without words neither loads torch nor the parser of flags, so that it answers at once."""
    code = (
        "from sfumato.cli import main\nsys.argv[:] = ['sfumato', '--help']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
    )
    assert {name.split(".")[0] for name in packages(code)} == {"sfumato"}


def test_no_module_hides_a_public_name():
    """`sfumato.encode` would become a module of that name once anybody imports it, and no longer be the function."""
    folder = Path(sfumato.__file__).parent
    hidden = [
        name
        for name, where in sfumato._PUBLIC.items()
        if ":" in where and ((folder / f"{name}.py").exists() or (folder / name).is_dir())
    ]
    assert not hidden
