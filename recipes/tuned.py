"""C14: a plan of six calls fitted to a model, and a stochastic one; judged on noise that neither was fitted to.

z_{k+1} = a_k z_k + sum_j b_kj x_j + c_k xi_k
"""

import torch

import sfumato as sf

CALLS, STOP = 6, 0.02


def law() -> sf.exact.GaussianMixture:
    return sf.exact.GaussianMixture([0.3, 0.3, 0.4], [[-1.2, 0.3], [1.0, 0.8], [0.4, -0.9]], [0.05, 0.03, 0.08])


def main() -> float:
    """Distance of the tuned plan from the exact flow over that of the untuned one that it started from."""
    model = law().denoiser(sf.Gaussian(sf.schedules.Flow()))
    z = model.process.prior(torch.randn(2000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    exact = law().flow(z, 1.0, STOP, model.process)
    errors = []
    for rounds in (0, 12):
        plan = sf.tune(model, CALLS, points=256, rounds=rounds, t_stop=STOP)
        *_, last = plan.run(model, z)
        errors.append(float((last.z - exact).square().mean().sqrt()))
        print(f"{plan.name}: {errors[-1]:.4f} from the exact flow")
    plan = sf.tune(model, CALLS, noise=1.0, points=256, rounds=12, t_stop=STOP)
    assert plan.tuned is not None
    for name in ("untuned", "error"):
        found = plan.tuned[name]
        who = found.get("name", "tuned")
        print(f"reverse SDE, {who}: {found['law']:.4f} between the laws, {found['rms']:.3f} of paths")
    return errors[1] / errors[0]


if __name__ == "__main__":
    main()
