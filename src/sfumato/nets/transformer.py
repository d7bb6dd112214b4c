"""A transformer over the positions of a sequence of symbols, with rotary positions (Su et al. 2021) and adaLN."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SfumatoError
from ..registry import register
from .attention import CrossAttention, Tokens
from .conditions import Conditioning, Context, arguments, beside, described, named, of_kind, refuse, width_beside
from .neighbours import Neighbours
from .recompute import call
from .rotary import rotary, rotated

MASKS = ("full", "causal", "hollow")


class Heard(NamedTuple):
    """What the blocks hear beside the symbols: the conditioning vector (B, embed_dim), and tokens to attend to."""

    vector: Tensor
    tokens: Tokens | None

    def twice(self) -> "Heard":
        """Of the whole batch twice."""
        tokens = self.tokens and Tokens(*(torch.cat([part, part]) for part in self.tokens))
        return Heard(self.vector.repeat(2, 1), tokens)


class Memory:
    """What a causal network keeps of the symbols it has read, for the next ones: `length` of them, of each block the
    keys and values of all, (2, B, heads, L, width of a head), and of the last ones what the convolution hears, and
    themselves where pairs of them have a table."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self.blocks: list[Tensor] = []
        self.recent: Tensor | None = None
        self.symbols: Tensor | None = None

    def joined(self, block: int, pair: Tensor) -> Tensor:
        """Keys and values of the new symbols, (2, B, heads, n, width), behind those kept of this block."""
        if block == len(self.blocks):
            self.blocks.append(pair.new_empty(*pair.shape[:3], self.capacity, pair.shape[4]))
        stop = self.length + pair.shape[3]
        self.blocks[block][..., self.length : stop, :] = pair
        return self.blocks[block][..., :stop, :]


