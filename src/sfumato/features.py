"""Features of samples by name: networks whose weights are part of the protocol.

Features are modules x (n, *shape) in the units of the data, float32 -> (n, F), registered as "features". They are made
for the `shape` of a sample where their constructor asks for it. `standardised`: whether each feature is to have mean 0
and deviation 1 over the real data, for features whose units mean nothing. `called` and `preprocessing`: what a protocol
is to say of them, where that is not the word and "none".
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from sfumato import noise, schema
from sfumato.errors import SfumatoError
from sfumato.files import first_line
from sfumato.nets.clip import ClipVision
from sfumato.registry import make, register

NUMBERS = "numbers"  # no features: the values themselves
WEIGHTS = (".safetensors", ".pt", ".pth")  # endings of files of weights, which are those of an Inception network
_BATCH = 256
_WIDTHS = (16, 32)
PLACE = "SFUMATO_ENCODERS"  # folders of encoders, separated as those of PATH are
_MEAN, _STD = (0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)  # of CLIP's pictures, where a folder does not say
_USED: dict[str, Path] = {}  # name of a folder -> the folder, as given in this process


@register("features", "convolutions")
class Convolutions(nn.Module):
    """Two layers of random convolutions of pictures (C, H, W), and their mean colours, averaged over quarters.

    h_1 = relu(w_1 * x),   h_2 = relu(w_2 * pool(h_1)),   w signs drawn by `seed` less their mean, so that edges count
    features = the means of x, h_1 and h_2 over each quarter of the picture, 4 (C + 48) in all

    Their weights are the same bits on every machine, and no download. They see colour, edges and texture, not objects.
    """

    standardised = True

    def __init__(self, shape: Sequence[int], seed: int = 0) -> None:
        super().__init__()
        widths = (shape[0], *_WIDTHS)
        for layer, (inner, outer) in enumerate(zip(widths, widths[1:], strict=False)):
            signs = noise.rademacher(seed, torch.arange(outer), (inner, 3, 3), step=layer, dtype=torch.float64)
            weights = (signs - signs.mean((1, 2, 3), keepdim=True)) / (3 * inner**0.5)
            self.register_buffer(f"w{layer}", weights.float())

    def forward(self, x: Tensor) -> Tensor:
        edges = functional.conv2d(x, self.get_buffer("w0"), padding=1).relu()
        texture = functional.conv2d(functional.avg_pool2d(edges, 2), self.get_buffer("w1"), padding=1).relu()
        return torch.cat([functional.adaptive_avg_pool2d(each, 2).flatten(1) for each in (x, edges, texture)], 1)


@register("features", "clip")
class Clip(nn.Module):
    """Pictures (n, C, H, W), grey or RGB, in the units of the data -> (n, d), of the length 1.

        features = y / |y|,   y = net((resized((x - low) / (high - low)) - mean) / std),   resized: bicubic, antialiased

    weights: the folder of a CLIP model, or of its image encoder, in the Hugging Face layout (config.json,
    model.safetensors, and preprocessor_config.json for mean and std). shape: of a sample; bounds: (low, high) of the
    data. Raises SfumatoError for other folders, and for data that are no such pictures.
    """

    called = "CLIP"
    preprocessing = "bicubic, antialiased"

    def __init__(self, weights: str, shape: Sequence[int], bounds: Sequence[float] | None) -> None:
        super().__init__()
        self.low, self.high = bounds_of_pictures("An image encoder takes", shape, bounds)
        place = Path(weights).expanduser()
        try:
            config = _json(place / "config.json")
            told = _json(place / "preprocessor_config.json") if (place / "preprocessor_config.json").is_file() else {}
            self.net = ClipVision(config.get("vision_config", config), load_file(place / "model.safetensors"))
        except SfumatoError:
            raise
        except Exception as error:  # missing files and names, other shapes
            raise SfumatoError(f"{weights} holds no image encoder of CLIP: {first_line(error)}") from None
        for name, usual in (("image_mean", _MEAN), ("image_std", _STD)):
            self.register_buffer(name, torch.tensor(told.get(name, usual)).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        shares = ((x - self.low) / (self.high - self.low)).expand(-1, 3, -1, -1)
        side = (self.net.side, self.net.side)
        shares = functional.interpolate(shares, side, mode="bicubic", antialias=True).clamp(0, 1)
        found = self.net((shares - self.get_buffer("image_mean")) / self.get_buffer("image_std"))
        return found / found.norm(dim=1, keepdim=True)


def bounds_of_pictures(what: str, shape: Sequence[int], bounds: Sequence[float] | None) -> tuple[float, float]:
    """(low, high) of pictures (C, H, W). Raises SfumatoError, beginning with `what`, for samples that are none."""
    if len(shape) != 3 or shape[0] not in (1, 3) or bounds is None:
        raise SfumatoError(
            f"{what} grey or RGB pictures with known bounds, and the samples have the shape {tuple(shape)} and "
            f"{'no' if bounds is None else 'known'} bounds: choose other features."
        )
    low, high = map(float, bounds)
    return low, high


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = schema.json_of(path.read_bytes(), path)
    return found


def encoder_folder(word: Any) -> Path | None:
    """The folder of an image encoder: the place `word`, or one of this name that was used before in this process or
    that $SFUMATO_ENCODERS lists."""
    place = Path(word).expanduser()
    if (place / "config.json").is_file():
        _USED[place.resolve().name] = place
        return place
    listed = {Path(each).name: Path(each) for each in os.environ.get(PLACE, "").split(os.pathsep) if each}
    found = {**listed, **_USED}.get(str(word))
    return found if found is not None and (found / "config.json").is_file() else None


def usual(kind: str, shape: Sequence[int]) -> str:
    """The features of a data set if none are named: convolutions of pictures, else the numbers themselves."""
    return "convolutions" if kind == "image" and len(shape) == 3 and min(shape[1:]) >= 4 else NUMBERS


def build(
    features: Any, shape: Sequence[int], bounds: Sequence[float] | None = None, device: str | torch.device = "cpu"
) -> Any:
    """The features that a word, a file of weights or the folder of an image encoder names, or the user's own function;
    None for the numbers themselves.

    shape: of a sample; bounds: the lowest and highest value, if they are known. What is made here is put on `device`.
    """
    if isinstance(features, str) and features == NUMBERS:
        return None
    if not isinstance(features, str | os.PathLike):
        return features
    given: dict[str, Any] = {"shape": tuple(shape), "bounds": bounds}
    word = os.fspath(features)
    if word.lower().endswith(WEIGHTS):
        word, given["weights"] = "inception", word
    elif (folder := encoder_folder(word)) is not None:
        word, given["weights"] = "clip", str(folder)
    made = make("features", word, given)
    return made.to(device) if isinstance(made, nn.Module) else made


def identity(features: Any, word: Any) -> dict[str, Any]:
    """Their name, and the hash of their weights and of the user's own code; that is None of the numbers themselves."""
    own = getattr(features, "__qualname__", type(features).__qualname__)
    name = getattr(features, "called", word if isinstance(word, str) else own)
    if features is None:
        return {"features": name, "features_hash": None}
    digest = blake2b(digest_size=8)
    _take(digest, features)
    return {"features": name, "features_hash": digest.hexdigest()}


