"""F3, coloured noise (2402.04930, 2505.11278): plain diffusion of whitened data, to rounding.

z_f = a(t) c_f + s(t) k_f eps_f,   so that z_f / k_f is plain diffusion of c_f / k_f
"""

import torch

import sfumato as sf
from sfumato.process import Coloured


def main() -> float:
    """The largest difference of E[x | z] between both views."""
    shape = (1, 8, 8)
    coloured, plain = Coloured("flow", shape, exponent=1.0), sf.Gaussian("flow")
    colour = coloured.schedule.sigma(0.5) / 0.5
    power = 1 / (coloured.transform.eigenvalues + 0.3)
    laws = [
        sf.exact.GaussianMixture([1.0], torch.zeros(1, 64), spectrum.reshape(1, -1), shape=shape)
        for spectrum in (power, power / colour**2)
    ]
    z = laws[0].sample(5, process=coloured, t=0.5)
    ours, white = laws[0].denoiser(coloured)(z, 0.5).x, laws[1].denoiser(plain)(z / colour, 0.5).x
    print(f"noise of the coarsest wave {float(colour.max()):.2f}, of the finest {float(colour.min()):.2f}")
    return float((ours - colour * white).abs().max())


if __name__ == "__main__":
    main()
