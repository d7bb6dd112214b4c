"""What a model believes about the clean signal, given a noisy state.

`Estimate` is E[x | z] of real numbers and everything linear in it, `Logits` the distribution p(x_i | z) of symbols,
`Between` both ends of an interpolant,
`Insertions` what is missing from strings, `Codes` both numbers and symbols, for symbols that are vectors, and `Beliefs`
one of these for each part of a state. All implement the protocol `Belief`.
"""

from sfumato.belief.between import Between
from sfumato.belief.codes import Codes
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
from sfumato.belief.insertions import Insertions
from sfumato.belief.logits import Beliefs, Logits, NoSuchReading, SymbolProcess, drawn_symbols, tempered
from sfumato.belief.protocol import Belief, broadcast, parts

__all__ = [
    "FAINT", "FURTHEST", "Belief", "Beliefs", "Between", "Codes", "Estimate", "Insertions", "Logits", "NoSuchReading",
    "Reading", "SymbolProcess", "Transition", "ancestral", "broadcast", "drawn_symbols", "parts", "reading", "tempered",
    "within",
]  # fmt: skip
