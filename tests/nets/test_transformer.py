"""The transformer over symbols: what each output hears, its contract, its compiled form."""

import pytest
import torch

import sfumato as sf
from sfumato.nets import Transformer, from_config

K, LENGTH = 5, 9


def made(mask="full", **more):
    torch.manual_seed(0)
    net = Transformer((K, LENGTH), 16, 2, heads=2, mask=mask, **more)
    for parameter in net.parameters():  # at initialisation all outputs are zero
        if not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.3)
    return net.double()


def heard(mask, **more):
    """Which z_j changes y_i, bool (L, L)."""
    net, base = made(mask, **more), torch.arange(LENGTH)[None, None] % K
    level, found = torch.zeros(1).double(), torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
    for j in range(LENGTH):
        other = base.clone()
        other[..., j] = K  # the mask
        found[:, j] = (net(other, level) != net(base, level))[0, 0].any(-1)
    return found


@pytest.mark.parametrize("neighbours", [False, True])
def test_each_mask_hears_what_it_says(neighbours):
    each = torch.ones(LENGTH, LENGTH, dtype=torch.bool)
    assert torch.equal(heard("full", neighbours=neighbours), each)
    assert torch.equal(heard("causal", neighbours=neighbours), each.tril(-1))
    assert torch.equal(heard("hollow", neighbours=neighbours), each ^ torch.eye(LENGTH, dtype=torch.bool))


def test_zero_at_first_and_rebuilt_by_its_config():
    net = Transformer((K, LENGTH), 16, 2, classes=3)
    z = torch.randint(0, K + 1, (4, 1, LENGTH))
    assert net(z, torch.zeros(4), torch.tensor([0, 1, 2, -1])).shape == (4, 1, LENGTH, K)
    assert not net(z, torch.zeros(4)).any()
    again = from_config(net.config)
    assert again.config == net.config
    again.load_state_dict(net.state_dict())


def test_rows_of_a_batch_do_not_interact_and_the_level_is_heard_or_not():
    net, z = made(), torch.arange(4 * LENGTH).reshape(4, 1, LENGTH) % (K + 1)
    level = torch.linspace(-2, 2, 4).double()
    torch.testing.assert_close(net(z, level)[2:3], net(z[2:3], level[2:3]))
    deaf = made(level=False)
    assert torch.equal(deaf(z, level), deaf(z, -level)) and not torch.equal(net(z, level), net(z, -level))


def test_attention_depends_on_the_distance_of_positions_alone():
    from sfumato.nets.rotary import rotary, rotated

    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 8, generator=draw, dtype=torch.float64)
    turn = rotary(20, 8).double()
    inner = rotated(q.expand(20, 8), turn) @ rotated(k.expand(20, 8), turn).T
    torch.testing.assert_close(inner[3:, 3:], inner[:-3, :-3], atol=1e-6, rtol=0)
    assert not torch.allclose(inner[0, 1:], inner[0, :-1])


@pytest.mark.parametrize(
    "wrong", [{"shape": (5,)}, {"mask": "none"}, {"width": 6, "heads": 2}, {"local": 4}, {"depth": 0}]
)
def test_impossible_sizes(wrong):
    with pytest.raises(sf.SfumatoError):
        Transformer(**{"shape": (K, LENGTH), "width": 16, **wrong})
    with pytest.raises(sf.SfumatoError, match="samples of shape"):
        made()(torch.zeros(1, 1, LENGTH + 1, dtype=torch.int64), torch.zeros(1))


@pytest.mark.parametrize("process", ["Masked", "Uniform"])
def test_a_denoiser_hands_it_symbols(process):
    process = getattr(sf, process)(sf.schedules.Flow(), K)
    model = sf.Denoiser(made(), process)
    assert model.shape == (1, LENGTH)
    z = torch.arange(2 * LENGTH).reshape(2, 1, LENGTH) % process.size
    belief = model(z, 0.4)
    assert belief.prob.shape == (2, 1, LENGTH, K)
    assert torch.equal(belief.other, model.net(z, process.noise_level(0.4).expand(2)))
    drawn = sf.sample(model, 5, steps=LENGTH, normalised=True)
    assert drawn.dtype == torch.int64 and int(drawn.max()) < K


