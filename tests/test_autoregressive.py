"""The autoregressive model of symbols: an exact law, sampled as it is measured, trained by the same loop."""

import itertools

import pytest
import torch

import sfumato as sf
from sfumato.autoregressive import Autoregressive

K, LENGTH = 3, 4


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = sf.nets.Transformer((K, LENGTH), 16, 1, heads=1, mask="causal")
    for parameter in net.parameters():
        if not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.5)
    return Autoregressive(net.double().eval().requires_grad_(False))


def test_probabilities_sum_to_one_and_samples_follow_them(model):
    states = torch.tensor(list(itertools.product(range(K), repeat=LENGTH)))[:, None]
    p = model.log_prob(states).exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-5)
    count = 20_000
    drawn = model.extended(torch.empty(count, 1, 0, dtype=torch.int64), LENGTH, 0, torch.arange(count))
    place = (drawn[:, 0] * K ** torch.arange(LENGTH - 1, -1, -1)).sum(1)
    found = place.bincount(minlength=len(p)).double()
    chi2 = float(((found - count * p) ** 2 / (count * p)).sum())
    assert chi2 < 130, chi2  # 80 degrees of freedom; a fixed seed


def test_what_is_known_stays_and_draws_depend_on_seed_and_number(model):
    start = torch.tensor([[[2, 0]]]).expand(8, 1, 2)
    x = model.extended(start, LENGTH, 3, torch.arange(8))
    assert torch.equal(x[..., :2], start)
    assert torch.equal(x[5:], model.extended(start[:3], LENGTH, 3, torch.arange(5, 8)))


def test_a_cold_draw_is_the_likeliest_symbol(model):
    start = torch.empty(1, 1, 0, dtype=torch.int64)
    cold = [model.extended(start, LENGTH, seed, torch.zeros(1), temperature=1e-3) for seed in range(5)]
    x = start
    for _ in range(LENGTH):
        spare = torch.cat([x, x.new_zeros(1, 1, 1)], 2)
        x = torch.cat([x, model.logits(spare)[:, :, -1].argmax(-1)[..., None]], 2)
    assert all(torch.equal(each, x) for each in cold)
    assert torch.equal(model.extended(start, LENGTH, 7, torch.zeros(1), top_p=1e-6), x)


def test_other_networks_are_refused():
    for net in (sf.nets.MLP(3, 8, 1), sf.nets.Transformer((K, LENGTH), 16, 1)):
        with pytest.raises(sf.SfumatoError, match="mask='causal'"):
            Autoregressive(net)


def test_it_is_trained_saved_sampled_and_measured_as_any_text(tmp_path):
    text = "the cat sat on the mat. " * 60
    run = sf.train([text], tmp_path / "run", length=16, steps=120, batch=16, net="tiny", loss="autoregressive")
    model = sf.load(tmp_path / "run")
    assert isinstance(model, Autoregressive) and model.spec.text is not None
    assert model.net.config["args"]["width"] == 64 and model.net.mask == "causal"
    drawn = sf.sample_text(model, 2, length=60, prompt="the cat sat on")
    assert all(each == text[:60] for each in drawn)
    assert drawn[1:] == sf.sample_text(model, index=[1], length=60, prompt="the cat sat on")
    with pytest.raises(sf.SfumatoError, match="knows beginnings only"):
        sf.sample_text(model, infill="t_e cat")
    assert "Bits per character" in (run.path / "report.html").read_text()
    windows = sf.data.open([text], length=16).x[:20]
    found = sf.log_prob(model, windows)
    torch.testing.assert_close(found.value, model.log_prob(windows).double().detach())
    assert not found.bound and float(found.bits_per_dim.mean()) < 0.5
    same = windows[:1].clone().fill_(3)  # one letter over and over is improbable, but no data in other units
    assert float(sf.log_prob(model, same).value) < float(found.value.min())
    with pytest.raises(sf.SfumatoError, match="leave the method out"):
        sf.log_prob(model, windows, "elbo")


def test_by_the_command_line(tmp_path, capsys):
    from sfumato.cli import main

    book, run = tmp_path / "book.txt", str(tmp_path / "run")
    book.write_text("the cat sat on the mat. " * 60)
    words = ["--length", "16", "--steps", "4", "--net", "tiny", "--loss", "autoregressive"]
    assert main(["train", str(book), "-o", run, *words]) == 0
    assert main(["info", run]) == 0 and "sf.sample_text" in capsys.readouterr().out
    assert "\nprocess: none\n" in (tmp_path / "run/config.yaml").read_text()
    assert main(["resume", run, "--steps", "6"]) == 0
    assert main(["sample", run, "-n", "1", "--prompt", "the", "-o", str(tmp_path / "x.txt")]) == 0
    assert (tmp_path / "x.txt").read_text().startswith("the")
    assert main(["train", str(book), "-o", f"{run}2", *words, "--init", run]) == 2
    capsys.readouterr()
    assert main(["train", str(book), "-o", f"{run}3", *words[:6], "--process", "none"]) == 2
    assert "leave process out" in capsys.readouterr().err
    assert main(["train", str(book), "-o", f"{run}3", *words, "--process", "none"]) == 0
