"""Symbols as vectors under the Gaussian process: exact on tables, and trained."""

import math

import numpy as np
import pytest
import torch

import sfumato as sf
from sfumato import noise as numbers
from sfumato.exact import Table
from sfumato.objectives.adaptive import warped
from sfumato.objectives.cross_entropy import CrossEntropy
from sfumato.objectives.loss import Batch
from sfumato.objectives.times import UniformLogSNR, UniformTime
from sfumato.process import Embedded, Gaussian, Masked, Uniform

F64, FLOW = torch.float64, sf.schedules.Flow()
FIXED = ("bits", "simplex", "random")
TABLE = Table(torch.rand(5, 5, generator=torch.Generator().manual_seed(0), dtype=F64) ** 3)
PAIR = Table(torch.eye(3, dtype=F64).roll(1, 0) + 0.05)  # the second symbol mostly follows from the first


def noise(n: int, *shape: int) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1), dtype=F64)


@pytest.mark.parametrize("codebook", FIXED)
def test_all_symbols_come_back(codebook):
    process, x = Embedded(FLOW, 256, codebook), torch.arange(256).reshape(16, 4, 4)
    clean = process.data(x)
    assert clean.shape == (16, 4 * process.dim, 4) and torch.equal(process.table(clean), x)
    assert float(clean.square().mean()) == pytest.approx(1, abs=1e-6)
    assert process.sample_shape(process.net_shape((4, 4))) == (4, 4)
    wide = Embedded(FLOW, 256, codebook, scale=5.0)
    assert torch.allclose(wide.vectors, 5 * process.vectors) and wide.sigma_data == 5
    with pytest.raises(sf.SfumatoError, match="integers from 0 to 255"):
        process.data(x + 1)


def test_bits_are_those_of_the_number():
    process = Embedded(FLOW, 256)
    assert process.dim == 8
    clean = process.data(torch.tensor([[0b10110001]]))
    assert clean[0].tolist() == [1, -1, -1, -1, 1, 1, -1, 1]


@pytest.mark.parametrize("codebook", FIXED)
@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_the_belief_is_the_posterior_and_its_score_that_of_the_law(codebook, t):
    process = Embedded(FLOW, 5, codebook)
    x = process.data(TABLE.states.double())
    z = process.corrupt(x, t, noise(25, *x.shape[1:])).requires_grad_()
    alpha, sigma = process.schedule(t)
    log_joint = TABLE.probs.log() - (z[:, None] - alpha * x).square().sum(2) / (2 * sigma**2)
    (score,) = torch.autograd.grad(log_joint.logsumexp(1).sum(), z)
    posterior, score = TABLE.marginals(log_joint.softmax(1)).detach(), score.detach()
    belief = TABLE.denoiser(process)(z.detach(), t)
    assert float((belief.prob - posterior).abs().max()) < 1e-10
    assert float((belief.score - score).abs().max()) < 1e-10 * max(1.0, float(score.abs().max()))
    assert float(((alpha * belief.x - z.detach()) / sigma**2 - score).abs().max()) < 1e-10 * max(
        1.0, float(score.abs().max())
    )


@pytest.mark.parametrize("codebook", FIXED)
def test_both_rows_say_the_same(codebook):
    process = Embedded(FLOW, 5, codebook)
    z = process.corrupt(TABLE.states, 0.4, noise(25, 2 * process.dim))
    exact = TABLE.denoiser(process)(z, 0.4)
    for row, said in (("other", exact.law.other), ("x", exact.log_prob)):
        spare = torch.zeros(25, process.outputs * process.dim - 5, 2, dtype=F64)
        channels = torch.cat([said.movedim(-1, 1), spare], 1).flatten(1)  # as an MLP lays them out
        assert channels.shape[1] == process.outputs * z.shape[1]
        belief = Embedded(FLOW, 5, codebook, row=row).read(channels, z, 0.4)
        assert torch.allclose(belief.prob, exact.prob, atol=1e-12) and torch.allclose(belief.x, exact.x, atol=1e-12)


