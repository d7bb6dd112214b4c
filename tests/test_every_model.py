"""Every public question is asked of every kind of model: it gives a right value, or one sentence that says why not."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import sfumato as sf
from sfumato import schedules
from sfumato.diagnostics.checks.finding import Report
from sfumato.process import Counts, Deletion, Embedded, Gaussian, Masked, Product, Uniform
from sfumato.state import first_leaf, map_state

F64, N = torch.float64, 12
TRUTH = sf.exact.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], [0.1, 0.2])
TABLE = sf.exact.Table(torch.rand(3, 3, generator=torch.Generator().manual_seed(1), dtype=F64) + 0.1)
WORDS = sf.exact.Strings({(): 0.2, (0,): 0.3, (1, 0): 0.4, (1, 1): 0.1}, 2)
JOINT = sf.exact.Labelled(TRUTH)
FLOW = schedules.Flow()
PRODUCT = Product({"x": Gaussian(FLOW), "label": Masked(FLOW, 2)}, JOINT.shapes)


def mlp(dim: int, **args: Any) -> sf.nets.MLP:
    torch.manual_seed(0)
    net = sf.nets.MLP(dim, 16, 1, **args)
    for part in net.parameters():
        torch.nn.init.normal_(part, std=0.3)
    return net


def make(kind: str) -> Any:
    trained = sf.Denoiser(mlp(2, classes=2), Gaussian(FLOW))
    return {
        "exact": lambda: TRUTH.denoiser(Gaussian(FLOW)),
        "trained": lambda: trained,
        "guided": lambda: sf.guide(trained, 2.0),
        "autoguided": lambda: sf.guidance.Autoguided(trained, sf.Denoiser(mlp(2, classes=2), Gaussian(FLOW)), 2.0),
        "experts": lambda: sf.Experts(trained, sf.Denoiser(mlp(2, classes=2), Gaussian(FLOW)), 0.0, 2.0),
        "rescheduled": lambda: sf.Rescheduled(trained, schedules.LinearBeta()),
        "energy": lambda: sf.Denoiser(sf.nets.Energy(sf.nets.MLP(2, 16, 1)), Gaussian(FLOW)),
        "learned variance": lambda: sf.Denoiser(
            mlp(2, outputs=2), Gaussian(schedules.LinearBeta(), variance="learned")
        ),
        "exact masked": lambda: TABLE.denoiser(Masked(FLOW, 3)),
        "exact uniform": lambda: TABLE.denoiser(Uniform(FLOW, 3)),
        "exact counts": lambda: TABLE.denoiser(Counts(FLOW, 3)),
        "masked": lambda: sf.Denoiser(mlp(6, classes=2), Masked(FLOW, 3)),
        "uniform": lambda: sf.Denoiser(mlp(6, classes=2), Uniform(FLOW, 3)),
        "counts": lambda: sf.Denoiser(mlp(6, classes=2), Counts(FLOW, 3)),
        "exact deletion": lambda: WORDS.denoiser(Deletion(FLOW, 3)),
        "deletion": lambda: sf.Denoiser(mlp(6, classes=2), Deletion(FLOW, 3)),
        "exact embedded": lambda: TABLE.denoiser(Embedded(FLOW, 3)),
        "embedded": lambda: sf.Denoiser(mlp(4, classes=2, outputs=2), Embedded(FLOW, 3)),
        "exact product": lambda: JOINT.denoiser(PRODUCT),
        "product": lambda: sf.Denoiser(mlp(PRODUCT.net_shape()[0], classes=2), PRODUCT),
    }[kind]()


NUMBERS = ("exact", "trained", "guided", "autoguided", "experts", "rescheduled", "energy", "learned variance")
SYMBOLS = ("exact masked", "exact uniform", "exact counts", "masked", "uniform", "counts")
STRINGS = ("exact deletion", "deletion")
VECTORS = ("exact embedded", "embedded")
PRODUCTS = ("exact product", "product")
KINDS = (*NUMBERS, *SYMBOLS, *STRINGS, *VECTORS, *PRODUCTS)
ALONE = (
    "exact",
    "trained",
    "autoguided",
    "experts",
    "rescheduled",
    "energy",
    "learned variance",
)  # without a condition
EXACT = ("exact", "exact masked", "exact uniform", "exact counts", "exact deletion", "exact embedded", "exact product")


def data(kind: str) -> Any:
    if kind in PRODUCTS:
        return JOINT.sample(N, seed=1)
    if kind in STRINGS:
        return WORDS.sample(N, seed=1)
    return TRUTH.sample(N, seed=1).float() if kind in NUMBERS else TABLE.sample(N, seed=1)


def table(kind: str) -> torch.Tensor:
    """The same as an array, as data are given."""
    return PRODUCT.table(data(kind)) if kind in PRODUCTS else data(kind)


def finite(found: Any) -> bool:
    return all(bool(torch.as_tensor(leaf).double().isfinite().all()) for leaf in leaves(found))


def leaves(found: Any) -> list[Any]:
    out: list[Any] = []
    map_state(out.append, found)
    return out


def one_each(found: torch.Tensor) -> bool:
    return found.shape == (N,) and finite(found)


def like_data(found: Any) -> bool:
    return len(first_leaf(found)) == N and finite(found)


Question = tuple[Callable[[Any, str, dict[str, Any]], Any], Callable[[Any], bool], tuple[str, ...]]
QUESTIONS: dict[str, Question] = {
    # the question, what a right answer is, who has one
    "sample": (lambda m, k, c: sf.sample(m, N, steps=4, **c), like_data, KINDS),
    "sample by heun": (lambda m, k, c: sf.sample(m, N, steps=3, solver="heun", **c), like_data, (*NUMBERS, *VECTORS)),
    "sample by steps of the belief": (lambda m, k, c: sf.sample(m, N, 4, "ancestral", **c), like_data, KINDS),
    "trajectory": (
        lambda m, k, c: [state.t for state in sf.trajectory(m, N, steps=4, solver="ancestral", **c)],
        lambda times: times == [1.0, 0.75, 0.5, 0.25, 0.0],
        KINDS,
    ),
    "denoising_loss": (lambda m, k, c: sf.denoising_loss(m, data(k), **c), one_each, KINDS),
    "denoising_loss elbo": (
        lambda m, k, c: sf.denoising_loss(m, data(k), weight=sf.weights.elbo(), times=sf.times.logit_normal(), **c),
        one_each,
        KINDS,
    ),
    "log_prob": (lambda m, k, c: sf.log_prob(m, data(k), steps=8, probes=4, **c).value, one_each, KINDS),
    "log_prob ode": (lambda m, k, c: sf.log_prob(m, data(k), "ode", steps=8, **c).value, one_each, NUMBERS),
    "log_prob elbo": (lambda m, k, c: sf.log_prob(m, data(k), "elbo", steps=8, probes=4, **c).value, one_each, KINDS),
    "guide": (
        lambda m, k, c: sf.sample(sf.guide(m, 0.5), N, steps=3, label=torch.tensor([0, 1] * 6)),
        like_data,
        (
            "exact",
            "trained",
            "guided",
            "autoguided",
            "experts",
            "rescheduled",
            "masked",
            "uniform",
            "counts",
            "deletion",
            "embedded",
            "product",
        ),
    ),
    "Rescheduled": (
        lambda m, k, c: sf.sample(sf.Rescheduled(m, schedules.Cosine()), N, steps=3, **c),
        like_data,
        (*NUMBERS, *SYMBOLS, *STRINGS, *VECTORS),
    ),
    "encode": (lambda m, k, c: sf.encode(m, data(k), steps=4, **c), like_data, NUMBERS),
    "decode": (lambda m, k, c: sf.decode(m, data(k), steps=4, **c), like_data, NUMBERS),
    "energy": (lambda m, k, c: sf.energy(m, data(k), 0.5, **c), one_each, ("energy",)),
    "error_budget": (
        lambda m, k, c: sf.error_budget(m, TRUTH, steps=3, n=20).total,
        finite,
        ALONE,
    ),
    "tune": (
        lambda m, k, c: sf.tune(m, 3, points=16, rounds=0, **({"label": 0} if c else {})).calls,
        lambda calls: calls == 3,
        (*NUMBERS, *VECTORS),
    ),
    "vlb": (lambda m, k, c: sf.vlb(m, data(k), 4, **c).total, one_each, NUMBERS),
    "vlb_loss": (lambda m, k, c: sf.vlb_loss(m, data(k), **c), one_each, NUMBERS),
    "hybrid_loss": (lambda m, k, c: sf.hybrid_loss(m, data(k), **c), one_each, ("learned variance",)),
    "prior_kl": (lambda m, k, c: sf.prior_kl(m.process, data(k)), one_each, KINDS),
    "bound_gap": (
        lambda m, k, c: list(sf.bound_gap(m, TRUTH, 20, 4)),
        lambda parts: True,
        ALONE,
    ),
    "board": (
        lambda m, k, c: sf.board(m, TRUTH, samples=8, gradients=0).total("model")[0],
        finite,
        ALONE,
    ),
    "doctor": (
        lambda m, k, c: sf.doctor(m),
        lambda report: "weights-not-finite" in report.checked and "could be made" in str(report).splitlines()[0],
        ("trained", "energy", "learned variance", "masked", "uniform", "counts", "deletion", "embedded", "product"),
    ),
    "teacher": (
        lambda m, k, c: sf.denoising_loss(m, data(k), clean=sf.Teacher(m), **c),
        lambda found: float(found.detach().abs().max()) < 1e-6,
        NUMBERS,
    ),
    "nonequilibrium": (
        lambda m, k, c: sf.nonequilibrium.nonequilibrium_bound(m, data(k), 3, **c).nats,
        one_each,
        SYMBOLS,
    ),
    "score": (
        lambda m, k, c: m(m.process.corrupt(data(k), 0.5, sf.Noise(0, torch.arange(N))), 0.5, **c).score,
        like_data,
        (*NUMBERS, *VECTORS),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_question_has_an_answer_or_a_sentence(kind: str) -> None:
    wrong = []
    for name, (ask, right, who) in QUESTIONS.items():
        model = make(kind)
        cond = {"label": torch.tensor([0, 1] * 6)} if kind == "guided" else {}
        try:
            found = ask(model, kind, cond)
        except sf.SfumatoError as error:
            said = str(error)
            if kind in who or len(said.split()) < 8 or len(said) > 300:
                wrong.append(f"{name}: {said}")
        except Exception as error:
            wrong.append(f"{name}: {type(error).__name__}: {error}")
        else:
            if kind not in who:
                wrong.append(f"{name}: an answer that nobody expected, {found}")
            elif not right(found):
                wrong.append(f"{name}: a wrong answer, {found}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in EXACT])
def test_a_file_brings_back_the_model(kind: str, tmp_path: Any) -> None:
    model = make(kind)
    cond = {"label": torch.tensor([0, 1] * 6)} if kind == "guided" else {}
    again = sf.load(sf.save(model, tmp_path / "model.safetensors"))
    assert again.process == model.process and type(again) is type(model)
    assert all(
        map(torch.equal, leaves(sf.sample(model, N, steps=3, **cond)), leaves(sf.sample(again, N, steps=3, **cond)))
    )


@pytest.mark.parametrize("kind", EXACT)
def test_an_exact_law_has_no_file_and_says_so(kind: str, tmp_path: Any) -> None:
    with pytest.raises(sf.SfumatoError, match="A file holds a model"):
        sf.save(make(kind), tmp_path / "model.safetensors")


class Normal(torch.nn.Module):
    """The network that makes `Denoiser` the exact model of N(0, I): it says x = c z for the process's own level."""

    shape = (4,)

    def forward(self, z: torch.Tensor, level: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        logsnr = -8 * level.double()[:, None]
        # z is scaled to unit variance: x = alpha z / (alpha^2 + sigma^2) = sqrt(snr / (1 + snr)) z_scaled
        mean = torch.sigmoid(logsnr).sqrt() * z
        return mean if label is None else mean + 0.1 * label[:, None].clamp_min(-1)


def test_the_loss_is_that_of_what_a_wrapper_believes() -> None:
    """H1: N(0, 1) in 4 dimensions under another schedule, against the closed form 2 sigma^2 / (alpha^2 + sigma^2)."""
    n = 40_000
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    model = sf.Denoiser(Normal(), Gaussian(schedules.Cosine(), "x"))
    for other in (schedules.VE(), FLOW, schedules.LinearBeta()):
        wrapped = sf.Rescheduled(model, other)
        for logsnr, wanted in ((-2.0, 1.762), (0.0, 1.0), (2.0, 0.238)):
            t = other.time(torch.full((n,), logsnr, dtype=F64))
            found = float(sf.denoising_loss(wrapped, x, t).mean())
            assert found == pytest.approx(2 / (1 + math.exp(logsnr)), rel=0.03) and wanted == pytest.approx(
                2 / (1 + math.exp(logsnr)), abs=1e-3
            ), (other, logsnr, found)


def test_the_loss_of_a_guided_model_is_that_of_the_guided_belief() -> None:
    """H2: bit for bit what the guided belief misses, and not the unguided loss."""
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    label, t = torch.arange(50) % 2, torch.linspace(0.1, 0.9, 50, dtype=F64)
    model = sf.Denoiser(Normal(), Gaussian(schedules.Cosine(), "x"))
    guided = sf.guide(model, 3.0)
    eps = torch.randn(50, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    belief = guided(model.process.corrupt(x, t, eps), t, label=label)
    wanted = 0.5 * (belief.x - x).square().sum(1)
    found = sf.denoising_loss(guided, x, t, eps=eps, label=label)
    assert torch.allclose(found, wanted, rtol=1e-12)
    assert float((found / sf.denoising_loss(model, x, t, eps=eps, label=label) - 1).abs().max()) > 0.01
    one = sf.denoising_loss(sf.guide(model, 1.0), x, t, eps=eps, label=label)
    assert torch.equal(one, sf.denoising_loss(model, x, t, eps=eps, label=label))


def test_guidance_of_symbols_weighs_log_probabilities() -> None:
    """log p = log p_null + w (log p_c - log p_null): 0 the unconditional, 1 the conditional law, and between."""
    model = make("masked")
    z, t, label = torch.full((4, 2), 3), 0.6, torch.tensor([0, 1, 0, 1])
    conditional, null = model(z, t, label=label), model(z, t)
    assert float((conditional.prob - null.prob).abs().max()) > 1e-4
    for w in (0.0, 0.5, 1.0, 3.0):
        wanted = (null.log_prob + w * (conditional.log_prob - null.log_prob)).softmax(-1)
        assert torch.allclose(sf.guide(model, w)(z, t, label=label).prob, wanted, atol=1e-6), w
    seen = torch.tensor([[0, 3]] * 4)
    kept = sf.guide(model, 3.0)(seen, t, label=label).prob
    assert torch.equal(kept[:, 0], torch.tensor([1.0, 0.0, 0.0]).expand(4, 3))


def test_symbols_under_another_schedule_are_asked_at_the_equal_level() -> None:
    model, other = make("masked"), schedules.Cosine()
    wrapped = sf.Rescheduled(model, other)
    z, t = torch.tensor([[3, 1], [3, 3]]), torch.tensor([0.3, 0.8], dtype=F64)
    at = 1 - other.alpha(t)  # Flow keeps 1 - t
    assert torch.allclose(wrapped(z, t).prob, model(z, at).prob, atol=1e-6)


def test_a_doctor_says_what_it_looked_at_and_names_weights_that_are_not_finite() -> None:
    """H5."""
    model = make("masked")
    report = sf.doctor(model)
    assert "1 of" in str(report).splitlines()[0] and report.healthy
    with torch.no_grad():
        model.net.output.weight[0, :3] = float("nan")
    report = sf.doctor(model)
    assert report.codes == {"weights-not-finite"} and report.findings[0].evidence["values"] == 3
    assert "output.weight" in report.findings[0].what
    nothing = Report("a model", (), (), {"range": "without data"})
    assert "nothing was looked at" in str(nothing) and not nothing.healthy
