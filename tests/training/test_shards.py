"""Checkpoints in shards as files: what is not whole is never chosen. That processes write them is in test_world."""

import json
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

import sfumato as sf
from sfumato import files, folder
from sfumato.distributed import ALONE
from sfumato.training import checkpoint, shards

FIXTURE = Path(__file__).parent.parent / "fixtures" / "v1_shards"
CONTRACT = json.loads((FIXTURE / shards.CONTRACT).read_text())
TENSORS = {"net.weight": torch.arange(12.0).reshape(4, 3), "step": torch.tensor(3.0), "count": torch.arange(5)}


def written(run, step, **more):
    contract = {**CONTRACT, "counters": {**CONTRACT["counters"], "step": step}, **more}
    return shards.write(run / "checkpoints" / f"step_{step:08d}", TENSORS, contract, ALONE)


def test_tensors_come_back_one_by_one(tmp_path):
    contract, found = shards.read(written(tmp_path, 3, more=[1, 2]))
    assert contract["more"] == [1, 2] and found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], value) for name, value in TENSORS.items())
    with pytest.raises(KeyError, match="net.bias"):
        found["net.bias"]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_folder_that_torch_wrote_is_read_as_torch_reads_it():
    """Two processes of an earlier version, by torch.distributed.checkpoint."""
    contract, found = shards.read(FIXTURE)
    reader = HuggingFaceStorageReader(str(FIXTURE))
    known = reader.read_metadata().state_dict_metadata
    wanted = {name: torch.empty(each.size, dtype=each.properties.dtype) for name, each in known.items()}
    load(wanted, storage_reader=reader, no_dist=True)
    assert contract["counters"]["step"] == 3 and found.keys() == wanted.keys() and len(wanted) > 20
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def cut(path):
    file = next(path.glob("shard-*"))
    file.write_bytes(file.read_bytes()[:-1])


def flipped(path):
    file = next(path.glob("shard-*"))
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)


def gone(path):
    next(path.glob("shard-*")).unlink()


def unsealed(path):
    (path / shards.CONTRACT).unlink()


def edited(path):
    contract = json.loads((path / shards.CONTRACT).read_text())
    (path / shards.CONTRACT).write_text(json.dumps({**contract, "counters": {"step": 99}}))


def sealed_again(path, **changes):
    contract = {**json.loads((path / shards.CONTRACT).read_text()), **changes}
    (path / shards.CONTRACT).write_text(json.dumps({**contract, "hash": files.seal({}, contract)}))


def endless(path):
    gone(path)
    (path / "shard-00001-of-00001.safetensors").symlink_to("/dev/zero")


HARMS = {
    "cut": cut, "flipped": flipped, "gone": gone, "unsealed": unsealed, "edited": edited, "endless": endless,
    "no file is listed": lambda path: sealed_again(path, files={}),
    "a file elsewhere": lambda path: sealed_again(path, files={"../../x": "0" * 64}),
    "a file that no seal names": lambda path: (path / "shard-00002-of-00002.safetensors").write_bytes(b"more"),
    "no settings": lambda path: sealed_again(path, config=[]),
    "half a step": lambda path: sealed_again(path, counters={**CONTRACT["counters"], "step": 4.5}),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS.keys())
def test_what_is_not_whole_is_passed_over(tmp_path, harm):
    written(tmp_path, 3)
    harm(written(tmp_path, 4))
    contract, found, notes = checkpoint.latest(tmp_path)
    assert contract["counters"]["step"] == 3 and torch.equal(found["count"], TENSORS["count"])
    assert len(notes) == 1 and "step_00000004" in notes[0]


def test_one_that_was_being_written_is_no_checkpoint_and_goes_when_the_run_is_held_again(tmp_path):
    whole = written(tmp_path, 3)
    half = whole.with_name(".step_00000004.1234.shards")
    whole.rename(half)
    assert checkpoint.found(tmp_path) == []
    with folder.held(tmp_path):
        assert not list((tmp_path / "checkpoints").iterdir())


def test_a_second_one_of_a_step_stands_beside_the_first_until_it_is_whole(tmp_path):
    first, second = written(tmp_path, 3), written(tmp_path, 3, again=True)
    assert first != second and checkpoint.found(tmp_path) == [second, first]
    assert checkpoint.step_of(second) == 3 and checkpoint.latest(tmp_path)[0]["again"] is True


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(sf.SfumatoError, match="step_00000003 cannot be written: "):
        written(tmp_path, 3)
