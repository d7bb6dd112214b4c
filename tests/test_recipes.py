"""Every recipe runs and comes as close to the closed form as it says."""

import importlib.util
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "recipes"
# what main() returns, and how large it may be
LIMITS = {
    "adaptive_density": 0.3,
    "analog_bits": 1.0,
    "annealed_langevin": 0.05,
    "any_order": 1.0,
    "audit": 4.0,
    "backprop": 1e-3,
    "bits_per_dim": 0.01,
    "blur": 1e-3,
    "board": 1e-6,
    "bridge": 0.05,
    "brownian": 0.1,
    "cascade": 0.05,
    "churn": 0.05,
    "coloured_noise": 1e-12,
    "conditions": 0.25,
    "continuous_flow": 0.3,
    "consistency": 0.3,
    "conventions": 1e-5,
    "counts": 1.0,
    "couplings": 0.1,
    "ddim": 0.1,
    "ddpm": 0.03,
    "denoising_autoencoder": 0.4,
    "denoising_score_matching": 1e-10,
    "distillation": 0.3,
    "edm": 0.05,
    "elbo": 0.05,
    "embedding_diffusion": 0.15,
    "encode": 1e-4,
    "energy": 0.15,
    "error_budget": 0.05,
    "fine_tuning": 1e-6,
    "flow_map": 1e-3,
    "flow_matching": 0.05,
    "four_quadrants": 0.05,
    "guidance": 1e-10,
    "heat": 1e-12,
    "high_order": 0.15,
    "human_weighting": 0.5,
    "importance_sampling": 4.0,
    "inverse_problems": 0.06,
    "interpolant": 0.15,
    "learned_schedule": 0.3,
    "latent": 0.05,
    "learned_variance": 0.85,
    "likelihood": 1e-3,
    "likelihood_weighting": 1e-10,
    "log_ratio": 0.15,
    "masked": 1.0,
    "mean_flow": 1e-3,
    "metrics": 0.1,
    "monotone_weight": 1e-10,
    "ncsn": 0.07,
    "networks": 1e-6,
    "nonequilibrium": 1e-9,
    "objective_compiler": 1e-9,
    "parameterisations": 1e-10,
    "policy": 0.12,
    "posterior": 1e-6,
    "predictor_corrector": 0.8,
    "probability_flow": 0.1,
    "processes": 0.02,
    "product": 1.0,
    "rectified_flow": 0.1,
    "reverse_sde": 0.05,
    "rewards": 0.15,
    "schedules": 1e-9,
    "score_interpolation": 0.06,
    "score_matching": 1e-10,
    "sd3_times": 1e-12,
    "sequences": 0.2,
    "shortcut": 0.3,
    "sliced_score_matching": 1e-10,
    "spectrum": 0.1,
    "stochastic_solvers": 1e-9,
    "symbol_losses": 1e-12,
    "symbol_steps": 1e-12,
    "tables": 1.0,
    "teacher_targets": 1e-9,
    "tilt": 0.15,
    "text_to_image": 0.25,
    "tuned": 0.5,
    "unclip": 0.06,
    "vae": 1e-10,
    "views": 0.03,
    "weightings": 0.01,
    "zero_terminal_snr": 0.05,
}
# what they show, tests of their rooms show in less time
SLOW = {"conditions", "continuous_flow", "distillation", "policy", "rewards", "sequences", "text_to_image", "tuned"}


def test_every_recipe_has_a_limit():
    assert {path.stem for path in FOLDER.glob("*.py")} == set(LIMITS)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in LIMITS])
def test_recipe(name, capsys):
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", FOLDER / f"{name}.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    found = recipe.main()
    assert 0 <= found <= LIMITS[name]
    assert capsys.readouterr().out
