"""One registry: what is found in the text is what is there, words make things, and a user's own stand beside them."""

import ast
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sfumato as sf
from sfumato import files, registry, trees
from sfumato.errors import SfumatoError
from sfumato.objectives import times, weights
from sfumato.training.config import TrainConfig

F64 = torch.float64
LAM = torch.linspace(-8, 8, 17, dtype=F64)


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("sigmoid", weights.sigmoid(0.0)),
        ("sigmoid(bias=-2)", weights.sigmoid(-2.0)),
        ("sigmoid(-2.5)", weights.sigmoid(-2.5)),
        (" p2 ( 0.5 , k = 2e0 ) ", weights.p2(0.5, 2.0)),
        ("edm", weights.edm(1.0, -1.2 + math.log(2))),
        ("edm(std=1)", weights.edm(1.0, -1.2 + math.log(2), 1.0)),
        ("elbo()", weights.elbo()),
    ],
)
def test_a_weight_with_numbers(word, wanted):
    torch.testing.assert_close(weights.named(word)(LAM), wanted(LAM), rtol=0, atol=0)


@pytest.mark.parametrize("name", weights.NAMED)
def test_a_bare_name_is_the_weight_of_that_name(name):
    torch.testing.assert_close(weights.named(name)(LAM), weights.NAMED[name]()(LAM), rtol=0, atol=0)


def test_a_density_with_numbers():
    assert times.named("mode(s=0.8)") == times.Mode(0.8)
    assert times.named("logit-normal(0.5, 0.8)") == times.logit_normal(0.5, 0.8)
    assert times.named("logit-normal(std=2)") == times.logit_normal(0.0, 2.0)
    assert times.named("adaptive(half_life=500)").half_life == 500
    assert type(times.named("uniform")) is times.UniformTime


def test_settings_take_them():
    config = TrainConfig(data="x.npy", times="mode(s=0.8)", weight="sigmoid(bias=-2)")
    assert times.named(config.times) == times.Mode(0.8)
    torch.testing.assert_close(weights.chosen(config.weight)(LAM), weights.sigmoid(-2.0)(LAM))
    for wrong in ({"weight": "sigmod(2)"}, {"weight": "sigmoid("}, {"times": "nope(1)"}, {"target": "v(1)"}):
        with pytest.raises(SfumatoError, match="cannot be"):
            TrainConfig(**wrong)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("sigmod", "did you mean 'sigmoid'"),
        ("sigmoid(bais=2)", "sigmoid has no argument 'bais': did you mean 'bias'"),
        ("sigmoid(1, 2)", r"sigmoid takes bias=0.0"),
        ("sigmoid(two)", "'two' is not a number"),
        ("sigmoid(bias=)", "write arguments as in Python"),
        ("sigmoid(1)(2)", "write arguments as in Python"),
        ("sigmoid(**{})", "sigmoid has no argument 'None'"),
        ("p2(1, 2, 3)", "p2 takes gamma=1.0, k=1.0"),
        ("p2(0.5, gamma=1)", "p2 takes gamma=1.0, k=1.0"),
        ("elbo(3)", "elbo takes no arguments"),
        ("p2(k=-1)", "positive number"),
        ("sigmoid(", "There is no weight"),
        ("sigmoid(bias=1, bias=2)", "bias is given twice"),
        ("", "There is no weight"),
    ],
)
def test_mistakes_are_one_sentence(word, said):
    with pytest.raises(SfumatoError, match=said) as caught:
        weights.named(word)
    assert "\n" not in str(caught.value) and str(caught.value).endswith((".", "?"))


def test_what_the_text_says_is_what_is_registered():
    for kind in registry.KINDS:
        for name in registry.names(kind):
            made = registry.get(kind, name)
            assert callable(made), (kind, name)
            if isinstance(made, type):
                assert registry.get(kind, made.__name__) is made, (kind, name)
    assert len(registry.names("solver")) > 25 and len(registry.names("schedule")) > 12


