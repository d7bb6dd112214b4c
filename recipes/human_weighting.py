"""K8: which weighting of noise levels is human? w = CSF(f_c ppd)^2 e^-logsnr on 1/f^2 pictures, at three distances."""

import torch

from sfumato.objectives import weights
from sfumato.spectra import PowerLaw, meaning

NAMES = ("sigmoid(bias=-2)", "v", "x-simple", "eps-simple", "elbo")


def main() -> float:
    """How far the nearest published weight is from the eye's at 32 pixels a degree, rms of log w."""
    best = 0.0
    print(f"{'side':>5} {'pixels a degree':>15} {'slope of log w':>14}  " + "  ".join(NAMES))
    for side, ppd in ((1024, 60.0), (256, 32.0), (64, 16.0)):
        f = torch.logspace(0, torch.log10(torch.tensor(side / 2)).item(), 64, dtype=torch.float64) / side
        power = f**-2.0
        law = PowerLaw(2.0, 1 / float((f * power).sum() / f.sum()))  # about unit variance
        lam = law.level(f)
        eye = weights.chosen(f"eye(ppd={ppd}, amplitude={law.amplitude})")(lam).log()
        slope = float(((lam - lam.mean()) * eye).sum() / (lam - lam.mean()).square().sum())
        found = [float((eye - weights.chosen(name)(lam).log()).std()) for name in NAMES]
        columns = "  ".join(f"{value:{len(name)}.2f}" for name, value in zip(NAMES, found, strict=True))
        print(f"{side:5d} {ppd:15.0f} {slope:14.2f}  {columns}")
        best = min(found) if side == 256 else best
    flat = meaning("elbo", torch.linspace(-4, 4, 5))
    print(f"the bound weighs every frequency alike: dL/dlog P = {flat.tolist()}")
    return best


if __name__ == "__main__":
    main()