SMALL = {
    "two tokens of one bit": (Table(torch.tensor([[0.5, 0.1], [0.15, 0.25]], dtype=F64)), Embedded(FLOW, 2)),
    "three symbols of two bits": (Table(torch.tensor([0.2, 0.7, 0.1], dtype=F64)), Embedded(FLOW, 3)),
    "random vectors": (Table(torch.tensor([0.2, 0.3, 0.1, 0.4], dtype=F64)), Embedded(FLOW, 4, "random", 2)),
    "simplex": (Table(torch.tensor([0.2, 0.8], dtype=F64)), Embedded(FLOW, 2, "simplex", scale=0.5)),
}


class One:
    """A density of 1 per unit of logsnr."""

    def density(self, logsnr, schedule):
        return torch.ones_like(logsnr)


@pytest.mark.parametrize("name", SMALL)
def test_the_bound_of_an_exact_belief_is_the_log_probability(name):
    """By quadrature: Gauss-Hermite over the two numbers of eps, Gauss-Legendre over logsnr.

    Where it ends, a single symbol may still be unknown; the last term takes several to be independent.
    """
    law, process = SMALL[name]
    model, low, high = law.denoiser(process), -24.0, 1.5 if law.dim == 1 else 3.5
    nodes, weights = np.polynomial.hermite_e.hermegauss(180)
    keep = weights > 1e-20
    one, mass = torch.tensor(nodes[keep]), torch.tensor(weights[keep] / math.sqrt(2 * math.pi))
    eps, share = torch.cartesian_prod(one, one), (mass[:, None] * mass).flatten()
    places, widths = (torch.tensor(each) for each in np.polynomial.legendre.leggauss(80))
    for number, x in enumerate(process.data(law.states.double())):
        x = x.expand(len(eps), -1)

        def over_noise(logsnr, measure, x=x):
            t = process.schedule.time(torch.tensor(logsnr, dtype=F64))
            return float(share @ measure(model(process.corrupt(x, t, eps), t), x))

        def rate(belief, x):
            return process.loss(belief, x, eps, torch.ones_like, One())

        levels, half = ((low + high) / 2 + (high - low) / 2 * places).tolist(), (high - low) / 2
        diffusion = half * sum(float(w) * over_noise(level, rate) for level, w in zip(levels, widths, strict=True))
        bound = diffusion + over_noise(high, lambda belief, x: belief.nats(x)) + float(process.prior_kl(x[:1])[0])
        assert bound == pytest.approx(-float(law.probs[number].log()), abs=1e-6)


@pytest.mark.parametrize("codebook", FIXED)
def test_log_prob_is_in_nats_of_the_symbols(codebook):
    found = sf.log_prob(TABLE.denoiser(Embedded(FLOW, 5, codebook)), TABLE.states, steps=64, probes=16)
    mean, error = float(TABLE.probs @ found.value), float((TABLE.probs * found.stderr).square().sum().sqrt())
    assert abs(mean + TABLE.entropy) < 4 * error < 0.4
    assert found.dim == 2 and found.dequantisation == "symbols" and found.bound


def test_the_argmax_is_right_where_noise_ends():
    probs = torch.rand(200, generator=torch.Generator().manual_seed(3), dtype=F64)
    law, process = Table(probs), Embedded(FLOW, 200, "random")
    x = torch.arange(200)[:, None]
    for t, right in ((0.9, False), (0.05, True), (1e-4, True), (0.0, True)):
        belief = law.denoiser(process)(process.corrupt(process.data(x.double()), t, noise(200, 16)), t)
        assert bool((belief.prob.argmax(-1) == x).all()) == right
    assert torch.allclose(belief.x, process.data(x.double())) and float(belief.entropy.max()) == 0


@pytest.mark.parametrize("row", ["other", "x"])
def test_patterns_of_no_symbol_are_never_drawn(row):
    """Five symbols of three bits: a network that says anything, few steps, and the clean pattern of the symbol 7."""
    process = Embedded(FLOW, 5, row=row)
    torch.manual_seed(0)
    net = sf.nets.MLP(6, 16, 1, outputs=process.outputs)
    for part in net.parameters():
        torch.nn.init.normal_(part)
    for steps, solver in ((1, "ddim"), (4, "heun"), (6, "ancestral")):
        drawn = sf.sample(sf.Denoiser(net, process), 500, steps, solver)
        assert (
            drawn.dtype == torch.int64
            and drawn.shape == (500, 2)
            and {0} < set(drawn.unique().tolist()) <= set(range(5))
        )
    assert int(process.table(torch.ones(1, 3))) in range(5)


