"""A hub's Compose project made harmless: one that a drill may start beside the running hub.

Taken over is what makes a service run: image, command, variables, health check, folders. Left out
is whatever reaches beyond it: published ports, names, devices, other networks, other folders of
the host, restart policies. Pure: it turns one document into another. Not here: running it
(`compose.py`), and what of a service itself must not act (`Service.quiet`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from iotops.clients.composemodel import rows, table, word

KEPT = (
    *("image", "command", "entrypoint", "environment", "user", "group_add", "working_dir"),
    *("healthcheck", "stop_signal", "stop_grace_period", "tmpfs", "init", "read_only", "platform"),
    *("ulimits", "shm_size", "sysctls", "cap_drop", "security_opt"),
)
"""What of a service's declaration is taken over (compose-spec, 05-services.md)."""

NETWORK = "drill"


@dataclass(frozen=True)
class Scratch:
    """A harmless project.

    Attributes:
        document: for Compose, as JSON; its environments hold secrets in clear text.
        left_out: service -> mounts that it does not get, as shown to the owner.
        folders: sources of bind mounts on the scratch root, which must exist before the start.
    """

    document: Mapping[str, object]
    left_out: Mapping[str, tuple[str, ...]]
    folders: Mapping[str, tuple[Path, ...]]


def harmless(
    document: Mapping[str, object],
    project: str,
    moved: Mapping[Path, Path],
    quiet: Mapping[str, Mapping[str, str]],
    memory: int,
) -> Scratch:
    """Turn a hub's project into one that a drill may start.

    Args:
        document: what `docker compose config --format json` said.
        project: the new project's name.
        moved: folders of the host, and where the drill has them instead (data root, hub folder).
        quiet: by service, variables that keep it from acting on the world.
        memory: bytes that one container may take.
    """
    services: dict[str, object] = {}
    left_out: dict[str, tuple[str, ...]] = {}
    folders: dict[str, tuple[Path, ...]] = {}
    for name, raw in table(document, "services").items():
        declared = raw if isinstance(raw, dict) else {}
        kept: dict[str, object] = {key: declared[key] for key in KEPT if declared.get(key)}
        environment = {**table(declared, "environment"), **quiet.get(name, {})}
        mounts = [*_mounts(declared, moved)]
        services[name] = {
            **kept,
            "environment": environment,
            "volumes": [_bind(mount, source) for mount, source in mounts if source is not None],
            "networks": [NETWORK],
            "mem_limit": memory,
            "restart": "no",
            "logging": {"driver": "json-file", "options": {"max-size": "1m", "max-file": "1"}},
        }
        left_out[name] = tuple(_shown(mount) for mount, source in mounts if source is None)
        folders[name] = tuple(source for _, source in mounts if source is not None)
    return Scratch(
        {
            "name": project,
            "services": services,
            # Nothing gets out of an internal network, and nothing in but from this machine.
            "networks": {NETWORK: {"internal": True}},
        },
        {name: some for name, some in left_out.items() if some},
        folders,
    )


def _mounts(
    declared: Mapping[str, object], moved: Mapping[Path, Path]
) -> Iterator[tuple[Mapping[str, object], Path | None]]:
    """Yield every mount with the source that it has in the drill; None = it is left out."""
    for mount in rows(declared.get("volumes")):
        source = Path(word(mount.get("source")) or ".")
        place = None
        if mount.get("type") == "bind" and source.is_absolute():
            # The innermost folder decides: the hub folder may lie on the data root.
            for old, new in sorted(moved.items(), key=lambda pair: -len(pair[0].parts)):
                if source.is_relative_to(old):
                    place = new / source.relative_to(old)
                    break
            else:
                if mount.get("read_only") and source.is_relative_to("/etc/localtime"):
                    place = source
        yield mount, place


def _bind(mount: Mapping[str, object], source: Path) -> dict[str, object]:
    return {
        "type": "bind",
        "source": str(source),
        "target": mount.get("target"),
        "read_only": bool(mount.get("read_only")),
        "bind": {"create_host_path": False},
    }


def _shown(mount: Mapping[str, object]) -> str:
    return f"{word(mount.get('source')) or mount.get('type')} at {word(mount.get('target'))}"
