"""Autoencoders through the loop of all models: the linear one to its known optimum, convolutional ones on pictures."""

import pytest
import torch

import sfumato as sf
from sfumato.data import DataSpec
from sfumato.diagnostics.validation import validator_for
from sfumato.exact import PPCA
from sfumato.nets import Autoencoder
from sfumato.objectives.loss import Batch
from sfumato.objectives.losses import Autoencoding
from sfumato.training import State, TrainConfig, fit


def settings(steps: int, lr: float, ema: float = 0.0, batch: int = 256) -> TrainConfig:
    return TrainConfig(steps=steps, batch=batch, lr=lr, ema=ema, precision="float32", weight_decay=0.0)


def test_a_linear_vae_reaches_the_maximum_likelihood_of_principal_components() -> None:
    """Its ELBO and the likelihood of its decoder, within 0.02 nats of the closed form, from 2 nats below."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    x = PPCA(torch.randn(8, 2, generator=generator, dtype=torch.float64), 0.0, 0.3).sample(1024)
    best = float(PPCA.fit(x, 2).log_prob(x).mean())
    codec = sf.Codec(Autoencoder((8,), 2, ()))
    net, rows = codec.net, x.float()

    def learned() -> tuple[float, float]:
        decoder = net.decoder.output
        law = PPCA(decoder.weight.detach(), decoder.bias.detach(), float(net.log_variance.detach().exp()))
        bound = sf.vae.elbo(net, rows.repeat(8, 1), seed=1).nats.mean().detach()
        return float(law.log_prob(x).mean()), float(bound)

    before = learned()
    for _ in fit(codec, rows, settings(500, 5e-2), loss=Autoencoding()):
        pass
    likelihood, bound = learned()
    assert before[0] < best - 2
    assert best - 0.02 < likelihood < best  # nothing can be above the maximum
    assert bound == pytest.approx(best, abs=0.04)  # 8192 draws of it have a standard error of 0.01


def test_the_variance_of_the_decoder_keeps_up_with_its_error() -> None:
    """In 200 steps it comes down from 1 to the mean square of the residual; at the rate of weights to 0.5 at best."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    x = PPCA(torch.randn(8, 2, generator=generator, dtype=torch.float64), 0.0, 0.3).sample(1024).float() / 10
    codec = sf.Codec(Autoencoder((8,), 2, ()))
    for _ in fit(codec, x, settings(200, 4e-3), loss=Autoencoding()):
        pass
    net = codec.net
    with torch.no_grad():
        error = x - net.decode(net.encode(x).sample(torch.randn(1024, 2, generator=generator)))
    assert float(net.log_variance) < -2
    assert float(net.log_variance) == pytest.approx(float(error.square().mean().log()), abs=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("bottleneck", ["kl", "vq"])
def test_a_convolutional_one_learns_to_reconstruct_pictures(bottleneck: str) -> None:
    torch.manual_seed(0)
    source = sf.data.open("digits")
    spec, (train, held) = DataSpec.fit(source), source.split()
    net = Autoencoder(source.shape, 4, (16, 32), bottleneck=bottleneck, codes=64, variance=0.05)
    codec, goal = sf.Codec(net, spec), Autoencoding()
    config = settings(200, 4e-3, 0.05, 64)
    state = State(codec, config, goal)
    run = list(fit(codec, source.x[train], config, holdout=(source.x[held], None), state=state))
    losses = [p.validation.best for p in run if p.validation is not None]
    assert losses[-1] < 0.6 and losses == sorted(losses, reverse=True)
    x = source.x[held].double()
    error = state.best(source.x[held]).double() - x
    # of 64 numbers a picture, from 64 of a Gaussian code or from 16 codes of 6 bits: the unexplained share of variance
    assert float(error.square().mean() / x.var()) < {"kl": 0.03, "vq": 0.08}[bottleneck]
    if bottleneck == "vq":
        assert goal.restarted >= 64 and 10 < state.best.net.quantiser.perplexity <= 64


@pytest.mark.parametrize("bottleneck", ["kl", "vq"])
def test_a_run_that_is_interrupted_ends_in_the_same_weights(bottleneck: str) -> None:
    def start() -> tuple[sf.Codec, State]:
        torch.manual_seed(0)
        codec = sf.Codec(Autoencoder((6,), 2, (16,), bottleneck=bottleneck, codes=8))
        return codec, State(codec, config, Autoencoding())

    x, config = torch.randn(100, 6, generator=torch.Generator().manual_seed(1)), settings(12, 1e-2, 0.1, 32)
    whole, state = start()
    for _ in fit(whole, x, config, state=state):
        pass
    first, broken = start()
    steps = fit(first, x, config, state=broken)
    for _ in range(5):
        next(steps)
    kept = {name: value.clone() for name, value in broken.tensors().items()}
    again, resumed = start()
    resumed.load(kept, broken.counters())
    for _ in fit(again, x, config, state=resumed):
        pass
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
    assert resumed.tensors().keys() == state.tensors().keys()
    assert all(torch.equal(value, resumed.tensors()[name]) for name, value in state.tensors().items())


def test_the_codebook_moves_in_training_alone() -> None:
    torch.manual_seed(0)
    codec, goal = sf.Codec(Autoencoder((6,), 2, (16,), bottleneck="vq", codes=8)), Autoencoding()
    before = codec.net.quantiser.codebook.clone()
    x = torch.randn(64, 6)
    codec.eval()
    validator_for(goal, codec, x, {}, 64, 32).measure(codec, None)
    goal.observe(Batch(x, {}, torch.arange(64), torch.zeros(64)), torch.zeros(64))
    assert torch.equal(codec.net.quantiser.codebook, before)
    for _ in fit(codec, x, settings(2, 1e-2, batch=32), loss=goal):
        pass
    assert not torch.equal(codec.net.quantiser.codebook, before) and goal.restarted >= 8


@pytest.mark.parametrize("micro", [32, 8, 5])
def test_a_codebook_learns_from_the_whole_batch(micro: int) -> None:
    """In parts or at once, the codes are the same."""
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))

    def codebook(parts: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        codec = sf.Codec(Autoencoder((6,), 2, (16,), bottleneck="vq", codes=8))
        config = TrainConfig(
            steps=3, batch=32, micro=parts, lr=1e-3, ema=0, optimizer="adamw", precision="float32", weight_decay=0.0
        )
        for _ in fit(codec, x, config, loss=Autoencoding()):
            pass
        return codec.net.quantiser.codebook

    torch.testing.assert_close(codebook(micro), codebook(None), rtol=0, atol=1e-5)
