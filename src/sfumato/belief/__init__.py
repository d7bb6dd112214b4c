"""What a model believes about the clean signal, given a noisy state.

`Estimate` is E[x | z] of real numbers and everything that is linear in it, `Logits` the law p(x_i | z) of symbols,
`Beliefs` one of these for each part of a state. All answer the same questions: `Belief`.
"""

from sfumato.belief.estimate import (
    FAINT,
    FURTHEST,
    Estimate,
    Reading,
    Transition,
    ancestral,
    reading,
    within,
)
from sfumato.belief.logits import Beliefs, Logits, NoSuchReading, SymbolProcess
from sfumato.belief.protocol import Belief, broadcast, parts

__all__ = [
    "FAINT", "FURTHEST", "Belief", "Beliefs", "Estimate", "Logits", "NoSuchReading", "Reading", "SymbolProcess",
    "Transition", "ancestral", "broadcast", "parts", "reading", "within",
]  # fmt: skip
