"""Every recipe runs and comes as close to the closed form as it says."""

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "recipes"
# what main() returns, and how large it may be
LIMITS = {
    "annealed_langevin": 0.05,
    "backprop": 1e-3,
    "bits_per_dim": 0.01,
    "brownian": 0.1,
    "churn": 0.05,
    "conventions": 1e-5,
    "ddim": 0.1,
    "ddpm": 0.03,
    "edm": 0.05,
    "encode": 1e-4,
    "error_budget": 0.05,
    "flow_matching": 0.05,
    "guidance": 1e-10,
    "high_order": 0.15,
    "likelihood": 1e-3,
    "networks": 1e-6,
    "parameterisations": 1e-10,
    "posterior": 1e-6,
    "predictor_corrector": 0.8,
    "probability_flow": 0.1,
    "processes": 0.02,
    "reverse_sde": 0.05,
    "schedules": 1e-9,
    "stochastic_solvers": 1e-9,
}


def test_every_recipe_has_a_limit():
    assert {path.stem for path in FOLDER.glob("*.py")} == set(LIMITS)


@pytest.mark.parametrize("name", LIMITS)
def test_recipe(name, capsys):
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", FOLDER / f"{name}.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    found = recipe.main()
    assert 0 <= found <= LIMITS[name]
    assert capsys.readouterr().out
