"""The kinds of services, found by file name: one file here is one kind.

Only the kinds that the settings name are imported, which keeps start-up short on a Pi.
Not here: the contract (`base.py`).
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from iotops.errors import SettingsError
from iotops.services.base import Service

NOT_KINDS = frozenset({"base"})


def kinds() -> tuple[str, ...]:
    """List the names of all kinds, sorted, without importing them."""
    here = [str(Path(__file__).parent)]
    return tuple(
        sorted(module.name for module in pkgutil.iter_modules(here) if module.name not in NOT_KINDS)
    )


def kind(name: str) -> type[Service]:
    """Give the class of a kind.

    Args:
        name: its file's name.

    Raises:
        SettingsError: there is no such kind.
    """
    if name not in kinds():
        raise SettingsError(
            f"there is no service kind {name!r}", hint=f"one of: {', '.join(kinds())}"
        )
    module = importlib.import_module(f"iotops.services.{name}")
    for value in vars(module).values():
        if (
            isinstance(value, type)
            and issubclass(value, Service)
            and value is not Service
            and value.__module__ == module.__name__
        ):
            return value
    raise SettingsError(f"services/{name}.py declares no Service")
