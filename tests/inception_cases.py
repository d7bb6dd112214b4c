"""Random weights for the Inception network, as a user's file would hold them."""

import torch

from sfumato.nets import inception


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights that keep the size of what passes through."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        state = inception.Inception().state_dict()
    found = {}
    for name, value in state.items():
        drawn = torch.randn(value.shape, generator=generator)
        if name.endswith("conv.weight"):
            found[name] = drawn * (2 / value[0].numel()) ** 0.5
        elif name.endswith(("bn.weight", "running_var")):
            found[name] = 1 + 0.1 * drawn.abs()
        else:
            found[name] = 0.1 * drawn if value.is_floating_point() else torch.tensor(7)
    return found
