"""torch.compile for the network of a run; compiled code is kept in sfumato's cache, for later runs to load."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sfumato.cache import root
from sfumato.distributed import World
from sfumato.errors import SfumatoError
from sfumato.model import with_net
from sfumato.nets.energy import Energy
from sfumato.nets.lora import unadapted

_PLACE = "TORCHINDUCTOR_CACHE_DIR"


def compiled(model: Any, world: World) -> Any:
    """The same model, sharing its weights and their names, with a network that compiles on its first call.

    Every input shape is compiled separately, such as a smaller last micro-batch. Raises SfumatoError for an energy,
    and if more than one process trains.
    """
    if isinstance(unadapted(model.net), Energy):
        raise SfumatoError("The gradient of an energy cannot be compiled: leave out compile.")
    if world.size > 1:
        raise SfumatoError("A network cannot be compiled when several processes train it: leave out compile.")
    net = copy.copy(model.net)  # validation and sampling use other shapes, and keep the original
    with compiling(True):
        net.compile(dynamic=False, options={"cpp.dynamic_threads": True})  # torch's thread count at run time
    return with_net(model, net)


@contextmanager
def compiling(wanted: bool) -> Iterator[None]:
    """Keep torch's compiled code in sfumato's cache within the block, unless the environment names another folder.

    The environment is restored afterwards. Raises SfumatoError if the network cannot be compiled. Does nothing if not
    `wanted`.
    """
    if not wanted:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    before, folder = dict(os.environ), root()
    if folder is not None and before.get(_PLACE) in (None, default_cache_dir()):  # torch sets it on import
        os.environ[_PLACE] = str(folder / "inductor")
    try:
        yield
    except TorchDynamoException as error:
        why = " ".join(str(error).split())[:200]
        raise SfumatoError(f"The network cannot be compiled, leave out compile: {why}") from error
    finally:
        for name in os.environ.keys() - before.keys():  # torch adds variables for its folders
            del os.environ[name]
        os.environ.update(before)
