"""Conditions below the door: a mask of presence beside the values; and the door itself."""

import itertools
import types

import numpy as np
import pytest
import torch
from torch import nn

import sfumato as sf
from sfumato import conditions, noise
from sfumato.conditions import Conditions, Given, Label, Scalar, Vector, network_inputs, resolve
from sfumato.errors import SfumatoError
from sfumato.training.batches import dropped

NAN = float("nan")


def both() -> Conditions:
    return Conditions.of({"label": torch.tensor([2, -1, 0]), "mass": torch.tensor([0.5, 1.5, NAN])})


def same(one: Conditions, other: Conditions) -> bool:
    return list(one) == list(other) and all(
        torch.equal(a, b) for name in one for a, b in zip(one.given(name), other.given(name), strict=True)
    )


def test_presence_is_read_from_tensors():
    cond = both()
    assert cond.given("label").present.tolist() == [True, False, True] and cond.given("mass").present.tolist() == [
        True,
        True,
        False,
    ]
    assert cond.given("mass").values.tolist() == [0.5, 1.5, 0.0]
    rows = Given.of(torch.tensor([[1.0, NAN], [1.0, 2.0]]))
    assert rows.present.tolist() == [False, True] and rows.values.tolist() == [[0, 0], [1, 2]]
    assert Given.of(torch.tensor([[1, -1]])).present.all()  # whole numbers of more axes are no labels
    handed = (lambda **cond: cond)(**cond)
    assert isinstance(handed["label"], torch.Tensor) and isinstance(handed["mass"], Given)


def test_rows_and_nulls():
    cond = both()
    assert same(cond.rows(slice(0, 2)).cat(cond.rows(torch.tensor([2]))), cond)
    assert same(cond.repeat(2).rows(slice(3, 6)), cond)
    gone = cond.null("mass")
    assert (
        not gone.given("mass").present.any()
        and (gone.given("mass").values == 0).all()
        and same(gone.null("label"), cond.null())
    )
    assert (cond.null().given("label").values == -1).all()
    kept = cond.keep({"label": torch.tensor([False, True, True])})
    assert kept.given("label").values.tolist() == [-1, -1, 0] and torch.equal(
        kept.given("mass").present, cond.given("mass").present
    )
    with pytest.raises(SfumatoError, match="no condition 'heat'"):
        cond.null("heat")
    with pytest.raises(SfumatoError, match="same names"):
        cond.cat({"label": torch.tensor([1])})
    with pytest.raises(SfumatoError, match="rows"):
        Conditions({"a": torch.zeros(2), "b": torch.zeros(3)})


def test_a_network_hears_plain_tensors_and_masks_where_it_declares_them():
    cond = both()

    class Plain(nn.Module):
        def forward(self, x, level, label=None, mass=None):
            return x

    class Masked(nn.Module):
        def forward(self, x, level, label=None, mass=None, present=None):
            return x

    class Around(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, *args, **cond):
            return self.net(*args, **cond)

    plain = network_inputs(cond, Plain())
    assert plain["label"].tolist() == [2, -1, 0] and set(plain) == {"label", "mass"}
    assert "present" not in network_inputs(cond, Around(Plain()))
    for net in (Masked(), Around(Masked()), Around(Around(Masked()))):
        assert network_inputs(cond, net)["present"]["mass"].tolist() == [True, True, False]
        assert network_inputs({}, net) == {}
    for net in (Plain(), Around(Plain())):
        with pytest.raises(SfumatoError, match="takes no condition 'heat': give its forward"):
            network_inputs({"heat": torch.ones(2)}, net)


def test_the_door_speaks_user_units():
    known = {"label": Label(("cat", "dog")), "index": Scalar.fit([0.0, 10.0]), "pose": Vector.fit(np.eye(4))}
    model = types.SimpleNamespace(spec=types.SimpleNamespace(conditions=known))
    cond = resolve(model, {"label": "dog", "cond": {"index": [5.0, None, 10]}, "pose": np.eye(4)[:3]}, 3)
    assert cond.given("label").values.tolist() == [1, 1, 1] and cond.given("pose").values.shape == (3, 4)
    assert cond.given("index").values.tolist() == [0.0, 0.0, 1.0] and cond.given("index").present.tolist() == [
        True,
        False,
        True,
    ]
    assert same(resolve(model, cond, 3), cond)  # what has gone through the door passes it again
    assert not resolve(model, {"label": None}, 2)
    for given, words in [
        ({"heat": 3}, "'heat': the model has none"), ({"label": "mouse"}, "no class 'mouse'"),
        ({"pose": torch.zeros(3)}, "shape"),
        ({"index": 1e6}, "far outside the data, which ran from 0 to 10"),
        ({"label": ["cat", "dog"]}, "2 values for 3"),
    ]:  # fmt: skip
        with pytest.raises(SfumatoError, match=words):
            resolve(model, given, 3)


