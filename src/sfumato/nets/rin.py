"""Recurrent interface networks (Jabri, Fleet and Chen 2022, 2212.11972): few latents compute, many patches read and
write; the latents of one call are where the next may begin."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SfumatoError
from ..registry import register
from .attention import CrossAttention
from .conditions import Context, arguments, described, named, of_kind, presence
from .fields import check_input
from .patches import Patched, heads_of, learned
from .recompute import call
from .streams import MLPBlock, PlainBlock


class ReadComputeWrite(nn.Module):
    """Z <- Z + Attn(Z, LN(X)), Z <- MLP(Z), Z <- block(Z) `layers` times, X <- X + Attn(X, LN(Z)), X <- MLP(X).

    Z the latents (B, M, inner), X the patches (B, N, width).
    """

    def __init__(self, width: int, inner: int, layers: int, ratio: float, dropout: float) -> None:
        super().__init__()
        self.patches, self.latents = nn.LayerNorm(width), nn.LayerNorm(inner)
        self.read, self.write = (
            CrossAttention(inner, heads_of(inner), width),
            CrossAttention(width, heads_of(width), inner),
        )
        self.after_read, self.after_write = MLPBlock(inner, ratio, dropout), MLPBlock(width, ratio, dropout)
        self.compute = nn.ModuleList(PlainBlock(inner, heads_of(inner), ratio, dropout) for _ in range(layers))

    def forward(self, z: Tensor, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """mask: bool (B, M), the latents that are attended to; None for all."""
        z = self.after_read(self.read(z, self.patches(x)))
        for block in self.compute:
            z = block(z, mask)
        return z, self.after_write(self.write(x, self.latents(z), mask))


@register("network", "RIN")
class RIN(Patched):
    """net(x, noise_level, label) -> y for fields: x and y (B, *shape), noise_level (B,), label int64 (B,) or None.

        Z = latents + LN(sg(Z') + MLP(sg(Z'))),   Z' the latents at the end of the call before; latents alone without it

    `carry=True` returns (y, Z at the end (B, latents, inner)), which the next call may be given as `carried`: solvers
    do so (`Estimate.carried`), and loss="self-conditioned" trains it. LN is 0 at first: a network that was not trained
    with `carried` ignores it.
    Args: `shape` (C, *spatial) with one to three spatial axes of any size; `patch`, one number or one per axis;
    `width` of the patches; `latents`, their number, and `inner`, their width; `depth` blocks that read, compute with
    `layers` layers and write; `classes`, 0 for none; `ratio`, inner width of the MLPs; `dropout` in the MLPs;
    `outputs`: the number of fields stacked along the channels of y (B, outputs C, *spatial), 2 to learn a variance too;
    `conditions`, name -> description as from `conditions.Condition.network`: fields become channels next to x, noise
    level and all others stand beside the latents; `checkpoint`: compute the blocks again in the backward pass instead
    of storing their activations. Heads have 64 channels.
    The output layer, and so the output, is zero at initialisation. Samples of a batch do not interact.
    Raises SfumatoError for impossible sizes, an x of another shape, or an unknown label.
    """

    carries = True  # forward has `carry` and `carried`

    def __init__(
        self,
        shape: Sequence[int],
        patch: int | Sequence[int] = 2,
        width: int = 128,
        latents: int = 64,
        inner: int = 256,
        depth: int = 3,
        layers: int = 2,
        classes: int = 0,
        ratio: float = 4.0,
        dropout: float = 0.0,
        outputs: int = 1,
        conditions: Mapping[str, Mapping[str, Any]] | None = None,
        checkpoint: bool = False,
    ) -> None:
        if (
            min(width, latents, inner, depth, outputs) < 1
            or layers < 0
            or width % heads_of(width)
            or inner % heads_of(inner)
        ):
            raise SfumatoError(
                f"RIN needs sizes of 1 or more, and widths that divide into heads of 64; got width {width}, {latents} "
                f"latents of {inner}, depth {depth}, layers {layers}"
            )
        given = described(classes, conditions)
        super().__init__(shape, patch, width, inner, given, outputs)
        self.config = {
            "name": "RIN",
            "args": {
                "shape": list(self.shape), "patch": patch if isinstance(patch, int) else list(patch), "width": width,
                "latents": latents, "inner": inner, "depth": depth, "layers": layers, **arguments(given),
                "ratio": ratio, "dropout": dropout, "outputs": outputs, "checkpoint": checkpoint,
            },
        }  # fmt: skip
        self.checkpoint = checkpoint
        self.positions = learned(torch.Size(self.grid).numel(), width)
        self.latents = learned(latents, inner)
        self.warm, self.scale = MLPBlock(inner, ratio, dropout), nn.LayerNorm(inner)
        nn.init.zeros_(self.scale.weight)
        self.context = Context(given, inner) if of_kind(given, "tokens") else None
        self.blocks = nn.ModuleList(ReadComputeWrite(width, inner, layers, ratio, dropout) for _ in range(depth))
        self.norm, self.output = nn.LayerNorm(width), nn.Linear(width, outputs * self.outer)
        for parameter in self.output.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, x: Tensor, noise_level: Tensor, /, label: Tensor | None = None,
        present: Mapping[str, Tensor] | None = None, *, carried: Tensor | None = None, carry: bool = False,
        **cond: Tensor,
    ) -> Any:  # fmt: skip
        """y, or (y, latents) if `carry`; carried: the latents of the call before, (B, latents, inner)."""
        check_input(x, self.shape)
        values = named(label, cond)
        heard, mask = torch.stack(self.conditioning.parts(noise_level, len(x), values, present), dim=1), None
        h = self.embedded(x, values, present) + self.positions
        z = torch.cat([self._begun(len(x), carried, present), heard], dim=1)
        if self.context is not None:
            tokens = self.context(len(x), values, present)
            mask, z = tokens.behind(z.shape[1]), torch.cat([z, tokens.values.to(z.dtype)], dim=1)
        for block in self.blocks:
            z, h = call(block, self.checkpoint, z, h, mask)
        y = self.unpatchify(self.output(self.norm(h))).to(x.dtype)
        return (y, z[:, : len(self.latents)]) if carry else y

    def _begun(self, batch: int, carried: Tensor | None, present: Mapping[str, Tensor] | None) -> Tensor:
        """The latents at the beginning of a call, (B, latents, inner)."""
        latents = self.latents.expand(batch, -1, -1)
        if carried is None:
            return latents
        if carried.shape != latents.shape:
            raise SfumatoError(f"carried has shape {tuple(carried.shape)}; expected {tuple(latents.shape)}")
        warm = self.scale(self.warm(carried.detach().to(latents.dtype)))
        return latents + torch.where(presence("carried", carried, present)[:, None, None], warm, 0.0)
