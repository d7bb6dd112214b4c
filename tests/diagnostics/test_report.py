"""Pages: nothing from outside is needed, and nothing that a user has named becomes a part of the page."""

import dataclasses
import json
import os
import re

import numpy as np

import sfumato as sf
from sfumato.diagnostics.board_page import drowned
from sfumato.diagnostics.report import _samples, page
from sfumato.training.console import Silent

EVIL, SHOWN = "<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"


def alone(text: str) -> bool:
    """Whether a page opens without a network: references are to itself or hold what they refer to."""
    text = re.sub(r' xmlns(:xlink)?="http://www\.w3\.org/[^"]*"', "", text)
    return not re.search(r'(?:src|href)=(?!"data:|"#)|https?:|@import|url\((?!#)', text)


def test_a_page_needs_nothing_from_elsewhere():
    whole = page("<b>", "said & done", figures="1 < 2", settings=[("name", "<value>", "meaning")])
    assert "<title>&lt;b&gt;</title>" in whole and "said &amp; done" in whole and "1 &lt; 2" in whole
    assert "<td>&lt;value&gt;</td>" in whole and "Nothing was measured yet" in whole and alone(whole)
    assert "How it went" not in whole and "Samples" not in whole
    assert not alone('<img src="a.png">') and not alone("@import 'a'") and not alone("url(a)")


def test_names_of_a_run_are_text(tmp_path):
    """Its folder, its data, a class and a condition."""
    draw, place = np.random.default_rng(0), tmp_path / EVIL
    place.mkdir(parents=True)
    columns = {
        EVIL: draw.normal(size=90).astype(np.float32),
        "labels": np.array([f"{EVIL} {i % 2}" for i in range(90)]),
    }
    np.savez(place / "data.npz", x=draw.normal(size=(90, 4)).astype(np.float32), **columns)
    how = {"steps": 30, "batch": 64, "net": "tiny", "precision": "float32", "holdout": 0.2, "console": Silent()}
    run = sf.train(place / "data.npz", place / "run", **how)
    text = (run.path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text and alone(text)
    facts = json.loads((run.path / "report.json").read_text())
    assert facts["model"]["classes"][0] == f"{EVIL} 0" and EVIL in facts["model"]["conditions"]
    cells = dict(re.findall(r"<tr><td>(\w+)</td><td>(.*?)</td>", text))
    assert cells["data"].endswith(f"{SHOWN}/data.npz") and cells["out"].endswith(f"{SHOWN}/run")
    assert re.search(rf"<b>[^<]*{re.escape(SHOWN)}[^<]*</b><span>what it is conditioned on", text)
    commands = text[text.index("What to type next") :]
    assert f"--condition &#39;{SHOWN}=" in commands and f"{SHOWN}/run" in commands


def test_a_student_has_the_process_of_its_teacher(tmp_path):
    """And not the default of the settings, which name none."""
    x = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    how = {"steps": 10, "batch": 16, "precision": "float32", "sample_every": 0, "console": Silent()}
    pairs = {"x": x, "input": x[::-1].copy()}
    teacher = sf.train(pairs, tmp_path / "teacher", process="rectified-flow", net="tiny", **how)
    student = sf.distill(teacher.path, tmp_path / "student", pairs, calls=(1,), **how)
    for run in (teacher, student):
        text = (run.path / "report.html").read_text(encoding="utf-8")
        assert dict(re.findall(r"<tr><td>(\w+)</td><td>(.*?)</td>", text))["process"] == "rectified-flow"


def test_other_things_among_the_grids_are_passed_over(tmp_path):
    (tmp_path / "samples/step_00000005.png").mkdir(parents=True)
    for name, contents in (("step_best.png", b"mine"), ("step_00000007.png", b"grid")):
        (tmp_path / "samples" / name).write_bytes(contents)
    os.mkfifo(tmp_path / "samples/step_00000006.png")
    assert _samples(tmp_path) == [(7, "data:image/png;base64,Z3JpZA==")]


def test_names_of_a_board_are_text(tmp_path):
    law = sf.exact.GaussianMixture([1.0], [[2.0, -1.0, 0.5]], 0.7)
    board = sf.board(law.denoiser(sf.Gaussian(sf.schedules.Flow())), law, samples=8, gradients=0)
    named = dataclasses.replace(board, words=f"words {EVIL}", notes=(f"note {EVIL}",))
    text = named.plot(tmp_path / "board.html").read_text(encoding="utf-8")
    assert "<script" not in text and alone(text) and text.count("<svg") == 3
    assert text.count(f"words {SHOWN}") == 2 and f"note {SHOWN}" in text
    assert text == named.html() and f"note {EVIL}" in str(named)


def test_levels_whose_gradient_is_not_told_from_zero():
    """|G|^2 = -1 with an error of 1 is below 1, so that tr Sigma = 6 makes a noise scale of more than 6."""
    gradients = {
        "square": {"value": [-1.0, 4.0, None], "stderr": [1.0, 1.0, None]},
        "variance": {"value": [6.0, 8.0, 1.0], "stderr": [1.0] * 3},
    }
    assert drowned(gradients) == {"levels": 2, "least": 6.0}
    gradients["square"]["value"] = [5.0, 4.0, 3.0]
    assert drowned(gradients) is None and drowned(None) is None