def test_the_door_of_a_model_without_a_spec():
    """Case H3: floats stay floats and whole numbers labels."""
    model = types.SimpleNamespace(spec=None)
    vec = resolve(model, {"vec": torch.tensor([0.7])}, 3).given("vec")
    assert vec.values.tolist() == pytest.approx([0.7] * 3) and vec.present.all()
    assert resolve(model, {"vec": [0.1, None, 0.3]}, 3).given("vec").present.tolist() == [True, False, True]
    assert resolve(model, {"vec": torch.rand(3, 4)}, 3).given("vec").values.shape == (3, 4)
    assert resolve(model, {"vec": torch.rand(1, 4)}, 3).given("vec").values.shape == (3, 4)
    label = resolve(model, {"label": [1, 0, -1]}, 3).given("label")
    assert label.values.dtype == torch.int64 and label.present.tolist() == [True, True, False]
    for given, words in [
        ({"vec": torch.rand(2)}, "2 values for 3"),
        ({"vec": "cat"}, "not a number"),
        ({"vec": torch.rand(2, 4)}, "2 values"),
    ]:
        with pytest.raises(SfumatoError, match=words):
            resolve(model, given, 3)


def test_each_condition_is_dropped_and_all_together():
    count, share = 20_000, 0.1
    index = torch.arange(count)
    source = noise.Noise(7, index, noise.DROP)
    label = torch.arange(count) % 5
    alone = dropped(Conditions.of(label), source, share)["label"]
    as_before = label.clone()
    as_before[noise.uniform(7, index, (), noise.DROP) < share] = -1
    assert torch.equal(alone, as_before)
    three = Conditions({"label": label, "mass": torch.rand(count), "pose": torch.rand(count, 2)})
    kept = dropped(three, source, share)
    there = torch.stack([kept.given(name).present for name in three])
    for pattern in itertools.product((False, True), repeat=3):
        found = float((there == torch.tensor(pattern)[:, None]).all(0).double().mean())
        apart = share ** (3 - sum(pattern)) * (1 - share) ** sum(pattern)
        wanted = (1 - share) * apart + (share if not any(pattern) else 0.0)
        assert abs(found - wanted) < 4 * (wanted * (1 - wanted) / count) ** 0.5 + 1e-9, (pattern, found, wanted)
    some = torch.tensor([5, 19_000, 77])
    again = dropped(three.rows(some), noise.Noise(7, some, noise.DROP), share)
    assert same(again, kept.rows(some)), "a function of the seed, the sample and the name"
    other = dropped(Conditions({"pose": three["pose"], "heat": torch.rand(count)}), source, share)
    assert torch.equal(other.given("pose").present, there[2]), "whatever stands beside it"


def test_values_of_a_user_are_refused_where_conditions_are_encoded():
    spec = sf.data.DataSpec.fit(sf.data.open({"x": torch.randn(60, 2), "temperature": torch.linspace(250, 350, 60)}))
    net = sf.nets.build(spec.shape, size="tiny", conditions={"temperature": {"kind": "scalar"}})
    model = sf.Denoiser(net, sf.Gaussian(sf.schedules.Flow()), "velocity", 1.0, spec)
    plan, z = sf.solvers.Euler().plan(model.process, 2), torch.randn(3, 2)
    for value in (300.0, [300.0] * 3, "300"):
        for name, call in {
            "start": lambda v: plan.start(model, z, temperature=v),
            "guided": lambda v: plan.start(sf.guide(model, 2.0), z, temperature=v),
            "loss": lambda v: sf.denoising_loss(model, z, temperature=v),
            "model": lambda v: model(z, 0.5, temperature=v),
            "of": lambda v: Conditions.of({"temperature": v}),
        }.items():
            with pytest.raises(sf.SfumatoError, match=r"^The condition 'temperature': .* sf.conditions.resolve\("):
                call(value)
                raise AssertionError(name)
    encoded = conditions.resolve(model, {"temperature": 300.0}, 3)
    assert plan.start(model, z, **encoded).advance().x.shape == (3, 2)
    assert sf.denoising_loss(model, z, **encoded).shape == (3,)


