"""Files of sfumato's own that somebody else wrote: each ends in one sentence, or in something that works.

No exception but SfumatoError, no signal, no samples of NaN, and no more memory than `mutations.MEMORY`.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import sfumato as sf
from fuzz.models import MADE, OLD, WRITTEN
from fuzz.mutations import ANY, GONE, HOSTILE, hunt, mutated, places, put
from sfumato import files, folder, machine, serialization
from sfumato.cli import main
from sfumato.cli.look import how_to_sample
from sfumato.denoising_autoencoder import DenoisingAutoencoder
from sfumato.diagnostics import summary
from sfumato.diagnostics.board_figures import from_log
from sfumato.errors import SfumatoError
from sfumato.state import map_state
from sfumato.training import averages, checkpoint, config, control, health
from sfumato.training.parts import objective_of

FEW = [pytest.param(40, id="few"), pytest.param(1000, id="many", marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Thousands of files of a moment need not survive a power cut."""
    monkeypatch.setattr(files, "flush", lambda path: None)


def finite(found: Any) -> bool:
    each: list[bool] = []
    map_state(lambda leaf: each.append(bool(torch.as_tensor(leaf).double().isfinite().all())), found)
    return all(each)


def used(path: Path) -> Any:
    """What all that reads a model file makes of it: its description, and two samples."""
    serialization.describe(path)
    how_to_sample(str(path), serialization.read_contract(path))
    model = sf.load(path)
    if isinstance(model, DenoisingAutoencoder):
        return model(torch.zeros(2, 4))
    if isinstance(model, sf.Codec):
        return model.decode(model.encode(torch.zeros(2, *model.shape)))
    label = {"label": torch.tensor([0, 1])} if isinstance(model, sf.Guided) else {}
    return sf.sample(model, 2, 3, **label)


def refused_or_finite(path: Path, contract: Any, tensors: Any) -> None:
    """Seal a contract that may be anything, with a right hash, and use the file."""
    files.write_sealed(path, tensors, contract)
    try:
        found = used(path)
    except SfumatoError as error:
        assert "\x1b" not in str(error) and "\n" not in str(error)
        return
    assert finite(found), contract


@pytest.fixture(scope="module")
def sealed(tmp_path_factory) -> dict[str, tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    """(contract without its hash, tensors) of every model."""
    place = tmp_path_factory.mktemp("models")
    paths = {name: sf.save(make(), place / f"{name}.safetensors") for name, make in MADE.items()}
    paths |= {name: OLD / f"{name}.safetensors" for name in WRITTEN}
    read = {name: files.read_sealed(path) for name, path in paths.items()}
    return {
        name: ({k: v for k, v in contract.items() if k != "hash"}, tensors)
        for name, (contract, tensors) in read.items()
    }


@pytest.mark.parametrize("name", [*MADE, *WRITTEN])
def test_every_leaf_of_a_contract(name, sealed, tmp_path):
    """Three hostile values a leaf, in turn, so that neighbours have different ones."""
    contract, tensors = sealed[name]
    refused_or_finite(tmp_path / "m.safetensors", contract, tensors)
    turn = itertools.cycle(HOSTILE)
    for where in places(contract):
        for value in itertools.islice(turn, 3):
            refused_or_finite(tmp_path / "m.safetensors", put(contract, where, value), tensors)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MADE, *WRITTEN])
def test_every_leaf_of_a_contract_with_every_value(name, sealed, tmp_path):
    contract, tensors = sealed[name]
    for where, value in itertools.product(places(contract, most=3), HOSTILE):
        refused_or_finite(tmp_path / "m.safetensors", put(contract, where, value), tensors)


@pytest.mark.parametrize("examples", FEW)
@pytest.mark.parametrize("name", ["full", "v1_classes", "product"])
def test_mutated_contracts(name, examples, sealed, tmp_path):
    contract, tensors = sealed[name]
    hunt(examples, mutated(contract), lambda made: refused_or_finite(tmp_path / "m.safetensors", made, tensors))


SENTENCES = {
    "version": (None, "version: expected a whole number from 1"),
    "provenance.guidance": ("lots", "provenance.guidance: expected a finite number from -1e"),
    "model.args.plans.ode.args.times": ("x", "model.args.plans.ode.args.times: expected a list"),
    "model.args.plans.ode.args.lines.0.x.0": (1e30, "lines.0.x.0: expected a finite number"),
    "model.args.plans.sde.args.steps": (10**9, "steps: expected a whole number from 1 to 100,000"),
    "model.args.spec.args.shape": (-1, "spec.args.shape: expected a list of 1 or more, got -1"),
    "model.args.net.args.dropout": (1e30, "model.args.net.args: MLP cannot be made with these arguments"),
    "model.args.net.args.depth": (10**13, "depth: 10000000000000 is more than the"),
    "model.args.net.args.width": (900_000, "the network is larger than its weights in the file"),
    "model.args.net.name": ("os.system", "There is no network 'os.system'"),
}


