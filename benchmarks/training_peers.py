"""Networks and training steps of other libraries, for `training.py`: each as its own documentation trains it.

A case is (name, network, call): call(net, x, t) -> y for x (B, 3, 32, 32) and t in (0, 1) of shape (B,). Its step is
the forward pass, a mean square, the backward pass, gradients clipped at 1 and AdamW: no moving average, no noise drawn.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[[Any, Tensor, Tensor], Tensor]
Case = tuple[str, nn.Module, Call]


def diffusers_unet() -> Case:
    from diffusers import UNet2DModel

    down = ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"]
    up = ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]
    net = UNet2DModel(
        sample_size=32, in_channels=3, out_channels=3, block_out_channels=(64, 128, 128, 128), down_block_types=down,
        up_block_types=up,
    )  # fmt: skip
    return "diffusers UNet2DModel", net, lambda net, x, t: net(x, 999 * t).sample


def diffusers_dit() -> Case:
    from diffusers import DiTTransformer2DModel

    net = DiTTransformer2DModel(
        num_attention_heads=6, attention_head_dim=64, in_channels=3, out_channels=3, num_layers=12, sample_size=32,
        patch_size=4, norm_num_groups=1,
    )  # fmt: skip

    def call(net: Any, x: Tensor, t: Tensor) -> Tensor:
        label = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return net(x, timestep=(999 * t).long(), class_labels=label).sample

    return "diffusers DiT", net, call


def ddpm_unet() -> Case:
    from denoising_diffusion_pytorch import Unet

    return "denoising-diffusion-pytorch Unet", Unet(dim=32, dim_mults=(1, 2, 4, 8)), lambda net, x, t: net(x, 999 * t)


def smalldiffusion_unet() -> Case:
    from smalldiffusion import Unet

    net = Unet(32, 3, 3, ch=64, ch_mult=(1, 2, 2, 2), num_res_blocks=2, attn_resolutions=(16,))
    return "smalldiffusion Unet", net, lambda net, x, t: net(x, t)


def azula_unet() -> Case:
    from azula.nn.layers import SineEncoding
    from azula.nn.unet import UNet

    class Timed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.level = nn.Sequential(SineEncoding(128), nn.Linear(128, 256), nn.SiLU())
            self.net = UNet(3, 3, hid_channels=(64, 128, 128), hid_blocks=(3, 3, 3), mod_features=256)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.net(x, self.level(t))

    return "azula UNet", Timed(), lambda net, x, t: net(x, t)


PEERS = {
    "diffusers": diffusers_unet, "ddpm": ddpm_unet, "smalldiffusion": smalldiffusion_unet, "azula": azula_unet,
    "diffusers-dit": diffusers_dit,
}  # fmt: skip
MODULES = {
    "diffusers": "diffusers", "ddpm": "denoising_diffusion_pytorch", "smalldiffusion": "smalldiffusion",
    "azula": "azula", "diffusers-dit": "diffusers",
}  # fmt: skip


def installed(name: str) -> bool:
    try:
        importlib.import_module(MODULES[name])
    except ImportError:
        return False
    return True


def trainer(case: Case, batch: int, mode: str) -> Callable[[], None]:
    """One training step of a peer. mode: default (float32), best (bfloat16, channels last), compiled (and so)."""
    _, net, call = case
    layout = torch.contiguous_format if mode == "default" else torch.channels_last
    net = net.to(memory_format=layout).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=mode != "default")
    x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=layout)
    t, target = torch.rand(batch), torch.randn(batch, 3, 32, 32)
    run = torch.compile(lambda x, t: call(net, x, t)) if mode == "compiled" else lambda x, t: call(net, x, t)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=mode != "default"):
            y = run(x, t)
        torch.nn.functional.mse_loss(y.float(), target).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def sampler(case: Case, batch: int, mode: str, steps: int) -> Callable[[], None]:
    """`steps` of DDIM over a linear flow by a bare loop: what the network's calls cost, and nothing else."""
    _, net, call = case
    layout = torch.contiguous_format if mode == "default" else torch.channels_last
    net = net.to(memory_format=layout).eval()

    @torch.no_grad()
    def walk() -> None:
        z = torch.randn(batch, 3, 32, 32).contiguous(memory_format=layout)
        with torch.autocast("cpu", torch.bfloat16, enabled=mode != "default"):
            for i in range(steps):
                z = z + call(net, z, torch.full((batch,), 1 - i / steps)).float() / steps

    return walk