def test_a_single_call_draws_from_the_law_of_each_symbol():
    model = TABLE.denoiser(Embedded(FLOW, 5))
    drawn, n = sf.sample(model, 20_000, steps=1, solver="ddim", batch=20_000), 20_000
    wanted = TABLE.marginals(TABLE.probs[None])[0]
    found = torch.nn.functional.one_hot(drawn, 5).double().mean(0)
    assert float((found - wanted).abs().max()) < 4 * 0.5 / math.sqrt(n)
    again = sf.sample(model, index=[7, 3], steps=1, solver="ddim")
    assert torch.equal(again, drawn[[7, 3]])


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpm++2m", "ddpm", "euler-maruyama", "ancestral"])
def test_every_gaussian_solver_draws_the_law(solver):
    drawn = sf.sample(TABLE.denoiser(Embedded(FLOW, 5)), 4000, steps=40, solver=solver, batch=4000)
    found = torch.bincount(TABLE.place(drawn), minlength=25).double() / 4000
    assert float((found - TABLE.probs).abs().sum()) / 2 < 0.05


@pytest.mark.parametrize("codebook", ["bits", "random"])
def test_a_tuned_plan_ends_at_the_symbols_of_the_fine_solve(codebook, tmp_path):
    process = Embedded(FLOW, 5, codebook)
    model = TABLE.denoiser(process)
    plan = sf.tune(model, 5, points=256, rounds=3)
    assert plan.tuned["error"]["median"] <= plan.tuned["untuned"]["median"]
    fine, usual, tuned = (
        sf.sample(model, 2000, batch=2000, **how)
        for how in ({"steps": 200, "solver": "ddim"}, {"steps": 5, "solver": "ddim"}, {"solver": plan})
    )
    wrong = [float((each != fine).double().mean()) for each in (usual, tuned)]
    assert wrong[1] < 0.9 * wrong[0]
    torch.manual_seed(0)
    net = sf.nets.MLP(*process.net_shape((2,)), 8, 1, outputs=process.outputs)
    stored = sf.Denoiser(net, process)
    stored.plans["5"] = plan
    sf.save(stored, tmp_path / "model.safetensors")
    again = sf.load(tmp_path / "model.safetensors")
    assert torch.equal(sf.sample(again, 40, steps=5), sf.sample(stored, 40, solver=plan))


def ce(model, u, times):
    batch = Batch(TABLE.sample(len(u), seed=9).double(), {}, torch.arange(len(u)), u)
    return CrossEntropy(times).losses(model, batch)


def test_warped_levels_make_the_cross_entropy_linear():
    model, times = TABLE.denoiser(Embedded(FLOW, 5, "random")), warped(floor=0.01)
    loss = CrossEntropy(times, seed=1)
    for step in range(40):
        index = torch.arange(2000 * step, 2000 * (step + 1))
        batch = Batch(TABLE.sample(2000, first=2000 * step).double(), {}, index, (torch.arange(2000) + 0.5) / 2000)
        loss.observe(batch, loss.losses(model, batch))
    u = torch.linspace(0, 1, 11, dtype=F64).clamp(1e-6, 1 - 1e-6)

    def bend(density):
        """How far the mean loss at the quantiles is from a straight line, as a share of its range."""
        found = ce(model, u.repeat_interleave(4000), density).reshape(11, -1).mean(1)
        line = found[0] + (found[-1] - found[0]) * u
        return float((found - line).abs().max() / (found[-1] - found[0]))

    assert bend(times) < 0.05 < 0.15 < bend(UniformLogSNR())


def test_the_cross_entropy_is_that_of_any_process_of_symbols():
    for process in (Masked(FLOW, 5), Uniform(FLOW, 5), Embedded(FLOW, 5, "simplex")):
        model, u = TABLE.denoiser(process), torch.tensor([0.2, 0.6, 0.95], dtype=F64)
        x, index = torch.tensor([[0.0, 4.0], [2.0, 2.0], [3.0, 1.0]], dtype=F64), torch.arange(3)
        found = CrossEntropy(UniformTime()).losses(model, Batch(x, {}, index, u))
        t = process.clock.time(UniformTime().logsnr(u, process.clock))
        z = process.corrupt(process.data(x), t, sf.Noise(0, index, numbers.TRAIN_NOISE))
        for one, clean, level, loss in zip(z, x.long(), t, found, strict=True):
            prob = model(one[None], float(level)).prob[0]
            assert float(loss) == pytest.approx(-float(prob[[0, 1], clean].log().mean()), abs=1e-9)


