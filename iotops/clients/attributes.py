"""Extended attributes: which of a file's come along into a copy, and whether they did.

A user's own (`user.*`) and POSIX access lists are data. What the kernel gives rights by
(`security.capability`) is not carried, for the same reason as the set-uid bit; what it makes anew
by itself (SELinux labels) need not be. Not here: copying contents (`files.py`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

ACCESS_LISTS = ("system.posix_acl_access", "system.posix_acl_default")
RIGHTS = "security.capability"
"""Holds rights of a program that are as good as the set-uid bit."""

_NONE = (errno.ENOTSUP, errno.ENODATA, errno.EPERM, errno.EACCES, errno.ENOENT)


def carried(place: Path | int) -> Mapping[str, bytes]:
    """Give those attributes of a file or folder that belong into a copy of it.

    Args:
        place: a path, whose last part is not followed if it is a link, or an open file.

    Returns:
        Value by name; empty where the file system has none.
    """
    found: dict[str, bytes] = {}
    for name in _names(place):
        if name.startswith("user.") or name in ACCESS_LISTS:
            try:
                found[name] = _get(place, name)
            except OSError as error:
                if error.errno not in _NONE:  # it went away in between
                    raise
    return found


def carry(source: Path | int, target: Path | int) -> bool:
    """Give a copy the attributes that belong to it, and take away those that do not.

    Returns:
        False: the target's file system does not take them all.
    """
    wanted, there = carried(source), carried(target)
    try:
        for name in there.keys() - wanted.keys():
            os.removexattr(target, name)
        for name, value in wanted.items():
            if there.get(name) != value:
                os.setxattr(target, name, value)
    except OSError:
        return False
    return True


def gives_rights(path: Path) -> bool:
    """Tell whether a file carries rights of its own (a capability)."""
    return RIGHTS in _names(path)


def _names(place: Path | int) -> list[str]:
    try:
        if isinstance(place, int):
            return os.listxattr(place)
        return os.listxattr(place, follow_symlinks=False)
    except OSError as error:
        if error.errno in _NONE:
            return []
        raise


def _get(place: Path | int, name: str) -> bytes:
    if isinstance(place, int):
        return os.getxattr(place, name)
    return os.getxattr(place, name, follow_symlinks=False)
