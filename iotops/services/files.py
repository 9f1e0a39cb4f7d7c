"""Any other container's folder: copied as files, with the container stopped unless told otherwise.

Databases found in it are copied by SQLite's online backup in both cases. Not here: stopping and
starting (the action does it by `mode`), and any knowledge of what the files mean.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from iotops.clients import files
from iotops.clients.compose import Container
from iotops.clients.staging import Staging
from iotops.errors import CaptureError
from iotops.model import Captured, Facts, Finding, Mode, Readiness, ServiceRecord, Severity
from iotops.services.base import BaseOptions, Service

NAMED = 3
"""Missing files that are named in a finding; the others are counted."""


@dataclass(frozen=True, kw_only=True)
class FilesOptions(BaseOptions):
    """Settings of a folder that no other kind knows.

    Attributes:
        hot: its files may be copied while its container runs.
    """

    kind: str = "files"
    hot: bool = False


class Files(Service):
    """A folder below the data root, with or without a container."""

    kind = "files"
    capture_mode = Mode.COLD
    Options = FilesOptions
    options: FilesOptions

    @property
    def mode(self) -> Mode:
        """Cold, unless the settings say that a copy of the running container's files is fine."""
        return Mode.HOT if self.options.hot else Mode.COLD

    def probe(self) -> Facts:
        """Tell whether the container runs; a folder without one is always at hand."""
        container = self._container()
        if container is None:
            return Facts(True, detail="no container")
        return Facts(container.state == "running", detail=container.state)

    def ready(self) -> Readiness:
        """Tell whether the container runs, and is healthy where it can tell."""
        container = self._container()
        if container is None:
            return Readiness(True)
        if container.state != "running":
            return Readiness(False, f"its container is {container.state}")
        if container.health not in ("", "healthy"):
            return Readiness(False, f"its container is {container.health}")
        return Readiness(True)

    def capture(self, staging: Staging, previous: ServiceRecord | None) -> Captured:
        """Copy everything."""
        if not staging.source.is_dir():
            raise CaptureError(
                f"the folder {staging.source} of {self.name} is not there",
                hint=f"set services.{self.name}.folder in iotops.toml",
            )
        staging.rest()
        number = size = 0
        for relative in staging.paths():
            state = staging.path(relative).lstat()
            number += stat.S_ISREG(state.st_mode)
            size += state.st_size if stat.S_ISREG(state.st_mode) else 0
        return Captured(counts={"files": number, "bytes": size})

    def counts(self) -> Mapping[str, int]:
        """Count the live folder's regular files and their bytes."""
        return _measure(self.place.folder)

    def verify(self, record: ServiceRecord) -> Iterator[Finding]:
        """Look for every recorded file: contents were checked before, and programs write on.

        A program that starts may tidy up after itself; one that clears out half of what was put
        back has not understood its data.
        """
        start = f"{record.folder}/"
        wanted = [a for a in record.artifacts if a.type == "file" and a.path.startswith(start)]
        gone = [
            path
            for artifact in wanted
            if not files.is_regular(
                self.place.folder / (path := files.path_of(artifact.path.removeprefix(start)))
            )
        ]
        if gone:
            named = ", ".join(files.path_text(path) for path in gone[:NAMED])
            more = f" and {len(gone) - NAMED} more" if len(gone) > NAMED else ""
            yield Finding(
                "files.gone",
                Severity.ERROR if len(gone) * 2 > len(wanted) else Severity.WARNING,
                self.name,
                f"{len(gone)} of {len(wanted)} files that were put back are gone: {named}{more}",
            )

    def _container(self) -> Container | None:
        return self.place.stack.containers().get(self.place.container)


def _measure(folder: Path) -> dict[str, int]:
    number = size = 0
    for top, _, names in os.walk(folder):
        for name in names:
            try:
                state = (Path(top) / name).lstat()
            except FileNotFoundError:
                continue  # a live folder is moving
            if stat.S_ISREG(state.st_mode):
                number += 1
                size += state.st_size
    return {"files": number, "bytes": size}
