"""Tables beside the libraries that install, at equal processor time, by the protocol and the split of `tables.py`.

    OMP_NUM_THREADS=1 python benchmarks/tables_peers.py diamonds.csv [--seconds 60] [--peer copula --peer tvae ...]

Peers (needs sdv, which brings ctgan, and tabdm): SDV's GaussianCopula, which fits what it fits; CTGAN and TVAE of
ctgan, whose epochs end with the one in which the budget is spent; tabdm, a Gaussian diffusion of one-hot columns, with
as many epochs as two trials say fit. All else is at the defaults of the library. Values are rounded to the decimals of
the column, whole numbers to whole ones, where a peer does not do so itself, as metrics of trees see nothing else
otherwise. Rows go to results/tables_peers.json; ours are in results/tables.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sfumato as sf
from tables import judged, kept, real, shown, split

CATEGORIES = ["cut", "color", "clarity"]
DECIMALS = {"carat": 2, "depth": 1, "table": 1, "x": 2, "y": 2, "z": 2, "price": 0}
Sampler = Callable[[int], Any]


def copula(frame: Any, seconds: float) -> tuple[Sampler, str]:
    from sdv.metadata import Metadata
    from sdv.single_table import GaussianCopulaSynthesizer

    made = GaussianCopulaSynthesizer(Metadata.detect_from_dataframes({"table": frame}))
    made.fit({"table": frame})

    def drawn(count: int) -> Any:
        found = made.sample(num_rows=count)
        return found["table"] if isinstance(found, dict) else found

    return drawn, "fitted"


class Until:
    """In the place of a progress bar of epochs: it ends after the epoch in which the seconds are spent."""

    def __init__(self, begun: float, seconds: float) -> None:
        self.begun, self.seconds, self.done = begun, seconds, 0

    def __call__(self, epochs: Any, **how: Any) -> Iterator[int]:
        for epoch in epochs:
            if time.process_time() - self.begun > self.seconds:
                return
            self.done += 1
            yield epoch


def of_ctgan(name: str) -> Callable[[Any, float], tuple[Sampler, str]]:
    def fitted(frame: Any, seconds: float) -> tuple[Sampler, str]:
        import ctgan
        from ctgan.synthesizers import ctgan as ctgan_module
        from ctgan.synthesizers import tvae as tvae_module

        until = Until(time.process_time(), seconds)
        (tvae_module if name == "TVAE" else ctgan_module).tqdm = until
        made = getattr(ctgan, name)(epochs=10_000, enable_gpu=False)
        made.fit(frame, CATEGORIES)
        return made.sample, f"{until.done} epochs"

    return fitted


def tabdm(frame: Any, seconds: float) -> tuple[Sampler, str]:
    from tabdm import fit_tabdm

    def fitted(epochs: int) -> tuple[Any, float]:
        begun = time.process_time()
        made = fit_tabdm(frame, discrete_columns=CATEGORIES, epochs=epochs, random_state=0)
        return made, time.process_time() - begun

    one, three = (fitted(count)[1] for count in (1, 3))
    each = max(1e-3, (three - one) / 2)
    epochs = max(1, round((seconds - one + each) / each))
    made, _ = fitted(epochs)
    return made.sample, f"{epochs} epochs"


PEERS = {"copula": copula, "tvae": of_ctgan("TVAE"), "ctgan": of_ctgan("CTGAN"), "tabdm": tabdm}


def on_the_grid(frame: Any, like: Any) -> Any:
    """A frame of pandas as a table of pyarrow of the types, decimals and ranges of the data."""
    import pyarrow as pa

    columns = {}
    for name in like.schema.names:
        if name in CATEGORIES:
            columns[name] = pa.array(frame[name].astype(str).tolist())
        else:
            known = like[name].to_numpy()
            values = np.round(frame[name].to_numpy(np.float64), DECIMALS[name]).clip(known.min(), known.max())
            columns[name] = pa.array(values.astype(known.dtype))
    return pa.table(columns)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0, help="of one core")
    parser.add_argument("--peer", action="append", choices=PEERS, help="by default all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows, held = split(options.data)
    table = sf.data.open(rows).table
    assert table is not None
    print(shown("real", real(rows, held, table)), flush=True)
    for name in options.peer or PEERS:
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002  (what the peers draw from)
        begun = time.process_time()
        sampler, how = PEERS[name](rows.to_pandas(), options.seconds)
        fitted = time.process_time() - begun
        begun = time.process_time()
        own = on_the_grid(sampler(len(rows)), rows)
        seconds = time.process_time() - begun
        row = judged(own, rows, held, table)
        print(shown(name, row), f"({how}, {fitted:.0f} + {seconds:.0f} s)", flush=True)
        facts = {"peer": name, "how": how, "seconds": round(fitted, 1), "sampling_seconds": round(seconds, 1)}
        kept("tables_peers.json", {**facts, "samples": row})
    return 0


if __name__ == "__main__":
    sys.exit(main())
