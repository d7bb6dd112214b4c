"""A diffusion transformer with adaLN-Zero blocks (Peebles and Xie 2023) for sequences, images and volumes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SfumatoError
from ..registry import register
from .conditions import FEATURES, Context, arguments, described, named, of_kind, resized
from .embedding import sines
from .fields import check_input
from .patches import Patched, heads_of, learned
from .recompute import call
from .rotary import axial_rotary, beyond
from .streams import NORMS, JointBlock, TransformerBlock

POSITIONS = ("fixed", "learned", "rotary", "none")


def sincos_positions(grid: Sequence[int], width: int, over: Sequence[int] | None = None) -> Tensor:
    """[sin(w_k i), cos(w_k i)] for each axis's index i, w_k = 10000^(-k/K): (prod grid, width), zeros at the end.

    over: another grid, over whose extent the places are spread, i = (j + 1/2) over / grid - 1/2.
    """
    count, over = width // (2 * len(grid)), grid if over is None else over
    frequency = 10000.0 ** (-torch.arange(count, dtype=torch.float64) / max(count, 1))
    lines = [torch.arange(n, dtype=torch.float64) for n in grid]
    lines = [line if n == m else (line + 0.5) * (m / n) - 0.5 for line, n, m in zip(lines, grid, over, strict=True)]
    index = torch.cartesian_prod(*lines).reshape(-1, len(grid))
    angle = (index[:, :, None] * frequency).flatten(1)
    return F.pad(torch.cat([angle.sin(), angle.cos()], dim=1), (0, width - 2 * count * len(grid))).float()


@register("network", "DiT")
class DiT(Patched):
    """net(x, noise_level, label) -> y for fields: x and y (B, *shape), noise_level (B,), label int64 (B,) or None.

    Args: `shape` (C, *spatial) with one to three spatial axes of any size; `patch`, one number or one per axis (axes
    are zero-padded to whole patches, and the output cropped); `width`, `depth` and `heads` of the blocks (default:
    heads of 64 channels); `classes`, 0 for none; `positions` "fixed" (sines and cosines), "learned", "rotary", which
    turns queries and keys along each axis, or "none" for sets, whose permutation permutes y; `ratio`, inner width of
    the MLPs over `width`; `embed_dim`, the length of the conditioning vector (default: `width`); `dropout` in the MLPs;
    `outputs`: the number of fields stacked along the channels of y (B, outputs C, *spatial), 2 to learn a variance too;
    `conditions`, name -> description as from `conditions.Condition.network`: fields become channels next to x, tokens
    what `context` says: "tokens" behind the patches, or "cross", by cross-attention in each block (PixArt, 2310.00426);
    `norm` "layer" or "rms"; `qk_norm`: the norm of queries and keys; `registers`, the number of learned tokens behind
    the patches (2309.16588); `streams`: 2 for weights of their own for the patches and for all other tokens, at least
    one register, in every block but the last, with one attention (MM-DiT, 2403.03206); `any_size`: also take x of other
    resolutions and aspects, with positions of the same extent, or of the same spacing where rotary; `checkpoint`:
    compute the blocks again in the backward pass instead of storing their activations.
    Patches whose values are all missing (a condition of this kind) are not attended to, as if they were not there, and
    those behind the last of a batch cost nothing: y is 0 there. How many are there, which a softmax does not tell, is
    added to the conditioning vector.
    At initialisation each block is the identity and the output zero (adaLN-Zero). Samples of a batch do not interact.
    Raises SfumatoError for impossible sizes, an x of another shape, or an unknown label.
    """

    def __init__(
        self,
        shape: Sequence[int],
        patch: int | Sequence[int] = 2,
        width: int = 256,
        depth: int = 6,
        heads: int | None = None,
        classes: int = 0,
        positions: str = "fixed",
        ratio: float = 4.0,
        embed_dim: int | None = None,
        dropout: float = 0.0,
        outputs: int = 1,
        conditions: Mapping[str, Mapping[str, Any]] | None = None,
        norm: str = "layer",
        qk_norm: bool = False,
        registers: int = 0,
        context: str = "tokens",
        streams: int = 1,
        any_size: bool = False,
        checkpoint: bool = False,
    ) -> None:
        heads = heads_of(width) if heads is None else heads
        embed_dim = width if embed_dim is None else embed_dim
        given = described(classes, conditions)
        args = {
            "shape": list(shape), "patch": patch if isinstance(patch, int) else list(patch),
            "width": width, "depth": depth, "heads": heads, **arguments(given), "positions": positions,
            "ratio": ratio, "embed_dim": embed_dim, "dropout": dropout, "outputs": outputs, "norm": norm,
            "qk_norm": qk_norm, "registers": registers, "context": context, "streams": streams,
            "any_size": any_size, "checkpoint": checkpoint,
        }  # fmt: skip
        _check(args)
        super().__init__(shape, patch, width, embed_dim, given, outputs)
        self.config = {"name": "DiT", "args": args}
        self.unordered = positions == "none" and len(shape) == 2  # sets of points
        self.any_size, self.checkpoint, self.cross = any_size, checkpoint, context == "cross"
        self._place(positions, width, width // heads)
        across = width if self.cross and of_kind(given, "tokens") else 0

        def block() -> TransformerBlock:
            return TransformerBlock(width, heads, embed_dim, ratio, dropout, norm, qk_norm, across)

        joint = depth - 1 if streams == 2 else 0
        self.blocks = nn.ModuleList(JointBlock(block(), block()) if i < joint else block() for i in range(depth))
        self.norm = NORMS[norm](width, elementwise_affine=False, eps=1e-5)
        self.modulation, self.output = nn.Linear(embed_dim, 2 * width), nn.Linear(width, outputs * self.outer)
        for parameter in (*self.modulation.parameters(), *self.output.parameters()):
            nn.init.zeros_(parameter)
        self.context = Context(given, width) if of_kind(given, "tokens") else None
        self.count = nn.Linear(FEATURES, embed_dim) if of_kind(given, "missing") else None
        registers = max(registers, int(streams == 2 and self.context is None))
        self.registers = learned(registers, width) if registers else None

    def _place(self, positions: str, width: int, turned: int) -> None:
        """The positions of the grid: a table that is added to the patches, or the turns of queries and keys."""
        self.positions: Tensor | None
        self.turn: Tensor | None
        rotary = positions == "rotary"
        table = None if positions in ("rotary", "none") else sincos_positions(self.grid, width)
        self.register_buffer("turn", axial_rotary(self.grid, turned) if rotary else None, persistent=False)
        if table is not None and positions == "learned":
            self.positions = learned(*table.shape)
        else:
            self.register_buffer("positions", table, persistent=False)

    def _placed(self, h: Tensor, grid: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        """(the patches with their positions, the turns of queries and keys) on a grid."""
        if self.turn is not None:
            return h, self.turn if grid == self.grid else axial_rotary(grid, 2 * self.turn.shape[2]).to(h.device)
        table = self.positions
        if table is None:
            return h, None
        if grid != self.grid and isinstance(table, nn.Parameter):
            table = resized(table.T.unflatten(1, self.grid)[None], grid)[0].flatten(1).T
        elif grid != self.grid:
            table = sincos_positions(grid, h.shape[2], self.grid).to(h)
        return h + table, None

    def forward(
        self, x: Tensor, noise_level: Tensor, /, label: Tensor | None = None,
        present: Mapping[str, Tensor] | None = None, **cond: Tensor,
    ) -> Tensor:  # fmt: skip
        other = self.any_size and x.ndim == len(self.shape) + 1
        check_input(x, (self.shape[0], *x.shape[2:]) if other else self.shape)
        values = named(label, cond)
        vector = self.conditioning(noise_level, len(x), values, present)
        h, turn = self._placed(self.embedded(x, values, present), self.grid_of(x.shape[2:]))
        tokens = None if self.context is None else self.context(len(x), values, present)
        count, mask = h.shape[1], self.attended(values)
        if self.count is not None:
            number = vector.new_full((len(x),), count) if mask is None else mask.sum(1)
            vector = vector + self.count(sines(number.log(), FEATURES).to(vector.dtype))
        every = count
        if mask is not None and not torch.compiler.is_compiling():  # no sample attends to those behind the longest
            count = int(mask.any(0).nonzero().max()) + 1
            h, mask, turn = h[:, :count], mask[:, :count], None if turn is None else turn[:, :count]
        if self.registers is not None:
            h = torch.cat([h, self.registers.to(h.dtype).expand(len(h), -1, -1)], dim=1)
        mask = None if mask is None else F.pad(mask, (0, h.shape[1] - count), value=True)
        if tokens is not None and not self.cross:
            known = tokens.behind(h.shape[1])
            mask = known if mask is None else torch.cat([mask, known[:, h.shape[1] :]], dim=1)
            h = torch.cat([h, tokens.values.to(h.dtype)], dim=1)
        turn = None if turn is None else beyond(turn, h.shape[1] - count)
        for block in self.blocks:
            joint = isinstance(block, JointBlock)
            h = call(block, self.checkpoint, h, vector, mask, turn, count if joint else tokens)
        h = h[:, :count]
        scale, shift = self.modulation(vector)[:, None].chunk(2, dim=2)
        h = F.pad(self.output(torch.addcmul(shift, self.norm(h).to(shift.dtype), 1 + scale)), (0, 0, 0, every - count))
        return self.unpatchify(h, x.shape[2:]).to(x.dtype)


def _check(args: Mapping[str, Any]) -> None:
    """Raise SfumatoError for arguments that do not go together."""
    width, heads, positions, norm = (args[name] for name in ("width", "heads", "positions", "norm"))
    if min(width, args["depth"], heads, args["embed_dim"], args["outputs"]) < 1 or width % heads:
        raise SfumatoError(f"DiT needs sizes of 1 or more and heads that divide width; got {heads} and {width}")
    if positions not in POSITIONS or norm not in NORMS:
        raise SfumatoError(
            f"DiT positions are one of {', '.join(POSITIONS)}, and its norm one of {', '.join(NORMS)}; got "
            f"{positions!r} and {norm!r}"
        )
    patch = args["patch"]
    if positions == "none" and (patch if isinstance(patch, int) else max(patch)) > 1:
        raise SfumatoError('positions "none" are those of a set, whose patch is 1')
    if positions == "rotary" and width // heads % 2:
        raise SfumatoError(f"rotary positions need heads of an even width, not {width // heads}")
    if args["context"] not in ("tokens", "cross") or args["streams"] not in (1, 2) or args["registers"] < 0:
        raise SfumatoError(
            f'a DiT hears tokens by context "tokens" or "cross", and has 1 or 2 streams and 0 or more registers; got '
            f"{args['context']!r}, {args['streams']} and {args['registers']}"
        )
    if args["streams"] == 2 and args["context"] == "cross":
        raise SfumatoError('two streams attend to tokens behind the patches: leave out context="cross"')
