"""What a report says of copies, conditions, bits of text and weights of rows, in sentences, from its facts."""

from __future__ import annotations

import math
from typing import Any

from sfumato.errors import counted

Facts = dict[str, Any]


def copies_words(facts: Facts) -> list[str]:
    """`Memorization.to_dict` in sentences."""
    verdicts = {
        "memorised": "MEMORISED: samples are closer to training samples than new samples would be.",
        "suspect": "Suspect: samples tend towards training samples; check more of them.",
        "none": "No sign of memorisation.",
    }
    lines = [verdicts[facts["verdict"]]]
    if facts["ratio"]["value"] is not None:
        lines.append(
            "Distance to the nearest training sample over distance to the nearest held-out sample (1 for new samples): "
            f"{figure(facts['ratio'])}"
        )
    lines += [
        "Closer to the training set than a new sample (50 % if nothing is memorised): "
        f"{figure(facts['closer'], '.1%')}",
        f"Copies (three times closer to one training sample than to any other): {facts['copies']:.1%}; "
        f"among new samples {facts['copies_real']:.1%}",
        f"{counted(facts['samples'], 'sample')} of the model against {facts['train']:,} of the training set and "
        f"{facts['holdout']:,} held out; distances in {facts['space']}.",
    ]
    if facts["exact"]:
        real = f" (held-out ones: {facts['leaked'] / facts['holdout']:.1%})" if facts.get("chance") else ""
        own = f"{counted(facts['exact'], 'sample equals', 'samples equal')} a training sample bit for bit"
        lines.append(f"{own}, {facts['exact'] / facts['samples']:.1%} of them{real}.")
    if facts["leaked"]:
        lines.append(_leak_words(facts))
    return [*lines, *facts["notes"]]


def _leak_words(facts: Facts) -> str:
    """A sentence on held-out samples that equal training samples, by how many training samples equal one another."""
    leaked, held, searched = facts["leaked"], facts["holdout"], facts.get("searched", facts["train"])
    repeated = facts.get("repeated", 0)
    expected = held * (leaked + repeated) / (held + searched)
    if not facts.get("chance") or leaked > expected + 3 * math.sqrt(expected + 1):
        are = counted(leaked, "held-out sample is", "held-out samples are")
        return f"LEAK: {are} also in the training set; the hold-out loss is too low."
    return (
        f"{leaked / held:.1%} of the held-out rows equal a row of training, of which {repeated / searched:.1%} equal "
        "one another: rows that are alike by chance, unless the file has rows twice by mistake."
    )


def conditions_words(found: Facts) -> str:
    """A sentence on the information of the conditions, in nats."""
    each = [f"{name} {figure(nats)}" for name, nats in found["each"].items()]
    together = f"; all together {figure(found['together'])}" if len(each) > 1 else ""
    beyond = " beyond the others" if len(each) > 1 else ""
    return f"Information about a held-out sample{beyond}, in nats: {', '.join(each)}{together}."


def text_words(found: Facts) -> str:
    """A sentence on the bits per character."""
    error = "unknown" if (stderr := found["model"]["stderr"]) is None else f"{stderr:.3f}"
    return (
        f"Bits per character of held-out text: {figure(found['model'], '.3f')}, standard error {error}, from "
        f"{found['windows']:,} windows; order 0 has {found['order0']:.3f}, xz {found['xz']:.3f} of all "
        f"{found['characters']:,} characters."
    )


def marginals_words(found: Facts) -> str:
    """A sentence on the calibration of a table's rows."""
    fit = "Rows are nearer to those" if found.get("trees") else "Columns have the marginals of the rows"
    accepted = f"{100 * found['accepted']:.0f} % of the rows drawn"
    fit += f" of training by weights fitted to {found['draws']:,} draws, which accept {accepted}"
    if "after" not in found:
        few = f"; {counted(found['rows'], 'held-out row is', 'held-out rows are')} too few to judge their KS by"
        return f"{fit}{few} (raise --holdout)." if found.get("numbers", 1) else f"{fit}."
    before, after, real = (  # plain numbers in reports of before
        figure(each, ".3f") if isinstance(each := found[name], dict) else f"{each:.3f}"
        for name in ("before", "after", "real")
    )
    return (
        f"{fit}: the mean KS of their numbers to {found['rows']:,} held-out rows is {after} where it was {before}, and "
        f"that of training rows {real} (sample --uncalibrated leaves them out)."
    )


def figure(found: Facts, kind: str = ".3g") -> str:
    """A value and its interval as text."""
    if found["value"] is None:
        return "-"
    if found["low"] is None or found["high"] is None:
        return f"{found['value']:{kind}} (no interval)"
    return f"{found['value']:{kind}} ({found['low']:{kind}} to {found['high']:{kind}})"
