"""Texts of lengths of their own: rows of data, samples and bits under the deletion process."""

import itertools
import json
import math

import pytest
import torch

import sfumato as sf
from sfumato.belief import Insertions
from sfumato.data import DataSpec
from sfumato.exact.strings import Strings
from sfumato.process import Deletion

EVERY = ["".join(each) for n in range(4) for each in itertools.product("ab", repeat=n)]
PROBS = torch.rand(15, generator=torch.Generator().manual_seed(3), dtype=torch.float64) ** 2
LAW = Strings({tuple("ab".index(each) for each in text): float(p) for text, p in zip(EVERY, PROBS, strict=True)}, 2)


def drawn(n: int) -> list[str]:
    return [EVERY[i] for i in LAW.place(LAW.sample(n, seed=5)).tolist()]


class Exact:
    """The law of all strings of up to three symbols as a model of text, (B, 1, L)."""

    process, shape, device, exact = Deletion(sf.schedules.Flow(), 3), (1, 3), torch.device("cpu"), True

    def __init__(self):
        source = sf.data.open(EVERY, whole_texts=True)
        self.spec = self.process.contract(DataSpec.fit(source, torch.arange(15)))
        self.inner = LAW.denoiser(self.process)

    def __call__(self, z, t, **cond):
        return Insertions(self.inner(z[:, 0], t).log_mean[:, None], z, t, self.process)


def test_all_strings_come_back_from_their_rows():
    source = sf.data.open(EVERY, whole_texts=True)
    assert source.shape == (1, 3) and source.text.symbols == ("a", "b") and source.bounds == (0.0, 2.0)
    assert [source.text.decode(row.flatten().tolist()) for row in source.x] == EVERY
    assert torch.equal(Deletion(sf.schedules.Flow(), 3).data(source.x)[:, 0], LAW.states)
    spec = DataSpec.fit(source, torch.arange(15))
    assert spec.whole_texts and "texts of up to 3 symbols" in spec.describe()[0]
    again = sf.data.open(["ba", ""], conditions=DataSpec.from_dict(json.loads(json.dumps(spec.to_dict()))))
    assert again.x[:, 0].tolist() == [[1, 0, 2], [2, 2, 2]]
    assert not DataSpec.fit(sf.data.open(["abba" * 9], length=4), torch.arange(9)).whole_texts


def test_equal_texts_are_held_out_together_and_longer_ones_are_refused(tmp_path):
    source = sf.data.open(drawn(300), whole_texts=True)
    train, held = ({source.text.decode(source.x[i].flatten().tolist()) for i in rows} for rows in source.split(0.3))
    assert held and not train & held
    with pytest.raises(sf.SfumatoError, match="a text of 3 symbols.*at most 2"):
        sf.data.open(EVERY, whole_texts=True, length=2)
    with pytest.raises(sf.SfumatoError, match="holds no text"):
        sf.data.open(["", ""], whole_texts=True)
    (tmp_path / "few.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in EVERY))
    lines = sf.data.open(tmp_path / "few.jsonl", whole_texts=True, tokens="bytes")
    assert lines.x.max() == 256 and [lines.text.decode(row.flatten().tolist()) for row in lines.x] == EVERY


def test_samples_and_bits_of_the_exact_law():
    model, n = Exact(), 6000
    found = [EVERY.index(text) for text in sf.sample_text(model, n, seed=1, batch=n)]
    share = torch.bincount(torch.tensor(found), minlength=15).double() / n
    assert float((share - LAW.probs).abs().sum()) / 2 < 0.04  # chance alone: 0.02
    assert sf.sample_text(model, index=[9, 2], seed=1) == [EVERY[found[i]] for i in (9, 2)]
    x = sf.data.open(EVERY, conditions=model.spec).x
    bits = sf.log_prob(model, x, steps=64, probes=8)
    error = float((LAW.probs * bits.stderr).square().sum().sqrt())
    assert float(LAW.probs @ -bits.value) == pytest.approx(LAW.entropy, abs=4 * error) and error < 0.1


def test_what_cannot_be_asked_of_whole_texts(tmp_path):
    for words in ({"prompt": "a"}, {"infill": "a_"}, {"length": 2}):
        with pytest.raises(sf.SfumatoError, match="whole texts inserts"):
            sf.sample_text(Exact(), **words)
    with pytest.raises(sf.SfumatoError, match="order"):
        sf.sample_text(Exact(), order="random")
    for whole, process, said in ((True, "masked", "these are whole"), (False, "deletion", "these are windows")):
        with pytest.raises(sf.SfumatoError, match=said):
            sf.train(sf.data.open(EVERY * 9, whole_texts=whole), tmp_path / "run", process=process, steps=1)
    assert not (tmp_path / "run").exists()


def test_texts_are_trained_measured_and_sampled(call, tmp_path):
    """Two words of two lengths: nothing else is drawn once they are learned, and each costs a bit."""
    data, run = tmp_path / "words.jsonl", tmp_path / "run"
    texts = ["yes", "no"] * 100 + ["oh"] * 20
    data.write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
    words = ["--process", "deletion", "--net", "Transformer(width=32, depth=1, heads=1)", "--precision", "float32"]
    status, out, err = call("train", data, "-o", run, "--steps", "250", "--batch", "128", "--lr", "0.003", *words)
    assert status == 0, err
    assert "each is a sample of its own length" in err + out
    model = sf.load(run)
    assert model.process.states == len(set("yesnoh")) + 1 and model.spec.whole_texts
    found = sf.sample_text(model, 200)
    known = [text for text in found if text in ("yes", "no", "oh")]
    assert len(known) > 150 and {"yes", "no"} <= set(known)
    source = sf.data.open(["yes", "no"], conditions=model.spec)
    bits = -sf.log_prob(model, source.x, steps=32).value / math.log(2)
    assert float(bits.min()) > 0.5 and float(bits.max()) < 3  # 1.14 of the law
    status, out, err = call("sample", run, "-n", "3", "-o", tmp_path / "few.jsonl")
    assert status == 0, err
    assert [json.loads(line)["text"] for line in (tmp_path / "few.jsonl").read_text().splitlines()] == found[:3]
    status, out, err = call("likelihood", run, data, "-n", "8", "--steps", "8", "--json")
    assert status == 0 and json.loads(out)["bits_per_dim"] > 0, err
