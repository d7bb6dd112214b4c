"""F1 and F2: the spectrum of clothes, its power law, and the frequency at which each noise level stands."""

import torch

import sfumato as sf


def main() -> float:
    """The error of the fitted exponent on a field of exponent 2."""
    x = sf.data.open("fashion").x[:1000].double()
    law, interval = sf.spectra.power((x - x.mean()) / x.std()).fit()
    print(f"clothes: P(f) = {law.amplitude:.4f} f^-{law.exponent:.2f}")
    print(f"exponent within {interval.low:.2f} to {interval.high:.2f}")
    for logsnr in (-4.0, 0.0, 4.0):
        cutoff = float(law.cutoff(torch.tensor(logsnr, dtype=torch.float64)))
        print(f"logsnr {logsnr:+.0f}: waves longer than {1 / cutoff:.1f} pixels stand above the noise")
    field, _ = sf.spectra.power(sf.exact.GaussianField((1, 32, 32), power=2.0).sample(400)).fit()
    return abs(field.exponent - 2.0)


if __name__ == "__main__":
    main()
