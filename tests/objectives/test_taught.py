"""What the setting of a loss says of a student."""

import pytest

from sfumato.objectives.taught import lesson

ADVERSARY = (
    "path-distillation(adversary=1, alone=10, teacher=file('a b', hash='1', guidance={'label': 2.0}), calls=(1,))"
)


@pytest.mark.parametrize(
    "loss, seen, words",
    [
        ("semigroup(teacher=file('x', hash='1'), calls=(1, 2))", 5, "A student of x by semigroup, without guidance."),
        ("semigroup(2, teacher=file('x'), calls=(1,))", 5, "A student of x by semigroup(2), without guidance."),
        (
            "semigroup(cut=0.3, teacher=file('x', guidance=(1, 4)), calls=(1,))",
            None,
            "A student of x by semigroup(cut=0.3), at a guidance of 1 to 4, as samples ask.",
        ),
        (
            ADVERSARY,
            11,
            "A student of a b by path-distillation(adversary=1, alone=10), at a guidance of 2 to label, with an "
            "adversary after 10 samples.",
        ),
        (
            ADVERSARY,
            10,
            "A student of a b by path-distillation(adversary=1, alone=10), at a guidance of 2 to label; its adversary "
            "joins after 10 samples, and has not yet.",
        ),
    ],
)
def test_a_setting_in_words(loss: str, seen: int | None, words: str) -> None:
    found = lesson(loss)
    assert found is not None and found.words(seen) == words


@pytest.mark.parametrize(
    "loss",
    ["auto", None, "denoising(weight=plain)", "(" * 5000, "x(teacher=1)", "x(teacher=file())", "x(teacher=other('x'))"]
    + ["x(teacher=file('x', guidance='y'))", "x(teacher=file('x', guidance=(1,)))", "x(teacher=file(x))", "x(*y)"],
)
def test_other_settings_say_nothing(loss: object) -> None:
    assert lesson(loss) is None
