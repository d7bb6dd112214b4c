"""The compute dtype of a network. Weights, optimiser, loss, scaling and belief stay in float32."""

from __future__ import annotations

import torch


def compute_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The value for `Denoiser.compute_dtype`: torch.bfloat16, or None for float32."""
    if precision == "auto":
        return torch.bfloat16 if _multiplies_bfloat16(device) else None
    return torch.bfloat16 if precision == "bfloat16" else None


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies in bfloat16: CUDA from compute capability 8, CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