def trained(process, steps=300):
    torch.manual_seed(0)
    net = sf.nets.MLP(*process.net_shape((2,)), width=48, depth=2, outputs=process.outputs)
    net = sf.nets.Codebook(net, process.states, process.dim) if process.codebook == "learned" else net
    model, loss = sf.Denoiser(net, process), CrossEntropy(UniformTime())
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(steps):
        index = torch.arange(256 * step, 256 * (step + 1))
        batch = Batch(PAIR.sample(256, first=256 * step).float(), {}, index, (torch.arange(256) + 0.5).double() / 256)
        optimizer.zero_grad()
        loss.losses(model, batch).mean().backward()
        optimizer.step()
    return model


@pytest.mark.first(2)
@pytest.mark.parametrize(
    ("codebook", "row"),
    [("bits", "other"), ("simplex", "x"), ("random", "other"), ("learned", "other"), ("learned", "x")],
)
def test_a_small_network_learns_a_pair(codebook, row):
    process = Embedded(FLOW, 3, codebook, 0 if codebook in ("bits", "simplex") else 4, row=row)
    model = trained(process)
    drawn = sf.sample(model, 4000, steps=20, batch=4000)
    found = torch.bincount(PAIR.place(drawn), minlength=9).double() / 4000
    assert float((found - PAIR.probs).abs().sum()) / 2 < 0.1  # independent symbols: 0.58


def test_the_denoising_loss_teaches_it_too():
    process = Embedded(FLOW, 3)
    torch.manual_seed(0)
    model = sf.Denoiser(sf.nets.MLP(4, 48, 2, outputs=2), process)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(300):
        optimizer.zero_grad()
        sf.denoising_loss(model, PAIR.sample(256, first=256 * step), seed=step).mean().backward()
        optimizer.step()
    drawn = sf.sample(model, 4000, steps=20, batch=4000)
    found = torch.bincount(PAIR.place(drawn), minlength=9).double() / 4000
    assert float((found - PAIR.probs).abs().sum()) / 2 < 0.06


def test_learned_vectors_move_stay_normalised_and_apart(tmp_path):
    process = Embedded(FLOW, 3, "learned", 4)
    before, model = trained(process, 1).process.vectors, trained(process)
    after = model.process.vectors
    assert torch.allclose(after.norm(dim=1), torch.full((3,), 2.0, dtype=F64)) and after.requires_grad
    assert float((after - before).detach().abs().max()) > 0.01
    assert float(torch.pdist(after.detach()).min()) > 1.5  # 4 is the most, 3.5 that of a simplex
    again = sf.load(sf.save(model, tmp_path / "model.safetensors"))
    assert torch.equal(again.process.vectors, after) and again.process == model.process
    assert torch.equal(sf.sample(again, 20, 4), sf.sample(model, 20, 4))
    moved = sf.Rescheduled(model, sf.schedules.Cosine())
    with torch.no_grad():
        model.net.codebook.weight.mul_(torch.tensor([1.0, -1.0, 1.0, 1.0]))
    assert torch.equal(moved.process.vectors, model.process.vectors)


