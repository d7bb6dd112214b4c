"""Few calls of masked symbols on tables of 3 x 3: the fixed point, what one call can and what it cannot say."""

import itertools
import math
from typing import Any

import pytest
import torch

import sfumato as sf
from sfumato.belief import Logits
from sfumato.conditions import Conditions
from sfumato.exact import Table
from sfumato.noise import Noise
from sfumato.objectives.loss import Batch
from sfumato.objectives.symbol_distillation import ThroughTime, revealed
from sfumato.process import Masked, Uniform
from sfumato.registry import names
from sfumato.solvers.reveal import Reveal
from symbol_cases import F64, distance
from symbol_cases import revealed as sampled

PROCESS = Masked(sf.schedules.Flow(), 3)
TABLE = Table(torch.tensor([[6.0, 1.0, 1.0], [1.0, 5.0, 1.0], [2.0, 1.0, 7.0]]))
PRODUCT = Table(torch.outer(torch.tensor([0.5, 0.3, 0.2], dtype=F64), torch.tensor([0.1, 0.3, 0.6], dtype=F64)))
ALL = torch.full((1, 2), 3)  # both masked


class Told:
    """A model with one law of each symbol for each state: log p (16, 2, 3), in the order of `Table.noisy`."""

    spec, shape, process = None, (2,), PROCESS

    def __init__(self, log_p: torch.Tensor) -> None:
        self.log_p = log_p

    def __call__(self, z: torch.Tensor, t: Any, **cond: Any) -> Logits:
        log_p = self.log_p[z @ torch.tensor([4, 1])]
        return Logits(log_p, z, t, PROCESS, log_p)


def of_table(table: Table) -> torch.Tensor:
    """The exact model's log p of all states, at least -50."""
    return table.denoiser(PROCESS)(table.noisy(PROCESS), 0.5).log_prob.nan_to_num(0.0, 0.0, -50.0).clamp_min(-50)


def wrong() -> torch.Tensor:
    """A teacher whose answers are those of no law: right marginals at first, another table once a symbol is known."""
    other = Table(torch.tensor([[1.0, 4.0, 1.0], [5.0, 1.0, 2.0], [1.0, 3.0, 1.0]]))
    return torch.where((other.noisy(PROCESS) == 3).all(1)[:, None, None], of_table(TABLE), of_table(other))


def two_calls(log_p: torch.Tensor) -> torch.Tensor:
    """The law of two symbols that are revealed one a call in either order, (3, 3)."""
    p = log_p.exp()
    first = p[15]  # both masked
    one = first[0][:, None] * p[[4 * a + 3 for a in range(3)], 1]
    two = (first[1][:, None] * p[[12 + b for b in range(3)], 0]).T
    return (one + two) / 2


def targets(teacher: Any, count: int = 20_000) -> torch.Tensor:
    """p~ of both masks of `count` draws, (count, 2, 3)."""
    z = ALL.expand(count, -1)
    log_p = revealed(teacher, z, torch.full((count,), 2), 2, Noise(0, torch.arange(count)))
    return log_p.exp().reshape(count, 2, 3)


def marginals(law: torch.Tensor) -> torch.Tensor:
    return torch.stack([law.sum(1), law.sum(0)])


def test_the_mean_target_is_the_marginals_of_the_teachers_calls() -> None:
    """Of a teacher that is one law they are its first answer, and else what its samples of two calls have."""
    for log_p, least, most in ((of_table(TABLE), 0.0, 1e-12), (wrong(), 0.05, 1.0)):
        found, wanted = targets(Told(log_p)), marginals(two_calls(log_p))
        error = found.std(0) / math.sqrt(len(found))
        assert bool(((found.mean(0) - wanted).abs() < 4.5 * error + 1e-6).all())
        assert least <= float((wanted - log_p[15].exp()).abs().max()) <= most


def test_the_least_loss_is_the_information_in_what_is_revealed_before() -> None:
    """Of an exact teacher: half of the masks' calls are the first, the others' know the other symbol: I(x_1; x_2) / 2
    a mask where both are masked, 0 where one is; and its gradient there is 0 on average, which it is nowhere else."""
    log_p, count = of_table(TABLE), 20_000
    p = TABLE.probs.reshape(3, 3)
    information = float((p * (p / torch.outer(p.sum(1), p.sum(0))).log()).sum())
    x, u = TABLE.sample(count, 3), torch.full((count,), 0.75, dtype=F64)
    both = Batch(x, Conditions({}), torch.arange(count), u)
    loss = ThroughTime(Told(log_p), calls=(1,))
    slopes = []
    for off in (0.0, 0.4):
        student = (log_p + off * torch.linspace(-1, 1, 3)).requires_grad_()
        each = loss.losses(Told(student), both)
        slopes.append(float(torch.autograd.grad(each.mean(), student)[0][15].abs().max()))
        each = each.detach()
        if not off:
            assert abs(float(each.mean()) - information / 2) < 4.5 * float(each.std()) / count**0.5
    error = float(targets(Told(log_p), 2000).std()) / math.sqrt(count)  # of the mean of softmax(student) - p~
    assert slopes[0] < 4.5 * error < slopes[1]
    one = loss.losses(Told(log_p), Batch(x, Conditions({}), torch.arange(count), u - 0.5))
    assert float(one.abs().max()) < 1e-6, "one mask: nothing is revealed before it"


