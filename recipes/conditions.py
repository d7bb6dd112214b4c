"""Conditions of any kind beside the samples: a class and a temperature, from data to samples, guidance and nats.

x | site, T ~ N(m_site + (T - 300) / 50, 0.5^2);   I(x; c) = 1/2 int E(|eps - eps_null|^2 - |eps - eps_c|^2) dlogsnr
"""

import tempfile

import numpy as np

import sfumato as sf

MEANS = {"north": -2.0, "south": 2.0}


def data(count: int = 4000) -> dict:
    """Samples and what is known of them; a tenth of the temperatures is missing."""
    draw = np.random.default_rng(0)
    site, kelvin = draw.choice(list(MEANS), count), draw.uniform(200, 400, count)
    x = np.array([MEANS[s] for s in site]) + (kelvin - 300) / 50 + 0.5 * draw.normal(size=count)
    kelvin[draw.random(count) < 0.1] = np.nan
    return {"x": np.stack([x, -x], 1).astype(np.float32), "site": site, "temperature": kelvin}


def main() -> float:
    """How far the mean of the samples under a site and a temperature is off, in deviations of the data."""
    given = data()
    with tempfile.TemporaryDirectory() as folder:
        run = sf.train(given, folder + "/run", steps=600, batch=128, net="tiny", sample_every=0, snapshots=0)
    model, scale = run.denoiser, float(given["x"].std())
    off = []
    for site, kelvin in (("north", 250.0), ("south", 380.0)):
        x = sf.sample(model, 2000, site=site, temperature=kelvin)[:, 0]
        off.append(abs(float(x.mean()) - MEANS[site] - (kelvin - 300) / 50) / scale)
        print(f"{site} at {kelvin:g} K: mean {x.mean():+.2f}, std {x.std():.2f}")
    print(f"north, any temperature: std {sf.sample(model, 2000, site='north')[:, 0].std():.2f}")
    stronger = sf.guide(model, {"temperature": 2.0})  # the site is told in every term
    print(
        f"north at 380 K, guided: mean {sf.sample(stronger, 2000, site='north', temperature=380.0)[:, 0].mean():+.2f}"
    )
    known = {name: given[name] for name in ("site", "temperature")}
    print(sf.information(model, given["x"], 4096, **known))
    return max(off)


if __name__ == "__main__":
    main()
