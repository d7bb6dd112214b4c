"""Any shape, dtype, time and number of samples: what comes back is of the shape and kind that was promised."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sfumato as sf
from curves import CURVES
from sfumato import target
from sfumato.process import Gaussian, Masked, Product, Uniform
from sfumato.schedules import Cosine, Flow, LinearBeta

F64 = torch.float64
SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)  # of one sample
COUNTS = st.integers(1, 5)
DTYPES = st.sampled_from([torch.float32, torch.float64])
UNIT = st.floats(0, 1, allow_subnormal=False)


def numbers(*shape, dtype=F64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def symbols(states, *shape, seed=0):
    return torch.randint(states, shape, generator=torch.Generator().manual_seed(seed))


def times(count, inside=UNIT):
    """One number for all samples, or a time each."""
    return st.one_of(inside, st.lists(inside, min_size=count, max_size=count).map(lambda t: torch.tensor(t, dtype=F64)))


@settings(max_examples=60)
@given(name=st.sampled_from([*CURVES]), t=st.lists(UNIT, min_size=1, max_size=6), rows=st.integers(1, 3))
def test_schedules_take_times_of_any_shape(name, t, rows):
    """Finite alpha and sigma in double precision, a logsnr that falls, and times that have it."""
    curve, t = CURVES[name], torch.tensor([sorted(t)] * rows, dtype=F64)
    (alpha, sigma), level = curve(t), curve.logsnr(t)
    assert alpha.shape == sigma.shape == level.shape == t.shape and alpha.dtype == sigma.dtype == level.dtype == F64
    assert bool((alpha >= 0).all() and (sigma >= 0).all() and alpha.isfinite().all() and sigma.isfinite().all())
    assert not bool(level.isnan().any()) and bool((level[:, 1:] <= level[:, :-1] + 1e-9).all())
    back = curve.time(level)
    assert back.shape == t.shape and float((back - t).abs().max()) <= 1e-9


@settings(max_examples=60)
@given(
    name=st.sampled_from([*CURVES]), asked=st.sampled_from(target.NAMES), shape=SHAPES, count=COUNTS, dtype=DTYPES,
    data=st.data(),
)  # fmt: skip
def test_numbers_are_read_back_from_the_right_answer(name, asked, shape, count, dtype, data):
    """x -> z_t -> the true value of the target -> x and eps, in the shape and the precision of x."""
    process = Gaussian(CURVES[name], asked)
    t = data.draw(times(count, st.floats(0.1, 0.9)))
    x, eps = numbers(count, *shape, dtype=dtype), numbers(count, *shape, dtype=dtype, seed=1)
    z = process.corrupt(x, t, eps)
    a, b = target.row(asked, process.schedule, torch.as_tensor(t, dtype=F64).expand(count), process.sigma_data)
    each = (count, *(1 for _ in shape))
    y = (a.reshape(each) * x + b.reshape(each) * eps).to(dtype)
    belief = sf.Estimate(z, t, process.schedule, y, named=asked)
    assert z.shape == x.shape == belief.x.shape == belief.eps.shape and z.dtype == belief.x.dtype == dtype
    heard, level = process.inputs(z, t)
    assert heard.shape == x.shape and level.shape in ((), (count,)) and bool(level.isfinite().all())
    solution = target.solve((a, b), *process.schedule(torch.as_tensor(t, dtype=F64).expand(count)))
    # what a rounding of z and y becomes in x
    size = (1 + solution.xz.abs() + solution.xy.abs() * (1 + a.abs() + b.abs())).reshape(each)
    tolerance = 1e3 * torch.finfo(dtype).eps * size * (1 + z.abs().double().amax())
    assert bool(((belief.x - x).abs() <= tolerance).all())


@settings(max_examples=60)
@given(
    kind=st.sampled_from([Masked, Uniform]), states=st.integers(2, 5), shape=SHAPES, count=COUNTS, data=st.data(),
    curve=st.sampled_from([Flow(), Cosine()]),
)  # fmt: skip
def test_symbols_stay_symbols_of_their_shape(kind, states, shape, count, data, curve):
    """A symbol is kept or replaced; at t = 0 all are kept, at t = 1 the prior's are drawn from the same numbers."""
    process, t = kind(curve, states), data.draw(times(count))
    x, noise = symbols(states, count, *shape), numbers(count, *shape)
    z = process.corrupt(x, t, noise)
    assert z.shape == x.shape and z.dtype == torch.int64 and bool(((z >= 0) & (z < process.size)).all())
    assert torch.equal(process.corrupt(x, 0.0, noise), x)
    assert torch.equal(process.corrupt(x, 1.0, noise), process.prior(noise)) and process.prior(noise).shape == x.shape
    law = process.marginal(x, t)
    assert law.shape == (*x.shape, process.size)
    torch.testing.assert_close(law.sum(-1), torch.ones(x.shape, dtype=F64))
    answer = numbers(count, *process.net_shape(shape), seed=2)
    belief = process.read(process.prediction(answer, z), z, t)
    assert belief.log_prob.shape == (*x.shape, states) and not bool(belief.log_prob.isnan().any())
    assert process.sample_shape(process.net_shape(shape)) == shape


@settings(max_examples=30)
@given(wide=st.integers(1, 3), long=st.integers(1, 3), states=st.integers(2, 4), count=COUNTS, data=st.data())
def test_parts_of_a_product_keep_their_shapes(wide, long, states, count, data):
    parts = {"x": Gaussian(Flow()), "kind": Masked(Cosine(), states)}
    process = Product(parts, {"x": (wide,), "kind": (long,)})
    t = data.draw(times(count))
    x = {"x": numbers(count, wide), "kind": symbols(states, count, long)}
    noise = {"x": numbers(count, wide, seed=1), "kind": numbers(count, long, seed=2)}
    z = process.corrupt(x, t, noise)
    for name, part in parts.items():
        assert torch.equal(z[name], part.corrupt(x[name], t, noise[name]))
    answer = numbers(count, *process.net_shape(), seed=3)
    beliefs = process.read(answer, z, t)
    assert beliefs["x"].x.shape == (count, wide) and beliefs["kind"].log_prob.shape == (count, long, states)
    assert process.sample_shape(process.net_shape()) == {"x": (wide,), "kind": (long,)}


class Wavy(torch.nn.Module):
    """A network without weights that knows its shape."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape

    def forward(self, x, level):
        return torch.sin(2 * x) + level.reshape(-1, *(1 for _ in self.shape))


@settings(max_examples=40)
@given(
    make=st.sampled_from([lambda: Gaussian(LinearBeta(), "eps"), lambda: Gaussian(Flow()), lambda: Uniform(Flow(), 3),
                          lambda: Masked(Flow(), 2)]),
    shape=SHAPES, count=COUNTS, steps=st.integers(1, 4), batch=st.integers(1, 6), seed=st.integers(0, 2**40),
)  # fmt: skip
def test_a_sample_has_the_shape_of_the_network_and_does_not_know_its_batch(make, shape, count, steps, batch, seed):
    process = make()
    model = sf.Denoiser(Wavy(process.net_shape(shape)), process)
    whole = sf.sample(model, count, steps, seed=seed)
    parts = sf.sample(model, count, steps, seed=seed, batch=batch)
    last = sf.sample(model, steps=steps, seed=seed, index=[count - 1])
    assert whole.shape == parts.shape == (count, *shape) and last.shape == (1, *shape)
    assert whole.dtype == (torch.float32 if isinstance(process, Gaussian) else torch.int64)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last, whole[-1:], rtol=1e-4, atol=1e-4)
    assert bool(whole.double().isfinite().all())
