"""Make one snapshot that can be trusted: capture every service, write the manifest, save, verify.

Order: guards, hub and host files, each service, the rest of the data root, manifest, restic,
reading back. One failing service does not stop the others: the outcome is then partial and names
it. Not here: the record of the run (`backup.py`), how a service is captured (`services/`), what is
staged of hub and host (`parts.py`), whether the numbers are plausible (`plausible.py`).
"""

from __future__ import annotations

import platform
import socket
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from iotops import __version__, disk, manifest
from iotops.actions import misnamed, parts, plausible, ports, swap, volumes
from iotops.actions.beside import Beside
from iotops.actions.ours import TAG, Ours, refuse_protected
from iotops.clients import files, network
from iotops.clients.compose import Container
from iotops.clients.restic import Saved
from iotops.clients.staging import Staged, Staging
from iotops.errors import (
    CaptureError,
    GuardError,
    IotopsError,
    ManifestError,
)
from iotops.events import Moved, Noted, Report, step
from iotops.hub import Hub
from iotops.journal import Run
from iotops.model import (
    MANIFEST_FORMAT,
    Accepted,
    Captured,
    HostRecord,
    ImageRecord,
    Manifest,
    Mode,
    Outcome,
    PartRecord,
    ServiceRecord,
)
from iotops.services.base import Service

RESERVE = 256 << 20
"""Bytes that must be free on the data root before anything is staged."""
CLOCK_SLACK = 3600.0
"""Seconds that the clock may stand before the last good backup; a Pi has no clock of its own."""


@dataclass(frozen=True)
class Made:
    """A snapshot that was saved and read back.

    Attributes:
        manifest: its outcome is complete or partial. saved: restic's own numbers and the id.
        missing: name -> why, of everything not captured.
        warnings: what is odd about the disk.
    """

    manifest: Manifest
    saved: Saved
    missing: Mapping[str, str]
    warnings: tuple[str, ...] = ()


