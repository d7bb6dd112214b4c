"""I2, classifier-free guidance (2207.12598, Eq. 6): the conditional score, and w times that of p(class | z).

score = (1 + w) score(z | class) - w score(z) = score(z | class) + w grad log p(class | z),   scale = 1 + w
"""

import torch

import sfumato as sf


def main() -> float:
    """The largest error of the guided score."""
    truth = sf.exact.GaussianMixture([0.5, 0.5], [[1.0], [-1.0]], [0.25, 0.25])
    process, t, scale = sf.Gaussian(sf.schedules.Cosine()), 0.5, 3.0
    model = truth.denoiser(process)
    z, label = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None], torch.zeros(9, dtype=torch.int64)
    conditional, unconditional = model(z, t, label=label).score, model(z, t).score
    guided = sf.guide(model, scale)(z, t, label=label).score
    by_hand = unconditional + scale * (conditional - unconditional)
    gradient = torch.func.grad(lambda z: truth.classify(z, process=process, t=t)[:, 0].sum())(z)
    classifier = conditional + (scale - 1) * gradient
    print(f"guided score: {[round(v, 4) for v in guided[:4, 0].tolist()]}")
    print(f"against (1 + w) s_c - w s_u:                {float((guided - by_hand).abs().max()):.1e}")
    print(f"against s_c + w grad log p(class | z):      {float((guided - classifier).abs().max()):.1e}")
    for g in (0.0, 1.0, 3.0):
        x = sf.sample(sf.guide(model, g), 2000, 40, label=0, batch=2000)
        print(f"scale {g:g}: samples have mean {x.mean():+.3f}, std {x.std():.3f}")
    return max(float((guided - by_hand).abs().max()), float((guided - classifier).abs().max()))


if __name__ == "__main__":
    main()
