"""Counter-based random numbers: Philox's published vectors, laws, and dependence on the key alone."""

import math
import random
import threading
import time

import pytest
import torch
from scipy import stats

from sfumato import noise

F64 = torch.float64


def words(*values):
    return [torch.tensor([v], dtype=torch.int64) for v in values]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        # known answers that come with Random123 (Salmon et al. 2011), philox4x32 with 10 rounds
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_published_vectors(counter, key, expected):
    assert tuple(int(w) for w in noise.philox(torch.stack(words(*counter)), key)) == expected


def philox_of_whole_numbers(counter, key):
    """Salmon et al. 2011, section 4.3, in Python's integers, which know no overflow."""
    x, k = list(counter), list(key)
    for _ in range(10):
        low, high = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [(high >> 32) ^ x[1] ^ k[0], high % 2**32, (low >> 32) ^ x[3] ^ k[1], low % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return x


def words_of(seed, index, count, role, step):
    """What the counter holds: block, index (two words), role and step; what the key holds: the seed."""
    key = (seed % 2**32, (seed >> 32) % 2**32)
    blocks = (
        philox_of_whole_numbers((block, index % 2**32, index >> 32, (role << 24) | step), key)
        for block in range(-(-count // 4))
    )
    return [word for block in blocks for word in block][:count]


KEYS = [(random.Random(n).getrandbits(63), random.Random(-n).getrandbits(48), n % 13, n * 77) for n in range(40)]
KEYS += [(-1, 2**62, 12, 2**24 - 1), (0, 0, 0, 0), (2**63 - 1, 2**32 - 1, 1, 1)]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize("device", DEVICES)
def test_bits_are_those_of_big_integers_on_every_device(device):
    for seed, index, role, step in KEYS:
        for count in (1, 6):
            drawn = noise.bits(seed, [index, index + 1], count, role, step, device)
            assert drawn.tolist() == [words_of(seed, index + i, count, role, step) for i in (0, 1)]


@pytest.mark.parametrize("device", DEVICES)
def test_normals_are_box_and_muller_to_two_ulps_on_every_device(device):
    index, unit = list(range(50)), 2.0**-32
    found = noise.normal(11, index, (8,), noise.TRAIN_NOISE, 3, device).cpu()
    exact = []
    for i in index:
        u = [(word + 0.5) * unit for word in words_of(11, i, 8, noise.TRAIN_NOISE, 3)]
        for a, b in zip(u[::2], u[1::2], strict=True):
            radius = math.sqrt(-2 * math.log(a))
            exact.append((radius * math.cos(2 * math.pi * b), radius * math.sin(2 * math.pi * b), radius))
    for pair, (cosine, sine, radius) in zip(found.reshape(-1, 2).tolist(), exact, strict=True):
        # the angle is rounded to float32 once, on every device alike: 2^-22 of the radius at most
        assert abs(pair[0] - cosine) <= 4e-7 * radius and abs(pair[1] - sine) <= 4e-7 * radius


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_draws_what_the_cpu_draws():
    index = torch.arange(300)
    for dtype, ulps in ((torch.float32, 2.0**-22), (F64, 2.0**-50)):
        here, there = (noise.normal(1, index, (97,), noise.PRIOR, device=d, dtype=dtype).cpu() for d in ("cpu", "cuda"))
        assert float((here - there).abs().max()) < 8 * ulps
    assert torch.equal(noise.uniform(1, index, (9,)), noise.uniform(1, index, (9,), device="cuda").cpu())
    assert torch.equal(noise.rademacher(1, index, (9,)), noise.rademacher(1, index, (9,), device="cuda").cpu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_laws(dtype):
    n = noise.normal(3, torch.arange(500), (401,), noise.TRAIN_NOISE, dtype=dtype)
    u = noise.uniform(3, torch.arange(500), (401,), noise.TRAIN_TIME, dtype=torch.float64)
    assert n.dtype == dtype and n.shape == (500, 401)
    assert stats.kstest(n.flatten().double().numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    assert 0 < float(u.min()) and float(u.max()) < 1
    flat = n.double()
    # neighbours within a row, across rows, and the two of a Box-Muller pair are uncorrelated: 1/sqrt(200500) = 0.0022
    for a, b in [(flat[:, :-1], flat[:, 1:]), (flat[:-1], flat[1:]), (flat[:, 0:-1:2] ** 2, flat[:, 1::2] ** 2)]:
        assert abs(float(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1])) < 0.01


def test_tails_are_not_cut():
    """A float32 uniform would end at 5.77 standard deviations; 32 bits reach 6.66."""
    smallest = noise._open_unit(torch.zeros(1, dtype=torch.int64))
    assert float((-2 * smallest.log()).sqrt()) > 6.6
    assert bool(noise.normal(0, torch.arange(2000), (1000,)).isfinite().all())


def test_a_row_depends_on_its_key_alone():
    whole = noise.normal(5, torch.arange(100), (7, 3), noise.PRIOR)
    for index in ([17], [99, 0, 42], list(range(50, 60)), [17, 17]):
        assert torch.equal(noise.normal(5, index, (7, 3), noise.PRIOR), whole[index])
    # a longer row starts as the shorter one
    assert torch.equal(noise.normal(5, [17], (50,), noise.PRIOR)[:, :21], whole[17].reshape(1, 21))


def test_keys_have_their_own_streams():
    drawn = {
        (seed, index, role, step): tuple(noise.normal(seed, [index], (4,), role, step)[0].tolist())
        for seed in (0, 1, 2**32, 2**63 - 1, -1)
        for index in (0, 1, 2**31, 2**32, 2**40)
        for role in (noise.PRIOR, noise.STEP, noise.PROBE)
        for step in (0, 1, 2**24 - 1)
    }
    assert len(set(drawn.values())) == len(drawn)


def test_steps_beyond_the_counter_are_refused():
    for step in (-1, 2**24):
        with pytest.raises(ValueError, match="step"):
            noise.normal(0, [0], (1,), step=step)


def test_scalars_and_empty():
    assert noise.normal(0, [1, 2, 3]).shape == (3,)
    assert noise.uniform(0, 5, (2,)).shape == (1, 2)
    assert noise.normal(0, torch.arange(4), (0,)).shape == (4, 0)
    assert noise.normal(0, [], (3,)).shape == (0, 3)


def test_permutation():
    first = noise.permutation(0, 0, 1000)
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert torch.equal(first, noise.permutation(0, 0, 1000))
    for other in (noise.permutation(0, 1, 1000), noise.permutation(1, 0, 1000), torch.arange(1000)):
        assert int((first == other).sum()) < 20
    # every place is as likely for every item
    places = torch.stack([noise.permutation(0, epoch, 6) for epoch in range(300)])
    counts = torch.stack([(places == item).sum(0) for item in range(6)]).double()
    assert stats.chisquare(counts.flatten().numpy(), [50.0] * 36).pvalue > 1e-3


def test_numbers_of_many_steps_are_drawn_together_and_are_the_same(monkeypatch) -> None:
    plain, calls = noise.Noise(5, torch.arange(3), noise.STEP), []
    ahead = plain.ahead()
    for step in (0, 1, 700, 3, 4095, 4096, 9000):
        for shape, dtype in (((7,), torch.float32), ((2, 3), torch.float64), ((), torch.float32)):
            found, wanted = (each.at(step).normal(shape, dtype=dtype) for each in (ahead, plain))
            assert torch.equal(found, wanted)
        assert torch.equal(ahead.at(step).fold("a").normal((7,)), plain.at(step).fold("a").normal((7,)))
    rows = torch.tensor([2, 0])
    assert torch.equal(ahead.at(1).rows(rows).normal((7,)), plain.at(1).normal((7,))[rows])
    each = torch.tensor([4, 9, 4])
    assert torch.equal(ahead.at(each).normal((7,)), plain.at(each).normal((7,)))
    large = (3000,)
    assert torch.equal(ahead.at(2).normal(large), plain.at(2).normal(large))
    philox = noise.philox
    monkeypatch.setattr(noise, "philox", lambda *args: calls.append(1) or philox(*args))
    walk = plain.ahead()
    for step in range(64):
        walk.at(step).normal((20,))
    assert len(calls) == 1


def test_what_a_thread_has_seeded_is_kept_for_no_other():
    before, seeding = torch.get_rng_state(), threading.Event()

    def seeds():
        with noise.seeded(5):
            seeding.set()
            time.sleep(0.1)

    def keeps():
        with noise.kept():
            one.join()

    one, other = threading.Thread(target=seeds), threading.Thread(target=keeps)
    one.start()
    seeding.wait()
    other.start()
    other.join()
    assert torch.equal(torch.get_rng_state(), before)