class Maker:
    """One snapshot while it is made."""

    def __init__(self, hub: Hub, run: Run, accepted: Accepted, report: Report) -> None:
        self.hub = hub
        self.run = run
        self.accepted = accepted
        self.report = report
        self.staging = hub.layout.staging
        self.memory = self.staging.parent / "memory"
        self.links: list[Staging] = []
        self.warnings: list[str] = []
        self.previous = previous(self.staging)
        self.known = {
            artifact.path: artifact
            for artifact in (self.previous.artifacts() if self.previous else ())
        }

    def make(self, repository: Beside[Ours]) -> Made:
        """Do it all, in order.

        Args:
            repository: whether it is there and ours, asked beside the captures; the answer is
                looked at before anything is written to it.

        Raises:
            IotopsError: nothing was saved that counts.
        """
        hub, started = self.hub, datetime.now(UTC)
        self.staging.mkdir(mode=0o700, exist_ok=True)
        model = Beside(lambda: hub.model)  # Compose takes its time to read the project
        try:
            with step(self.report, "guard"):
                self.run.step("guard")
                self._preflight(started)
            made_parts = [self._part(self._hub_part()), self._part(self._host_part())]
            containers = hub.stack.containers()
            model.result()
            services = [self._service(one, containers) for one in hub.services]
            made_parts.append(self._part(self._other_part()))
            made_parts += [self._part(left) for left in volumes.parts(hub, containers)]
        except BaseException:
            model.stop()  # it shall not outlive the run; what ended the run is told
            raise
        with step(self.report, "repository"):
            found = repository.result()
        missing = {record.name: record.error for record in services if record.error}
        missing |= {part.name: part.error for part in made_parts if part.error}
        if len(missing) == len(services) + len(made_parts):
            raise CaptureError("nothing could be captured: " + "; ".join(missing.values()))
        outcome = Outcome.PARTIAL if missing else Outcome.COMPLETE
        record = self._manifest(started, outcome, tuple(services), tuple(made_parts))
        saved = self._save(record)
        hub.state.update(repository=found.id, name=hub.name, folder=str(hub.folder))
        with step(self.report, "remember"):
            plausible.remember(self.memory, record, hub.services)
            for staging in self.links:
                staging.drop_links()
            # What is staged counts as unchanged the next time: after a power cut too.
            files.sync_filesystem(hub.root)
        return Made(record, saved, missing, tuple(self.warnings))

    # -- guards ---------------------------------------------------------------------------------

    def _preflight(self, now: datetime) -> None:
        hub = self.hub
        hub.stack.require()
        data = hub.settings.data
        for odd in disk.inspect(data.root, data.kind, hub.id, hub.state.read().disk):
            self.warnings.append(odd.message)  # errors have been refused before
            self.report(Noted("warning", odd.message))
        if hub.settings.repository is not None:
            refuse_protected(hub, hub.settings.repository.url)
        files.require_space(hub.root, RESERVE, doing="staging a backup")
        last = "" if self.accepted.clock else hub.state.read().good.get("backup", "")
        if last and (datetime.fromisoformat(last) - now).total_seconds() > CLOCK_SLACK:
            raise GuardError(
                f"the clock says {now:%Y-%m-%d %H:%M} UTC, before the last good backup ({last})",
                hint="set the clock: timedatectl status; if it is right now and was wrong then:"
                " iotops backup --accept-clock",
            )

    # -- captures -------------------------------------------------------------------------------

    def _hub_part(self) -> PartRecord:
        with step(self.report, "capture", "hub"):
            self.run.step("capture hub")
            with self.hub.flows_locked("backup"):
                return parts.stage_hub(self.hub, self._staging(self.hub.folder, "hub"))

    def _host_part(self) -> PartRecord:
        with step(self.report, "capture", "host"):
            staging = self._staging(self.hub.folder / ".none", "host")
            return parts.stage_host(self.hub, staging)

    def _other_part(self) -> PartRecord:
        with step(self.report, "capture", "other"):
            self.run.step("capture other")
            staging = self._staging(self.hub.root, "other")
            return parts.stage_other(self.hub, staging)

    def _part(self, part: PartRecord) -> PartRecord:
        """Tell of a part what there is to tell, and keep out of staging what failed."""
        for warning in part.warnings:
            self.report(Noted("warning", warning, part.name))
        if not part.error and not self.accepted.shrink:
            try:
                plausible.refuse_shrunken_part(self.memory, part)
            except GuardError as error:
                part = PartRecord(part.name, error=f"{error.message} ({error.hint})")
        if part.error:
            self.report(Noted("error", part.error, part.name))
            self._keep_out(part.name)
        return part

    def _staging(self, source: Path, prefix: str, service: Service | None = None) -> Staging:
        staging = Staging(
            source,
            self.staging / prefix,
            prefix=prefix,
            excludes=service.excludes if service is not None else parts.EXCLUDES[prefix],
            known=self.known,
            memory=self.memory / f"{prefix.replace('/', '%')}.json",
        )
        self.links.append(staging)
        return staging

    def _service(self, service: Service, containers: Mapping[str, Container]) -> ServiceRecord:
        """Capture one service; its failure becomes its record."""
        self.run.step(f"capture {service.name}")
        container = containers.get(service.place.container)
        blank = ServiceRecord(
            name=service.name,
            kind=service.kind,
            container=service.place.container,
            folder=parts.staged_folder(self.hub.root, service),
            mode=service.mode,
            image=_image(container),
        )
        began = time.monotonic()
        try:
            with step(self.report, "capture", service.name):
                self._refuse_misnamed(service, containers)
                record = self._capture(service, blank)
        except (IotopsError, OSError) as error:
            hint = error.hint if isinstance(error, IotopsError) else ""
            self.report(Noted("error", str(error), service.name))
            self._keep_out(blank.folder)
            return replace(blank, error=str(error), hint=hint, seconds=time.monotonic() - began)
        for warning in record.warnings:
            self.report(Noted("warning", warning, service.name))
        return replace(record, seconds=round(time.monotonic() - began, 3))

    def _refuse_misnamed(self, service: Service, containers: Mapping[str, Container]) -> None:
        """Refuse to take a server that runs under another name for one that is down."""
        if not service.images or service.place.container in containers:
            return
        hub = self.hub
        found = misnamed.running(service, hub.services, hub.model.services, containers)
        if found is not None:
            raise CaptureError(found.message, hint=found.hint)

    def _capture(self, service: Service, blank: ServiceRecord) -> ServiceRecord:
        if not service.place.folder.is_dir():
            raise CaptureError(
                f"the folder {service.place.folder} of {service.name} does not exist",
                hint="look at the disk: iotops doctor",
            )
        if files.path_text(blank.folder) != blank.folder:
            raise CaptureError(
                f"the name of the folder {blank.folder} has a backslash in it, or bytes that are"
                " no text",
                hint="rename it, here and in docker-compose.yaml",
            )
        link = files.first_link(self.hub.root, service.place.folder)
        if link is not None:
            raise CaptureError(
                f"the folder of {service.name} is or lies behind the symbolic link {link},"
                " which is not followed",
                hint="put the folder itself there, or a bind mount of it (mount --bind)",
            )
        staging = self._staging(service.place.folder, blank.folder, service)
        before = self.previous.service(service.name) if self.previous else None
        if before is not None and (before.error or before.folder != blank.folder):
            before = None
        stopped = 0.0
        if service.mode is Mode.COLD:
            captured, staged, stopped = self._cold(service, staging, before)
        else:
            captured = service.capture(staging, before)
            staged = staging.finish()
        record = replace(
            blank,
            version=captured.version,
            stopped_seconds=round(stopped, 3),
            counts=captured.counts,
            facts=captured.facts,
            artifacts=staged.every,
            left_out=staged.left_out,
            warnings=(*captured.warnings, *staged.warnings),
            extra=captured.extra,
        )
        if not self.accepted.shrink:
            plausible.refuse_shrunken(self.memory, service, record)
        return record

    def _cold(
        self, service: Service, staging: Staging, before: ServiceRecord | None
    ) -> tuple[Captured, Staged, float]:
        """Capture with every container that uses the folder stopped, and certainly restarted."""
        began = time.monotonic()
        try:
            swap.stop_for_copy(self.hub, self.run, service.place.folder, self.report)
            stood = bool(self.run.record.stopped)
            captured = service.capture(staging, before)
        finally:
            swap.start_stopped(self.hub, self.run, self.report)
        return captured, staging.finish(), time.monotonic() - began if stood else 0.0

    def _keep_out(self, prefix: str) -> None:
        """Take a service that failed out of staging: half of it must not look like all of it."""
        files.remove_tree(self.staging / prefix)

    # -- manifest and restic --------------------------------------------------------------------

    def _manifest(
        self,
        started: datetime,
        outcome: Outcome,
        services: tuple[ServiceRecord, ...],
        made_parts: tuple[PartRecord, ...],
    ) -> Manifest:
        with step(self.report, "manifest"):
            self.run.step("manifest")
            engine, compose = self.hub.stack.versions()
            restic = ".".join(str(part) for part in self.hub.repository.version())
            staged = {record.folder for record in services if not record.error}
            sweep(self.staging, staged | {"hub", "host", "other", manifest.NAME})
            record = Manifest(
                format=MANIFEST_FORMAT,
                hub_id=self.hub.id,
                hub_name=self.hub.name,
                run=self.run.id,
                host=host_record(),
                versions={
                    "iotops": __version__,
                    "restic": restic,
                    "docker": engine,
                    "compose": compose,
                },
                started=started,
                ended=datetime.now(UTC),
                outcome=outcome,
                commits=parts.commits(self.hub.folder),
                services=services,
                parts=made_parts,
                root=str(self.hub.root),
                ports=ports.published(self.hub.model),
            )
            files.write(self.staging / manifest.NAME, manifest.pieces(record), mode=0o600)
            return record

    def _save(self, record: Manifest) -> Saved:
        hub = self.hub
        with step(self.report, "save"):
            self.run.note(step="save")
            saved = self._saved(record)
            if saved.incomplete:
                # Also how restic ends once where a part of the last snapshot was lost in the
                # repository, and it stored that part again (0.14 to 0.19): the next try then tells.
                self._disown(saved.snapshot)
                saved = self._saved(record)
        if saved.incomplete:
            self._disown(saved.snapshot)
            unread = ", ".join(saved.unread[:3]) or "unknown files"
            raise CaptureError(
                f"restic could not read all staged files ({unread}); the snapshot"
                f" {saved.snapshot[:8]} does not count",
                hint="look at the disk: iotops doctor, then run it again: iotops backup",
            )
        with step(self.report, "verify"):
            self.run.step("verify")
            name = "/" + manifest.NAME
            if not hub.repository.holds(saved.snapshot, name, self.staging / manifest.NAME):
                self._disown(saved.snapshot)
                raise CaptureError(
                    f"the snapshot {saved.snapshot[:8]} gives back another manifest than was saved",
                    hint="check the repository: restic check; then run it again: iotops backup",
                )
        return saved

    def _saved(self, record: Manifest) -> Saved:
        return self.hub.repository.save(
            self.staging,
            host=self.hub.name,
            tags=(TAG, self.hub.id, record.outcome.value),
            moved=lambda done, total: self.report(Moved("save", done, total)),
        )

    def _disown(self, snapshot: str) -> None:
        """Forget a snapshot that does not count, where the repository allows it.

        Where it does not, or where we are killed first, the state file knows: it is never
        "latest" here, and never one that a retention keeps in the place of a good one.
        """
        self.hub.state.disown(snapshot)
        try:
            self.hub.repository.forget([snapshot])
            self.hub.state.forgotten(snapshot)
        except IotopsError as error:
            self.report(Noted("warning", f"{snapshot[:8]} could not be forgotten: {error.message}"))


