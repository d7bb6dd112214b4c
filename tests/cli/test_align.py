"""`align`: a function in a file of the user's, or a file of pairs, and a model file make a run with a report."""

import json

import pytest

REWARD = "def first(x):\n    return x.flatten(1)[:, 0].double()\n\n\nnumber = 3\n"


def test_a_reward_of_the_users(call, models, workplace):
    (workplace / "my_reward.py").write_text(REWARD)
    words = ("--reward", "my_reward.py:first", "--judge", "my_reward.py:first", "--samples", "64", "--minutes", "0.02")
    status, out, err = call("align", models["points"], *words, "-o", "aligned", "--json")
    assert status == 0, err
    done = json.loads(out.splitlines()[-1])
    assert done["event"] == "done" and {"before", "after", "kl", "diversity", "doubts"} <= done.keys()
    kept = json.loads((workplace / "aligned" / "alignment.json").read_text())
    assert kept["after"] == done["after"] and kept["judge"][1] == done["after"]
    assert "KL to the reference" in err
    status, out, err = call("sample", "aligned", "-n", "3", "-o", "x.npy")
    assert status == 0, err


def test_a_stopped_run_is_resumed(call, models, workplace):
    """A reward that fails at its second call, and does not when the run goes on."""
    (workplace / "my_reward.py").write_text(
        "from pathlib import Path\n\ncalls = 0\n\n\ndef first(x):\n    global calls\n    calls += 1\n"
        "    assert calls < 2 or not Path('broken').exists(), 'broken'\n    return x.flatten(1)[:, 0].double()\n"
    )
    (workplace / "broken").touch()
    words = ("--reward", "my_reward.py:first", "--method", "fpo(every=2)", "--samples", "64", "--minutes", "5")
    status, _, err = call("align", models["points"], *words, "-o", "aligned")
    assert status == 2 and "AssertionError: broken" in err and "sfumato resume aligned" in err
    (workplace / "broken").unlink()
    status, out, err = call("resume", "aligned", "--steps", "6", "--json")
    assert status == 0 and "Resuming from step 2" in err, err
    done = json.loads(out.splitlines()[-1])
    assert done["after"] == json.loads((workplace / "aligned" / "alignment.json").read_text())["after"]


@pytest.mark.parametrize(
    "words, said",
    [
        (("--reward", "my_reward.py"), "FILE.py:FUNCTION"),
        (("--reward", "my_reward.py:number"), "names no function"),
        (("--reward", "none.py:first"), "no Python file"),
        (("--reward", "my_reward.py:first", "--reward-seconds", "0"), "must be above 0"),
        ((), "one of the two"),
        (("--preferences", "none.npz"), "none.npz"),
        (("--reward", "my_reward.py:first", "--method", "dpo"), "no method 'dpo'"),
    ],
)
def test_mistakes_are_one_sentence(call, models, workplace, words, said):
    (workplace / "my_reward.py").write_text(REWARD)
    status, _, err = call("align", models["points"], "--minutes", "0.02", *words)
    assert status == 2 and said in err, err