def test_no_list_of_names_is_written_twice():
    """No tuple, list, set or dict of the package spells most names of a kind: lists come from the registry.

    `__all__` of a room, and the table of the front door, name what Python finds in it, whatever is registered.
    """
    # what a network embeds, and what a column settles on, go by the kind of a condition: those are no lists of kinds
    kinds = [kind for kind in registry.KINDS if kind != "condition"]
    names = {kind: set(registry.names(kind)) - {"x", "v", "F"} for kind in kinds}
    wrong, seen = [], 0
    for path in sorted(Path(sf.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        public = [node.value for node in tree.body if isinstance(node, ast.Assign) and "__all__" in ast.unparse(node)]
        for node in ast.walk(tree):
            if node in public or path.parent.name == "sfumato" and path.name == "__init__.py":
                continue
            parts = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
            words = {part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)}
            seen += len(words)
            wrong += [
                (path.name, kind, words & known)
                for kind, known in names.items()
                if len(words & known) > max(3, len(known) / 2)
            ]
    assert not wrong and seen > 500, wrong


def test_lists_load_no_torch():
    code = (
        "import sys\nfrom sfumato import files, registry, trees\n"
        "print(sum(len(registry.names(kind)) for kind in registry.KINDS), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, loaded = done.stdout.split()
    assert int(count) > 60 and loaded == "False"


def test_words_hold_words():
    cosine = sf.schedules.Cosine()
    assert registry.make("schedule", "shifted(cosine, 2)") == sf.schedules.Shifted(cosine, 2)
    assert registry.make("schedule", "shifted(base=ve(sigma_max=9), factor=2)").base == sf.schedules.VE(sigma_max=9)
    assert registry.make("density", "low-discrepancy(logit-normal(0.5))").base == times.logit_normal(0.5)
    net = registry.make("network", "UNet(channels=(8, 16), attention=1, blocks=1)", {"shape": (1, 4, 4), "classes": 2})
    assert net.config["args"]["channels"] == [8, 16] and net.config["args"]["classes"] == 2
    assert registry.make("network", "Energy(net=MLP(width=8))", {"dim": 3}).net.config["args"]["dim"] == 3
    again = trees.word(net.config)
    assert registry.make("network", again).config == net.config


@pytest.mark.parametrize(
    ("kind", "word", "said"),
    [
        ("network", "DiTT(depth=2)", "There is no network 'DiTT': did you mean 'DiT'"),
        ("network", "DiT(dept=2)", "DiT has no argument 'dept': did you mean 'depth'"),
        ("network", "DiT(depth=2)", "needs the argument 'shape'"),
        ("network", "MLP(dim=2, depth=2.5)", "depth takes a whole number, not 2.5"),
        ("network", "MLP(dim=2, width=wide)", "'wide' is not a number"),
        ("solver", "huen", "There is no solver 'huen': did you mean 'heun'"),
        ("schedule", "shifted(cosin, 2)", "There is no noise schedule 'cosin'"),
    ],
)
def test_a_wrong_word_is_one_sentence(kind, word, said):
    with pytest.raises(SfumatoError) as caught:
        registry.make(kind, word)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_not_here_is_taken_for_none_of_another_kind():
    """'Mine' is near 'Cosine', which is no network."""
    with pytest.raises(SfumatoError, match=r"There is no network 'Mine' here\. Register your own class first"):
        trees.build({"name": "Mine", "args": {}}, "network")
    with pytest.raises(SfumatoError, match="There is no network 'Unet' here, did you mean 'UNet'?"):
        trees.build({"name": "Unet", "args": {}}, "network")


def test_a_weight_that_is_registered_as_itself(tidy):
    """And not as a function that returns it."""
    sf.register("weight", "itself")(lambda level: level)
    for word, said in (("itself", "needs the argument 'level', itself"), ("itself(3)", "register a function that")):
        with pytest.raises(SfumatoError, match=said):
            weights.named(word)


def test_a_name_of_the_package_cannot_be_taken():
    with pytest.raises(SfumatoError, match="There is a solver 'heun' in sfumato.solvers.runge_kutta already"):
        sf.register("solver", "heun")(sf.solvers.DDIM)
    with pytest.raises(SfumatoError, match="Nothing is registered as 'sheduel'"):
        sf.register("sheduel", "mine")


class Flow(torch.nn.Module):
    """A network that is named as a schedule is, and holds another."""

    def __init__(self, width: int, *sizes: int, net: torch.nn.Module | None = None, **more: object) -> None:
        super().__init__()
        self.sizes, self.more = sizes, more
        self.inner = net
        self.map = torch.nn.Linear(width, width)

    def forward(self, x, level):
        return self.map(x)


class DDIM(torch.nn.Module):
    """Named as a solver is; it changes what it was given."""

    def __init__(self, body, options=None, net=None) -> None:
        super().__init__()
        self.body, self.options, self.net = body, options, net
        if options is not None:
            options["a"].append(3)
        self.map = torch.nn.Linear(2, 2)

    def forward(self, x, level):
        return self.map(x)


@pytest.fixture
def tidy():
    """What is registered here goes again."""
    yield
    for kind, made in ((kind, made) for table in (registry._MADE, registry._OWN) for kind, made in table.items()):
        for name in [name for name, each in made.items() if getattr(each, "__module__", "") == __name__]:
            registry._MADE[kind].pop(name, None), registry._OWN[kind].pop(name, None)


def test_networks_named_as_something_else_come_back_as_they_were_made(tmp_path, tidy):
    registry.add([Flow, DDIM])
    given = {"a": [1, (2, 2)]}
    changing = DDIM([1, None], given, net=Flow(2, tail={"b": 1}))
    nets = [Flow(2), Flow(2, 3, 4, net=DDIM("any"), depth=5, names=["x"]), changing]
    for i, net in enumerate(nets):
        path = sf.save(sf.Denoiser(net, sf.Gaussian(sf.schedules.Flow())), tmp_path / f"{i}.safetensors")
        again = sf.load(path, modules=[Flow, DDIM])
        assert type(again.net) is type(net) and trees.tree(again.net) == trees.tree(net), i
        assert all(
            torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True)
        )
        if isinstance(net, Flow):
            made = registry.make("network", trees.word(trees.tree(Flow(2, 3, 4, depth=5, names="x"))))
            assert made.sizes == (3, 4) and made.more == {"depth": 5, "names": "x"}
    assert given["a"] == [1, (2, 2), 3] and again.net.options["a"] == [1, [2, 2], 3]  # made anew of [1, [2, 2]]
    assert sf.load(path).net.net.more == {"tail": {"b": 1}}
    wrong = [
        (DDIM(Flow(2)), "DDIM contains a Flow, which a file would confuse with the Flow of sfumato"),
        (DDIM({"name": "me", "args": {}}), "contains the dict"),
        (DDIM([{"x": {1: 2}}]), "contains the dict"),
    ]
    for net, words in wrong:
        with pytest.raises(SfumatoError, match=words) as caught:
            sf.save(sf.Denoiser(net, sf.Gaussian(sf.schedules.Flow())), tmp_path / "no.safetensors")
        assert not (tmp_path / "no.safetensors").exists() and "\n" not in str(caught.value)


def test_a_file_makes_nothing_but_what_a_file_holds(tmp_path):
    path = sf.save(sf.Denoiser(sf.nets.MLP(2, 4, 1), sf.Gaussian(sf.schedules.Flow())), tmp_path / "m.safetensors")
    contract, tensors = files.read_sealed(path)
    for name, words in [("MLflow", "holds no logger"), ("denoising", "holds no loss"), ("adamw", "holds no optimizer")]:
        args = {"run": str(tmp_path), "config": {}, "note": None}
        contract["model"]["args"]["net"] = {"name": name, "args": args}
        files.write_sealed(tmp_path / "bad.safetensors", tensors, contract)
        with pytest.raises(SfumatoError, match=words) as caught:
            sf.load(tmp_path / "bad.safetensors")
        assert "\n" not in str(caught.value)