@pytest.mark.parametrize(("key", "value", "said"), [(key, *each) for key, each in SENTENCES.items()], ids=SENTENCES)
def test_a_sentence_names_the_file_and_the_key(key, value, said, sealed, tmp_path):
    contract, tensors = sealed["full"]
    where: list[Any] = key.split(".")
    if "lines" in where:
        where[where.index("lines") + 1] = 0  # a list; a line's own keys are text
    before = machine.peak_memory()
    files.write_sealed(tmp_path / "m.safetensors", tensors, put(contract, tuple(where), value))
    with pytest.raises(SfumatoError) as caught:
        sf.load(tmp_path / "m.safetensors")
    assert said in str(caught.value) and "m.safetensors" in str(caught.value)
    assert machine.peak_memory() - before < 200 << 20


def test_a_contract_that_is_nested_deep_is_refused(sealed, tmp_path):
    contract, tensors = sealed["full"]
    for depth in (70, 900, 100_000):
        text = json.dumps({**contract, "hash": "x"})[:-1] + ', "more": ' + "[" * depth + "]" * depth + "}"
        from safetensors.torch import save_file

        save_file(tensors, tmp_path / "m.safetensors", metadata={files.KEY: text})
        with pytest.raises(SfumatoError, match="m.safetensors is not a model file: its contract is damaged .*deep"):
            sf.load(tmp_path / "m.safetensors")


def test_sizes_are_compared_with_the_memory_before_anything_is_made():
    model, before = MADE["full"](), machine.peak_memory()
    for n in (10**12, 10**18, 2**63 - 1):
        with pytest.raises(SfumatoError, match="GB of memory"):
            sf.sample(model, n, 2)
    with pytest.raises(SfumatoError, match="steps must be at most 100,000"):
        sf.sample(model, 2, 10**9)
    assert machine.peak_memory() - before < 200 << 20


# -- plans, settings, logs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("examples", FEW)
def test_mutated_plans(examples, tmp_path):
    model = MADE["full"]()
    plan = json.loads(json.dumps(model.plans["ode"].to_dict()))

    def ask(made: Any) -> None:
        (tmp_path / "plan.json").write_text(json.dumps(made))
        try:
            found = sf.sample(model, 2, solver=sf.solvers.Plan.load(tmp_path / "plan.json"))
        except SfumatoError:
            return
        assert finite(found), made

    hunt(examples, mutated(plan) | ANY, ask)


@pytest.mark.parametrize("examples", FEW)
def test_mutated_settings(examples, tmp_path):
    def ask(made: Any) -> None:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(made, allow_unicode=True), encoding="utf-8")
        for read in (config.read, config.from_yaml):
            try:
                read(str(tmp_path / "config.yaml"))
            except SfumatoError as error:
                assert "config.yaml" in str(error) or read is config.from_yaml

    hunt(examples, mutated(config.TrainConfig().to_dict()) | ANY.filter(lambda made: not _surrogates(made)), ask)


def _surrogates(made: Any) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in json.dumps(made, ensure_ascii=False, default=str))


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in itertools.pairwise("abcdefghijkl")
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "YAML aliases"),
        ("data: " + "[" * 60_000, "deep within each other"),
        ("".join(f"{' ' * i}a:\n" for i in range(300)), "deep within each other"),
        ("a: " * 20_000, "config.yaml (is not valid YAML|holds a value)"),
        ("batch: .inf", "batch must be a whole number, not inf"),
        ("batch: .nan", "batch must be a whole number, not nan"),
        ("loggers: [a]", "loggers must be text"),
        ("lr: true", "lr must be a number"),
        ("steps: " + "9" * 5000, "cannot be read"),
        ("data: 2020-02-31", "cannot be read"),
        ("? [a]\n: b", "not valid YAML"),
        ("data: " + "x" * 100_000, "bytes, more than"),
        ("data: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("conditions: [a]", "conditions are names and kinds"),
        (b"\xff\xfe\x00", "not text in UTF-8"),
    ],
)
def test_settings_that_attack_the_reader(text, said, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SfumatoError, match=said) as caught:
        config.from_yaml(str(path))
    assert "config.yaml" in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of 40 steps with a label, validations and snapshots."""
    x = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    out, labels = tmp_path_factory.mktemp("runs") / "run", ["a\x1b[31m\n<script>", "b", "c"] * 66 + ["b", "c"]
    how = {"net": "MLP(width=16, depth=1)", "steps": 40, "precision": "float32", "snapshots": 2}
    from sfumato.training.console import Silent

    return sf.train(x, out, labels=labels, console=Silent(), **how).path


def copied(run: Path, to: Path) -> Path:
    """The run's folder with the same files, to change one of them."""
    for each in sorted(run.rglob("*")):
        (to / each.relative_to(run)).parent.mkdir(parents=True, exist_ok=True)
        if each.is_file() and not (to / each.relative_to(run)).exists():
            (to / each.relative_to(run)).write_bytes(each.read_bytes())
    return to


