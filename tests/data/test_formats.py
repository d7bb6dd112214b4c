"""Files that optional packages read: each format trains, samples, and comes back in its units, dtype and names.

Each file is written by the package itself; what is not installed is skipped.
"""

import json
import shutil
import sys
import zipfile

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato import data
from sfumato.cli import main
from sfumato.data import file_format
from sfumato.errors import SfumatoError

RNG = np.random.default_rng(0)
KELVIN = RNG.normal(270, 5, (40, 1, 8, 8)).astype(np.float32)
COUNTS = RNG.integers(0, 4000, (40, 8, 8), dtype=np.uint16)


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(obj, words: str, **how) -> str:
    """Opening fails with one sentence that matches; returns it."""
    with pytest.raises(SfumatoError, match=words) as caught:
        data.open(obj, **how)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def drawn(where, out, *flags, number=3, near=0.0):
    """Train on a file, and draw samples into `out` and into a .npz; returns (what `out` opens as, x of the .npz)."""
    assert main(["train", where, "-o", "run", "--net", "tiny", "--steps", "2", "--batch", "8", *flags]) == 0
    for each in (out, "same.npz"):
        assert main(["sample", "run", "-n", str(number), "--steps", "2", "-o", each]) == 0
    back, x = data.open(out), np.load("same.npz")["x"]
    assert back.x.numpy().dtype == x.dtype and np.abs(back.x.numpy() - x.astype(np.float64)).max() <= near
    return back, x


# -- named arrays


def hdf5(path, **arrays):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return file


def test_hdf5(capsys):
    h5py = pytest.importorskip("h5py")
    site = np.array(["north", "south"] * 20, dtype=object)
    hdf5("a.h5", density=KELVIN.astype(np.float64), mass=RNG.normal(size=40), site=site)
    with h5py.File("a.h5", "a") as file:
        file["density"].attrs["units"] = "K"
    back, x = drawn("a.h5", "out.h5", "--key", "density")
    assert x.dtype == np.float64 and 200 < x.mean() < 340
    assert back.stored == {"ending": ".h5", "key": "density", "units": "K"} and {"mass", "site"} <= set(
        data.open("a.h5").conditions
    )
    assert main(["sample", "run", "-n", "3", "--steps", "2", "--condition", "site=south", "-o", "south.h5"]) == 0
    with h5py.File("south.h5") as file:
        assert file["site"].asstr()[:].tolist() == ["south"] * 3 and json.loads(file.attrs["manifest"])["number"] == 3
    refused("a.h5", "has no array 'speed': it holds density .40, 1, 8, 8.", key="speed")


def test_hdf5_that_reaches_into_other_files_is_refused():
    h5py = pytest.importorskip("h5py")
    hdf5("secret.h5", x=KELVIN)
    with h5py.File("link.h5", "w") as file:
        file["x"] = h5py.ExternalLink("secret.h5", "x")
    with h5py.File("virtual.h5", "w") as file:
        layout = h5py.VirtualLayout((40, 1, 8, 8), "f4")
        layout[:] = h5py.VirtualSource("secret.h5", "x", (40, 1, 8, 8))
        file.create_virtual_dataset("x", layout)
    KELVIN.tofile("raw.bin")
    with h5py.File("raw.h5", "w") as file:
        file.create_dataset("x", (40, 64), "f4", external=[("raw.bin", 0, KELVIN.nbytes)])
    for name in ("link", "virtual", "raw"):
        refused(f"{name}.h5", "takes 'x' from another file")


def test_hdf5_is_measured_before_it_is_read():
    h5py = pytest.importorskip("h5py")
    with h5py.File("a.h5", "w") as file:
        file.create_dataset("x", (2**20, 2**10), "f8", chunks=(64, 64))  # nothing is written: 8 GiB of zeros
    refused("a.h5", "would take 8 GiB of memory, more than the 1 GiB")
    with h5py.File("b.h5", "w") as file:
        file.create_dataset("x", (4, 4), "f8", maxshape=(None, None), chunks=(2**14, 2**14))
    refused("b.h5", "would take 2 GiB of memory")