def _take(digest: Any, part: Any, seen: frozenset[int] = frozenset()) -> None:
    """Add a module (weights, and code that is not sfumato's), a function with what it closes over, or a value.

    seen: what holds it, of which a function that calls itself is one.
    """
    if id(part) in seen:
        return
    take = partial(_take, digest, seen=seen | {id(part)})
    if isinstance(part, Tensor):
        digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
        digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(part, nn.Module):
        for key, value in part.state_dict().items():
            digest.update(f"{key} ".encode())
            take(value)
        digest.update(_code_of_class(type(part)))
    elif isinstance(part, partial):
        for each in (part.func, *part.args, *part.keywords.values()):
            take(each)
    elif inspect.isfunction(part):
        digest.update(_code(part))
        for cell in part.__closure__ or ():
            with suppress(ValueError):  # a cell that is not filled yet
                take(cell.cell_contents)
        for value in part.__defaults__ or ():
            take(value)
    elif callable(part) and not isinstance(part, type):
        digest.update(_code_of_class(type(part)))
        for value in getattr(part, "__dict__", {}).values():
            take(value)
    else:
        digest.update(repr(part).encode() if isinstance(part, str | int | float | tuple | list | dict | None) else b"")


def _code_of_class(kind: type) -> bytes:
    """The code of a class and those that it extends, but for sfumato's own and those of torch and Python."""
    found = [each for each in kind.__mro__ if not each.__module__.startswith(("sfumato.", "torch.", "builtins"))]
    methods = [value for each in found for _, value in sorted(vars(each).items()) if inspect.isfunction(value)]
    return b"".join(map(_code, methods))


def _code(function: Any) -> bytes:
    """The source of a function, or without its file the steps of its code."""
    try:
        return inspect.getsource(function).encode()
    except (OSError, TypeError):
        return _steps(function.__code__)


def _steps(code: Any) -> bytes:
    found: bytes = code.co_code + repr(code.co_names).encode()
    parts = (_steps(each) if inspect.iscode(each) else repr(each).encode() for each in code.co_consts)
    return found + b"".join(parts)


@torch.no_grad()
def applied(features: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The features (n, F) of x (n, *shape), in float64, in batches."""
    device = torch.device("cpu")
    if isinstance(features, nn.Module):
        device = next((each.device for each in features.eval().state_dict().values()), device)
    return torch.cat([features(part.float().to(device)).flatten(1).double().cpu() for part in x.split(_BATCH)])
