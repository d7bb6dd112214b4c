"""What models are aligned to: a reward of samples, pairs of samples of which one is preferred, samples with rewards."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.conditions import Conditions, resolve
from sfumato.errors import SfumatoError, an
from sfumato.objectives.loss import Loss
from sfumato.sampling import sample
from sfumato.training.ladder import in_turn


class Reward:
    """reward(x) -> one finite number a sample, float64 (B,): a function of samples (B, *shape) in the user's units.

    The function is given all samples at once, and may return a tensor, an array or a list; gradients flow through
    tensors. Raises SfumatoError for anything but B finite numbers.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        if not callable(function):
            raise SfumatoError(
                f"A reward is a function of samples (B, ...) that returns B numbers, not {an(type(function).__name__)}."
            )
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)

    def __call__(self, x: Any) -> Tensor:
        try:
            found = torch.as_tensor(self.function(x))
        except (TypeError, ValueError) as error:
            raise SfumatoError(f"The reward {self.name} failed for samples {_shape(x)}: {error}") from error
        if found.shape != (len(x),):
            raise SfumatoError(
                f"The reward {self.name} returned an array of shape {tuple(found.shape)} for samples {_shape(x)}: it "
                f"must return one number for each, ({len(x)},)."
            )
        wrong = ~found.isfinite()
        if bool(wrong.any()):
            raise SfumatoError(
                f"The reward {self.name} is {float(found[wrong][0])} for sample {int(wrong.nonzero()[0])}: rewards "
                "must be finite numbers."
            )
        return found.double()


def _shape(x: Any) -> str:
    return f"of shape {tuple(x.shape)}" if hasattr(x, "shape") else f"of {len(x)} rows"


class Rollouts(nn.Module):
    """Samples of a policy with their rewards: x, normalised (N, *shape); rewards (N,); age: rounds so far.

    Sample i of age a has the number a N + i under the seed. Of a model of classes each class is drawn in its turn.
    """

    x: Tensor
    rewards: Tensor

    def __init__(self, policy: Any, reward: Reward, count: int, seed: int = 0, steps: int | None = None) -> None:
        super().__init__()
        self.reward, self.count, self.seed, self.steps, self.age = reward, count, seed, steps, 0
        self.cond = resolve(policy, in_turn(policy, count), count)
        x, rewards = self._drawn(policy)
        self.register_buffer("x", x)
        self.register_buffer("rewards", rewards)

    def renew(self, policy: Any, age: int) -> None:
        """Draw all samples anew from a policy."""
        self.age = age
        x, rewards = self._drawn(policy)
        self.x, self.rewards = x.to(self.x.device), rewards.to(self.x.device)

    def _drawn(self, policy: Any) -> tuple[Tensor, Tensor]:
        which, cond = range(self.age * self.count, (self.age + 1) * self.count), in_turn(policy, self.count)
        x = sample(policy, self.count, self.steps, seed=self.seed, index=list(which), cond=cond)
        spec = getattr(policy, "spec", None)
        z = x if spec is None else spec.normalise(x)
        return (z.float() if z.is_floating_point() else z), self.reward(x)

    def conditions(self, rows: Tensor) -> Conditions:
        """Those of some samples."""
        return self.cond.rows(rows).to(self.x.device)

    def weights(self, beta: float) -> Tensor:
        """e^(reward / beta) over its mean, float64 (N,)."""
        return torch.softmax(self.rewards / beta, 0) * self.count


def effective(weights: Tensor) -> float:
    """(sum w)^2 / sum w^2: how many samples weighted ones are worth."""
    return float(weights.sum().square() / weights.square().sum())


class Preferences(nn.Module):
    """Pairs of samples, normalised (N, *shape) each, the first of which is preferred; cond: their conditions."""

    winner: Tensor
    loser: Tensor

    def __init__(self, model: Any, winner: Any, loser: Any, **cond: Any) -> None:
        super().__init__()
        pair = [_samples(model, name, values) for name, values in (("winner", winner), ("loser", loser))]
        if pair[0].shape != pair[1].shape:
            raise SfumatoError(
                f"Preferences need as many winners as losers of one shape, got {tuple(pair[0].shape)} and "
                f"{tuple(pair[1].shape)}."
            )
        self.register_buffer("winner", pair[0])
        self.register_buffer("loser", pair[1])
        self.cond = resolve(model, cond, len(pair[0]))

    def __len__(self) -> int:
        return len(self.winner)

    @classmethod
    def read(cls, model: Any, path: str | os.PathLike[str]) -> Preferences:
        """From a file: .npz with the arrays winner and loser (N, *shape), or .jsonl with one pair a line,
        {"winner": [..], "loser": [..]}; values in the user's units. Further names are conditions, such as label."""
        return cls(model, **_columns(Path(path)))


def _samples(model: Any, name: str, values: Any) -> Tensor:
    try:
        x = torch.as_tensor(np.asarray(values))
    except (TypeError, ValueError):
        raise SfumatoError(f"The column {name} of preferences must hold numbers of one shape.") from None
    spec = getattr(model, "spec", None)
    if spec is not None:
        x = x.to(getattr(torch, str(spec.dtype).removeprefix("torch."))) if not spec.discrete else x
        spec.check(x)
        x = spec.normalise(x)
    return x.float() if x.is_floating_point() else x


def _columns(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            found: dict[str, Any] = {name: file[name] for name in file.files}
    elif path.suffix == ".jsonl":
        found = _lines(path)
    else:
        raise SfumatoError(f"{path}: preferences are a file of pairs, .npz or .jsonl.")
    if not {"winner", "loser"} <= found.keys():
        raise SfumatoError(
            f"{path}: preferences need winner and loser, and this file has {', '.join(found) or 'none'}."
        )
    return found


def _lines(path: Path) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or (found and row.keys() != found.keys()):
            raise SfumatoError(
                f"{path}, line {number}: each line is a JSON object of one pair, with the same names in every line."
            )
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return found


def require(loss: Loss, **needed: Any) -> None:
    """Raise SfumatoError if an argument that the loss cannot do without is None."""
    for name, value in needed.items():
        if value is None:
            raise SfumatoError(
                f"The loss {type(loss).__name__} needs a {name}, which sf.align and `sfumato align` give it."
            )
