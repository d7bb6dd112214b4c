"""What the objective compiler says of symbols: weights against sums over counts and levels, names, variances."""

import math

import pytest
import torch

import sfumato as sf
from sfumato import registry, schedules
from sfumato.objectives import SymbolObjective, weights
from sfumato.objectives.counts import CountedMasks
from sfumato.objectives.losses import Denoising
from sfumato.objectives.times import NormalLogSNR, UniformLogSNR, UniformTime, named
from sfumato.process import Hybrid, Masked, Uniform
from symbol_cases import F64, TABLE

FLOW = schedules.Flow()
MASKED, UNIFORM = Masked(FLOW, 3), Uniform(FLOW, 3)


def of(process, word: str, times: str = "uniform", weight: str = "plain") -> SymbolObjective:
    given = {"times": named(times), "weight": weights.chosen(weight), "seed": 0}
    return SymbolObjective(process, registry.make("loss", word, given))


@pytest.mark.parametrize(
    ("process", "word", "bound", "names"),
    [
        (MASKED, "denoising", True, ("MDLM", "MD4", "ARDM", "exact counts", "tauLDR", "SEDD's")),
        (MASKED, "masked", True, ("MDLM", "MD4", "ARDM", "exact counts", "tauLDR", "SEDD's")),
        (UNIFORM, "denoising", True, ("UDLM", "Duo", "tauLDR", "SEDD's")),
        (UNIFORM, "score-entropy", True, ("UDLM", "Duo", "tauLDR", "SEDD's")),
        (Hybrid(FLOW, 3), "denoising", True, ("GIDD", "tauLDR", "SEDD's")),
        (MASKED, "mask-predict", False, ("Mask-Predict",)),
        (MASKED, "maskgit", False, ()),  # smoothing
        (MASKED, "maskgit(smoothing=0.0)", False, ("MaskGIT",)),
        (UNIFORM, "d3pm", False, ("D3PM",)),
        (UNIFORM, "nonequilibrium", False, ("D3PM", "multinomial")),
        (Masked(FLOW, 3, row="ratio"), "score-entropy(normalised=False)", False, ("SEDD (",)),
        (UNIFORM, "sundae", False, ()),
        (UNIFORM, "ratio-matching", False, ()),
    ],
)  # fmt: skip
def test_what_a_loss_is(process, word, bound, names) -> None:
    objective = of(process, word)
    assert objective.bound == bound and len(objective.same) == len(names)
    assert all(name in said for name, said in zip(names, objective.same, strict=True))
    assert bool(objective.note) == (not bound and word not in ("mask-predict", "maskgit(smoothing=0.0)"))
    facts = objective.to_dict()
    assert sum(row["drawn"] for row in facts["levels"]) == pytest.approx(1) and facts["bound"] == bound


def test_the_weight_sigmoid_of_the_denoising_loss_is_mask_predict() -> None:
    assert of(MASKED, "denoising", weight="sigmoid").same == of(MASKED, "mask-predict").same
    assert of(MASKED, "denoising", weight="sigmoid(bias=1)").same == ()


@pytest.mark.parametrize(
    "word", ["masked", "mask-predict", "maskgit(smoothing=0.0)", "masked(power=0.5, counts=cosine)"]
)
def test_weights_of_counts_are_what_is_minimised(word: str) -> None:
    """int w / m c(m) dm for a cost c = m of every mask is the mean of the loss as the number of symbols grows."""
    objective, size = of(MASKED, word), 4000
    u = (torch.arange(20_000, dtype=F64) + 0.5) / 20_000
    n = (objective.loss.share(u) * size).ceil()
    found = float(((n / size) ** objective.loss.power).mean())  # (n / D)^power 1/n sum of n costs of 1
    angle = (torch.arange(20_000, dtype=F64) + 0.5) / 20_000 * math.pi / 2
    m = angle.sin()  # dm = cos(angle) dangle takes out what is singular at m = 1
    w = objective.weight(torch.logit(1 - m))
    assert found == pytest.approx(float((w * angle.cos()).mean() * math.pi / 2), rel=1e-3)


def second_moment(times, process, reach: float) -> float:
    """E (rate / p)^2 of the exact model over levels within `reach`, by sums over all states."""
    level = torch.linspace(-reach, reach, 121, dtype=F64)
    states, x = TABLE.noisy(process), TABLE.states
    total = 0.0
    for at in level.tolist():
        t = process.clock.time(torch.tensor(at, dtype=F64))
        belief = TABLE.denoiser(process)(states, t)
        whole = belief.rows(torch.arange(len(states)).repeat(27))
        rate = process.rate(whole, x.repeat_interleave(len(states), 0)).sum(1).nan_to_num(0.0).reshape(27, -1)
        square = (TABLE.probs[:, None] * TABLE.kernel(process, 0.0, t) * rate**2).sum()
        total += float(square / times.density(torch.tensor(at, dtype=F64), process.clock))
    return total * 2 * reach / 120


@pytest.mark.parametrize("process", [MASKED, UNIFORM], ids=["masked", "uniform"])
@pytest.mark.parametrize(
    ("times", "infinite"), [(UniformTime(), True), (NormalLogSNR(0.0, 2.0), True), (UniformLogSNR(), False)]
)
def test_an_infinite_variance_is_one(process, times, infinite: bool) -> None:
    """The second moment goes on growing with the range of levels where it is said to, and else does not."""
    assert SymbolObjective(process, Denoising(times, None, 0)).infinite == infinite
    near, far = second_moment(times, process, 8.0), second_moment(times, process, 12.0)
    assert (far > 1.2 * near) == infinite
    assert not SymbolObjective(MASKED, CountedMasks()).infinite


def test_what_has_no_levels_of_symbols_is_refused() -> None:
    for word, words in [
        ("autoregressive", "no noise levels"),
        ("vlb", "no noise levels"),
        ("maskgit", "process='masked'"),
    ]:
        with pytest.raises(sf.SfumatoError, match=words):
            of(UNIFORM, word)
