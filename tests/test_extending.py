"""docs/extending.md: each file runs, and what stands below it, in Python and from the command line."""

import re
import shlex
from pathlib import Path

import pytest

import sfumato as sf
from sfumato.cli import main

TEXT = (Path(__file__).parents[1] / "docs/extending.md").read_text(encoding="utf-8")
TITLED = re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r'```(python|sh)(?: title="(\S*)")?\n(.*?)```', re.DOTALL)
# title -> (name of the file, its text, what uses it in Python, in the shell)
SECTIONS = {
    title: (file[1], file[2], use[2], shell[2].splitlines())
    for title, body in TITLED
    for file, use, shell in [BLOCK.findall(body)]
}


def test_every_kind_that_the_text_speaks_of_has_a_section():
    assert {title.split()[-1] for title in SECTIONS} == set(
        "schedule target weight solver network condition process loss check metric features model".split()
    )


@pytest.mark.parametrize("title", SECTIONS)
def test_a_section_runs_as_it_stands(title, tmp_path, monkeypatch, capsys, registered):
    name, file, use, shell = SECTIONS[title]
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(file, encoding="utf-8")
    names = {"sf": sf}
    exec(compile(file, name, "exec"), names)
    exec(compile(use, f"extending.md: {title}", "exec"), names)
    assert len(file.splitlines()) < 40
    for line in shell:
        words = shlex.split(line)
        assert words[0] == "sfumato" and main(words[1:]) == 0, (line, capsys.readouterr().err)
