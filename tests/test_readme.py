"""The README's promises: its Python runs as it stands, and the commands that it shows are commands."""

import re
from pathlib import Path

import pytest

import sfumato as sf
from sfumato.cli import COMMANDS

TEXT = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_runs_in_a_folder_with_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sf.train("fashion", out="runs/demo", steps=2, net="tiny", sample_every=0)
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["coats"].shape == names["again"].shape == (16, 1, 28, 28)
    assert str(names["coats"].dtype) == "torch.uint8"
    last, weight = capsys.readouterr().out.splitlines()[-2:]
    assert weight == "v True"
    truth = names["truth"]
    entropy = -float(truth.log_prob(truth.sample(200_000)).mean())
    assert entropy == pytest.approx(1.34, abs=0.01) and "near -1.34, minus the entropy" in TEXT
    assert float(last.removesuffix(" nats")) == pytest.approx(-entropy, abs=0.05)


def test_the_commands_exist():
    shown = re.findall(r"^sfumato ([\w-]+)", TEXT, re.MULTILINE)
    assert len(shown) >= 5
    assert set(shown) <= set(COMMANDS)
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", TEXT, re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_the_files_that_it_links_to_are_there():
    links = re.findall(r"\]\(([^)#:]+)\)", TEXT)
    assert "docs/demo.png" in links
    for link in links:
        assert (Path(__file__).parents[1] / link).exists(), link
