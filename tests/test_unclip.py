"""unCLIP pairs: a linear Gaussian chain in closed form, embeddings, and pairs that are trained, saved and sampled."""

import numpy as np
import pytest
import torch

import sfumato as sf
from consoles import Heard
from sfumato.belief import Estimate
from sfumato.conditions import EMBEDDING
from sfumato.errors import SfumatoError
from sfumato.training.config import TrainConfig
from sfumato.training.console import Silent
from sfumato.training.run import Interrupted
from sfumato.training.stages import _optimiser_of_prior

F64 = torch.float64
PROCESS = sf.Gaussian(sf.schedules.LogLinear(-12.0, 12.0))
A = torch.tensor([[1.0], [-0.5]], dtype=F64)  # e = A y + n
B = torch.tensor([[1.0, 0.3], [0.2, 0.8], [-0.5, 0.4]], dtype=F64)  # x = B e + m
C_N, C_M = torch.diag(torch.tensor([0.5, 0.3], dtype=F64)), 0.2 * torch.eye(3, dtype=F64)
C_E = A @ A.T + C_N  # of all e, for y ~ N(0, 1)
C_X = B @ C_E @ B.T + C_M  # of all x
N = 6000


class Linear:
    """The exact denoiser of N(W c, cov) under a condition c."""

    process = PROCESS

    def __init__(self, name: str, weight: torch.Tensor, cov: torch.Tensor) -> None:
        self.name, self.weight, self.cov, self.shape = name, weight, cov, (len(cov),)

    def __call__(self, z, t, /, **cond):
        mean = cond[self.name].values.double() @ self.weight.T
        alpha, sigma = PROCESS.schedule.alpha(t), PROCESS.schedule.sigma(t)
        eye = torch.eye(len(self.cov), dtype=F64)
        gain = alpha * self.cov @ torch.linalg.inv(alpha**2 * self.cov + sigma**2 * eye)
        return Estimate(z, t, PROCESS.schedule, x=(mean + (z.double() - alpha * mean) @ gain.T).to(z))


PRIOR, DECODER = Linear("y", A, C_N), Linear(EMBEDDING, B, C_M)


def drawn(pair: sf.UnCLIP, y: torch.Tensor) -> torch.Tensor:
    return sf.sample(pair, len(y), 16, "heun", batch=N, y=y).double()


