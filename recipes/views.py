"""Eight views of one model: eight numbers that must agree, each with its closed form.

A Gaussian field with the power P(f) ~ f^-2: E|x - x_hat|^2 = mean P sigma^2 / (alpha^2 P + sigma^2), and a band of
power P is half written at logsnr = -log P
"""

import sfumato as sf


def main() -> float:
    """The largest distance of a number from its closed form beyond three standard errors."""
    law = sf.exact.GaussianField((1, 8, 8))
    found = sf.views(law.denoiser(sf.Gaussian(sf.schedules.Cosine())), law, samples=256)
    print(found)
    assert found.agrees
    known = [one for one in found.chapters if one.exact is not None]
    return max(0.0, *(abs(one.number.value - one.exact) - 3 * one.number.stderr for one in known))


if __name__ == "__main__":
    main()