class SequenceBlock(nn.Module):
    """h <- h + g1 Attn((1 + s1) LN(h) + b1), h <- h + Cross(h) with a context, h <- h + g2 MLP((1 + s2) LN(h) + b2).

    Gates g, scales s and shifts b are linear in the conditioning vector; all but the gates, 1, are 0 at initialisation,
    and so are the matrices that write to h. context: the width of the tokens of `Cross`, 0 for none.
    """

    def __init__(
        self, width: int, heads: int, embed_dim: int, ratio: float, dropout: float, causal: bool, context: int = 0
    ) -> None:
        super().__init__()
        self.heads, self.causal, inner = heads, causal, int(ratio * width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(embed_dim, 6 * width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.first, self.second = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)
        self.cross = CrossAttention(width, heads, context) if context else None
        for parameter in (*self.modulation.parameters(), self.out.weight, *self.second.parameters()):
            nn.init.zeros_(parameter)

    def forward(
        self, h: Tensor, heard: Heard, turn: Tensor, memory: Memory | None = None, number: int = 0
    ) -> Tensor:  # fmt: skip
        """memory: of symbols before those of h, where this is the block of this number."""
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(heard.vector)[:, None].chunk(6, dim=2)
        y = torch.addcmul(shift1, self.norm(h).to(shift1.dtype), 1 + scale1)
        q, k, v = self.qkv(y).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, causal = rotated(q, turn), rotated(k, turn), self.causal
        if memory is not None:
            causal = memory.length == 0  # one symbol at a time hears all before it
            k, v = memory.joined(number, torch.stack([k, v])).unbind()
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        h = h + (1 + gate1) * self.out(mixed.transpose(1, 2).flatten(2))
        if self.cross is not None and heard.tokens is not None:
            h = self.cross(h, *heard.tokens)
        y = torch.addcmul(shift2, self.norm(h).to(shift2.dtype), 1 + scale2)
        return h + (1 + gate2) * self.second(self.dropout(F.gelu(self.first(y))))


def _check(
    width: int, depth: int, heads: int, embed_dim: int, local: int, mask: str, vocabulary: int, neighbours: bool
) -> None:  # fmt: skip
    """Raise SfumatoError for impossible sizes of a Transformer."""
    if min(width, depth, heads, embed_dim, local) < 1 or width % (2 * heads) or local % 2 == 0:
        raise SfumatoError(
            f"a Transformer needs sizes of 1 or more, an even width a head, and an odd width of its convolution; "
            f"got width {width}, depth {depth}, {heads} heads, embed_dim {embed_dim}, local {local}"
        )
    if mask not in MASKS:
        raise SfumatoError(f"a Transformer's mask is one of {', '.join(MASKS)}, not {mask!r}")
    if vocabulary and (vocabulary < 2 or mask != "full"):
        raise SfumatoError(
            f"a Transformer of vectors has a vocabulary of 2 symbols or more, and hears all vectors (mask='full'); "
            f"got vocabulary {vocabulary}, mask {mask!r}"
        )
    if vocabulary and neighbours:
        raise SfumatoError("a Transformer of vectors has no tables of neighbouring symbols: leave neighbours out")


@register("network", "Transformer")
class Transformer(nn.Module):
    """net(z, noise_level, label) -> y for symbols: z int64 (B, 1, L) of 0 .. K, y (B, 1, L, K) the logits.

    With `vocabulary` K, z are vectors (B, d, L) of real numbers that stand for symbols (`process.Embedded`).

    Shorter sequences than L are taken, too. The symbol K is the mask of `process.Masked`; the table of the symbols
    serves input and output alike.
    Args: `shape` (K, L), or (1, L) for two symbols, or (d, L) of vectors, as from `process.net_shape`; `width`, `depth`
    and `heads` of the blocks (default: heads of 64 channels); `mask`: what y_i hears, "full" all z, "causal" the z_j
    with j < i, "hollow" all z but z_i; `level`: False for a network that does not hear the noise level; `local`: the
    width of the depthwise convolution before the blocks, 1 for none; `classes`, 0 for none; `ratio`, inner width of the
    MLPs over `width`; `embed_dim`, the length of the conditioning vector (default: `width`); `dropout` in the MLPs;
    `conditions`, name -> description as from `conditions.Condition.network`: vectors, tokens, which every block
    attends to by cross-attention, and with `vocabulary` fields; `vocabulary`, the number of symbols that vectors stand
    for, 0 for symbols themselves;
    `neighbours`: True for tables of pairs of neighbouring symbols, which are added to the embedding (`Neighbours`);
    `checkpoint`: compute the blocks again in the backward pass instead of storing their activations.
    The output is zero at initialisation. Samples of a batch do not interact. Raises SfumatoError for impossible sizes
    and for a z of another shape.
    """

    selects = True  # forward has `where`

    def __init__(
        self,
        shape: Sequence[int],
        width: int = 256,
        depth: int = 6,
        heads: int | None = None,
        mask: str = "full",
        level: bool = True,
        local: int = 9,
        classes: int = 0,
        ratio: float = 4.0,
        embed_dim: int | None = None,
        dropout: float = 0.0,
        conditions: Mapping[str, Mapping[str, Any]] | None = None,
        vocabulary: int = 0,
        neighbours: bool = False,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if len(shape) != 2 or min(shape) < 1:
            raise SfumatoError(f"a Transformer needs a shape (symbols, positions), not {tuple(shape)}")
        self.shape, self.symbols, self.mask = (int(shape[0]), int(shape[1])), vocabulary or max(2, int(shape[0])), mask
        self.takes_symbols = not vocabulary
        heads = max(1, width // 64) if heads is None else heads
        embed_dim = width if embed_dim is None else embed_dim
        _check(width, depth, heads, embed_dim, local, mask, vocabulary, neighbours)
        given = described(classes, conditions)
        if not vocabulary:
            refuse(given, "field", "a Transformer of symbols hears vectors and tokens only")
        self.config = {
            "name": "Transformer",
            "args": {
                "shape": list(self.shape), "width": width, "depth": depth, "heads": heads, "mask": mask,
                "level": level, "local": local, **arguments(given), "ratio": ratio, "embed_dim": embed_dim,
                "dropout": dropout, "vocabulary": vocabulary, "neighbours": neighbours, "checkpoint": checkpoint,
            },
        }  # fmt: skip
        self.checkpoint = checkpoint
        self.given, wide = given, self.shape[0] + width_beside(given, self.shape) if vocabulary else 0
        self.level, causal, context = level, mask != "full", width if of_kind(given, "tokens") else 0
        self.conditioning = Conditioning(embed_dim, given)
        self.input: Any = nn.Linear(wide, width) if vocabulary else nn.Embedding(self.symbols + 1, width)
        self.neighbours = Neighbours(self.symbols + 1, width, causal) if neighbours else None
        self.local = nn.Conv1d(width, width, local, groups=width, bias=False) if local > 1 else None
        self.blocks = nn.ModuleList(
            SequenceBlock(width, heads, embed_dim, ratio, dropout, causal, context) for _ in range(depth)
        )
        self.context = Context(given, width) if context else None
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(embed_dim, 2 * width)
        self.output = nn.Linear(width * (1 + (mask == "hollow")), vocabulary or width, bias=not vocabulary)
        self.bias = nn.Parameter(torch.zeros(self.symbols))
        self.turn: Tensor
        self.register_buffer("turn", rotary(self.shape[1], width // heads), persistent=False)
        self._draw()

    def _draw(self) -> None:
        """The first weights that are not torch's own."""
        nn.init.normal_(self.input.weight, std=self.input.weight.shape[1] ** -0.5)
        if self.local is not None:
            nn.init.normal_(self.local.weight, std=self.local.kernel_size[0] ** -0.5)
        for parameter in (*self.modulation.parameters(), *self.output.parameters()):
            nn.init.zeros_(parameter)

    def forward(
        self, z: Tensor, noise_level: Tensor, /, label: Tensor | None = None,
        present: Mapping[str, Tensor] | None = None, *, where: Tensor | None = None, **cond: Tensor,
    ) -> Tensor:  # fmt: skip
        """The logits (B, 1, L, K), or of the positions alone where `where` (bool, like z) is true, (n, K)."""
        sample = (1 if self.takes_symbols else self.shape[0], self.shape[1])
        if z.ndim != 3 or z.shape[1] != sample[0] or not 0 < z.shape[2] <= sample[1]:
            raise SfumatoError(f"this network was built for samples of shape {sample}; got a batch {tuple(z.shape)}")
        heard = self.heard(z, noise_level, label, present, cond)
        if not self.takes_symbols:
            channels = beside(z, self.given, named(label, cond), present)
            return (self.output(self.read(self.input(channels.mT), heard)) + self.bias)[:, None]
        if self.mask == "full":
            h = self.read(self.embedded(z), heard)
        elif self.mask == "causal":
            h = self.read(self.shifted(self.embedded(z)), heard)
        else:  # what is before i, and what is behind it, by the same blocks
            both = self.shifted(self.embedded(torch.cat([z, z.flip(2)])))
            before, behind = self.read(both, heard.twice()).chunk(2)
            h = torch.cat([before, behind.flip(1)], dim=2)
        return self.said(h)[:, None] if where is None else self.said(h[where[:, 0]])

    def following(
        self, z: Tensor, noise_level: Tensor, memory: Memory, /, label: Tensor | None = None,
        present: Mapping[str, Tensor] | None = None, **cond: Tensor,
    ) -> Tensor:  # fmt: skip
        """The logits (B, K) of the symbol behind those that a causal network has read: z (B, 1, n), any number of
        symbols at first, then one at a time, behind those in `memory`, which is extended."""
        h = self.embedded(z, memory)
        if memory.length == 0:
            h = torch.cat([self.start(h), h], dim=1)
        h = self.read(h, self.heard(z, noise_level, label, present, cond), memory)
        return self.said(h[:, -1])

    def memory(self) -> Memory:
        """An empty memory for `following`."""
        if self.mask != "causal":
            raise SfumatoError("Only a causal network can keep what it has read: build it with mask='causal'.")
        return Memory(self.shape[1])

    def heard(self, z: Tensor, noise_level: Tensor, label: Any, present: Any, cond: Mapping[str, Tensor]) -> Heard:
        """What the blocks hear beside the symbols."""
        level, values = noise_level if self.level else torch.zeros_like(noise_level), named(label, cond)
        tokens = None if self.context is None else self.context(len(z), values, present)
        return Heard(self.conditioning(level, len(z), values, present), tokens)

    def embedded(self, z: Tensor, memory: Memory | None = None) -> Tensor:
        """(B, 1, n) -> (B, n, width), behind the symbols in the memory."""
        z, scale = z[:, 0], math.sqrt(self.input.embedding_dim)
        h: Tensor = self.input(z) * scale
        if self.neighbours is None:
            return h
        before = self.neighbours.before
        earlier = None if memory is None else memory.symbols
        both = torch.cat([z.new_full((len(z), before), self.symbols) if earlier is None else earlier, z], dim=1)
        if memory is not None:
            memory.symbols = both[:, -before:]
        return h + self.neighbours(both) * scale

    def said(self, h: Tensor) -> Tensor:
        """The logits (.., K) of what the blocks say."""
        return F.linear(self.output(h), self.input.weight[: self.symbols], self.bias)

    def start(self, h: Tensor) -> Tensor:
        """What stands before the first symbol, the mask: (B, 1, width)."""
        start = self.input.weight[self.symbols] * math.sqrt(self.input.embedding_dim)
        return start.to(h.dtype).expand(len(h), 1, -1)

    def shifted(self, h: Tensor) -> Tensor:
        """Each position has what its predecessor had."""
        return torch.cat([self.start(h), h[:, :-1]], dim=1)

    def read(self, h: Tensor, heard: Heard, memory: Memory | None = None) -> Tensor:
        """The blocks over the embedded symbols (B, L, width), behind those in the memory."""
        count, first = h.shape[1], 0 if memory is None else memory.length
        if self.local is not None:
            h = h + self.local(self.beside(h, self.local.kernel_size[0] - 1, memory).mT).mT
        turn = self.turn[:, first : first + count]
        for number, block in enumerate(self.blocks):
            h = call(block, self.checkpoint and memory is None, h, heard, turn, memory, number)
        if memory is not None:
            memory.length += count
        scale, shift = self.modulation(heard.vector)[:, None].chunk(2, dim=2)
        return torch.addcmul(shift, self.norm(h).to(shift.dtype), 1 + scale)

    def beside(self, h: Tensor, wide: int, memory: Memory | None) -> Tensor:
        """h with `wide` positions more for the convolution: at both sides, or what came before of a causal network."""
        if memory is None:
            return F.pad(h, (0, 0, wide // 2, wide // 2) if self.mask == "full" else (0, 0, wide, 0))
        before = h.new_zeros(len(h), wide, h.shape[2]) if memory.recent is None else memory.recent
        both = torch.cat([before, h], dim=1)
        memory.recent = both[:, -wide:]
        return both
