"""Sequences and sets of several lengths: what is padded costs nothing, lengths have their law, and samples end."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import sfumato as sf
from sequence_cases import RHO, SHARES, STEPS, Exact, density, exact, walks
from sfumato import data, nets
from sfumato.cli import main
from sfumato.conditions import MISSING, Conditions
from sfumato.data import DataSpec
from sfumato.data.lengths import Lengths, beyond, ends
from sfumato.errors import SfumatoError
from sfumato.normaliser import Normaliser
from sfumato.objectives.denoising import denoising_loss
from sfumato.process import Gaussian
from sfumato.schedules import Flow
from sfumato.training.console import Silent

SMALL = {"batch": 16, "precision": "float32", "sample_every": 0, "console": Silent()}


def refused(words, call):
    with pytest.raises(SfumatoError, match=words) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


def test_an_exact_model_has_the_loss_of_its_law_and_samples_it():
    """The loss is 1/2 D / L tr(R - a^2 R (a^2 R + s^2)^-1 R) for sequences of each length; samples have its
    autocovariance and the law of lengths."""
    x, model = exact()
    z, cond = model.spec.apart(model.spec.normalise(x), Conditions())
    t = 0.4
    found = denoising_loss(model, z, torch.full((len(z),), t), cond=cond)
    alpha, sigma = (float(v) for v in model.process.schedule(torch.tensor(t)))
    lengths = torch.tensor([len(one) for one in x])
    for length in STEPS:
        lag = torch.arange(length)
        cov = RHO ** (lag[:, None] - lag).abs().double()
        left = cov - alpha**2 * cov @ torch.linalg.solve(alpha**2 * cov + sigma**2 * torch.eye(length), cov)
        floor = 0.5 * STEPS[-1] / length * float(left.trace())
        assert float(found[lengths == length].mean()) == pytest.approx(floor, rel=0.06), length
    drawn = sf.sample(model, 4000, steps=16)
    for length, share in zip(STEPS, SHARES, strict=True):
        own = torch.stack([one[:, 0] for one in drawn if len(one) == length]).double()
        assert len(own) / 4000 == pytest.approx(share, abs=0.03)
        cov = own.T @ own / len(own)
        lag = torch.arange(length)
        assert float((cov - RHO ** (lag[:, None] - lag).abs().double()).abs().max()) < 0.15, length


def test_the_likelihood_is_that_of_the_steps_that_are_there():
    """log p of an exact model is that of the AR(1) law up to each end, in the units of the data, also with a step
    missing within, by the exact trace and by probes; and of whole samples as without a mask."""
    x = walks(24)
    x[0][1] = np.nan
    model = exact(60)[1]
    truth = torch.tensor([density(one) for one in x], dtype=torch.float64)
    found = sf.log_prob(model, x, steps=32)
    assert torch.allclose(found.value, truth, atol=2e-3), (found.value - truth).abs().max()
    assert found.numbers.tolist() == [len(one) - (i == 0) for i, one in enumerate(x)]
    assert "of 2 to 9 numbers" in str(found) or "of 3 to 9 numbers" in str(found)
    batches = sf.log_prob(model, x, steps=32, batch=5)
    assert torch.allclose(batches.value, found.value, atol=1e-9)
    probes = sf.log_prob(model, x, steps=16, trace="rademacher", probes=32)
    assert float(((probes.value - truth).abs() / (probes.stderr + 0.01)).max()) < 6
    scaled = DataSpec(**{**vars(model.spec), "normaliser": Normaliser((0.0,), (0.5,))})
    narrow = Exact(scaled)  # of walks that are half as wide
    half = sf.log_prob(narrow, [one / 2 for one in x], steps=32).value
    assert torch.allclose(half, truth + found.numbers * np.log(2), atol=2e-3)
    longest = [one for one in x if len(one) == STEPS[-1]]
    assert torch.allclose(sf.log_prob(model, longest, steps=32).value, torch.tensor(
        [density(one) for one in longest], dtype=torch.float64), atol=2e-3)  # fmt: skip


def test_latents_are_those_of_the_steps_that_are_there():
    """Of walks with the covariance R up to their ends the flow is z = R^(-1/2) x, and leads back to each walk."""
    x, model = walks(24), exact(60)[1]
    z = sf.encode(model, x, steps=32)
    assert z.shape == (24, 1, STEPS[-1]) and [int(end) for end in ends(z)] == [len(one) for one in x]
    for one, latent in zip(x, z, strict=True):
        lag = torch.arange(len(one))
        values, vectors = torch.linalg.eigh(RHO ** (lag[:, None] - lag).abs().double())
        wanted = vectors @ ((vectors.T @ torch.as_tensor(one)[:, 0].double()) / values.sqrt())
        assert torch.allclose(latent[0, : len(one)].double(), wanted, atol=2e-3)
    for one, back in zip(x, sf.decode(model, z, steps=32), strict=True):
        assert back.shape == one.shape and torch.allclose(back, torch.as_tensor(one).to(back), atol=1e-4)
    alike = [one for one in x if len(one) == STEPS[0]]
    ((a, b),) = sf.interpolate(model, alike[:2], alike[2:4], 0.0, steps=16)
    assert torch.allclose(a, torch.as_tensor(alike[0]).to(a), atol=1e-3) and b.shape == alike[1].shape
    other = next(one for one in x if len(one) != STEPS[0])
    refused("Latents of sequences to interpolate must be of one length",
            lambda: sf.interpolate(model, alike[:1], [other], 0.5, steps=2))  # fmt: skip
    refused("An attribute is a direction for all steps", lambda: sf.latents.attribute(model, alike, alike, steps=2))
    hole = np.array(x[0])
    hole[0] = np.nan
    refused("encode needs every step of a sequence", lambda: sf.encode(model, [hole], steps=2))


def network(kind, channels=2, length=9, heard=True):
    torch.manual_seed(0)
    given = {MISSING: {"kind": "missing", "shape": [channels, length]}} if heard else None
    net = nets.named(kind, (channels, length), conditions=given)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net


@pytest.mark.parametrize("kind", ["UNet(channels=(8,), blocks=1)", "DiT(width=16, depth=2, heads=2, patch=2)",
                                  "SetTransformer(width=16, depth=2, heads=2)"])  # fmt: skip
def test_what_is_padded_changes_neither_loss_nor_gradient(kind):
    x = walks(12, channels=2)
    spec = DataSpec.fit(data.open(x))
    model = sf.Denoiser(network(kind), Gaussian(Flow()), "velocity", spec=spec)
    z, cond = spec.apart(spec.normalise(x), Conditions())
    gaps = cond.given(MISSING).values.bool()
    t, eps = torch.linspace(0.1, 0.9, len(z)), torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    found = []
    for noise, padding in ((eps, 0.0), (torch.where(gaps, 100 * eps, eps), -50.0)):
        model.zero_grad()
        loss = denoising_loss(model, torch.where(gaps, padding, z), t, eps=noise, cond=cond)
        loss.sum().backward()
        found.append((loss.detach(), [p.grad.clone() for p in model.parameters()]))
    assert bool(gaps.any()) and torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(one, two) for one, two in zip(found[0][1], found[1][1], strict=True))


def test_attention_is_that_of_the_shorter_sequence():
    """With masked patches a network says of a padded sequence what it says of the sequence alone, and at its cost."""
    for kind in ("SetTransformer(width=16, depth=2, heads=2)", "DiT(width=16, depth=2, heads=2, patch=1, registers=2)",
                 "DiT(width=16, depth=2, heads=2, patch=2, positions='rotary')"):  # fmt: skip
        long, short, tokens = network(kind, length=9), network(kind, length=4), []
        for net in (long, short):
            net.blocks[0].register_forward_pre_hook(lambda block, given, seen=tokens: seen.append(given[0].shape[1]))
        short.load_state_dict(long.state_dict())
        x, level = torch.randn(3, 2, 9), torch.rand(3)
        gaps = beyond(torch.tensor([4, 4, 4]), (2, 9))
        alone = short(x[..., :4], level, missing_values=torch.zeros(3, 2, 4))
        found = long(x, level, missing_values=gaps)
        assert torch.allclose(found[..., :4], alone, atol=1e-5) and not found[..., 4:].any(), kind
        assert tokens[0] == tokens[1] < 9
        assert bool(long(x, level, missing_values=torch.ones(3, 2, 9)).isfinite().all())


def net_of_twice(x, level):
    """What a network says of the first of the points of a set in which each point is twice."""
    twice = network("SetTransformer(width=16, depth=2, heads=2)", length=8).requires_grad_(False)
    return twice(torch.cat([x, x], 2), level)[..., :4]


def test_a_set_has_no_order():
    """f(P x) = P f(x), also with points that are missing; a network with positions does not have it."""
    order, x, level = torch.randperm(9, generator=torch.Generator().manual_seed(1)), torch.randn(3, 2, 9), torch.rand(3)
    gaps = beyond(torch.tensor([9, 5, 2]), (2, 9))
    apart = {}
    for kind in ("SetTransformer(width=16, depth=2, heads=2)", "DiT(width=16, depth=2, heads=2, patch=1)"):
        net = network(kind).requires_grad_(False)
        y = net(x, level, missing_values=gaps)
        apart[kind] = float((net(x[..., order], level, missing_values=gaps[..., order]) - y[..., order]).abs().max())
    found = list(apart.values())
    half = network("SetTransformer(width=16, depth=2, heads=2)", length=4).requires_grad_(False)
    one, two = half(x[..., :4], level), net_of_twice(x[..., :4], level)
    assert float((one - two).abs().max()) > 1e-3  # the number of points is heard, which a softmax does not tell
    assert found[0] < 1e-6 * float(y.abs().max()) + 1e-6 and found[1] > 1e-3, apart
    refused("whose patch is 1", lambda: nets.DiT((2, 9), 2, 16, 1, positions="none"))
    refused("takes sets of points", lambda: nets.named("SetTransformer", (1, 8, 8)))
    assert not bool(nets.named("SetTransformer", (2, 9))(x, level).any())  # as each network, 0 at first


def test_lengths_are_drawn_by_their_law_or_given():
    law = Lengths("LC", (3, 6, 9), (2, 3, 5))
    u = (torch.arange(1000) + 0.5) / 1000
    assert law.drawn(u).unique(return_counts=True)[1].tolist() == [200, 300, 500]
    assert law.given(4, 2, 9).tolist() == [4, 4] and law.given([4, 9], 2, 9).tolist() == [4, 9]
    refused("3 numbers for 2 sequences", lambda: law.given([1, 2, 3], 2, 9))
    refused("length is 10, and the longest sequence", lambda: law.given(10, 2, 9))
    refused("at least 1", lambda: law.given(0, 2, 9))
    assert law.describe(3) == "sequences of 3 to 9 steps of 3 channels"
    assert Lengths.from_dict(json.loads(json.dumps(law.to_dict()))) == law
    refused("a law of lengths needs", lambda: Lengths("LC", (3, 3), (1, 1)))
    _, model = exact(60)
    found = sf.sample(model, 8, steps=2)
    assert [len(one) for one in found] == [len(one) for one in sf.sample(model, 8, steps=2, batch=3)]
    again = sf.sample(model, index=[5, 2], steps=2)
    assert torch.equal(again[0], found[5]) and torch.equal(again[1], found[2])
    assert [tuple(one.shape) for one in sf.sample(model, 3, steps=2, length=[2, 5, 9])] == [(2, 1), (5, 1), (9, 1)]
    padded = sf.sample(model, 2, steps=2, length=4, normalised=True)
    assert padded.shape == (2, 1, 9) and torch.equal(padded.isnan(), beyond(torch.tensor([4, 4]), (1, 9)).bool())
    whole = sf.Denoiser(nets.MLP(2), Gaussian(Flow()), "velocity")
    refused("have one length: leave length out", lambda: sf.sample(whole, 1, length=3))


def test_lists_of_arrays_are_padded_in_any_layout():
    for name, made in {
        "LC": walks(20, 3), "CL": [one.T for one in walks(20, 3)], "L": [one[:, 0] for one in walks(20)],
    }.items():  # fmt: skip
        source = data.open(made)
        longest = max(len(one) for one in walks(20))
        assert source.layout == name and source.shape == (3 if "C" in name else 1, longest)
        assert ends(source.x).tolist() == [one.shape[name.index("L")] for one in made]
        assert set(source.missing) == {0.0} and source.kind == "array"
        spec = DataSpec.fit(source, torch.arange(20))
        every = np.concatenate(
            [one.reshape(-1) if name == "L" else one[..., 0] if name == "LC" else one[0] for one in made]
        )
        assert spec.statistics.mean[0] == pytest.approx(float(every.mean()), abs=1e-6)
        assert DataSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
        back = spec.lengths.cut(spec.denormalise(spec.normalise(made).nan_to_num()), ends(source.x))
        assert all(np.allclose(one, two, atol=1e-6) for one, two in zip(back, made, strict=True))
    assert data.open([torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0])] * 9).shape == (1, 3)
    assert data.open({"x": walks(20), "site": ["a", "b"] * 10}).classes == []
    holes = walks(40, 3)
    for one in holes[::2]:
        one[0, 1] = np.nan
    share = data.open(holes).missing
    assert share[1] == pytest.approx(20 / sum(map(len, holes))) and share[0] == share[2] == 0
    refused("the same channels", lambda: data.open([np.zeros((2, 3)), np.zeros((3, 4))]))
    refused("entries of several shapes, .*number 1", lambda: data.open([np.zeros(3), np.zeros((3, 4))]))
    assert data.open([[1.0, None, 2.0], [3.0, 1.0]] * 9).missing == (pytest.approx(0.2),)  # null in lines of JSON
    refused("without a step, number 1", lambda: data.open([np.zeros(3), np.zeros(0)]))
    refused("without a value, number 1", lambda: data.open([np.zeros(3), np.full(2, np.nan)]))
    refused("laid out as LC", lambda: spec_of(walks(20, 3)).normalise([np.zeros((2, 4))]))


def spec_of(x):
    return DataSpec.fit(data.open(x))


def same(source, made):
    assert ends(source.x).tolist() == [len(one) for one in made]
    assert all(np.array_equal(row[:, : len(one)].T, one) for row, one in zip(source.x.numpy(), made, strict=True))


def test_files_of_several_lengths(tmp_path):
    made = walks(20, 2)
    np.savez(tmp_path / "a.npz", *made)
    same(data.open(tmp_path / "a.npz"), made)
    np.savez(tmp_path / "b.npz", **{f"{i:03}": one for i, one in enumerate(made)}, site=np.arange(20) % 2, note="x")
    source = data.open(tmp_path / "b.npz")
    same(source, made)
    assert list(source.conditions) == ["site"]
    for i, one in enumerate(made):
        (tmp_path / "folder" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "folder" / "ab"[i % 2] / f"{i:02}.npy", one)
    source = data.open(tmp_path / "folder")
    same(source, made[::2] + made[1::2])
    assert source.classes == ["a", "b"] and source.ids[0] == "a/00.npy"
    lines = [json.dumps({"walk": one.tolist(), "site": "ab"[i % 2]}) for i, one in enumerate(made)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = data.open(tmp_path / "a.jsonl")
    same(source, [one.astype(np.float64) for one in made])
    assert [*source.conditions["site"].spelt[:2]] == ["a", "b"]
    (tmp_path / "b.jsonl").write_text("\n".join([*lines, '{"site": "a"}']))
    refused("line 21 has no list under 'walk'", lambda: data.open(tmp_path / "b.jsonl"))
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"x": [one.tolist() for one in made], "m": np.arange(20.0)}), tmp_path / "a.parquet")
    source = data.open(tmp_path / "a.parquet")
    same(source, [one.astype(np.float64) for one in made])
    assert list(source.conditions) == ["m"]
    cells = [[1.0, None, 3.0], [2.0]] * 10
    mixed = [np.zeros((3 + i, 2 + i % 2)) for i in range(20)]
    np.savez(tmp_path / "mixed.npz", *mixed)
    refused("differ in steps and channels", lambda: data.open(tmp_path / "mixed.npz"))
    (tmp_path / "mixed").mkdir()
    for i, one in enumerate(mixed):
        np.save(tmp_path / "mixed" / f"{i:02}.npy", one)
    refused("entries of several shapes, .3, 2. and, number 1, .4, 3.", lambda: data.open(tmp_path / "mixed"))
    parquet.write_table(pa.table({"x": [one.tolist() for one in mixed]}), tmp_path / "mixed.parquet")
    refused("the same channels", lambda: data.open(tmp_path / "mixed.parquet"))
    parquet.write_table(pa.table({"x": [[[1.0, 2.0], [3.0]], [[1.0, 2.0]]] * 9}), tmp_path / "mixed.parquet")
    refused("a step with other channels", lambda: data.open(tmp_path / "mixed.parquet"))
    parquet.write_table(pa.table({"x": cells}), tmp_path / "b.parquet")
    source = data.open(tmp_path / "b.parquet")
    assert ends(source.x).tolist() == [3, 1] * 10 and source.missing == (0.25,)


def test_a_folder_of_equal_arrays_is_one_array(tmp_path):
    x = np.random.default_rng(0).normal(size=(20, 3, 5))
    for i, one in enumerate(x):
        np.save(tmp_path / f"{i:02}.npy", one)
    source = data.open(tmp_path)
    assert np.array_equal(source.x, x) and source.layout == ""


def test_recordings_of_their_own_length(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    draw = np.random.default_rng(0)
    for i in range(20):
        soundfile.write(tmp_path / f"{i:02}.wav", draw.uniform(-0.5, 0.5, (64 + i, 2)), 8000)
    source = data.open(tmp_path)
    assert source.shape == (2, 83) and source.layout == "CL" and ends(source.x).tolist() == list(range(64, 84))
    assert data.open(tmp_path, length=16).shape == (2, 16)
    run, out = str(tmp_path / "run"), tmp_path / "made"
    words = ["--net", "DiT(width=16,depth=1,patch=8)", "--batch", "8", "--steps", "2"]
    assert main(["train", str(tmp_path), "-o", run, *words]) == 0
    assert main(["sample", run, "-n", "3", "--steps", "2", "--length", "70", "-o", f"{out}/"]) == 0
    assert [soundfile.info(str(path)).frames for path in sorted(out.iterdir())] == [70] * 3


def test_from_files_to_files(tmp_path, capsys):
    """A run by the command line: what is said of lengths, and samples as they were given."""
    made = walks(60, 2)
    place, run = tmp_path / "walks.npz", str(tmp_path / "run")
    np.savez(place, *made)
    low, high = STEPS[0], STEPS[-1]
    words = f"sequences of {low} to {high} steps of 2 channels"
    assert main(["inspect", str(place), "-o", str(tmp_path / "look.png")]) == 0
    said = capsys.readouterr().out
    assert f"walks: 60 {words}, float32" in said and "missing" not in said
    train = ["--net", "SetTransformer(width=16,depth=1)", "--batch", "8"]
    assert main(["train", str(place), "-o", run, *train, "--steps", "3"]) == 0
    assert main(["info", run]) == 0
    assert words in capsys.readouterr().out
    drawn = tmp_path / "drawn.npz"
    sample = ["sample", run, "-n", "5", "--steps", "2", "--precision", "float32"]
    assert main([*sample, "-o", str(drawn)]) == 0
    found = [one for key, one in np.load(drawn).items() if key != "manifest"]
    expected = sf.sample(sf.load(run), 5, steps=2)
    assert all(np.allclose(one, two, atol=1e-5) for one, two in zip(found, expected, strict=True))
    assert {one.shape[1] for one in found} == {2} and found[0].dtype == np.float32
    same(data.open(drawn), found)
    assert main([*sample, "--length", "4", "-o", f"{tmp_path}/made/"]) == 0
    equal = tmp_path / "equal.npz"
    assert main([*sample, "--length", "4", "-o", str(equal)]) == 0
    gap = tmp_path / "gap.npz"
    np.savez(gap, *[np.where(np.arange(len(one))[:, None] == 1, np.nan, one) for one in made[:4]])
    capsys.readouterr()
    assert main(["likelihood", run, str(gap), "-n", "2", "--steps", "2"]) == 2
    assert "knows whole samples alone" in capsys.readouterr().err
    again = [one for key, one in np.load(equal).items() if key != "manifest"]
    assert [one.shape for one in again] == [(4, 2)] * 5 and data.open(equal).layout == "LC"
    same(data.open(equal), again)  # a file says how its sequences lie, though all are as long
    same(data.open(tmp_path / "made", conditions=sf.load(run).spec), again)  # and so does the model
    same(alone := data.open(tmp_path / "made"), again)  # a folder says it beside them
    assert not alone.skipped
    assert main(["inspect", str(equal), "-o", str(tmp_path / "look.png")]) == 0
    assert "5 sequences of 4 steps of 2 channels" in capsys.readouterr().out
    assert main(["train", str(equal), "-o", str(tmp_path / "next"), *train, "--steps", "2"]) == 0
    assert main(["sample", run, "--steps", "2", "--length", "3,9,5", "-o", str(tmp_path / "each.npz")]) == 0
    assert [len(one) for key, one in np.load(tmp_path / "each.npz").items() if key != "manifest"] == [3, 9, 5]
    assert [np.load(path).shape for path in (tmp_path / "made").glob("*.npy")] == [(4, 2)] * 5
    assert main([*sample, "-o", str(tmp_path / "made.png")]) == 0
    parquet = pytest.importorskip("pyarrow.parquet")
    assert main([*sample, "-o", str(tmp_path / "made.parquet")]) == 0
    lists = parquet.read_table(tmp_path / "made.parquet")["x"].to_pylist()
    assert all(np.allclose(one, two, atol=1e-5) for one, two in zip(lists, expected, strict=True))
    assert main([*sample, "--length", "4", "-o", str(tmp_path / "equal.parquet")]) == 0
    same(data.open(tmp_path / "equal.parquet"), again)
    capsys.readouterr()
    for more, why in (
        (["--length", "10", "-o", str(drawn)], "the longest sequence of the training has 9 steps"),
        (["-o", str(tmp_path / "a.npy")], "has no known kind"),
        (["-o", str(tmp_path / "a.h5")], "holds samples of one shape, and these end where they do"),
        (["--length", "3,4", "-o", str(drawn)], "--length has 2 numbers, and -n is 5"),
        (["--prompt", "a", "-o", str(drawn)], "--prompt is for models of text"),
    ):
        assert main([*sample, *more]) == 2 and why in capsys.readouterr().err
    assert main(["likelihood", run, str(place), "-n", "4", "--steps", "4"]) == 0
    assert "log p(x | its length)" in capsys.readouterr().out


def test_the_tools_of_a_run_take_sequences(tmp_path):
    made, labels = walks(120, 1), [f"class {i % 2}" for i in range(120)]
    given = {"x": made, "label": labels}
    net = "DiT(width=16, depth=1, patch=1)"
    run = sf.train(given, tmp_path / "run", net=net, steps=101, **{**SMALL, "batch": 8})
    model = sf.load(tmp_path / "run")
    assert model.spec == run.denoiser.spec and all(np.isfinite(line["loss"]) for line in run.metrics)
    assert all(bool(one.isfinite().all()) for one in sf.sample(sf.guide(model, 2.0), 4, steps=2, label="class 1"))
    assert np.isfinite(sf.board(model, given, samples=8, gradients=2).loss["model"].value.numpy()).all()
    assert "condition-dead" in sf.doctor(tmp_path / "run", given).checked
    shorter = {"x": [one[:6] for one in made], "label": labels}  # padded to the length that the model knows
    assert np.isfinite(sf.board(model, shorter, samples=8, gradients=0).loss["model"].value.numpy()).all()
    assert sf.memorization(model, given, samples=16, steps=2).samples == 16
    assert bool(sf.log_prob(model, made[:4], steps=4).value.isfinite().all())
    refused("by the ODE alone", lambda: sf.log_prob(model, made[:4], "elbo"))
    refused("no student in few steps", lambda: sf.distill(model, out=tmp_path / "student", steps=2))
    again = sf.train(shorter, tmp_path / "next", init=model, steps=2, **SMALL)
    assert again.denoiser.spec.lengths.steps[-1] == 6 and again.denoiser.spec.shape == (1, 9)
    plan = sf.forecast(given, net=net, steps=20, **{name: SMALL[name] for name in ("batch", "precision")})
    assert plan.facts["lengths"] == "sequences of 3 to 9 steps of 1 channel"
    refused(
        "which only the denoising loss", lambda: sf.train(made, tmp_path / "b", loss="score-matching", steps=2, **SMALL)
    )


def test_whole_numbers_come_back_as_whole_numbers(tmp_path):
    made = [np.random.default_rng(i).integers(0, 50, 3 + i % 4).astype(np.int16) for i in range(40)]
    source = data.open(made)
    assert source.dtype == "int16" and source.x.dtype == torch.float32
    assert data.open([np.arange(3), np.arange(4, dtype=np.uint8)] * 9).dtype == "int64"
    assert data.open([np.arange(3), np.ones(4, np.float32)] * 9).dtype == "float64"
    spec = DataSpec.fit(source)
    spec.check(made, whole=False)
    refused("fractions", lambda: spec.check([one + 0.5 for one in made], whole=False))
    run = sf.train(made, tmp_path / "run", net="SetTransformer(width=16, depth=1)", steps=2, **SMALL)
    found = sf.sample(run.denoiser, 3, steps=2, length=[2, 5, 6])
    assert [(one.dtype, len(one)) for one in found] == [(torch.int16, 2), (torch.int16, 5), (torch.int16, 6)]
    known = sf.load(tmp_path / "run").spec
    assert known == run.denoiser.spec and torch.allclose(known.together(made), source.x.double(), equal_nan=True)
    classes = {"x": made, "label": ["cold", "warm"] * 20}
    run = sf.train(classes, tmp_path / "of", net="SetTransformer(width=16, depth=1)", steps=2, **SMALL)
    assert main(["sample", str(tmp_path / "of"), "-n", "6", "--steps", "2", "-o", str(tmp_path / "a.npz")]) == 0
    again = data.open(tmp_path / "a.npz")
    assert again.classes == ["cold", "warm"] and again.dtype == "int16" and again.layout == "L"


@pytest.mark.slow
def test_a_trained_network_learns_the_autocovariance_of_each_length(tmp_path):
    net = "DiT(width=64, depth=2, patch=1)"
    how = {**SMALL, "batch": 128, "steps": 1500, "lr": 2e-3}
    run = sf.train(walks(8000), tmp_path / "run", net=net, **how)
    drawn = sf.sample(run.denoiser, 4000, steps=16)
    for length in STEPS:
        own = torch.stack([one[:, 0] for one in drawn if len(one) == length]).double()
        lag = torch.arange(length)
        assert float((own.T @ own / len(own) - RHO ** (lag[:, None] - lag).abs().double()).abs().max()) < 0.25, length
