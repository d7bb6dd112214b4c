"""A fresh working folder for each test, and small models with known contracts, made once."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato.cli import main

CLASSES = [3, 5, 9]  # labels that are not their own indices


def build(x: np.ndarray, labels: np.ndarray | None, path: Path) -> Path:
    """An untrained model of x under its own spec: its samples are noise, in the units of x."""
    source = sf.data.open(x, labels=labels)
    spec = sf.data.DataSpec.fit(source)
    torch.manual_seed(0)
    net = sf.nets.build(spec.shape, len(spec.classes), "tiny")
    sf.save(sf.Denoiser(net, sf.Gaussian(sf.schedules.Flow()), "velocity", 1.0, spec), path)
    return path


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    """images: 1 x 8 x 8 uint8 in three classes; points: two float64 coordinates; colour16: 3 x 6 x 6 uint16."""
    folder, draw = tmp_path_factory.mktemp("models"), np.random.default_rng(0)
    images = draw.integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    colours = draw.integers(0, 65536, (30, 3, 6, 6), dtype=np.uint16)
    return {
        "images": build(images, np.resize(CLASSES, 60), folder / "images.safetensors"),
        "points": build(100 + draw.normal(size=(80, 2)), None, folder / "points.safetensors"),
        "colour16": build(colours, None, folder / "colour16.safetensors"),
    }


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(capsys):
    """call("sample", ...) -> (exit status, stdout, stderr) of the command line, in this process."""

    def run(*words: object) -> tuple[int, str, str]:
        status = main([str(word) for word in words])
        heard = capsys.readouterr()
        return status, heard.out, heard.err

    return run


def lying() -> list[Path]:
    """What lies in the folder, but for what Python itself keeps of a module that it has read."""
    return sorted(path for path in Path().rglob("*") if "__pycache__" not in path.parts)


@pytest.fixture
def refused(call):
    """refused("sample", ...) -> the one sentence that a mistake gets; the rest of the promise is checked here."""

    def run(*words: object) -> str:
        before = lying()
        status, out, err = call(*words)
        assert status == 2, (status, out, err)
        assert out == "" and err.startswith("sfumato: error: ") and err.count("\n") == 1, (out, err)
        assert "Traceback" not in err
        assert lying() == before, "a mistake leaves nothing behind"
        status, out, _ = call(*words, "--json")
        assert status == 2 and json.loads(out)["error"] == err.removeprefix("sfumato: error: ").strip()
        return err

    return run