def test_hdf5_groups_loops_and_damage():
    h5py = pytest.importorskip("h5py")
    with h5py.File("a.h5", "w") as file:
        file["entry/images"] = KELVIN
        file["entry/again"] = file["entry"]  # a hard link to itself
        file["entry/soft"] = h5py.SoftLink("/entry/images")
        file["words"] = np.zeros(3, [("a", "f4"), ("b", "i4")])
    source = data.open("a.h5")
    assert source.shape == (1, 8, 8) and source.stored["key"] == "entry/images"
    content = (content := open("a.h5", "rb").read())[: len(content) // 3]
    with open("b.h5", "wb") as file:
        file.write(content)
    refused("b.h5", "b.h5 cannot be read as a HDF5 file")
    with h5py.File("empty.h5", "w"):
        pass
    refused("empty.h5", "has no array with one entry a sample: it holds nothing")
    with h5py.File("ragged.h5", "w") as file:
        file.create_dataset("walks", (20,), dtype=h5py.vlen_dtype(np.dtype("f4")))
        file.create_dataset("runs", (20,), dtype=h5py.vlen_dtype(np.dtype("f4")))
    refused("ragged.h5", "arrays of several lengths in 'runs', 'walks', and a row of numbers for each sample in one")


def test_rows_of_several_lengths_in_a_dataset_are_sequences(capsys):
    h5py = pytest.importorskip("h5py")
    walks = [np.arange(3 + i % 4, dtype=np.float32) + i for i in range(20)]

    def write(path, rows, dtype="f4", **beside):
        with h5py.File(path, "w") as file:
            dataset = file.create_dataset("walks", (len(rows),), dtype=h5py.vlen_dtype(np.dtype(dtype)))
            for i, row in enumerate(rows):
                dataset[i] = row
            for name, values in beside.items():
                file[name] = values

    write("a.h5", walks, site=np.arange(20) % 3)
    source = data.open("a.h5")
    assert source.layout == "L" and source.shape == (1, 6) and "site" in source.conditions
    for row, walk in zip(source.x, walks, strict=True):
        assert row[0, : len(walk)].tolist() == walk.tolist() and bool(row[0, len(walk) :].isnan().all())
    assert main(["train", "a.h5", "-o", "run", "--net", "tiny", "--steps", "2", "--batch", "8"]) == 0
    assert main(["sample", "run", "-n", "3", "--steps", "2", "-o", "out.npz"]) == 0
    write("empty.h5", [*walks[:3], np.zeros(0)])
    refused("empty.h5", "has a sequence without a step, number 3: leave it out")
    write("whole.h5", [walk.astype(int) for walk in walks], "i4")
    assert "int32" in data.open("whole.h5").notes[0]
    write("images.h5", walks, x=KELVIN)  # beside samples they are not read
    assert data.open("images.h5").shape == (1, 8, 8)


def test_labels_that_are_whole_numbers_come_back_as_these(capsys):
    h5py = pytest.importorskip("h5py")
    for values in (np.array([3, 10, 7, -2] * 10), np.array(["3", "07", "x", "1"] * 10, dtype=object)):
        hdf5("a.h5", x=KELVIN, label=values)
        back, _ = drawn("a.h5", "out.h5", number=8)
        with h5py.File("out.h5") as file:
            found = file["label"][:] if values.dtype != object else file["label"].asstr()[:]
        assert set(found.tolist()) <= set(values.tolist()) and found.dtype.kind == values.dtype.kind
        assert set(back.classes) <= set(data.open("a.h5").classes)
        shutil.rmtree("run")


def test_netcdf():
    xarray, _ = pytest.importorskip("xarray"), pytest.importorskip("h5netcdf")
    packed = {"t2m": {"dtype": "int16", "scale_factor": 0.01, "add_offset": 270.0, "_FillValue": -32767}}
    kelvin = (("time", "lat", "lon"), KELVIN[:, 0], {"units": "K"})
    made = xarray.Dataset({"t2m": kelvin, "season": ("time", np.arange(40) % 4)}, {"time": np.arange(40.0)})
    made.to_netcdf("a.nc", engine="h5netcdf")
    back, x = drawn("a.nc", "out.nc")
    assert x.shape == (3, 1, 8, 8) and x.dtype == np.float32
    with xarray.open_dataset("out.nc", engine="h5netcdf") as out:
        assert out["t2m"].dims == ("sample", "lat", "lon") and out["t2m"].attrs["units"] == "K"
    made.to_netcdf("packed.nc", engine="h5netcdf", encoding=packed)
    source = data.open("packed.nc")
    assert source.x.dtype.is_floating_point and np.abs(source.x.numpy() - KELVIN).max() < 0.01
    made.drop_vars("season").to_netcdf("old.nc", engine="scipy")
    assert np.array_equal(data.open("old.nc").x.numpy(), KELVIN)
    made = made.copy(deep=True)
    made["t2m"][3, 2, 1] = np.nan
    made.to_netcdf("holes.nc", engine="h5netcdf", encoding=packed)
    holes = data.open("holes.nc")
    assert holes.missing == (1 / KELVIN.size,) and holes.x[3, 0, 2, 1].isnan()


@pytest.mark.parametrize("version", [2, 3])
def test_zarr(version):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group("a.zarr", mode="w", zarr_format=version)
    group.create_array("field", data=KELVIN, chunks=(10, 1, 8, 8))
    group.create_array("mass", data=RNG.normal(size=40))
    back, x = drawn("a.zarr", "out.npz", "--key", "field")
    assert x.dtype == np.float32 and np.array_equal(data.open("a.zarr").x.numpy(), KELVIN)
    assert set(data.open("a.zarr").conditions) == {"mass"}
    group["field"].attrs["_FillValue"] = float(KELVIN[3, 0, 2, 1])
    assert data.open("a.zarr").x[3, 0, 2, 1].isnan()
    large = zarr.open_group("large.zarr", mode="w", zarr_format=version)
    large.create_array("x", shape=(2**20, 2**10), dtype="f8", chunks=(64, 64))
    refused("large.zarr", "would take 8 GiB of memory, more than the 1 GiB")


def test_zarr_codecs_that_may_run_code_are_refused():
    zarr, numcodecs = pytest.importorskip("zarr"), pytest.importorskip("numcodecs")
    for codec, words in (
        (numcodecs.Pickle(), "a.zarr"),
        (numcodecs.Base64(), "'x' is packed by 'base64', which is not"),
    ):
        group = zarr.open_group("a.zarr", mode="w", zarr_format=2)
        group.create_array("x", data=KELVIN, filters=[codec])
        refused("a.zarr", words)


@pytest.mark.parametrize("made", [
    lambda x, y: x, lambda x, y: (x, y), lambda x, y: {"x": x, "y": y}, lambda x, y: {"x": x.double(), "mass": y / 3},
])  # fmt: skip
def test_tensors(made):
    torch.save(made(torch.from_numpy(KELVIN), torch.arange(40) % 3), "a.pt")
    source = data.open("a.pt")
    assert np.array_equal(source.x.numpy(), KELVIN)
    back, x = drawn("a.pt", "out.npz")
    assert x.dtype == source.x.numpy().dtype


@pytest.mark.parametrize("ending", ["h5", "pt"])
def test_numbered_arrays_of_several_lengths_are_sequences(ending):
    parts, site = [RNG.normal(size=(k, 2)).astype(np.float32) for k in range(3, 23)], np.arange(20) % 3
    if ending == "pt":
        torch.save({**{str(i): torch.from_numpy(x) for i, x in enumerate(parts)}, "y": torch.from_numpy(site)}, "a.pt")
    else:
        pytest.importorskip("h5py")
        hdf5("a.h5", **{f"walks/{i:02d}": x for i, x in enumerate(parts)}, y=site)
    source = data.open(f"a.{ending}")
    assert source.layout == "LC" and source.shape == (2, 22) and list(source.conditions) == ["label"]
    assert np.array_equal(source.x[4, :, :7].numpy(), parts[4].T) and np.isnan(source.x[4, :, 7:].numpy()).all()


def test_a_list_of_tensors_is_a_list_of_samples():
    parts = [torch.from_numpy(RNG.normal(size=k)) for k in range(3, 23)]
    torch.save(parts, "a.pt")
    assert data.open("a.pt").layout == "L" and len(data.open("a.pt")) == 20
    torch.save([each[:3] for each in parts], "b.pt")
    assert data.open("b.pt").shape == (3,) and torch.equal(data.open("b.pt").x[7], parts[7][:3])
    torch.save([torch.zeros(1).expand(2**20, 2**8)] * 9, "c.pt")
    refused("c.pt", "would take 9 GiB of memory")


class Bomb:
    def __reduce__(self):
        return open, ("ran", "w")


def test_objects_and_zeros_among_tensors_are_refused(workplace):
    torch.save({"x": torch.zeros(40, 2), "bomb": Bomb()}, "a.pt")
    refused("a.pt", "holds objects of Python, which are never loaded")
    assert not (workplace / "ran").exists()
    torch.save([1, 2, 3], "b.pt")
    refused("b.pt", "holds a list: save a tensor, or a dict of tensors")
    torch.save(torch.zeros(40, 2), "c.pt", _use_new_zipfile_serialization=False)
    refused("c.pt", "is no file of torch 1.6 or newer")
    torch.save(torch.zeros(1).expand(2**20, 2**10), "d.pt")
    refused("d.pt", "would take 4 GiB of memory")


@pytest.mark.slow
def test_packed_zeros_among_tensors_are_refused(workplace):
    torch.save(torch.zeros(2**26, 8), "e.pt")
    with zipfile.ZipFile("e.pt") as archive, zipfile.ZipFile("f.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for info in archive.infolist():
            packed.writestr(info.filename, archive.read(info))
    refused("f.pt", "would take 2 GiB of memory")


# -- stacks


@pytest.mark.parametrize("pages, kind", [
    (KELVIN[:, 0], "array"), (COUNTS, "image"), (COUNTS.astype(np.uint8)[..., None].repeat(3, -1), "image"),
    (KELVIN.reshape(8, 5, 8, 8), "array"), (COUNTS.reshape(8, 5, 8, 8), "array"),
])  # fmt: skip
def test_tiff(pages, kind):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite("a.tif", pages, photometric="rgb" if pages.shape[-1] == 3 else "minisblack")
    source = data.open("a.tif")
    channels_last = np.moveaxis(source.x.numpy(), 1, -1)
    assert source.kind == kind and np.array_equal(channels_last.reshape(pages.shape), pages)
    back, x = drawn("a.tif", "out.tif")
    assert x.dtype == pages.dtype and back.kind == kind
    assert tifffile.imread("out.tif").shape == (3, *pages.shape[1:])


def test_folders_of_tiff_files(workplace):
    tifffile = pytest.importorskip("tifffile")
    for i in range(10):
        for name, pages in {"stacks": COUNTS[4 * i : 4 * i + 4], "pictures": COUNTS[i]}.items():
            place = workplace / name / ("left" if i % 2 else "right")
            place.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(place / f"{i}.tif", pages, photometric="minisblack")
    source = data.open("stacks")
    assert source.shape == (1, 8, 8) and len(source) == 40 and source.classes == ["left", "right"]
    order = [int(name.split("/")[1][0]) for name in dict.fromkeys(source.groups)]
    assert np.array_equal(source.x[:, 0].numpy(), np.concatenate([COUNTS[4 * i : 4 * i + 4] for i in order]))
    assert len(data.open("pictures")) == 10 and data.open("pictures").classes == ["left", "right"]
    with tifffile.TiffWriter(workplace / "pictures/left/0.tif") as file:  # with a small picture of itself
        file.write(COUNTS[0])
        file.write(COUNTS[0, ::2, ::2])
    assert len(data.open("pictures")) == 11


def test_tiff_mistakes():
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffWriter("a.tif") as file:
        file.write(COUNTS[0])
        file.write(COUNTS[0, :4])
    refused("a.tif", "holds pages of different sizes")
    tifffile.imwrite("b.tif", COUNTS)
    refused("b.tif", "leave --key out", key="x")
    refused("b.tif", "is no text", length=4)
    content = open("b.tif", "rb").read()
    for name, part in (("c", content[: len(content) // 2]), ("d", b"II*\0 no")):
        with open(f"{name}.tif", "wb") as file:
            file.write(part)
        refused(f"{name}.tif", f"{name}.tif cannot be read as a TIFF stack")
    with tifffile.TiffWriter("pages.tif") as file:
        file.write(COUNTS[0])
    content = bytearray(open("pages.tif", "rb").read())
    content[4:8] = bytes(4)  # where its first page begins
    with open("none.tif", "wb") as file:
        file.write(content)
    refused("none.tif", "none.tif cannot be read as a TIFF stack")
    tifffile.imwrite("e.tif", np.zeros((64, 512, 512), np.uint8), compression="zlib")
    refused("e.tif", "would take 0.0156 GiB of memory, more than the 0.01 GiB", max_gb=0.01)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_nifti(ending, workplace):
    nibabel = pytest.importorskip("nibabel")
    affine = np.array([[2, 0, 0, -9], [0, 2, 0, 4], [0, 0, 3.5, 1], [0, 0, 0, 1]])
    volumes = RNG.integers(-900, 900, (20, 6, 7, 8)).astype(np.int16)
    for i, volume in enumerate(volumes):
        place = workplace / "scans" / ("ill" if i % 2 else "well")
        place.mkdir(parents=True, exist_ok=True)
        nibabel.Nifti1Image(volume, affine).to_filename(place / f"{i:02d}{ending}")
    back, x = drawn("scans", f"out{ending}")
    assert x.shape == (3, 1, 6, 7, 8) and x.dtype == np.int16 and data.open("scans").classes == ["ill", "well"]
    assert np.array_equal(nibabel.load(f"out{ending}").affine, affine)
    assert main(["sample", "run", "-n", "2", "--steps", "2", "-o", "folder/"]) == 0
    assert [path.name for path in sorted((workplace / "folder").iterdir())] == [
        f"00000_ill{ending}", f"00001_well{ending}"
    ]  # fmt: skip
    nibabel.Nifti1Image(np.moveaxis(volumes, 0, -1), affine).to_filename(f"series{ending}")
    assert np.array_equal(data.open(f"series{ending}").x[:, 0].numpy(), volumes)
    nibabel.Nifti1Image(volumes[0, :3], affine).to_filename(workplace / f"scans/well/odd{ending}")
    refused("scans", "samples of several shapes or types")


def test_fits():
    fits = pytest.importorskip("astropy.io.fits")
    science = fits.ImageHDU(COUNTS, name="SCI")
    science.header["BUNIT"] = "electron"
    fits.HDUList([fits.PrimaryHDU(), science, fits.ImageHDU(KELVIN[:, 0], name="ERR")]).writeto("a.fits")
    back, x = drawn("a.fits", "out.fits", "--key", "sci")
    assert x.dtype == np.uint16 and back.stored["units"] == "electron"
    assert np.array_equal(data.open("a.fits", key="ERR").x.numpy(), KELVIN)
    blank = fits.ImageHDU(COUNTS.astype(np.int16))
    blank.header["BLANK"] = int(COUNTS[3, 2, 1])
    blank.writeto("blank.fits")
    holes = data.open("blank.fits").x[:, 0].numpy()
    assert np.array_equal(holes, np.where(COUNTS == COUNTS[3, 2, 1], np.nan, COUNTS), equal_nan=True)
    refused("a.fits", "has no image 'DQ' but SCI, ERR", key="DQ")
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(np.zeros(3, [("a", "f4")]))]).writeto("table.fits")
    refused("table.fits", "has no image and no others: tables are not read")
    header = open("a.fits", "rb").read().replace(b"NAXIS3  =                   40", b"NAXIS3  =           4000000000")
    with open("b.fits", "wb") as file:
        file.write(header)
    refused("b.fits", "would take|cannot be read")


def recordings(soundfile, place, lengths, rate=8000, channels=2):
    for i, length in enumerate(lengths):
        folder = place / ("dog" if i % 2 else "cat")
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{i:02d}.wav", RNG.uniform(-0.5, 0.5, (length, channels)), rate)


def test_audio(workplace):
    soundfile = pytest.importorskip("soundfile")
    recordings(soundfile, workplace / "sounds", [64] * 20)
    back, x = drawn("sounds", "out.wav", number=1, near=2.0**-15)
    assert x.shape == (1, 2, 64) and x.dtype == np.float32
    assert soundfile.info("out.wav").samplerate == 8000 and soundfile.info("out.wav").subtype == "PCM_16"


def test_recordings_of_several_lengths_and_rates(workplace, capsys):
    soundfile = pytest.importorskip("soundfile")
    recordings(soundfile, workplace / "sounds", range(64, 84))
    source = data.open("sounds")
    assert source.shape == (2, 83) and source.layout == "CL"
    assert source.classes == ["cat", "dog"] and len(set(source.groups)) == 20
    source = data.open("sounds", length=16)
    assert len(source) == sum(n // 16 for n in range(64, 84)) and source.ids[1] == "cat/00.wav:1"
    first = soundfile.read("sounds/cat/00.wav", dtype="float32")[0].T
    assert np.array_equal(source.x[1].numpy(), first[:, 16:32])
    refused("sounds", "at most 83 numbers a channel, fewer than 1,000", length=1000)
    soundfile.write("sounds/cat/odd.wav", np.zeros((64, 2)), 16000)
    refused("sounds", "recordings at 8,000 Hz, 16,000 Hz: bring them to one rate first")
    soundfile.write("one.flac", RNG.uniform(-0.5, 0.5, 6400), 8000)
    train, held = data.open("one.flac", length=64).split()
    assert held.tolist() == [95, 96, 97, 98, 99]


def test_video(workplace):
    av = pytest.importorskip("av")
    with av.open("a.mp4", "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 256, 128, "yuv420p"
        for i in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((128, 256, 3), 8 * i, np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    source = data.open("a.mp4")
    assert source.shape == (3, 128, 256) and source.kind == "image" and len(source) == 30
    assert np.abs(source.x.flatten(1).float().mean(1).numpy() - 8 * np.arange(30)).max() < 6
    assert data.open("a.mp4", size=8).shape == (3, 8, 8)
    refused("a.mp4", "would take", max_gb=1e-4)
    (workplace / "list.mp4").write_text("#EXTM3U\n#EXTINF:1,\na.mp4\n#EXT-X-ENDLIST\n")
    refused("list.mp4", "list.mp4 cannot be read as a video")


# -- all of them


@pytest.mark.parametrize("form", file_format.known(), ids=lambda form: form.what)
def test_what_is_missing_or_empty_is_one_sentence(form, monkeypatch, workplace):
    ending = form.endings[0]
    (workplace / f"a{ending}").mkdir() if ending == ".zarr" else (workplace / f"a{ending}").write_bytes(b"")
    refused(f"a{ending}", f"a{ending}")
    packages = {"hdf5": "h5py", "netcdf": "h5netcdf", "nifti": "nibabel", "video": "av", "fits": "astropy.io",
                "tiff": "tifffile", "audio": "soundfile", "zarr": "zarr"}  # fmt: skip
    if form.extra:
        monkeypatch.setitem(sys.modules, packages[form.extra], None)
        refused(f"a{ending}", f"which is not installed: pip install 'sfumato.{form.extra}.'")
        if form.writes:
            shape = (2, 64) if form.one else (1, 8, 8)
            with pytest.raises(SfumatoError, match="which is not installed"):
                file_format.require_writable(workplace / f"out{ending}", shape, {"rate": 8000})


def test_data_sets_of_hugging_face(workplace):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"x": KELVIN.reshape(40, 64).tolist(), "label": [0, 1] * 20})
    made.save_to_disk("saved")
    source = data.open("saved")
    assert source.shape == (64,) and len(source.classes) == 2
    assert torch.equal(data.open(made).x, source.x)


def test_a_spec_keeps_how_its_data_were_stored():
    spec = data.DataSpec.fit(data.open(KELVIN))
    assert "stored" not in spec.to_dict()
    torch.save(torch.from_numpy(KELVIN), "a.pt")
    spec = data.DataSpec.fit(data.open("a.pt"))
    assert data.DataSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert spec.stored == {"ending": ".pt", "key": "x"}


def test_one_recording_a_file(capsys):
    sf.train(KELVIN[:, 0].reshape(40, 2, 32), "run", net="tiny", steps=2)
    assert main(["sample", "run", "-n", "2", "-o", "out.wav"]) == 2
    assert "out.wav holds one recording, not 2: draw -n 1, or give a folder, out/" in capsys.readouterr().err
    refusals = {
        "out.wav": "was not trained on recordings",
        "out.fits": "images (C, H, W) are kept, not (2, 32)",
        "out.nii": "volumes of one channel are kept, not (2, 32)",
        "out.tif": "pictures and volumes are kept, not (2, 32)",
    }
    for out, words in refusals.items():
        assert main(["sample", "run", "-n", "1", "--steps", "2", "-o", out]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("ending", [".h5", ".zarr"])
def test_rows_that_do_not_fit_into_memory_are_read_when_needed(ending, monkeypatch):
    """The run, the samples and their order are those of an array in memory, to the last bit, missing values too."""
    if ending == ".h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File("a.h5", "w") as file:
            file.create_dataset("x", data=KELVIN, chunks=(7, 1, 8, 8), compression="gzip")
            file["x"].attrs["_FillValue"] = KELVIN[5, 0, 1, 2]
            file["mass"] = np.arange(40.0)
    else:
        zarr = pytest.importorskip("zarr")
        group = zarr.open_group("a.zarr", mode="w")
        group.create_array("x", data=KELVIN, chunks=(7, 1, 8, 8)).attrs["_FillValue"] = float(KELVIN[5, 0, 1, 2])
        group.create_array("mass", data=np.arange(40.0))
    how = {"net": "tiny", "steps": 3, "batch": 16, "precision": "float32", "sample_every": 0}
    whole, first = data.open(f"a{ending}"), sf.train(f"a{ending}", "one", **how)
    monkeypatch.setattr(data.arrays, "fits", lambda nbytes: False)
    rows, second = data.open(f"a{ending}"), sf.train(f"a{ending}", "two", **how)
    assert isinstance(whole.x, torch.Tensor) and not isinstance(rows.x, torch.Tensor)
    assert any("samples are read when needed" in note for note in rows.notes)
    index = torch.tensor([39, 5, 5, 0])
    for key in (index, slice(3, 30, 4), slice(0, 0)):
        assert np.array_equal(rows.x[key].numpy(), whole.x[key].numpy(), equal_nan=True), key
    assert rows.missing == whole.missing == (1 / KELVIN.size,) and set(rows.conditions) == {"mass"}
    ours, theirs = first.denoiser.state_dict(), second.denoiser.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