def test_labels_are_whole_numbers():
    label = conditions.Label(("a", "b", "c"))
    with pytest.raises(sf.SfumatoError, match=r"0\.9 is not a label"):
        label.encode(torch.tensor([0.9, 0.2]), 2)
    assert label.encode(torch.tensor([1.0, float("nan")]), 2).values.tolist() == [1, -1]
    for value in ([0, 1, None, 2], [0, 1, float("nan"), 2]):
        found = conditions.resolve(None, {"label": value}, 4)["label"]
        assert found.dtype == torch.int64 and found.tolist() == [0, 1, -1, 2]
    numbers = conditions.resolve(None, {"mass": [0.5, None]}, 2).given("mass")
    assert numbers.values.tolist() == [0.5, 0.0] and numbers.present.tolist() == [True, False]
    with pytest.raises(sf.SfumatoError, match="'label' is given twice"):
        conditions.resolve(None, {"label": 1, "cond": {"label": 2}}, 1)


def test_what_a_network_of_the_user_is_called_with():
    """The table of docs/extending.md, "A network"."""
    n, rng = 40, np.random.default_rng(0)
    mass, place, map_ = rng.normal(5, 2, n), rng.normal(size=(n, 3)), rng.normal(9, 2, (n, 2, 8))
    kind, tags = np.array(["a", "b"] * (n // 2)), [["x"], ["x", "y"]] * (n // 2)
    source = sf.data.open(
        {"x": rng.normal(size=(n, 1, 8)), "mass": mass, "place": place, "map": map_, "kind": kind, "tags": tags}
    )
    heard = {}

    class Net(nn.Module):
        def forward(self, x, level, mass=None, place=None, map=None, kind=None, tags=None, present=None):
            heard.update(mass=mass, place=place, map=map, kind=kind, tags=tags, present=present)
            return x

    model = sf.Denoiser(Net(), sf.Gaussian(sf.schedules.Flow()), "velocity", 1.0, sf.data.DataSpec.fit(source))
    rows = torch.arange(n)
    model(torch.zeros(n, 1, 8), 0.5, **conditions.of_data(model, source, rows))
    assert heard["kind"].dtype == torch.int64 and heard["kind"].tolist() == [0, 1] * (n // 2)
    assert heard["tags"].tolist() == [[1, 0], [1, 1]] * (n // 2)
    for name, shape in {"mass": (n,), "place": (n, 3), "map": (n, 2, 8)}.items():
        value = heard[name]
        assert value.shape == shape and value.dtype == torch.float32, name
        assert abs(float(value.mean())) < 0.2 and abs(float(value.std()) - 1) < 0.2, name
        assert heard["present"][name].dtype == torch.bool and bool(heard["present"][name].all())
    gone = conditions.of_data(model, source, rows).null()
    model(torch.zeros(n, 1, 8), 0.5, **gone)
    assert bool((heard["kind"] == -1).all()) and not any(bool(v.any()) for v in heard["present"].values())
    assert all(bool((heard[name] == 0).all()) for name in ("mass", "place", "map", "tags"))
    model(torch.zeros(n, 1, 8), 0.5)
    assert set(map(type, heard.values())) == {type(None)}


def test_tokens_have_a_mask_of_their_own():
    """`present` (B, L) of values (B, L, d): rows keep it, padding joins lengths, a dropped row has no token left."""
    known = torch.tensor([[True, True, False], [False, False, False], [True, False, False]])
    words = Given(torch.ones(3, 3, 2), known).masked()
    assert words.values[..., 0].tolist() == known.float().tolist() and words.known.tolist() == [True, False, True]
    cond = Conditions({"words": words, "mass": torch.tensor([1.0, 2.0, 3.0])})
    kept = cond.keep({"words": torch.tensor([False, True, True])}).given("words")
    assert kept.known.tolist() == [False, False, True] and kept.present[2].tolist() == known[2].tolist()
    assert not cond.null("words").given("words").present.any() and "2 present" in repr(cond)
    longer = Given(torch.ones(2, 5, 2), torch.ones(2, 5, dtype=torch.bool))
    both = Given.cat([words, longer])
    assert both.values.shape == (5, 5, 2) and both.present.sum(1).tolist() == [2, 0, 1, 5, 5]
    assert torch.equal(both.rows(slice(0, 3)).values[:, :3], words.values) and not both.values[:3, 3:].any()
    assert conditions.joined([words, longer]).present.equal(both.present)
