"""Check the vendored data against their manifest, or rebuild what can be rebuilt.

python scripts/check_assets.py                   sha256 and size of every asset; exit status 1 on any difference
python scripts/check_assets.py --rebuild-digits  write digits.npz again from scikit-learn's copy
python scripts/check_assets.py --write-manifest  record the present files (after a deliberate change)
"""

import argparse
import hashlib
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np

ASSETS = Path(__file__).parents[1] / "src" / "sfumato" / "data" / "assets"
MANIFEST = ASSETS / "manifest.json"
ORIGINS = {
    "t10k-images-idx3-ubyte.gz": ("https://github.com/zalandoresearch/fashion-mnist", "MIT"),
    "t10k-labels-idx1-ubyte.gz": ("https://github.com/zalandoresearch/fashion-mnist", "MIT"),
    "fluent32.webp": ("npm @lobehub/fluent-emoji-3d 1.1.0 (Microsoft Fluent Emoji), flags dropped, 32 px", "MIT"),
    "fluent32.json": ("npm emoji-datasource-google 16.0.0 (names, categories)", "MIT"),
    "digits.npz": ("scikit-learn load_digits (UCI Optical Recognition of Handwritten Digits)", "BSD-3 and CC-BY-4.0"),
    "shakespeare.txt.xz": ("The complete works of William Shakespeare, 42 texts, UTF-8, compressed", "public domain"),
}


def digits_bytes() -> bytes:
    """scikit-learn's digits as an uncompressed .npz with fixed dates, so that the bytes are always the same."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    arrays = {"images": digits.images.astype(np.uint8), "labels": digits.target.astype(np.uint8)}
    if not np.array_equal(arrays["images"], digits.images):
        raise SystemExit("the digits are not whole numbers: the source has changed")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), member.getvalue())
    return out.getvalue()


def record(name: str) -> dict[str, str | int]:
    """Size, hash, source and licence of one asset."""
    data = (ASSETS / name).read_bytes()
    source, licence = ORIGINS[name]
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "source": source, "licence": licence}


def differences() -> list[str]:
    """One sentence for each asset that is missing, unknown or changed."""
    manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    present = {path.name for path in ASSETS.iterdir()} - {MANIFEST.name}
    problems = [f"{name} is missing" for name in sorted(set(manifest) - present)]
    problems += [f"{name} is not in the manifest" for name in sorted(present - set(manifest))]
    for name in sorted(present & set(manifest)):
        if record(name) != manifest[name]:
            problems.append(f"{name} differs from its manifest")
    return problems


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rebuild-digits", action="store_true")
    parser.add_argument("--write-manifest", action="store_true")
    options = parser.parse_args(arguments)
    if options.rebuild_digits:
        (ASSETS / "digits.npz").write_bytes(digits_bytes())
    if options.write_manifest:
        text = json.dumps({name: record(name) for name in ORIGINS}, indent=2)
        MANIFEST.write_text(text + "\n", encoding="utf-8")
    problems = differences()
    print("\n".join(problems) or f"{len(ORIGINS)} assets agree with the manifest")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
