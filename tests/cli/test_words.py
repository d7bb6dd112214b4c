"""Commands, flags and help: what is known, what is suggested, what is loaded."""

import json
import re
import subprocess
import sys

import pytest

import sfumato as sf
from sfumato import solvers
from sfumato.cli import COMMANDS, main
from sfumato.cli.parse import parse, train_config
from sfumato.errors import SfumatoError, counted
from sfumato.solver_selection import make_plan
from sfumato.training.config import TrainConfig


def test_help_names_commands_and_exit_statuses(call):
    status, out, err = call("--help")
    assert status == 0 and err == ""
    for word in [*COMMANDS, "--json", "130", "exit status"]:
        assert word in out
    assert call()[1] == out  # without arguments: the same


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(call, command):
    status, out, err = call(command, "--help")
    assert status == 0 and err == "" and f"usage: sfumato {command}" in out and "--json" in out


def test_train_help_tells_every_setting(call):
    out = call("train", "--help")[1]
    for name in vars(TrainConfig()):
        spelling = {"conditions": "condition", "columns": "column", "sources": "from"}.get(name, name)
        assert name == "data" or re.search(f"--{spelling.replace('_', '-')}[ ,]", out), name
    assert "{None}" not in out


def test_help_and_parsing_load_no_torch():
    code = (
        "import sys\nfrom sfumato.cli import main\n"
        "for words in ('--help', 'train --help', 'sample --help', 'train x --stepz 3', 'trian'):\n"
        "    main(words.split())\nprint('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "False False"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("trian fashion", "did you mean 'train'?"),
        ("train fashion --net DiT --net.depth 1 --net.depth=2", "--net.depth is given 2 times"),
        ("train fashion --steps 2 --net DiT(depth=1,depth=2)", "depth is given twice"),
        ("--josn", "There is no flag '--josn'"),
        ("train fashion --step 5", "did you mean --steps?"),
        ("train fashion --batchsize=5", "did you mean --batch?"),
        ("train fashion --wieght_decay 0", "did you mean --weight-decay?"),
        ("sample m --gudance 2", "did you mean --guidance?"),
        ("train fashion --steps many", "argument --steps: invalid int value: 'many'"),
        ("train fashion --lr fast", "argument --lr: invalid float value: 'fast'"),
        ("train fashion --steps", "argument --steps: expected one argument"),
        ("sample m --weights best", "argument --weights: invalid choice: 'best' (choose from 'ema', 'raw')"),
        ("sample m --guidance-interval 1", "argument --guidance-interval: expected 2 arguments"),
        ("sample m --seed 1.5", "argument --seed: invalid int value: '1.5'"),
        ("sample", "the following arguments are required: MODEL"),
        ("info", "the following arguments are required: MODEL"),
        ("inspect a b", "does not know what to do with 'b'"),
        ("control run", "the following arguments are required: WORD"),
        ("sample m --json=yes", "argument --json: ignored explicit argument 'yes'"),
        ("train fashion --condition", "argument --condition: expected one argument"),
        ("sample --guidance 1 --gudance 2", "has no flag --gudance: did you mean --guidance"),
        ("sample run --schedule cosine", "--schedule: a model has it from its training, `sfumato train --schedule`"),
        ("sample run --weight ema", "has no flag --weight: did you mean --weights"),
        ("demo --minutes two", "argument --minutes: invalid float value: 'two'"),
        ("--modules", "argument --modules: expected one argument"),
        ("train digits --config=", "--config names no file: give the path of a YAML file"),
        ("train digits --out=--", "--out=-- has no value: give one, or leave it out"),
        ("--modules=-- info m", "--modules=-- has no value: give one, or leave it out"),
        ("train digits --net DiT(depth=None)", "depth takes a whole number, not None"),
        ("train digits --net DiT(depth=1e999)", "depth takes a whole number, not inf"),
        ("train digits --schedule ve(sigma_max=80j)", "sigma_max takes a number, not 80j"),
        (
            "train digits --loss autoencoding --net DiT(depth=1,width=32)",
            "trains an Autoencoder, and the network is a DiT",
        ),
        ("train digits --device meta", "There is no device 'meta'"),
    ],
)
def test_wrong_words_are_one_sentence(refused, words, expected):
    assert expected in refused(*words.split())


