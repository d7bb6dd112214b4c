"""The documentation's promises: its Python runs, its commands are parsed, links lead somewhere, nothing is left out.

Blocks of a page run one after the other in a folder that has `runs/digits`, as the first page leaves it. Training and
fitting are real, and short: `minutes`, `steps` and `rounds` are cut. A block below ``<!-- slow -->`` makes its whole
page a slow test; one below ``<!-- not run: REASON -->`` is only compiled.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

import sfumato as sf
from sfumato.cli import COMMANDS
from sfumato.cli.parse import parse, train_config
from sfumato.diagnostics.checks import CODES
from sfumato.training.console import Silent

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE = sorted(path for path in DOCS.rglob("*.md") if path != DOCS / "plan.md")
OTHERS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md")]
BLOCK = re.compile(r"(?:<!-- (slow|not run: [^>]*) -->\n+)?```(python|sh)[^\n]*\n(.*?)```", re.DOTALL)
PAGES = [path for folder in ("start", "how-to", "explanation") for path in sorted((DOCS / folder).glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def blocks(text: str, language: str) -> list[tuple[str, str]]:
    """(mark above it, block) of each block of a language."""
    return [(mark, block) for mark, found, block in BLOCK.findall(text) if found == language]


def paged(paths):
    """The pages that have Python, those that take long marked as slow."""
    texts = {path: blocks(path.read_text(encoding="utf-8"), "python") for path in paths}
    return [
        pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if "slow" in dict(found) else [])
        for path, found in texts.items()
        if found
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """What the first page leaves: runs/digits, here after a few steps."""
    folder = tmp_path_factory.mktemp("docs")
    sf.train("digits", folder / "runs/digits", net="tiny", steps=20, sample_every=0, snapshots=2, console=Silent())
    return folder


@pytest.fixture
def short(trained, tmp_path, monkeypatch, registered):
    """A folder with runs/digits, in which training and fitting take moments; parts that a page registers go again."""
    train, tune, likelihood = sf.train, sf.tune, sf.log_prob

    def less(settings: dict) -> dict:
        given = {name: value for name, value in settings.items() if name != "minutes"}
        return {"net": "tiny", "sample_every": 0, "console": Silent(), **given, "steps": 2}

    monkeypatch.setattr(sf, "train", lambda data, *args, **settings: train(data, *args, **less(settings)))
    monkeypatch.setattr(sf, "tune", lambda *args, **how: tune(*args, **{**how, "rounds": 1, "points": 64}))
    few = lambda model: {"steps": 4, "probes": 2} if getattr(model, "process", None) else {}  # noqa: E731
    monkeypatch.setattr(sf, "log_prob", lambda m, *args, **how: likelihood(m, *args, **{**few(m), **how}))
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", paged(PAGES))
def test_the_python_of_a_page_runs(path, short):
    names = {"__name__": "page"}
    for mark, block in blocks(path.read_text(encoding="utf-8"), "python"):
        code = compile(block, f"{path.name}: {block.splitlines()[0]}", "exec")
        if not mark.startswith("not run"):
            exec(code, names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_carries_no_output(path, short):
    """Its cells in turn, at small size; IPython's own words are not used in them."""
    made = json.loads(path.read_text(encoding="utf-8"))
    names = {"__name__": "notebook"}
    for number, cell in enumerate(made["cells"]):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, f"cell {number} carries what it said"
            exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), names)


def test_there_are_pages_and_notebooks():
    assert len(paged(PAGES)) >= 15 and len(NOTEBOOKS) == 4


def commands(path: Path) -> list[str]:
    """Every command line of ours that a page shows, without its comment."""
    shown = [line for _, block in blocks(path.read_text(encoding="utf-8"), "sh") for line in block.splitlines()]
    return [line for line in shown if line.startswith("sfumato ") or "-m sfumato.cli " in line]


@pytest.mark.parametrize("path", [*SITE, *OTHERS], ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_of_a_page_are_commands(path):
    for line in commands(path):
        words = shlex.split(line.partition("-m sfumato.cli ")[2] or line.removeprefix("sfumato "), comments=True)
        assert words[0] in COMMANDS, line
        if "--help" in words:
            continue
        options = parse(words[0], words[1:])
        if words[0] in ("train", "plan") and "--modules" not in words and "--config" not in words:
            train_config(options, words[0])  # its values, too


@pytest.mark.parametrize("path", [*SITE, *OTHERS], ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(path):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        if "://" not in link:
            where = path.parent / target if target else path
            assert where.exists(), f"{path.relative_to(ROOT)} links to {link}"
            assert not anchor or anchor in anchors(where), f"{path.relative_to(ROOT)} links to {link}"


def anchors(path: Path) -> set[str]:
    """The names of the headings of a page, as the site and GitHub make them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


def test_the_architecture_names_every_room_and_real_files():
    """Those of the layers block in the design."""
    text, design = (path.read_text(encoding="utf-8") for path in (ROOT / "ARCHITECTURE.md", DOCS / "design.md"))
    rooms = set(re.search(r"```layers\n(.*?)```", design, re.DOTALL)[1].split())
    picture = re.search(r"```text\n(.*?)```", text, re.DOTALL)[1]
    assert {word for line in picture.splitlines() for word in line[12:58].split()} - {"|"} == rooms
    files = re.findall(r"`([\w/]+\.py|\w+/)`", text)
    assert len(files) > 20
    for file in files:
        assert (ROOT / "src/sfumato" / file).exists() or (ROOT / file).exists(), file


def test_the_promises_name_tests_and_benchmarks_that_exist():
    text = (DOCS / "explanation/promises.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:tests|benchmarks)/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 40 and len(named) == len(re.findall(r"`(?:tests|benchmarks)/", text))
    for file, test in named:
        defined = re.findall(r"^def (\w+)", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
        assert not test or test in defined, f"{file} has no {test}"
    for row in re.findall(r"^\| [A-Z].*", text, re.MULTILINE):
        assert "`tests/" in row, row


def test_every_page_has_its_place_in_the_site():
    """As text, since mkdocs is an extra; `make site` checks the rest."""
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    named = set(re.findall(r"[\w/-]+\.md", nav))
    assert named == {str(path.relative_to(DOCS)) for path in SITE}


def test_the_reference_has_every_public_name_and_command_and_fault():
    api = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference/api").glob("*.md"))
    told = re.findall(r"^::: sfumato\.(\w+)$", api, re.MULTILINE)
    assert sorted(told) == sorted(set(sf.__all__) - {"__version__"})
    for module, members in re.findall(
        r"^::: sfumato\.(\w+)\n    options:\n      members:\n((?: +- \w+\n)+)", api, re.M
    ):
        assert all(hasattr(getattr(sf, module), name) for name in re.findall(r"- (\w+)", members)), module
    page = (DOCS / "reference/commands.md").read_text(encoding="utf-8")
    assert re.findall(r"^## ([a-z-]+)$", page, re.MULTILINE) == list(COMMANDS)
    assert {path.stem for path in (DOCS / "faults").glob("*.md")} == {"README", *CODES}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_reference_has_every_flag(command, capsys, monkeypatch):
    """Flags, not words or layout, of `--help`; scripts/command_pages.py writes the page anew."""
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parse(command, ["--help"])
    page = (DOCS / "reference/commands.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {command}\n(.*?)(?=^## [a-z-]+\n|\Z)", page, re.MULTILINE | re.DOTALL)[1]
    flags = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", capsys.readouterr().out))
    assert flags <= set(re.findall(r"--[a-z][\w-]*", section)), "run scripts/command_pages.py"
