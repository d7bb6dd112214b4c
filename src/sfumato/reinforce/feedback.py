"""What models are aligned to: a reward of samples, pairs of samples of which one is preferred, samples with rewards."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfumato.conditions import Conditions, resolve
from sfumato.errors import SfumatoError, an
from sfumato.files import first_line
from sfumato.objectives.loss import Loss
from sfumato.registry import from_file
from sfumato.sampling import sample
from sfumato.training.ladder import in_turn

_LEAST = 8  # samples of a class that are compared with one another


class RewardError(SfumatoError):
    """A reward that raised an error, took too long, or did not return one finite number for each sample."""


class Reward:
    """reward(x) -> one finite number a sample, float64 (B,): a function of samples (B, *shape) in the user's units.

    The function is given all samples at once, and may return a tensor, an array or a list; gradients flow through
    tensors. seconds: how long a call may take; None sets no limit. Raises RewardError for anything but B finite numbers
    in time, and SfumatoError for what is no function.
    """

    def __init__(self, function: Callable[[Any], Any] | str, seconds: float | None = None) -> None:
        function = named(function) if isinstance(function, str) else function
        if not callable(function):
            raise SfumatoError(
                f"A reward is a function of samples (B, ...) that returns B numbers, not {an(type(function).__name__)}."
            )
        if seconds is not None and not seconds > 0:
            raise SfumatoError(f"reward_seconds, the time that a reward may take, must be above 0, not {seconds:g}.")
        self.function, self.seconds = function, seconds
        self.name = getattr(function, "__name__", type(function).__name__)

    def __call__(self, x: Any) -> Tensor:
        try:
            found = torch.as_tensor(self.function(x) if self.seconds is None else self._in_time(x))
        except RewardError:
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {first_line(error)}"
            raise RewardError(f"The reward {self.name} failed for samples {_shape(x)} ({said}).") from error
        if found.shape != (len(x),):
            raise RewardError(
                f"The reward {self.name} returned an array of shape {tuple(found.shape)} for samples {_shape(x)}: it "
                f"must return one number for each, ({len(x)},)."
            )
        wrong = ~found.isfinite()
        if bool(wrong.any()):
            raise RewardError(
                f"The reward {self.name} is {float(found[wrong][0])} for sample {int(wrong.nonzero()[0])}: rewards "
                "must be finite numbers."
            )
        return found.double()

    def _in_time(self, x: Any) -> Any:
        """function(x) in a thread that is left behind if it hangs, since Python cannot end one."""
        done: Future[Any] = Future()
        gradients = torch.is_grad_enabled()  # a state of the thread

        def work() -> None:
            try:
                with torch.set_grad_enabled(gradients):
                    done.set_result(self.function(x))
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=work, name=f"reward {self.name}", daemon=True).start()
        try:
            return done.result(self.seconds)
        except TimeoutError:
            if done.done():  # the function's own
                raise
            raise RewardError(
                f"The reward {self.name} took longer than {self.seconds:g} seconds for samples {_shape(x)}: make it "
                "faster, or raise reward_seconds (--reward-seconds)."
            ) from None


def named(words: str) -> Callable[[Any], Any]:
    """The function that "my_reward.py:brightness" names. The file is the user's, and is run."""
    path, _, name = words.rpartition(":")
    found = getattr(from_file(path), name, None) if path else None
    if not callable(found):
        raise SfumatoError(f"{words!r:.80} names no function: write FILE.py:FUNCTION, such as my_reward.py:brightness.")
    reward: Callable[[Any], Any] = found
    return reward


def _shape(x: Any) -> str:
    return f"of shape {tuple(x.shape)}" if hasattr(x, "shape") else f"of {len(x)} rows"


class Rollouts(nn.Module):
    """Samples of a policy with their rewards: x, normalised (N, *shape); rewards (N,); age: rounds so far;
    classes: how many there are, 1 without any.

    Sample i of age a has the number a N + i under the seed. Of a model of classes each class is drawn in its turn.
    """

    x: Tensor
    rewards: Tensor

    def __init__(self, policy: Any, reward: Any, count: int, seed: int = 0, steps: int | None = None) -> None:
        super().__init__()
        self.reward, self.count, self.seed, self.steps, self.age = reward, count, seed, steps, 0
        turns = in_turn(policy, count)
        self.cond, self.classes = resolve(policy, turns, count), len(set(turns.get("label", ()))) or 1
        x, rewards = self._drawn(policy, 0)
        self.register_buffer("x", x)
        self.register_buffer("rewards", rewards)

    def renew(self, policy: Any, age: int) -> None:
        """Draw all samples anew from a policy."""
        x, rewards = self._drawn(policy, age)
        self.age = age
        self.x, self.rewards = x.to(self.x.device), rewards.to(self.x.device)

    def _drawn(self, policy: Any, age: int) -> tuple[Tensor, Tensor]:
        which, cond = range(age * self.count, (age + 1) * self.count), in_turn(policy, self.count)
        x = sample(policy, self.count, self.steps, seed=self.seed, index=list(which), cond=cond)
        spec = getattr(policy, "spec", None)
        z = x if spec is None else spec.normalise(x)
        return (z.float() if z.is_floating_point() else z), self.reward(x)

    @property
    def turns(self) -> list[slice]:
        """The samples of each class, or of all where classes have too few to compare."""
        own = self.classes if self.count >= _LEAST * self.classes else 1
        return [slice(k, None, own) for k in range(own)]

    def relative(self, net: Tensor) -> Tensor:
        """The advantages of samples with these values, float64 (N,): less the mean of their class."""
        found = net.clone()
        for rows in self.turns:
            found[rows] -= net[rows].mean()
        return found

    def conditions(self, rows: Tensor) -> Conditions:
        """Those of some samples."""
        return self.cond.rows(rows).to(self.x.device)

    def weights(self, beta: float) -> Tensor:
        """e^(reward / beta) over its mean in the class, float64 (N,)."""
        found = self.rewards / beta
        for rows in self.turns:
            found[rows] = torch.softmax(found[rows], 0) * len(found[rows])
        return found


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
