"""Training one network in several processes: each has all weights (DistributedDataParallel) or a shard (FSDP2).

With shards, each of n processes holds 1/n of every weight, gradient, moment and average along its first axis. A block
is gathered for its forward and backward pass and freed afterwards; its gradient is reduced to the shards.
Source: Zhao et al. 2023 (2304.11277), as torch.distributed.fsdp.fully_shard.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sfumato import nets, trees
from sfumato.distributed import World, full, local, shard
from sfumato.errors import SfumatoError
from sfumato.model import Denoiser, with_net
from sfumato.nets.layout import LAYOUTS
from sfumato.objectives.loss import Batch, Loss


@final
class Losses(nn.Module):
    """A module that computes the losses of a batch, for DistributedDataParallel to wrap.

    The network alone is registered: a wrapper of a model is no module, and the gradients of the loss's own parameters
    are not averaged over the processes.
    """

    def __init__(self, model: Any, loss: Loss) -> None:
        super().__init__()
        self.net, self._parts = model.net, (model, loss)

    def forward(self, batch: Batch) -> Tensor:
        """(B,)."""
        model, loss = self._parts
        return loss.losses(model, batch)


def shared(model: Any, loss: Loss, world: World) -> nn.Module:
    """A module that computes the losses of a batch and averages their gradients over all processes."""
    losses = Losses(model, loss)
    if world.size == 1 or in_shards(model.net):
        return losses
    for p in model.net.parameters():
        p.data = _with_strides_of_gradient(p.data)
    # all processes update buffers alike, so these need no synchronisation
    known = inspect.signature(DistributedDataParallel).parameters
    how: dict[str, Any] = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
    return DistributedDataParallel(losses, gradient_as_bucket_view=True, **how)


def _with_strides_of_gradient(kernel: Tensor) -> Tensor:
    """A view of a kernel with one input channel, with the strides that convolutions give its gradient."""
    if kernel.ndim not in LAYOUTS or kernel.shape[1] != 1:
        return kernel
    return kernel.as_strided(kernel.shape, torch.empty_like(kernel, memory_format=LAYOUTS[kernel.ndim]).stride())


def no_sync(losses: nn.Module, last: bool) -> Any:
    """A context in which only the backward pass of the last part of a batch averages gradients over the processes.

    Shards are reduced after every part: keeping whole gradients between parts would use the memory that shards save.
    """
    return nullcontext() if last or not isinstance(losses, DistributedDataParallel) else losses.no_sync()


def in_shards(net: nn.Module) -> bool:
    return any(local(p) is not p for p in net.parameters())


def sharding(world: World) -> Callable[[nn.Module], nn.Module]:
    """A function that shards a network in place: block by block, and the rest together.

    Scalar parameters (a learned variance) stay whole.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(world.device.type, (world.size,))

    def in_place(net: nn.Module) -> nn.Module:
        if any(isinstance(part, nets.Energy) for part in net.modules()):
            raise SfumatoError(
                "An energy cannot be trained in shards, which free its weights after the forward pass: use "
                "parallel='ddp'."
            )
        if any(isinstance(part, nets.Codebook) for part in net.modules()):
            raise SfumatoError(
                "A network with learned vectors cannot be trained in shards, since the process reads them whole: use "
                "parallel='ddp'."
            )
        for value in (*net.parameters(), *net.buffers()):
            value.data = value.data.contiguous()
            dist.broadcast(value.data, 0)  # all processes must shard the same weights
        scalars = {p for p in net.parameters() if p.ndim == 0}
        for part in (*_blocks(net), net):
            fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=scalars)
        for name in ("encode", "decode"):  # called by the losses of autoencoders
            if hasattr(net, name):
                register_fsdp_forward_method(net, name)
        return net

    return in_place


def _blocks(net: nn.Module) -> Iterator[nn.Module]:
    """The modules in the lists of a network (residual blocks, maps between levels), inner ones first."""
    for module in reversed(list(net.modules())):
        if isinstance(module, nn.ModuleList):
            parts = (part for part in module if not isinstance(part, nn.ModuleList))
            yield from (part for part in parts if next(part.parameters(), None) is not None)


def average_whole(parameters: Sequence[nn.Parameter], world: World) -> None:
    """Average the gradients of the unsharded parameters of a sharded network, after the last backward pass."""
    if not any(local(p) is not p for p in parameters):
        return  # no shards: DistributedDataParallel has averaged them
    for p in parameters:
        if p.grad is not None and local(p) is p:
            p.grad = world.all_reduce(p.grad) / world.size


def clip(parameters: Sequence[nn.Parameter], largest: float) -> Tensor:
    """Scale the gradient, whole or sharded, to a norm of at most `largest`; returns the norm before."""
    norm = _norm([p.grad for p in parameters if p.grad is not None])
    for each in _kinds(parameters):
        nn.utils.clip_grads_with_norm_(each, largest, norm, foreach=True)
    return norm


def finite(parameters: Sequence[nn.Parameter]) -> bool:
    """Whether all weights are finite, in all processes."""
    return math.isfinite(float(_norm([p.detach() for p in parameters])))


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of all tensors together."""
    norms = [full(nn.utils.get_total_norm(each, foreach=True)) for each in _kinds(tensors)]
    return norms[0] if len(norms) == 1 else torch.stack(norms).norm()


def _kinds(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The whole tensors and the shards as separate lists, since torch accepts no mixture; empty lists are left out."""
    both = ([t for t in tensors if (local(t) is t) is whole] for whole in (True, False))
    return [each for each in both if each]


def gathered(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """The tensors whole, shards gathered on the CPU, in the first process; {} in the others, which must call it too."""
    found = {}
    for name, value in tensors.items():
        whole = value if local(value) is value else full(value).cpu()
        if world.leads:
            found[name] = whole
    return found


def whole(denoiser: Denoiser, world: World) -> Denoiser:
    """An unsharded copy of a sharded denoiser in the first process; in the others it has no weights (meta device)."""
    if not in_shards(denoiser.net):
        return denoiser
    state = gathered(denoiser.net.state_dict(), world)
    with torch.device("cpu" if world.leads else "meta"):
        made = with_net(denoiser, nets.from_config(trees.tree(denoiser.net)))
    if world.leads:
        made.net.to(next(iter(state.values())).dtype).load_state_dict(state)
    return made


def assign(own: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into another whole tensor or into a shard."""
    if own.shape != value.shape:
        raise RuntimeError(f"a tensor of shape {tuple(value.shape)} instead of {tuple(own.shape)}")
    with torch.no_grad():
        local(own).copy_(shard(value.to(own.device), own))