@pytest.mark.parametrize("codebook", ["bits", "learned"])
def test_pictures_of_symbols_are_trained_by_a_u_net(tmp_path, codebook):
    words = {"loss": "cross-entropy", "times": "warped"} if codebook == "learned" else {}
    run = sf.train("digits", tmp_path, net="tiny", steps=3, process=f"embedded(codebook={codebook})", **words)
    model = sf.load(tmp_path)
    assert model.process.states == 17 and model.shape == (1, 8, 8)
    assert model.net.shape == (model.process.dim, 8, 8) and model.net.outputs == -(-17 // model.process.dim)
    drawn = sf.sample(model, 6, 3)
    assert drawn.shape == (6, 1, 8, 8) and drawn.dtype == torch.uint8 and int(drawn.max()) <= 16
    assert run.path == tmp_path and 0 < float(sf.log_prob(model, drawn[:2], steps=8).bits_per_dim.mean()) < 16


def test_a_guided_belief_mixes_log_probabilities():
    torch.manual_seed(0)
    net = sf.nets.MLP(4, 16, 1, classes=2, outputs=2)
    for part in net.parameters():
        torch.nn.init.normal_(part, std=0.3)
    model, label = sf.Denoiser(net, Embedded(FLOW, 3)), torch.tensor([0, 1, 0, 1])
    z = torch.randn(4, 4)
    one, null = model(z, 0.6, label=label), model(z, 0.6)
    guided = sf.guide(model, 3.0)(z, 0.6, label=label)
    wanted = (null.log_prob + 3 * (one.log_prob - null.log_prob)).softmax(-1)
    assert torch.allclose(guided.prob, wanted, atol=1e-5)
    assert torch.allclose(guided.x, model.process.mean(wanted), atol=1e-5)


def test_what_cannot_be_is_one_sentence():
    process, learned = Embedded(FLOW, 5), Embedded(FLOW, 5, "learned", 4)
    for wrong, said in (
        (lambda: Embedded(FLOW, 5, "onehot"), "Unknown codebook"),
        (lambda: Embedded(FLOW, 5, row="ratio"), "Unknown row"),
        (lambda: Embedded(FLOW, 5, dim=4), "leave dim out"),
        (lambda: Embedded(FLOW, 5, "random", 1), "2 or more|at least 2"),
        (lambda: Embedded(FLOW, 5, scale=0.0), "above 0"),
        (lambda: Embedded(FLOW, 50_000, "simplex"), "50,000 symbols has as many numbers"),
        (lambda: learned.vectors, "model.process"),
        (lambda: sf.Denoiser(sf.nets.MLP(8), learned), "outputs=2"),
        (lambda: sf.Denoiser(sf.nets.MLP(8, outputs=2), learned), "nets.Codebook"),
        (lambda: sf.Denoiser(sf.nets.MLP(8, outputs=2), process), "multiple"),
        (lambda: sf.Denoiser(sf.nets.Transformer((5, 4)), process), "vocabulary=5"),
        (lambda: sf.nets.Transformer((3, 4), 16, 1, mask="causal", vocabulary=5), "mask='full'"),
        (lambda: CrossEntropy(UniformTime()).suits(sf.Denoiser(sf.nets.MLP(2), Gaussian(FLOW))), "is of symbols"),
        (lambda: sf.log_prob(TABLE.denoiser(process), TABLE.states, "ode"), "method='elbo'"),
    ):
        with pytest.raises(sf.SfumatoError, match=said):
            wrong()


def test_known_symbols_go_along_their_own_path_and_others_hear_them():
    """z = alpha E_k + sigma eps at every call; what nothing is known of is left alone where symbols are independent."""
    from sfumato.compose import Known

    process, length = Embedded(FLOW, 4), 5
    torch.manual_seed(0)
    net = sf.nets.Transformer(process.net_shape((1, length)), 16, 1, heads=2, vocabulary=4).double()
    x = torch.tensor([[[2, -1, 0, -1, 3]], [[1, 1, -1, -1, 0]]])
    eps = torch.randn(2, 2, length, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    at = (x >= 0).expand_as(eps)
    plan = sf.solvers.DDIM().plan(process, 6)

    def path(model):
        return list(plan.run(model, process.prior(eps)))

    model = sf.Denoiser(net, process)
    free, led = path(model), path(Known(model, x))
    vectors = process.embedded(x.clamp_min(0), torch.float64)
    for plain, state in zip(free, led, strict=True):
        alpha, sigma = process.schedule(state.t)
        torch.testing.assert_close(state.z[at], (alpha * vectors + sigma * eps)[at], rtol=0, atol=1e-12)
        torch.testing.assert_close(state.z[~at], plain.z[~at], rtol=0, atol=1e-12)  # at first all are equally probable
    assert not torch.equal(free[-1].z[at], led[-1].z[at])
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    assert not torch.equal(path(model)[-1].z[~at], path(Known(model, x))[-1].z[~at])
    drawn = sf.sample(Known(sf.Denoiser(net.float(), process), x), index=[0, 1], steps=3, normalised=True)
    assert torch.equal(drawn[x >= 0], x[x >= 0])