def test_a_word_of_several_lines_leaves_the_mistake_in_one(refused):
    assert "no command 'in fo'" in refused("in\nfo").replace("\\n", " ") and refused(
        "info", "m", "--two\nlines"
    ).endswith("\n")


def test_flags_of_every_command_may_stand_before_it(call, workplace):
    (workplace / "mine.py").write_text("print('ran')")
    status, out, _ = call("--modules", "mine.py", "--json", "inspect", "digits")
    assert status == 0 and out.startswith("ran\n") and json.loads(out.splitlines()[-1])["samples"] == 1797


def test_version(call):
    import sfumato

    assert call("--version") == (0, f"sfumato {sfumato.__version__}\n", "")


def test_flags_are_the_settings():
    words = "data/ --steps 7 --weight-decay 0.1 --target eps --sample_every 3 -o runs/x --seed=4"
    made = train_config(parse("train", words.split()))
    expected = TrainConfig(data="data/", steps=7, weight_decay=0.1, target="eps", sample_every=3, out="runs/x", seed=4)
    assert made == expected
    assert train_config(parse("train", ["d"])) == TrainConfig(data="d")


def test_words_may_stand_in_any_order_and_begin_with_a_sign():
    made = parse("sample", ["--guidance", "-1e-3", "--guidance_interval", "-3", ".5", "-n64", "m", "--class", "-1"])
    assert (made.guidance, made.guidance_interval, made.number, made.class_) == (-1e-3, [-3.0, 0.5], 64, "-1")
    assert parse("memorization", ["m", "-n", "3", "d"]).data == "d"
    assert parse("runs", ["a", "b", "--json", "c"]).folders == ["a", "b", "c"] and parse("runs", []).folders == []
    assert parse("sample", ["m", "--seed=1", "--condition", "a=1", "--seed", "2", "--condition=b=2"]).seed == 2
    assert parse("sample", ["m", "--condition", "a=1", "--condition=b=2"]).condition == [("a", "1"), ("b", "2")]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("columns", [80, 120])
def test_help_fits_the_terminal(call, monkeypatch, command, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = call(command, "--help")[1].splitlines()
    assert max(map(len, lines)) <= columns and "  --json" in "\n".join(lines)


def test_yaml_lies_between_defaults_and_flags(workplace):
    (workplace / "c.yaml").write_text("data: here\nsteps: 9\nlr: 0.01\nbatch: 8\n")
    made = train_config(parse("train", ["--config", "c.yaml", "--batch", "16"]))
    assert made == TrainConfig(data="here", steps=9, lr=0.01, batch=16)
    by_time = train_config(parse("train", ["--config=c.yaml", "--minutes", "3", "there"]))
    assert (by_time.data, by_time.minutes, by_time.steps) == ("there", 3.0, None)
    (workplace / "d.yaml").write_text("data: here\nenergy: true\nnet: MLP\nconditions: {mass: scalar}\n")
    both = ["--config", "d.yaml", "--condition", "kind:label"]
    made = train_config(parse("train", [*both, "--no-energy", "--net.depth", "2"]))
    assert (made.energy, made.net, made.conditions) == (False, "MLP(depth=2)", {"mass": "scalar", "kind": "label"})
    assert train_config(parse("train", [*both, "--energy"])).energy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("stepz: 9", "There is no setting 'stepz' in c.yaml: did you mean 'steps'?"),
        ("- 1", "must hold settings"),
        ("a: [", "not valid YAML"),
        ("net: huge", "net cannot be 'huge'"),
        ("steps: -4", "steps must be a number at least 1"),
        ("lr: quick", "lr must be a number"),
    ],
)
def test_a_wrong_yaml_is_one_sentence(refused, workplace, text, expected):
    (workplace / "c.yaml").write_text(text)
    assert expected in refused("train", "digits", "--config", "c.yaml")


