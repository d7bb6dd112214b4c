"""Many cases in one test: each is computed, and all that fail are told by name."""

import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest


def _named(values: Mapping[str, Any] | Iterable[Any]) -> list[tuple[str, Any]]:
    return list(values.items()) if isinstance(values, Mapping) else [(str(value), value) for value in values]


def every(**values: Mapping[str, Any] | Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The test over all combinations of the values, as one case; a dict gives its values under the names of its keys.

    What a case costs beside its work (fixtures, collection, reports between processes) is paid once for all. Fixtures
    are shared by the combinations, and `parametrize` below it stays as it is.
    """
    choices = [_named(some) for some in values.values()]

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(**fixtures: Any) -> None:
            failed: dict[str, BaseException] = {}
            for chosen in itertools.product(*choices):
                given = dict(zip(values, (value for _, value in chosen), strict=True))
                try:
                    test(**given, **fixtures)
                except (Exception, pytest.fail.Exception) as error:
                    failed[", ".join(name for name, _ in chosen)] = error
            if failed:
                told = "\n".join(f"{name}: {type(error).__name__}: {error}" for name, error in failed.items())
                raise AssertionError(f"{len(failed)} cases fail:\n{told}") from next(iter(failed.values()))

        signature = inspect.signature(test)
        left = [p for p in signature.parameters.values() if p.name not in values]
        run.__signature__ = signature.replace(parameters=left)  # type: ignore[attr-defined]
        return run

    return decorate