def test_a_student_of_a_teacher_that_is_no_law_has_its_marginals_in_one_call() -> None:
    """The loss has no slope on average there, and one at the teacher's own first answer, which is further from its
    samples of two calls."""
    log_p, count = wrong(), 20_000
    law = two_calls(log_p)
    best = torch.cat((log_p[:15], marginals(law).log()[None]))
    batch = Batch(TABLE.sample(count), Conditions({}), torch.arange(count), torch.full((count,), 0.75, dtype=F64))
    slopes = []
    for entry in (best, log_p):
        student = entry.clone().requires_grad_()
        loss = ThroughTime(Told(log_p), calls=(1,)).losses(Told(student), batch).mean()
        slopes.append(float(torch.autograd.grad(loss, student)[0][15].abs().max()))
    error = float(targets(Told(log_p), 2000).std()) / math.sqrt(count)
    assert slopes[0] < 4.5 * error and slopes[1] > 9 * error
    after, before = (float((torch.outer(*entry[15].exp()) - law).abs().sum()) / 2 for entry in (best, log_p))
    assert after < 0.8 * before, "total variation of one call from the teacher's two"


def test_one_call_is_a_product_and_more_calls_come_nearer() -> None:
    """A product law is exact in one call; of another the KL of one call is the total correlation, and no product is
    nearer; the total variation falls with the calls, to 0 at one symbol a call."""
    reveal = Reveal(order="random")
    assert distance(sampled(PRODUCT, PROCESS, reveal, 1), PROCESS, PRODUCT) < 1e-12
    p = TABLE.probs.reshape(3, 3)
    rows, columns = p.sum(1), p.sum(0)
    correlation = float(torch.special.entr(rows).sum() + torch.special.entr(columns).sum()) - TABLE.entropy

    def gap(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((p * (p / torch.outer(a, b)).log()).sum())

    assert gap(rows, columns) == pytest.approx(correlation, abs=1e-12) and correlation > 0.1
    for seed in range(20):
        a, b = torch.rand(2, 3, generator=torch.Generator().manual_seed(seed), dtype=F64)
        assert gap(a / a.sum(), b / b.sum()) > correlation
    three = Table(torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(7), dtype=F64) ** 3)
    far = [distance(sampled(three, PROCESS, reveal, calls), PROCESS, three) for calls in (1, 2, 3)]
    assert far[0] > 1.2 * far[1] > 0.01 and far[2] < 1e-12


def test_losses_of_networks_do_not_depend_on_the_split_of_a_batch() -> None:
    """And are 0 where student and teacher are uniform, as new networks are; gradients reach every weight."""
    x = torch.tensor(list(itertools.product(range(3), repeat=2)) * 3)[:, None]
    batch = Batch(x, Conditions({}), torch.arange(27), (torch.arange(27, dtype=F64) + 0.5) / 27)
    torch.manual_seed(0)
    student, teacher = (sf.Denoiser(sf.nets.Transformer((3, 2), 16, 1), PROCESS) for _ in range(2))
    loss = ThroughTime(teacher, calls=(1, 2))
    loss.suits(student)
    assert float(loss.losses(student, batch).detach().abs().max()) < 1e-6
    for parameter in (*student.parameters(), *teacher.parameters()):
        torch.nn.init.normal_(parameter, std=0.3)
    found = loss.losses(student, batch)
    parts = torch.cat([loss.losses(student, part) for part in batch.split(10)])
    assert torch.allclose(parts, found, atol=1e-5) and float(found.detach().min()) >= -1e-6
    assert not torch.equal(found, ThroughTime(teacher, calls=(1, 2), seed=1).losses(student, batch))
    found.mean().backward()
    assert all(p.grad is not None for p in student.parameters()) and all(p.grad is None for p in teacher.parameters())


def test_names_and_mistakes() -> None:
    assert "sdtt" in names("loss")
    student = sf.Denoiser(sf.nets.Transformer((3, 2), 8, 1), PROCESS)
    with pytest.raises(sf.SfumatoError, match="pass teacher="):
        ThroughTime().suits(student)
    with pytest.raises(sf.SfumatoError, match="masked"):
        ThroughTime(TABLE.denoiser(Uniform(sf.schedules.Flow(), 3))).suits(student)
    with pytest.raises(sf.SfumatoError, match="4 symbols"):
        ThroughTime(Table(torch.ones(4, 4)).denoiser(Masked(sf.schedules.Flow(), 4))).suits(student)
    for wrong_one in ({"steps": 1}, {"calls": (0,)}):
        with pytest.raises(sf.SfumatoError, match="at least"):
            ThroughTime(**wrong_one)