def test_prior_and_decoder_have_the_joint_law_of_a_linear_gaussian_chain() -> None:
    y = torch.randn(N, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    x = drawn(sf.UnCLIP(PRIOR, DECODER), y)
    joint = torch.cat((y, x), 1).T.cov()
    assert torch.allclose(joint[0, 1:], (B @ A)[:, 0], atol=0.08)  # Cov(y, x) = A^T B^T, of var y = 1
    assert torch.allclose(joint[1:, 1:], C_X, atol=0.12)
    one = drawn(sf.UnCLIP(PRIOR, DECODER), torch.full((N, 1), 1.5, dtype=F64))
    assert torch.allclose(one.mean(0), 1.5 * (B @ A)[:, 0], atol=0.05)
    assert torch.allclose(one.T.cov(), B @ C_N @ B.T + C_M, atol=0.08)


class Noisy(Linear):
    """The exact denoiser of p(x | e'), e' = e + s eta: N(B K e', B (C_e - K C_e) B^T + C_m), K = C_e (C_e + s^2)^-1."""

    def __init__(self, level: float) -> None:
        gain = C_E @ torch.linalg.inv(C_E + level**2 * torch.eye(2, dtype=F64))
        super().__init__(EMBEDDING, B @ gain, B @ (C_E - gain @ C_E) @ B.T + C_M)


def test_a_decoder_of_noisy_embeddings_keeps_the_law_of_the_data_and_forgives_the_prior() -> None:
    y = torch.randn(N, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    for level in (0.2, 1.0):
        decoder = Noisy(level)
        x = drawn(sf.UnCLIP(PRIOR, decoder, noise=level), y)
        assert torch.allclose(x.T.cov(), C_X, atol=0.12), level
        cov = torch.cat((y, x), 1).T.cov()[0, 1:]
        assert torch.allclose(cov, (decoder.weight @ A)[:, 0], atol=0.08), level
        off = float((decoder.weight @ torch.ones(2, dtype=F64)).norm())  # of a prior that is wrong by 1 everywhere
        assert (off < 0.9 * float((B @ torch.ones(2, dtype=F64)).norm())) == (level == 1.0)
    plain = drawn(sf.UnCLIP(PRIOR, Noisy(1.0)), y)  # not told: less than the data's spread
    assert float(plain.T.cov().trace()) < 0.9 * float(C_X.trace())
    pair = sf.UnCLIP(PRIOR, Noisy(1.0), noise=1.0)
    e = torch.tensor([[1.0, -1.0]])
    x = sf.sample(pair, 8, 10, seed=3, embedding=e)
    assert torch.equal(sf.sample(pair, index=[5], steps=10, seed=3, embedding=e), x[5:6])
    assert sf.guide(pair, 1.0).noise == 1.0
    with pytest.raises(SfumatoError, match="at least 0, not -1"):
        sf.UnCLIP(PRIOR, DECODER, noise=-1.0)


def test_a_decoder_that_ignores_the_embedding_draws_from_the_marginal() -> None:
    y = torch.randn(N, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    x = drawn(sf.UnCLIP(PRIOR, Linear(EMBEDDING, 0 * B, C_X)), y)
    assert torch.allclose(x.T.cov(), C_X, atol=0.12)
    assert float(torch.cat((y, x), 1).T.cov()[0, 1:].abs().max()) < 0.08


def test_a_given_embedding_takes_the_place_of_the_prior_and_samples_do_not_depend_on_the_batch() -> None:
    pair, y = sf.UnCLIP(PRIOR, DECODER), torch.linspace(-1, 1, 8, dtype=F64)[:, None]
    e, x = sf.sample(pair, 8, 10, seed=3, stages=True, y=y)
    assert e.shape == (8, 2) and x.shape == (8, 3)
    assert torch.allclose(sf.sample(pair, 8, 10, seed=3, embedding=e), x, atol=1e-6)
    some = sf.sample(pair, index=[5, 2], steps=10, seed=3, batch=1, y=y[[5, 2]])
    assert torch.allclose(some, x[[5, 2]], atol=1e-6)
    assert torch.equal(sf.sample(pair.prior, 8, 10, seed=3, y=y), e)  # the prior alone
    law = sf.sample(pair, N, 16, "heun", batch=N, embedding=torch.tensor([1.0, -1.0])).double()
    assert torch.allclose(law.mean(0), B @ torch.tensor([1.0, -1.0], dtype=F64), atol=0.04)
    with pytest.raises(SfumatoError, match="embedding is of shape"):
        sf.sample(pair, 8, 4, embedding=torch.zeros(3))
    with pytest.raises(SfumatoError, match="3 rows for 8"):
        sf.sample(pair, 8, 4, embedding=torch.zeros(3, 2))
    with pytest.raises(SfumatoError, match="leave out given, z and t"):
        sf.sample(pair, 2, t_stop=0.5, y=y[:2])
    with pytest.raises(SfumatoError, match="no embedder"):
        pair.embed(torch.zeros(1, 3))
    with pytest.raises(SfumatoError, match="trained together"):
        sf.UnCLIP(PRIOR, DECODER, sf.Embedder.fit(torch.randn(9, 3), "numbers", 1))


def test_embeddings_are_principal_components() -> None:
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(1)) @ torch.diag(torch.tensor([5.0, 3, 2, 1, 1, 1]))
    own = sf.Embedder.fit(x, "numbers", 2)
    e = own(x).double()
    u, s, _ = torch.linalg.svd(x.double() - x.double().mean(0), full_matrices=False)
    wanted = u[:, :2] * s[:2] / (s[:2].square().sum() / 2 / len(x)).sqrt()
    assert torch.allclose(e.abs(), wanted.abs(), atol=1e-4)
    assert float(e.square().sum(1).mean()) == pytest.approx(2, abs=1e-4)
    assert own.size == 2 and sf.Embedder.fit(x[:3], "numbers").size == 2  # no more than the samples have
    with pytest.raises(SfumatoError, match="the same for all samples"):
        sf.Embedder.fit(torch.ones(4, 2), "numbers")
    with pytest.raises(SfumatoError, match="no features 'convolution'"):
        sf.Embedder.fit(x, "convolution")
    with pytest.raises(SfumatoError, match="have shape"):
        own(torch.zeros(2, 5))


def test_an_embedder_in_a_file_knows_its_features_by_their_hash(tmp_path) -> None:
    @sf.register("features", "weighed")
    class Weighed(torch.nn.Module):
        scale = 1.0

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("w", torch.full((1,), self.scale))

        def forward(self, x):
            return self.w * x.flatten(1)

    x = torch.randn(50, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    place = sf.save(sf.Embedder.fit(x, "weighed", 3), tmp_path / "e.safetensors")
    assert torch.equal(sf.load(place)(x), sf.Embedder.fit(x, "weighed", 3)(x))
    Weighed.scale = 2.0
    with pytest.raises(SfumatoError, match="not those of the file"):
        sf.load(place)(x)


HOW = {
    "batch": 16, "steps": 16, "precision": "float32", "snapshots": 0, "sample_every": 0, "lr": 1e-3,
    "net": "UNet(channels=(8, 8), blocks=1, attention=())",
}  # fmt: skip


def pictures(n: int = 90) -> dict[str, object]:
    """Pictures of one of three colours, and captions that say it."""
    draw = np.random.default_rng(0)
    colour = draw.integers(0, 3, n)
    x = draw.integers(0, 40, (n, 3, 8, 8), dtype=np.uint8)
    x[np.arange(n), colour] += 180
    return {"x": x, "caption": [f"a {('red', 'green', 'blue')[c]} one" for c in colour]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of both stages that nothing disturbed."""
    return sf.train(pictures(), tmp_path_factory.mktemp("whole") / "run", unclip=True, console=Silent(), **HOW)


def test_one_command_trains_a_pair_and_one_file_holds_it(whole, tmp_path) -> None:
    data = pictures()
    (tmp_path / "alone.safetensors").write_bytes((whole.path / "model.safetensors").read_bytes())
    model = sf.load(tmp_path / "alone.safetensors")
    assert isinstance(model, sf.UnCLIP) and whole.metrics[-1]["step"] == 8  # half of the budget
    assert set(model.prior.spec.conditions) == {"caption"} == set(model.spec.conditions)
    assert set(model.decoder.spec.conditions) == {EMBEDDING}
    assert isinstance(model.decoder.net, sf.nets.Painted) and model.noise == 0.2 == whole.denoiser.noise
    e, x = sf.sample(model, 3, 4, caption="a red one", stages=True)
    assert x.shape == (3, 3, 8, 8) and x.dtype == torch.uint8 and e.shape == (3, model.embedder.size)
    assert torch.equal(x, sf.sample(whole.denoiser, 3, 4, caption="a red one"))
    assert torch.equal(sf.sample(model.prior, 3, 4, caption="a red one"), e)
    stored = np.load(whole.path / "embedding" / "embeddings.npy")
    assert np.allclose(model.embed(data["x"]), stored, atol=1e-5)
    with pytest.raises(SfumatoError, match="outside the declared"):
        model.embed(data["x"].astype(float) * 2)
    with pytest.raises(SfumatoError, match="'colour'"):
        sf.sample(model, 2, 2, colour="red")
    with pytest.raises(SfumatoError, match="'colour'"):
        sf.sample(model, 2, 2, embedding=e[:1], colour="red")


def test_each_stage_is_guided_to_what_it_knows(whole) -> None:
    both = sf.guide(whole.denoiser, 2.0)
    assert [stage.scale for stage in both.stages] == [2.0, 2.0]
    prior = sf.guide(whole.denoiser, {"caption": 3.0})
    assert prior.prior.scale == {"caption": 3.0} and prior.decoder is whole.denoiser.decoder
    away = sf.guide(whole.denoiser, 2.0, negative={"caption": "a blue one"})
    assert away.prior.negative == {"caption": "a blue one"} and away.decoder.negative is None
    assert sf.sample(away, 2, 2, caption="a red one").shape == (2, 3, 8, 8)
    with pytest.raises(SfumatoError, match="colour"):
        sf.sample(sf.guide(whole.denoiser, {"colour": 3.0}), 2, 2, caption="a red one")


def test_variations_and_the_way_between_two_pictures(whole) -> None:
    x, model = pictures()["x"], whole.denoiser
    e = model.embed(x[:2])
    found = sf.variations(model, x[0], 3, steps=3, seed=1)
    assert torch.equal(found, sf.sample(model, 3, 3, seed=1, embedding=e[0]))
    assert not torch.equal(found[0], found[1])
    way = sf.interpolate(model, x[:1], x[1:2], [0.0, 0.5, 1.0], steps=3)
    assert way.shape == (3, 1, 3, 8, 8)
    for at, embedding in ((0, e[:1]), (1, sf.slerp(e[:1], e[1:], 0.5)), (2, e[1:])):
        assert torch.equal(way[at], sf.sample(model, 1, 3, embedding=embedding))  # of the same noise
    assert torch.equal(sf.interpolate(model, x[:1], x[1:2], 0.5, steps=3), way[1:2])
    with pytest.raises(SfumatoError, match="unCLIP pair"):
        sf.variations(model.decoder, x[0])


def same(one: sf.Denoiser, other: sf.Denoiser) -> bool:
    return all(a.equal(b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_a_run_goes_on_with_the_stage_that_was_stopped(stage, whole, tmp_path) -> None:
    out = tmp_path / "run"

    class Stops(Heard):
        def __call__(self, progress):
            if progress.step == 4 and (out / "prior" / "model.safetensors").exists() == (stage == "decoder"):
                raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=str(out)):
        sf.train(pictures(), out, unclip=True, console=Stops(), **HOW)
    if stage == "decoder":  # what is there so far is a pair, too
        assert sf.sample(sf.load(out), 2, 2, caption="a red one").shape == (2, 3, 8, 8)
    moved = out.rename(tmp_path / "elsewhere")
    run = sf.resume(moved, pictures(), console=Silent())
    assert same(run.denoiser.decoder, whole.denoiser.decoder)
    assert sf.training.run.folder.read(moved / "prior" / "metrics.jsonl")[-1]["step"] == 8
    # a prior of words that was stopped is drawn other unknown words by torch's generator, as a resumed run of any model
    assert stage == "prior" or same(run.denoiser.prior, whole.denoiser.prior)
    assert torch.equal(run.denoiser.embedder.basis, whole.denoiser.embedder.basis)


def test_a_pair_whose_decoder_draws_codes_goes_on_with_its_autoencoder_and_is_one_file(tmp_path) -> None:
    out = tmp_path / "run"

    class Stops(Heard):
        def __call__(self, progress):
            if progress.step == 2 and (out / "autoencoder" / "config.yaml").exists():
                raise KeyboardInterrupt

    how = {**HOW, "net": "tiny", "autoencoder": "Autoencoder(latent=2, channels=(8, 8))", "reconstruction": 0}
    with pytest.raises(Interrupted, match=str(out)):
        sf.train(pictures(), out, unclip=True, console=Stops(), **{**how, "loss": "decoding(noise=0.5)"})
    run = sf.resume(out, pictures(), console=Silent())
    steps = [sf.training.run.folder.read(out / part / "metrics.jsonl")[-1]["step"] for part in ("autoencoder", "prior")]
    assert steps == [3, 8] and run.metrics[-1]["step"] == 5  # 0.4 of the decoder's half, and the rest
    (tmp_path / "alone.safetensors").write_bytes((out / "model.safetensors").read_bytes())
    pair = sf.load(tmp_path / "alone.safetensors")
    assert isinstance(pair.decoder, sf.Latent) and pair.noise == 0.5
    assert set(pair.decoder.spec.conditions) == {EMBEDDING} and set(pair.spec.conditions) == {"caption"}
    x = sf.sample(pair, 2, 3, caption="a red one")
    assert x.shape == (2, 3, 8, 8) and x.dtype == torch.uint8
    assert sf.variations(sf.guide(pair, 1.5), pictures()["x"][0], 2, steps=2).shape == (2, 3, 8, 8)


def test_a_prior_of_embedded_captions_is_trained_by_adamw_unless_an_optimiser_is_named() -> None:
    embedded = {"conditions": {"caption": "text(minilm)"}}
    assert _optimiser_of_prior(TrainConfig(**embedded)) == {"optimizer": "adamw", "lr": 2e-3}
    for named in (
        {},
        {"conditions": {"caption": "text"}},
        {**embedded, "lr": 1e-3},
        {**embedded, "optimizer": "adamw"},
    ):
        assert _optimiser_of_prior(TrainConfig(**named)) == {}, named


def test_a_prior_alone_takes_an_embedder_that_is_given(whole, tmp_path) -> None:
    own = whole.denoiser.embedder
    run = sf.train(pictures(), tmp_path / "prior", embedding=own, console=Silent(), **{**HOW, "net": "tiny"})
    assert run.denoiser.shape == (own.size,) and set(run.denoiser.spec.conditions) == {"caption"}
    sf.train(pictures(), tmp_path / "file", embedding=whole.path / "embedding", console=Silent(),
             **{**HOW, "net": "tiny", "steps": 1})  # fmt: skip
    for changes, said in (
        ({"embedding": "convolution"}, "did you mean 'convolutions'"),
        ({"embedding": own, "latent": True}, "take one of latent"),  # a prior has no codes
        ({"unclip": True, "init": whole.path}, "unclip and embedding"),
        ({"embedding": whole.path / "prior"}, "holds a Denoiser"),
    ):
        with pytest.raises(SfumatoError, match=said):
            sf.train(pictures(), tmp_path / "no", console=Silent(), **{**HOW, **changes})
        assert not (tmp_path / "no").exists() or not any((tmp_path / "no").iterdir()), changes


@pytest.mark.slow
def test_a_trained_pair_draws_the_colour_that_a_caption_names(tmp_path) -> None:
    how = {**HOW, "steps": 600, "lr": 4e-3, "net": "tiny"}
    model = sf.train(pictures(300), tmp_path / "run", unclip=True, console=Silent(), **how).denoiser
    for c, name in enumerate(("red", "green", "blue")):
        x = sf.sample(model, 24, 10, caption=f"a {name} one").float().mean((2, 3))
        assert float((x.argmax(1) == c).float().mean()) > 0.7, name  # chance 1/3
    x = sf.variations(model, pictures()["x"][0], 24, steps=10).float().mean((2, 3))
    assert float((x.argmax(1) == int(pictures()["x"][0].mean((1, 2)).argmax())).float().mean()) > 0.7