@pytest.mark.slow
def test_it_compiles_as_one_graph():
    net, z = made().float(), torch.zeros(2, 1, LENGTH, dtype=torch.int64)
    compiled = torch.compile(net, fullgraph=True)
    torch.testing.assert_close(compiled(z, torch.zeros(2)), net(z, torch.zeros(2)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("neighbours", [False, True])
def test_a_causal_network_goes_on_from_what_it_has_read(neighbours):
    net = made("causal", classes=3, neighbours=neighbours)
    z, level, label = torch.arange(2 * LENGTH).reshape(2, 1, LENGTH) % K, torch.zeros(2).double(), torch.tensor([1, 2])
    whole = net(z, level, label)
    for known in (0, 3):
        memory = net.memory()
        logits = [net.following(z[..., :known], level, memory, label)]
        logits += [net.following(z[..., k : k + 1], level, memory, label) for k in range(known, LENGTH - 1)]
        torch.testing.assert_close(torch.stack(logits, 1), whole[:, 0, known:], atol=1e-13, rtol=0)
    with pytest.raises(sf.SfumatoError, match="causal"):
        made().memory()


@pytest.mark.parametrize("mask", ["full", "hollow", "causal"])
def test_the_output_where_it_is_asked_for(mask):
    net, z, level = made(mask), torch.arange(4 * LENGTH).reshape(4, 1, LENGTH) % (K + 1), torch.linspace(-2, 2, 4)
    where = z == K
    torch.testing.assert_close(net(z, level.double(), where=where), net(z, level.double())[where], atol=1e-14, rtol=0)


@pytest.mark.parametrize("size", [K + 1, 300])
def test_tables_of_pairs_of_neighbours(size):
    from sfumato.nets.neighbours import BOTH, ROWS, Neighbours

    torch.manual_seed(0)
    net, z = Neighbours(size, 4, causal=False), torch.randint(size, (2, LENGTH))
    torch.nn.init.normal_(net.weight)
    tables = net.weight.reshape(3, -1, 4)
    assert tables.shape[1] == min(size**2, ROWS)
    padded = torch.nn.functional.pad(z, (2, 2), value=size - 1)
    found = net(padded[:, :-2])
    for i in range(LENGTH):  # position i is i + 2 in the padded text
        rows = [net.row(padded[:, i + 2 + a], padded[:, i + 2 + b]) for a, b in BOTH]
        torch.testing.assert_close(found[:, i], sum(tables[k, row] for k, row in enumerate(rows)))
    a, b = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    used = net.row(a, b).flatten().bincount(minlength=tables.shape[1])
    # a row for each pair, or as many pairs a row as there must be, and few more
    assert len(used) == tables.shape[1] and int(used.max()) <= 2 * -(-(size**2) // tables.shape[1]) - 1


def test_networks_of_before_the_tables_are_the_same_and_those_with_them_are_zero_at_first():
    torch.manual_seed(0)
    plain = Transformer((K, LENGTH), 16, 2)
    described = {"name": "Transformer", "args": dict(plain.config["args"])}
    del described["args"]["neighbours"]  # as files of before say
    torch.manual_seed(0)
    again = from_config(described)
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), again.parameters(), strict=True))
    assert len(plain.state_dict()) == len(again.state_dict())
    net = Transformer((K, LENGTH), 16, 2, neighbours=True)
    assert from_config(net.config).config == net.config
    z = torch.randint(0, K + 1, (4, 1, LENGTH))
    assert not net(z, torch.zeros(4)).any()
    with pytest.raises(sf.SfumatoError, match="leave neighbours out"):
        Transformer((3, LENGTH), 16, vocabulary=K, neighbours=True)


def test_vectors_in_the_place_of_symbols():
    torch.manual_seed(0)
    net = Transformer((3, LENGTH), 16, 2, heads=2, vocabulary=K)
    z, level = torch.randn(4, 3, LENGTH), torch.linspace(-2, 2, 4)
    assert not net.takes_symbols and net.shape == (3, LENGTH)
    assert net(z, level).shape == (4, 1, LENGTH, K) and not net(z, level).any()
    again = from_config(net.config)
    again.load_state_dict(net.state_dict())
    for parameter in again.parameters():  # those that write are zero at first
        torch.nn.init.normal_(parameter, std=0.3)
    moved = z.clone()
    moved[:, 1, 4] += 1
    assert bool((again(moved, level) != again(z, level)).any(-1).all())  # every output hears every vector
    assert again(z[..., :5], level).shape == (4, 1, 5, K)
    with pytest.raises(sf.SfumatoError, match=r"\(3, 9\)"):
        net(torch.zeros(4, 1, LENGTH), level)
