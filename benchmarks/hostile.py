"""What files made to hurt cost: seconds, peak memory and the answer of `sfumato inspect` or `sfumato sample` for each.

    python benchmarks/hostile.py
    python benchmarks/hostile.py --only empty

Each file is made in a process of its own, and inspected in another, without the cache. The first row is a small data
set: what the interpreter and torch take by themselves. A case is a function in `CASES` that writes its file into a
folder and returns its path to inspect, or all words after `sfumato`; whoever knows a new one adds it there.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from record import HERE, commit, hardware

COMMAND = """
import sys, time
from sfumato.cli import main
from sfumato.machine import peak_memory
begun = time.perf_counter()
status = main(sys.argv[1:])
print(status, time.perf_counter() - begun, peak_memory() / 2**20)
"""
SIDE = 12_000
Case = Callable[[Path], Path | list[str]]


def usual(folder: Path) -> list[str]:
    return ["inspect", "digits"]


def picture(form: str, mode: str = "RGB") -> Case:
    """One picture of one colour, of SIDE x SIDE pixels."""

    def make(folder: Path) -> Path:
        Image.new(mode, (SIDE, SIDE)).save(folder / f"a.{form}")
        return folder

    return make


def camera(folder: Path) -> list[str]:
    """Twelve photographs of 24 million pixels, which nothing should refuse."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8))
    for i in range(12):
        coarse.resize((6000, 4000)).rotate(i).save(folder / f"{i}.jpg", quality=85)
    return ["inspect", str(folder), "--size", "64"]


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def deep_png(folder: Path) -> Path:
    """A PNG of 8 x 8 pixels at 16 bits, whose data inflate to 3 GiB."""
    pack = zlib.compressobj(9)
    data = b"".join(pack.compress(bytes(2**20)) for _ in range(3 * 2**10)) + pack.flush()
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    whole = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    (folder / "a.png").write_bytes(whole)
    return folder


def npz(name: str) -> Case:
    """A .npz of 20 samples, with a member of this name of 3 GiB of zeros."""

    def make(folder: Path) -> Path:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (3, 2**30)})
        path = folder / "a.npz"
        np.savez_compressed(path, samples=np.random.default_rng(0).normal(size=(20, 4)))
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                file.write(head.getvalue())
                for _ in range(3 * 2**10):
                    file.write(bytes(2**20))
        return path

    return make


