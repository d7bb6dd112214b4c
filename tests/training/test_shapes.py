"""Any shape and dtype: nothing but the data passed, 20 steps, saved, loaded by another process, sampled."""

import json
import subprocess
import sys

import pytest
import torch

import sfumato as sf
from sfumato import noise
from sfumato.training.console import Silent

SHAPES = [(2,), (1, 128), (3, 97), (1, 28, 28), (12, 33, 50), (1, 24, 20, 28)]
DTYPES = ["uint8", "uint16", "float32", "int64"]
QUICK = {(2,), (3, 97), (1, 28, 28)}  # each with every dtype; the rest of the matrix is slow
FAST = [(s, d) for s in SHAPES for d in DTYPES if s in QUICK or d == "uint16"]
REST = [(s, d) for s in SHAPES for d in DTYPES if (s, d) not in FAST]

SAMPLER = """
import json, sys, sfumato as sf
found = []
for path in sys.argv[1:]:
    x = sf.sample(sf.load(path), 3, steps=4, seed=7)
    y = sf.sample(sf.load(path), steps=4, seed=7, index=[2])
    found.append([list(x.shape), str(x.dtype), float(x.double().min()), float(x.double().max()),
                  float((x[2:].double() - y.double()).abs().max() / x.double().std())])
print(json.dumps(found))
"""


def data(shape, dtype):
    """Offset and scale far from a unit Gaussian, so that units must survive."""
    x = noise.normal(1, range(24), shape, noise.DATA)
    if dtype == "float32":
        return 3e4 + 12.5 * x
    if dtype == "int64":
        return (-5_000_000 + 1e6 * x).round().long()
    top = 255 if dtype == "uint8" else 65535
    return (top * (0.5 + 0.2 * x)).round().clamp(0, top).to(getattr(torch, dtype))


def matrix(cases, folder):
    paths = [folder / str(i) for i in range(len(cases))]
    for (shape, dtype), path in zip(cases, paths, strict=True):
        sf.train(data(shape, dtype), path, steps=20, batch=2, snapshots=0, console=Silent())
    done = subprocess.run([sys.executable, "-c", SAMPLER, *map(str, paths)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for (shape, dtype), (found, kind, low, high, apart) in zip(cases, json.loads(done.stdout), strict=True):
        assert found == [3, *shape] and kind == f"torch.{dtype}", (shape, dtype)
        x = data(shape, dtype).double()
        reach = 8 * x.std()
        assert x.mean() - reach < low < high < x.mean() + reach, (shape, dtype)  # the user's own units
        assert apart < 0.3, (shape, dtype)  # the same sample whatever the batch, up to bfloat16


@pytest.mark.slow
def test_shapes_and_dtypes(tmp_path):
    matrix(FAST, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_rest_of_the_shapes_and_dtypes(tmp_path):
    matrix(REST, tmp_path)
