"""The network of a run by torch.compile; its code lies in sfumato's cache, so that a later run only loads it."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sfumato.data.cache import root
from sfumato.distributed import World
from sfumato.errors import SfumatoError
from sfumato.nets.energy import Energy
from sfumato.training.parts import with_net

_PLACE = "TORCHINDUCTOR_CACHE_DIR"


def compiled(model: Any, world: World) -> Any:
    """The same model, with the same weights under the same names, whose network is compiled at its first call.

    For the shape it is called with; a last smaller part of a batch is compiled for itself. SfumatoError for an energy,
    and where more than one process trains.
    """
    if isinstance(model.net, Energy):
        raise SfumatoError("The gradient of an energy cannot be compiled: leave out compile.")
    if world.size > 1:
        raise SfumatoError("Networks are compiled in one process alone: leave out compile.")
    net = copy.copy(model.net)  # what validates and samples, in other shapes, stays as it is
    with compiling(True):
        net.compile(dynamic=False, options={"cpp.dynamic_threads": True})  # as many as torch has when it runs
    return with_net(model, net)


@contextmanager
def compiling(wanted: bool) -> Iterator[None]:
    """Within the block torch keeps compiled code in sfumato's cache, unless the environment names another folder.

    Afterwards the environment is as before. SfumatoError where the network cannot be compiled. Nothing happens where
    it is not wanted.
    """
    if not wanted:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    before, folder = dict(os.environ), root()
    if folder is not None and before.get(_PLACE) in (None, default_cache_dir()):  # which torch sets when it is imported
        os.environ[_PLACE] = str(folder / "inductor")
    try:
        yield
    except TorchDynamoException as error:
        why = " ".join(str(error).split())[:200]
        raise SfumatoError(f"The network cannot be compiled, leave out compile: {why}") from error
    finally:
        for name in os.environ.keys() - before.keys():  # torch notes its folders there, too
            del os.environ[name]
        os.environ.update(before)
