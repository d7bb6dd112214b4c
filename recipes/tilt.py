"""I2, what guidance is believed to sample (2503.02819): p(x | c)^g p(x)^(1 - g), by weighted particles.

d log w = g (g - 1) / 2 |eps_c - eps_u|^2 d logsnr   along the reverse SDE of eps_u + g (eps_c - eps_u)

p(x | c) = N(1, 0.3), p(x) = N(0, 1), g = 3: the tilted law has the variance 1 / (3 / 0.3 - 2) = 0.125, the mean 1.25.
"""

import torch

import sfumato as sf
from sfumato.guidance_laws import Normal, gaussian_laws


class Pair:
    """The exact model of both: N(1, 0.3) with a label, N(0, 1) without."""

    process, shape = sf.Gaussian(sf.schedules.Cosine()), (1,)
    laws = [sf.exact.GaussianMixture([1.0], [[m]], v) for m, v in ((1.0, 0.3), (0.0, 1.0))]

    def __call__(self, z, t, label=None):
        c, u = (law.moments(z, process=self.process, t=t).x for law in self.laws)
        return sf.Estimate(z, t, self.process.schedule, x=u if label is None else torch.where(label[:, None] < 0, u, c))


def main() -> float:
    """How far the particles' variance is from the tilted law's, as a share of it."""
    model, g = Pair(), 3.0
    exact = gaussian_laws(Normal(torch.ones(1), torch.full((1,), 0.3)), Normal(torch.zeros(1), torch.ones(1)), g)
    for name, solver in (("ode", "multistep"), ("sde", "ddpm")):
        x = sf.sample(sf.guide(model, g), 4096, 200, solver, label=0, batch=4096)
        print(f"guided, {name}: mean {x.mean():.3f}, variance {x.var():.4f}; formula {float(exact[name].variance):.4f}")
    found = sf.tilt([(model, {"label": 0}, g), (model, {}, 1 - g)]).sample(4096, particles=4096)
    wanted = float(exact["tilted"].variance)
    print(f"tilted:      mean {found.x.mean():.3f}, variance {found.x.var():.4f}; formula {wanted:.4f}")
    print(found)
    return abs(float(found.x.var()) / wanted - 1)


if __name__ == "__main__":
    main()
