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


@pytest.mark.parametrize(
    "words, said",
    [
        (("--reward", "my_reward.py"), "FILE.py:FUNCTION"),
        (("--reward", "my_reward.py:number"), "names no function"),
        (("--reward", "none.py:first"), "no Python file"),
        ((), "one of the two"),
        (("--preferences", "none.npz"), "none.npz"),
        (("--reward", "my_reward.py:first", "--method", "dpo"), "no method 'dpo'"),
    ],
)
def test_mistakes_are_one_sentence(call, models, workplace, words, said):
    (workplace / "my_reward.py").write_text(REWARD)
    status, _, err = call("align", models["points"], "--minutes", "0.02", *words)
    assert status == 2 and said in err, err
