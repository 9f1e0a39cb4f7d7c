"""The ground of a drill: a folder and a Compose project of its own, certainly removed again.

The run's record names both before anything is made, so that `resume` removes what a killed drill
left. Not here: what a drill does on it (`drill.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from iotops import config, disk
from iotops.clients import files
from iotops.clients.compose import ComposeStack
from iotops.clients.composescratch import Scratch, harmless
from iotops.errors import RestoreError
from iotops.hub import Hub, options_of
from iotops.journal import Run, RunRecord
from iotops.services.base import Service

PROJECT = "drill_project"
"""Key in a record's `about` for the project that the drill made."""


@dataclass(frozen=True)
class Ground:
    """What a drill works on.

    Attributes:
        folder: all of it lies here. data: the data root of the scratch hub.
    """

    folder: Path
    data: Path


@dataclass(frozen=True)
class ScratchHub:
    """The snapshot's hub, brought to the drill's ground.

    Attributes:
        hub: with the snapshot's settings and secrets, the scratch data root and containers.
        stack: those containers. ports: by container, published port -> its own.
        left_out: by container, mounts that it does not get.
        folders: by container, the folders of the host that it mounts.
    """

    hub: Hub
    stack: ComposeStack
    ports: Mapping[str, Mapping[int, int]]
    left_out: Mapping[str, tuple[str, ...]]
    folders: Mapping[str, tuple[Path, ...]]

    def at(self, service: Service) -> Service:
        """Give the same service, asked at the address of its running container."""
        container = service.place.container
        known = self.ports.get(container, {})
        address = self.stack.address(container)
        options = service.options_at(address, lambda port: known.get(port, port))
        return type(service)(service.place, options)


@contextmanager
def ground(hub: Hub, run: Run) -> Iterator[Ground]:
    """Make the ground of a drill, and remove it in every case."""
    project = f"iotops-drill-{run.id.rsplit('-', 1)[-1]}"
    run.note(about={**run.record.about, PROJECT: project})
    folder = hub.layout.tmp / run.id
    folder.mkdir(mode=0o700)
    data = folder / "data"
    disk.layout(data).tmp.mkdir(mode=0o700, parents=True)
    try:
        yield Ground(folder, data)
    finally:
        clear(hub, run.record)


def clear(hub: Hub, record: RunRecord) -> None:
    """Remove what a drill made: containers, network, folder.

    Raises:
        StackError: the engine did not remove a container.
    """
    project = record.about.get(PROJECT, "")
    if project:
        ComposeStack(hub.folder, project=project).discard()
    files.remove_tree(hub.layout.tmp / record.id)


def scratch_hub(hub: Hub, run: Run, place: Ground, folder: Path, memory: int) -> ScratchHub:
    """Make the snapshot's hub fit to be started beside the running one.

    Args:
        folder: the hub folder out of the snapshot.
        memory: bytes that one container may take.

    Raises:
        RestoreError: the snapshot holds no hub folder.
        SettingsError, StackError: its settings or its Compose file cannot be read.
    """
    if not (folder / config.FILE).is_file():
        raise RestoreError(
            "the snapshot holds no hub folder: nothing in it could be started",
            hint="look for one that does: iotops snapshots",
        )
    settings = config.load(folder / config.FILE, options_of)
    root = settings.data.root
    settings = settings.moved(place.data)
    project = run.record.about[PROJECT]
    original = ComposeStack(folder)
    model = original.model()
    kinds = {one.place.container: one.quiet for one in Hub(folder, settings).services}
    moved = {root: place.data, hub.folder: folder, folder: folder}
    scratch: Scratch = harmless(original.document(), project, moved, kinds, memory)
    path = place.folder / "compose.json"
    files.write(path, json.dumps(scratch.document).encode(), mode=0o600)
    stack = ComposeStack(folder, files=[path], project=project)
    return ScratchHub(
        Hub(folder, settings, rehearsal=stack),
        stack,
        {
            name: {port.published: port.target for port in one.ports}
            for name, one in model.services.items()
        },
        scratch.left_out,
        scratch.folders,
    )