def test_a_missing_yaml_is_one_sentence(refused):
    assert "c.yaml" in refused("train", "digits", "--config", "c.yaml")


def test_help_lists_the_solvers_that_there_are(call):
    shown = " ".join(call("sample", "--help")[1].split())
    assert ", ".join(solvers.NAMES) in shown


def test_debug_shows_the_error_itself():
    with pytest.raises(SfumatoError, match="--steps"):
        main(["train", "x", "--step", "3", "--debug"])


def test_an_error_of_our_own_is_a_sentence_and_status_1(call, monkeypatch):
    from sfumato import data

    def broken(*args, **kwargs):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(data, "inspect", broken)
    status, out, err = call("inspect", "digits", "--json")
    assert status == 1 and json.loads(out)["status"] == 1
    assert "ZeroDivisionError" in err and err.count("\n") == 1


def test_arguments_of_what_a_flag_names():
    words = "d --net DiT --net.depth 8 --net.embed-dim=64 --weight sigmoid --weight.bias -2 --schedule ve(sigma_max=9)"
    made = train_config(parse("train", [*words.split(), "--schedule.sigma_min", "0.1"]))
    assert made == TrainConfig(
        data="d", net="DiT(depth=8, embed_dim=64)", weight="sigmoid(bias=-2)",
        schedule="ve(sigma_max=9, sigma_min=0.1)",
    )  # fmt: skip
    assert parse("sample", ["m", "--solver", "multistep", "--solver.order", "3"]).solver == "multistep(order=3)"
    assert parse("sample", ["m", "--solver=brownian", "--solver.solver=dpm++2m"]).solver == "brownian(solver='dpm++2m')"
    assert train_config(parse("train", ["d", "--net", "UNet", "--net.channels", "8,16"])).net == "UNet(channels=(8,16))"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("train digits --steps 1 --net DiT --net.dept 8", "DiT has no argument --net.dept: did you mean '--net.depth'"),
        ("train digits --net DiT --net.embed_dmi 8", "no argument --net.embed_dmi: did you mean '--net.embed-dim'"),
        ("train digits --steps 1 --net DiT --net.depth=", "--net.depth= has no value: give one"),
        ("train digits --steps 1 --net DiT --net.depth 2.5", "depth takes a whole number, not 2.5"),
        ("train digits --steps 1 --net DiTT --net.depth 2", "net cannot be 'DiTT(depth=2)': did you mean 'DiT'"),
        ("train digits --net.depth", "argument --net.depth: expected one argument"),
        ("train digits --batch.size 3", "has no flag --batch.size: did you mean --batch"),
        ("sample m --solver.order 3", "--solver.order is an argument of what --solver names"),
        ("train digits --modules nowhere.py", "nowhere.py is no Python file"),
        ("train digits --modules broken.py", "broken.py could not be run (NameError: name 'nonsense' is not defined)"),
    ],
)
def test_wrong_arguments_are_one_sentence(refused, workplace, words, expected):
    (workplace / "broken.py").write_text("nonsense")
    assert expected in refused(*words.split())


def test_one_is_no_plural(call, models):
    told = [
        counted(*each) for each in ((1, "call"), (1.0, "minute"), (0.5, "minute"), (2000, "step"), (1, "is", "are"))
    ]
    assert told == ["1 call", "1 minute", "0.5 minutes", "2,000 steps", "1 is"]
    assert ": 1 step, 1 call, order" in str(make_plan(sf.load(models["points"]), 1, "euler"))
    status, _, err = call("sample", models["images"], "-n", "1", "--class", "3,5", "--steps", "1", "-o", "x.npy")
    assert status == 2 and "2 values for 1 sample:" in err, err