def readers(run: Path) -> Iterator[Any]:
    """What is made of a run's log and reports, besides training on."""
    yield lambda: summary.overview(run, config.read(str(run / "config.yaml")))
    yield lambda: summary.words(found) if (found := summary.load(run)) else None
    yield lambda: health.recorded(run)
    yield lambda: folder.incidents(run)
    yield lambda: from_log(folder.read(run / "metrics.jsonl"), objective_of(config.TrainConfig()))
    yield lambda: summary._holdout(folder.read(run / "metrics.jsonl"))


@pytest.mark.parametrize("examples", FEW)
@pytest.mark.parametrize("name", ["metrics.jsonl", "report.json", "health.json", "incident.json"])
def test_mutated_logs(name, examples, run, tmp_path):
    place = copied(run, tmp_path / "run")
    made = {
        "metrics.jsonl": lambda: json.loads((run / name).read_text().splitlines()[-1]),
        "report.json": lambda: json.loads((run / name).read_text()),
        "health.json": lambda: [
            {"code": "x", "what": "y", "evidence": {"z": 1}, "cure": "c", "severity": "error", "step": 3}
        ],
        "incident.json": lambda: [{"step": 1, "samples": [1], "rows": [2], "where": "loss", "lr": 0.1}],
    }[name]()

    def ask(changed: Any) -> None:
        (place / name).write_text(json.dumps(changed) + "\n")
        for read in readers(place):
            try:
                read()
            except SfumatoError as error:
                assert name in str(error)

    hunt(examples, mutated(made) | ANY, ask)


@pytest.mark.parametrize(
    "text", ["[1, 2]", "{}", '{"step": -1, "samples": 1}', "[" * 50_000, "9" * 5000, '"x"', "\x00" * 9]
)
def test_a_line_of_the_log_that_is_none(text, run, tmp_path):
    place = copied(run, tmp_path / "run")
    with (place / "metrics.jsonl").open("a") as file:
        file.write(text + "\n")
    with pytest.raises(SfumatoError, match=r"metrics.jsonl, line \d+"):
        folder.read(place / "metrics.jsonl")


@pytest.mark.parametrize("examples", FEW)
@pytest.mark.parametrize("part", ["checkpoints", "averages"])
def test_mutated_checkpoints_and_snapshots(part, examples, run, tmp_path):
    """The doctor and `average`, which rebuild a network by them."""
    place = copied(run, tmp_path / "run")
    path = sorted((place / part).iterdir())[-1]
    for other in (place / part).iterdir():
        if other != path:
            other.unlink()
    contract, tensors = files.read_sealed(path)
    rest = {name: value for name, value in contract.items() if name != "hash"}

    def ask(made: Any) -> None:
        files.write_sealed(path, tensors, made)
        try:
            if part == "averages":
                averages.average(place, 0.06)
            else:
                sf.doctor(place)
        except SfumatoError:
            pass

    hunt(examples // 2, mutated(rest), ask)
    with pytest.raises(SfumatoError):
        files.write_sealed(path, tensors, put(rest, ("version",), GONE))
        averages.contents(path) if part == "averages" else checkpoint.latest(place)


@pytest.mark.parametrize("word", [*control.WORDS, "more", "a\nb"])
def test_what_lies_in_the_folder_of_commands(word, tmp_path):
    """Folders, links and other names are neither obeyed nor deleted, and a file in the folder's place is none."""
    inside = tmp_path / control.FOLDER / word / "kept"
    inside.mkdir(parents=True)
    commands = control.Commands(tmp_path)
    assert commands.words() == [] and commands.wait() < 5 and inside.is_dir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / control.FOLDER).write_text("no folder")
    assert control.Commands(tmp_path / "other").words() == []


# -- the terminal -----------------------------------------------------------------------------------------------------


def test_names_of_others_are_shown_and_not_obeyed(run, tmp_path, capsys, monkeypatch):
    """Names of classes, files, runs and conditions with ESC, a line break, a mark that turns text around, <script>."""
    name = "x\x1b[2J\r\u202e<script>\x9b"
    place = copied(run, tmp_path / name)
    pictures = tmp_path / "data" / name
    pictures.mkdir(parents=True)
    from PIL import Image

    for i in range(12):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(pictures / f"{i}\x1b.png")
    (pictures / "broken\x1b[1m.png").write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    for words in (
        ["info", str(place)], ["runs", str(place)], ["doctor", str(place)], ["inspect", str(tmp_path / "data")],
        ["info", name + "none"], ["sample", str(place), "-n", "2", "--condition", f"label={name}"], [name],
        ["train", name + "none"], ["train", str(tmp_path / "data"), f"--{name}"], ["certify", name],
        ["doctor", "--explain", name],
        ["sample", str(place), "-n", "2", "--steps", "2", "-o", f"{name}.npz"],
    ):  # fmt: skip
        main(words)
        said = "".join(capsys.readouterr())
        wrong = [letter for letter in said if letter != "\n" and not letter.isprintable()]
        assert said and not wrong, (words, wrong)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<script>" not in page


def test_a_class_with_a_line_break_takes_one_line(run, capsys):
    assert main(["info", str(run)]) == 0
    assert r"a\x1b[31m\n<script>" in capsys.readouterr().out