def host_record() -> HostRecord:
    """Describe this machine."""
    system = "unknown"
    try:
        for line in Path("/etc/os-release").read_text().splitlines():
            if line.startswith("PRETTY_NAME="):
                system = line.split("=", 1)[1].strip().strip('"')
    except OSError:
        pass
    try:
        machine_id = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine_id = ""
    return HostRecord(
        socket.gethostname(), platform.machine(), system, machine_id, network.addresses()
    )


def _image(container: Container | None) -> ImageRecord:
    if container is None:
        return ImageRecord()
    return ImageRecord(container.image, container.image_id, container.digests, container.platform)


def previous(staging: Path) -> Manifest | None:
    """Read the manifest of the last run that got so far; None = there was none."""
    try:
        with (staging / manifest.NAME).open("rb") as lines:
            return manifest.read(lines, where="the last run")
    except ManifestError:  # perhaps of a version that wrote another layout
        with suppress(OSError, ManifestError):
            return manifest.decode((staging / manifest.NAME).read_bytes(), where="the last run")
    except OSError:
        pass
    return None


def sweep(staging: Path, keep: Collection[str]) -> None:
    """Remove what this run did not stage, for example a service that left the settings.

    Args:
        keep: paths below the staging folder; with each one its whole content stays.
    """
    above = {parent for path in keep for parent in PurePosixPath(path).parents}
    for path in staging.iterdir():
        if path.name in keep:
            continue
        if PurePosixPath(path.name) in above and path.is_dir() and not path.is_symlink():
            inner = {one.partition("/")[2] for one in keep if one.startswith(f"{path.name}/")}
            sweep(path, inner)
        elif path.is_dir() and not path.is_symlink():
            files.remove_tree(path)
        else:
            path.unlink()
