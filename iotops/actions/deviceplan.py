"""What a change of the broker's devices makes of its files, and where they differ: pure decisions.

Nothing is read or written. Not here: the exchange of the files and its proof (`devices.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from iotops import devices
from iotops.clients import mosquittousers
from iotops.clients.mosquittousers import Acl, Passwords
from iotops.devices import Device
from iotops.errors import GuardError, SettingsError, UsageError

STATES = ("ok", "no password", "not declared", "by hand")
OK, NO_PASSWORD, NOT_DECLARED, BY_HAND = STATES


@dataclass(frozen=True)
class Row:
    """One user of the broker; `state` is one of `STATES`."""

    name: str
    prefix: str
    commands: str
    state: str


@dataclass(frozen=True)
class Listing:
    """The users of the broker.

    Attributes:
        rights: whether the devices' rights are as declared: "ok", "stale" or "edited".
    """

    devices: tuple[Row, ...]
    rights: str

    @property
    def drifted(self) -> bool:
        """Whether declaration, passwords and rights differ."""
        return self.rights != OK or any(one.state not in (OK, BY_HAND) for one in self.devices)


@dataclass(frozen=True)
class Present:
    """Everything that a change is decided by.

    Attributes:
        own: the broker's user that iotops itself logs in as. text: of `devices.toml`, or "".
    """

    own: str
    text: str
    declared: Mapping[str, Device]
    passwords: Passwords
    acl: Acl

    @property
    def by_hand(self) -> frozenset[str]:
        """Users that belong to the hub or to its owner, and are not touched."""
        return self.acl.users | {self.own}


@dataclass(frozen=True)
class Wanted:
    """What a change makes of it; `fresh`: the device gets a new password."""

    device: Device
    text: str
    acl: str
    fresh: bool


def refuse_claimed(now: Present) -> None:
    """Refuse a declaration, made by hand, of somebody who is no device.

    Raises:
        SettingsError: with every such name.
    """
    claimed = sorted(now.by_hand & now.declared.keys())
    if claimed:
        faults = [
            f"devices.{name}: is the hub's own user, or has rights by hand in the ACL file"
            for name in claimed
        ]
        raise SettingsError(
            f"{devices.FILE}: " + "; ".join(faults),
            faults=faults,
            hint="take it out of the one file or the other",
        )


def plan_add(now: Present, new: Device) -> Wanted:
    """Decide how a device is added.

    Raises:
        GuardError: its name belongs to somebody. UsageError: its topics are another device's.
    """
    if new.name == now.own:
        raise GuardError(f"{new.name} is the hub's own user", hint="choose another name")
    if new.name in now.declared:
        raise GuardError(
            f"there is a device {new.name} already",
            hint=f"a new password for it: iotops device rotate {new.name}",
        )
    if new.name in now.by_hand:
        raise GuardError(
            f"{new.name} is a user with rights of its own in the ACL file",
            hint="choose another name, or remove that user there first",
        )
    if new.name in now.passwords.names:
        raise GuardError(
            f"{new.name} has a password already, and is no declared device",
            hint=f"if nobody needs it: iotops device remove {new.name}",
        )
    for fault in devices.overlaps([*now.declared.values(), new]):
        raise UsageError(fault, hint="choose other topics: --prefix, --commands")
    text = devices.added(now.text, new)
    return Wanted(new, text, now.acl.with_devices([*now.declared.values(), new]), fresh=True)


def plan_rotate(now: Present, name: str) -> Wanted:
    """Decide how a device gets another password; its rights become those declared.

    Raises:
        GuardError: it is not declared.
    """
    one = now.declared.get(name)
    if one is None:
        raise GuardError(f"there is no declared device {name}", hint="iotops device list")
    return Wanted(one, now.text, now.acl.with_devices(now.declared.values()), fresh=True)


def plan_remove(now: Present, name: str) -> Wanted:
    """Decide how a device is removed; also one that only has a password, or only a declaration.

    Raises:
        GuardError: there is none, or it is no device.
    """
    if name not in now.declared and name in now.by_hand:
        raise GuardError(
            f"{name} is the hub's own user, or one with rights by hand, and no device",
            hint="iotops device list",
        )
    if name not in now.declared and name not in now.passwords.names:
        raise GuardError(f"there is no device {name}", hint="iotops device list")
    rest = [one for one in now.declared.values() if one.name != name]
    text = devices.without(now.text, name) if name in now.declared else now.text
    gone = now.declared.get(name, Device(name, "", ""))
    return Wanted(gone, text, now.acl.with_devices(rest), fresh=False)


def plan_listing(now: Present) -> Listing:
    """Compare declaration, passwords and rights."""
    there = now.passwords.names
    rows = [
        Row(one.name, one.prefix, one.commands, OK if one.name in there else NO_PASSWORD)
        for one in now.declared.values()
    ]
    rows += [
        Row(name, "", "", BY_HAND if name in now.by_hand else NOT_DECLARED)
        for name in there
        if name not in now.declared
    ]
    rights = mosquittousers.rights(now.declared.values())
    state = "edited" if now.acl.edited else OK if rights == (now.acl.block or "") else "stale"
    return Listing(tuple(sorted(rows, key=lambda one: one.name)), state)