def parquet(groups: int) -> Case:
    """A table of 3 x 10^8 zeros."""

    def make(folder: Path) -> Path:
        import pyarrow as pa
        from pyarrow import parquet as pq

        table = pa.table({"x": pa.array(np.zeros(300_000_000 // groups))})
        with pq.ParquetWriter(folder / "a.parquet", table.schema) as file:
            for _ in range(groups):
                file.write_table(table, row_group_size=len(table))
        return folder / "a.parquet"

    return make


def feather(folder: Path) -> Path:
    """A table of 3 x 10^8 zeros in one batch."""
    import pyarrow as pa
    from pyarrow import feather

    feather.write_feather(
        pa.table({"x": np.zeros(300_000_000)}), folder / "a.feather", compression="zstd", chunksize=300_000_000
    )
    return folder / "a.feather"


def labels(text: str) -> Case:
    """An archive of 20 pictures, each with a .json of this text."""

    def make(folder: Path) -> Path:
        pictures = np.random.default_rng(0).integers(0, 255, (20, 8, 8, 3), dtype=np.uint8)
        with tarfile.open(folder / "a.tar", "w") as archive:
            for i, each in enumerate(pictures):
                packed = io.BytesIO()
                Image.fromarray(each).save(packed, "PNG")
                for name, content in ((f"{i}.png", packed.getvalue()), (f"{i}.json", text.encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        return folder / "a.tar"

    return make


def claim(kind: bytes) -> Case:
    """An archive whose first header claims 7 GB: a picture, or the long name of one."""

    def make(folder: Path) -> Path:
        member = tarfile.TarInfo("a.png")
        member.type, member.size = kind, 7 * 10**9
        (folder / "a.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(2**16))
        return folder / "a.tar"

    return make


def empty(ending: str) -> Case:
    """An archive of 300,000 empty members."""

    def make(folder: Path) -> Path:
        with tarfile.open(folder / "a.tar", "w") as archive:
            for i in range(300_000):
                archive.addfile(tarfile.TarInfo(f"{i:06d}.{ending}"))
        return folder / "a.tar"

    return make


def model(change: Callable[[dict[str, Any]], object], *words: str) -> Case:
    """A model file of 1,000 weights whose contract was changed and sealed again, to sample from."""

    def make(folder: Path) -> list[str]:
        import sfumato as sf
        from sfumato.files import read_sealed, write_sealed

        path = folder / "model.safetensors"
        net = sf.nets.MLP(2, width=16, depth=1)
        made = sf.Denoiser(net, sf.Gaussian("flow", "velocity"), spec=sf.data.DataSpec.fit(sf.data.open(np.eye(2))))
        made.plans["ddim-4"] = sf.solvers.DDIM().plan(made.process, 4)
        contract, tensors = read_sealed(sf.save(made, path))
        change(contract["model"]["args"])
        write_sealed(path, tensors, contract)
        return ["sample", str(path), "-o", str(folder / "out.npz"), *(words or ("-n", "1"))]

    return make


def longer(args: dict[str, Any]) -> None:
    """A stored plan of a billion steps, of which it lists four."""
    args["plans"]["ddim-4"]["args"]["steps"] = 10**9


CASES: dict[str, Case] = {
    "usual: digits": usual,
    "usual: 12 JPEG of 24 million pixels": camera,
    "F2: network of depth 10^13": model(lambda args: args["net"]["args"].update(depth=10**13)),
    "F2: network of width 10^6": model(lambda args: args["net"]["args"].update(width=10**6)),
    "F2: plan of 10^9 steps": model(longer),
    "F2: 10^18 samples": model(lambda args: None, "-n", str(10**18)),
    **{f"F5: {SIDE}^2 pixels, {form}": picture(form) for form in ("png", "jpg", "gif", "webp", "tif", "avif")},
    f"F5: {SIDE}^2 pixels, grey png": picture("png", "L"),
    "F5: 16-bit png, 8 x 8, inflates to 3 GiB": deep_png,
    "F5: npz, unused member of 3 GiB": npz("unused"),
    "F5: npz, samples of 3 GiB": npz("x"),
    "F5: parquet, 3 x 10^8 zeros in one group": parquet(1),
    "F5: parquet, 3 x 10^8 zeros in 300 groups": parquet(300),
    "F5: feather, 3 x 10^8 zeros in one batch": feather,
    "F8: labels nested 400,000 deep": labels("[" * 400_000),
    "F8: label of 100,000 digits": labels('{"label": ' + "9" * 100_000 + "}"),
    "F8: tar, picture that claims 7 GB": claim(b"0"),
    "F8: tar, long name that claims 7 GB": claim(b"L"),
    "F8: tar, pax header that claims 7 GB": claim(b"x"),
    "F12: tar, 300,000 empty pictures": empty("png"),
    "F12: tar, 300,000 empty labels": empty("cls"),
}


def python(*words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "SFUMATO_CACHE": "off"}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env, timeout=600)


def measured(case: str) -> dict[str, str | float | int]:
    """The exit status (that of the process, if a signal ended it), seconds, peak memory in MiB, and the answer."""
    with tempfile.TemporaryDirectory() as place:
        words = json.loads(python(__file__, "--make", case, place).stdout)
        begun = time.perf_counter()
        done = python("-c", COMMAND, *words)
        if done.returncode:
            return {
                "case": case,
                "status": done.returncode,
                "seconds": time.perf_counter() - begun,
                "MiB": 0,
                "answer": "",
            }
    *said, last = done.stdout.strip().splitlines()
    status, seconds, peak = last.split()
    answer = said[0] if status == "0" else done.stderr.strip().splitlines()[-1].removeprefix("sfumato: error: ")
    return {
        "case": case, "status": int(status), "seconds": float(seconds), "MiB": round(float(peak)),
        "answer": answer.replace(words[1], "PATH").replace(Path(words[1]).name, "PATH"),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "hostile.json")
    options = parser.parse_args()
    if options.make:
        made = CASES[options.make[0]](Path(options.make[1]))
        print(json.dumps(made if isinstance(made, list) else ["inspect", str(made)]))
        return
    rows = {row["case"]: row for row in json.loads(options.out.read_text())["rows"]} if options.out.exists() else {}
    for case in CASES:
        if options.only in case:
            row = rows[case] = {**measured(case), "commit": commit()}
            print("{case:44} {status} {seconds:7.2f} s {MiB:6} MiB  {answer}".format(**row), flush=True)
    ordered = [rows[case] for case in CASES if case in rows]
    options.out.write_text(json.dumps({**hardware(), "rows": ordered}, indent=1) + "\n")


if __name__ == "__main__":
    main()
