"""Node-RED: flows, encrypted credentials, their key, the palette's list, context and projects.

Captured hot. Flows, credentials and key are one set: copied between two readings of the server's
revision, which must be the SHA-256 of the flow file that was copied, and proven by decrypting the
credentials with the key that a restore will have. The palette (`node_modules`) is left out and
rebuilt from its lock before the first start. The health check of the image and `/flows/state` are
both blind to a missing palette and to wrong credentials; the truth is the topic
`notification/runtime-state` on `/comms`.

Facts about Node-RED: 4.1.13, 4.1.15 and 5.0.7. Not here: what goes into Git (`actions/flows.py`)
and the document itself (`flowdoc.py`). One file, since a kind is one file.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit, urlunsplit

from iotops import flowdoc
from iotops.clients import files, noderedfolder, noderedtrial
from iotops.clients.http import JsonClient, Response
from iotops.clients.noderedfolder import LOCK, MODULES, PACKAGE, PROJECTS, RUNTIME, FlowSet
from iotops.clients.staging import Staging
from iotops.config import OptionalServerAddress, Secret, ServerAddress
from iotops.errors import (
    CaptureError,
    FlowsError,
    LoadError,
    Refused,
    ServerError,
    TimedOut,
    Unreachable,
)
from iotops.flowdoc import EMPTY_REVISION, Flows
from iotops.model import (
    Captured,
    ConfigFile,
    Difference,
    Exclude,
    Facts,
    Finding,
    Mode,
    OnChange,
    Readiness,
    ServiceRecord,
    Severity,
)
from iotops.services.base import BaseOptions, Service, moved_url

if TYPE_CHECKING:  # `status` reads this file for its settings, and must start quickly
    from iotops.flowdiff import NodeChange

ATTEMPTS, PAUSE = 20, 0.25
"""How often flows, credentials and key are copied until they fit together; seconds between."""

HEARD = 5.0
"""Seconds that `/comms` may take; it sends what it retains within 0.1 s of the subscription."""

NPM_LIMIT = 1800.0
"""Seconds for npm; a native module is compiled on a Pi in minutes."""

NPM_SETTINGS = {
    "HOME": "/tmp",
    "npm_config_cache": "/tmp/npm",
    # Two more tries within some seconds; npm's own waits take more than a minute.
    "npm_config_fetch_retry_mintimeout": "1000",
    "npm_config_fetch_retry_maxtimeout": "5000",
}
"""Install scripts stay on: native modules are built by them."""

PALETTE_NOT_PROVEN = "palette not proven: today's has another lock, and a drill fetches nothing"

PROBLEMS = {
    "missing-types": "flows are not running: node types are missing",
    "missing-modules": "flows are not running: modules of function nodes are missing",
    "credentials_load_failed": "the credentials cannot be decrypted with the key it has",
    "safe-mode": "it runs in safe mode: flows are stopped until the next deploy",
    "git_merge_conflict": "flows are not running: the project has a merge conflict",
    "project_not_found": "flows are not running: the active project is missing",
    "missing_flow_file": "flows are not running: the project's flow file is missing",
}
"""Errors that `notification/runtime-state` names (facts 1.6), in words."""


class NodeRed(Service):
    """The kind `nodered`."""

    kind = "nodered"
    images = ("node-red", "nodered")
    targets = ("/data",)
    port = 1880
    default_folder = "nodered"
    capture_mode = Mode.HOT
    load_mode = Mode.COLD
    owner = (1000, 1000)
    excludes = (
        Exclude(f"{MODULES}/", "the palette, rebuilt from package-lock.json by npm"),
        Exclude(".npm/", "npm's download cache"),
        Exclude(".sessions.json", "login sessions in clear text; people log in again"),
        Exclude(".*.json.backup", "the previous generation of a file that is here itself"),
        Exclude("projects/*/.*.json.backup", "the previous generation of a project's file"),
        Exclude("**/*.$$$", "a file that Node-RED is just writing"),
    )
    config_files = (ConfigFile("nodered/settings.js", OnChange.RESTART),)

    @dataclass(frozen=True, kw_only=True)
    class Options(BaseOptions):
        """Settings of a Node-RED service.

        Attributes:
            url: address of the admin API, with the path of `httpAdminRoot`.
            token_env: name in `.env` of a static token with the scopes flows.read, status.read,
                nodes.read and settings.read; not needed without `adminAuth`.
            secret_env: name in `.env` of the `credentialSecret`.
            flow_file: name of the flow file in the user directory; empty = found by its revision.
            npm_registry: address of the npm registry for a restore; empty = npm's own.
            ca_file: certificates to trust for https; empty = the system's.
        """

        url: ServerAddress = "http://127.0.0.1:1880"
        token_env: str = "NODERED_TOKEN"
        secret_env: str = "NODERED_CREDENTIAL_SECRET"
        flow_file: str = ""
        npm_registry: OptionalServerAddress = ""
        ca_file: str = ""

    older = (
        "4 looks for the credentials in the user directory only, where 5 may keep them beside the"
        " flow file, and modules for a newer Node.js do not load"
    )
    quiet = {"NODE_RED_ENABLE_SAFE_MODE": "true"}
    options: Options

    def options_at(self, address: str, port: Callable[[int], int]) -> BaseOptions:
        """Give its options for the same server at another address; see `Service.options_at`."""
        return replace(self.options, url=moved_url(self.options.url, address, port))

    # -- asking the server ------------------------------------------------------------------

    def flows(self) -> Flows:
        """Read the running flows and prove their revision.

        Raises:
            ServerError: it cannot be read. FlowsError: it is no proper flows document.
        """
        with self._client() as client:
            headers = {"Node-RED-API-Version": "v2"}
            answer = _allowed(client, "/flows", "flows.read", headers)
            return flowdoc.parse_answer(answer, where=f"the flows of {self.name}")

    def version(self) -> str:
        """Ask for Node-RED's version; empty where the token lacks `settings.read`.

        The rest of that answer is dropped: in projects mode it holds the key in clear text.
        """
        with self._client() as client:
            return str(self._settings(client).get("version", ""))

    def palette(self) -> Mapping[str, str]:
        """List the loaded modules beside Node-RED's own: name to version.

        Raises:
            Refused: the token lacks `nodes.read`.
        """
        with self._client() as client:
            answer = _allowed(client, "/nodes", "nodes.read", {"Accept": "application/json"})
        found: dict[str, str] = {}
        for node_set in answer if isinstance(answer, list) else []:
            if isinstance(node_set, dict) and node_set.get("module") != "node-red":
                if not node_set.get("err"):
                    found[str(node_set.get("module"))] = str(node_set.get("version"))
        return dict(sorted(found.items()))

    def probe(self) -> Facts:
        """Ask for the login scheme, which needs no right, and the version."""
        try:
            with self._client(tries=1) as client:
                scheme = client.get_json("/auth/login")
                version = ""
                if self._token() is not None or scheme == {}:
                    version = str(self._settings(client).get("version", ""))
            return Facts(True, version)
        except Unreachable as error:
            return Facts(False, detail=error.message)
        except ServerError as error:
            return Facts(True, detail=error.message)

    def ready(self) -> Readiness:
        """Ask `/auth/login`, then let `/comms` tell whether flows run without an error."""
        try:
            with self._client(tries=1) as client:
                scheme = client.get_json("/auth/login")
        except ServerError as error:
            return Readiness(False, error.message)
        if scheme != {} and self._token() is None:
            name = self.options.token_env
            return Readiness(False, f"it wants a token, and .env has no {name}", final=True)
        return self._runtime_state(needs_token=scheme != {})

    def counts(self) -> Mapping[str, int]:
        """Count nodes, tabs and modules of the running server, and nodes with credentials."""
        flows = self.flows()
        counts = _flow_counts(flows)
        with contextlib.suppress(Refused):  # the right is a recommendation; preflight tells
            counts["palette_modules"] = len(self.palette())
        held = FlowSet.find(self.place.folder, flows.revision, self.options.flow_file)
        verdict = self._decrypt(self.place.folder, held)
        if verdict.nodes is not None:
            counts["credential_nodes"] = verdict.nodes
        return counts

    def preflight(self) -> Iterator[Finding]:
        """Yield what would spoil a capture or a restore of this service."""
        try:
            with self._client(tries=1) as client:
                scheme = client.get_json("/auth/login")
                kind = str(self._settings(client).get("flowEncryptionType", ""))
            yield from self._judge_access(scheme)
            yield from self._judge_key(kind)
        except ServerError as error:
            yield self._finding("nodered.server", Severity.ERROR, error.message, error.hint)

    def _judge_access(self, scheme: object) -> Iterator[Finding]:
        if scheme == {}:
            yield self._open()
        elif self._token() is None:
            yield self._finding(
                "nodered.token",
                Severity.ERROR,
                f"it wants a token, and .env has no {self.options.token_env}",
                f"add a static token to adminAuth.tokens and {self.options.token_env} to .env",
            )
            return
        asked = {"flows.read": self.flows, "nodes.read": self.palette}
        for right, ask in asked.items():
            try:
                ask()
            except Refused as error:
                grave = Severity.ERROR if right == "flows.read" else Severity.WARNING
                yield self._finding("nodered.token", grave, error.message, error.hint)
                if grave is Severity.ERROR:
                    return
            except FlowsError as error:
                yield self._finding("nodered.flows", Severity.ERROR, error.message, error.hint)

    def _open(self) -> Finding:
        return self._finding(
            "nodered.open",
            Severity.WARNING,
            "anybody who reaches it can change the flows: it has no adminAuth",
            "set adminAuth in settings.js",
        )

    def _judge_key(self, kind: str) -> Iterator[Finding]:
        if kind == "system":
            yield self._finding(
                "nodered.key",
                Severity.WARNING,
                "the credentials' key was made by Node-RED and lies in its folder only",
                "set credentialSecret in settings.js from the environment",
            )

    def verify(self, record: ServiceRecord) -> Iterator[Finding]:
        """Compare counts and revision, and ask whether the flows really run."""
        try:
            yield from super().verify(record)
            found = self.flows().revision
        except (ServerError, FlowsError) as error:
            yield self._finding("nodered.server", Severity.ERROR, error.message, error.hint)
            return
        wanted = record.facts.get("rev", "")
        if wanted and wanted != found:
            yield self._finding(
                "nodered.revision",
                Severity.ERROR,
                f"the revision of the flows is {found[:12]}, {wanted[:12]} was recorded",
            )
        state = self.ready()
        if not state.ok:
            yield self._finding("nodered.state", Severity.ERROR, state.reason)

    # -- capture ----------------------------------------------------------------------------

    def capture(self, staging: Staging, previous: ServiceRecord | None) -> Captured:
        """Copy flows, credentials and key as one proven set, then everything else."""
        running = self._running()
        try:
            flows, held = (
                self._capture_set(staging) if running else self._capture_still(staging, previous)
            )
        except FlowsError as error:
            raise CaptureError(error.message, hint=error.hint) from error
        self._guard_empty(flows, held, previous)
        verdict = self._decrypt(staging.folder, held, staging.paths())
        if verdict.error:
            raise CaptureError(verdict.error, hint=verdict.hint)
        if verdict.warning:
            staging.warn(verdict.warning)
        staging.rest()
        counts = _flow_counts(flows)
        if verdict.nodes is not None:
            counts["credential_nodes"] = verdict.nodes
        if not running:
            staging.warn("its container does not run: taken from its files, palette not counted")
        else:
            self._count_palette(counts, staging)
        there = staging.paths()
        if LOCK not in there and PACKAGE in there and noderedfolder.dependencies(staging.folder):
            staging.warn(
                f"the palette has no {LOCK}: a restore installs what the registry then offers"
            )
        facts = {"rev": flows.revision, "key": verdict.key, "flow_file": held.flows}
        if LOCK in there:
            facts["lock"] = files.sha256(staging.path(LOCK))
        version = self.version() if running else previous.version if previous else ""
        return Captured(version, counts, {name: fact for name, fact in facts.items() if fact})

    def _count_palette(self, counts: dict[str, int], staging: Staging) -> None:
        try:
            counts["palette_modules"] = len(self.palette())
        except Refused as error:
            staging.warn(f"the palette was not counted: {error.message}")

    def _capture_still(
        self, staging: Staging, previous: ServiceRecord | None
    ) -> tuple[Flows, FlowSet]:
        """Copy the set of a server that does not run: nothing can change it meanwhile."""
        told = previous.facts.get("flow_file", "") if previous is not None else ""
        held = FlowSet.still(staging.source, self.options.flow_file or told)
        self._copy_set(staging, held)
        if not held.flows:
            return Flows.of(()), held
        data = noderedfolder.read(staging.path(held.flows)) or b""
        where = f"{held.flows} of {self.name}"
        return flowdoc.parse(flowdoc.load(data, where=where), where=where), held

    def _copy_set(self, staging: Staging, held: FlowSet) -> None:
        for relative in held.all:
            if files.is_regular(staging.live(relative)):
                staging.copy(relative)
            else:
                staging.forget(relative)

    def _running(self) -> bool:
        """Whether its container runs; one that Compose does not know is asked all the same."""
        container = self.place.stack.containers().get(self.place.container)
        return container is None or container.state in ("running", "restarting", "paused")

    def _capture_set(self, staging: Staging) -> tuple[Flows, FlowSet]:
        """Copy the set until the server's revision before and after is that of the copy."""
        reason = ""
        for attempt in range(ATTEMPTS):
            time.sleep(PAUSE if attempt else 0)
            before = self.flows()
            held = FlowSet.find(staging.source, before.revision, self.options.flow_file)
            self._copy_set(staging, held)
            if self.flows().revision != before.revision:
                reason = "somebody deployed meanwhile"
            elif not held.flows:
                if before.revision == EMPTY_REVISION:
                    return before, held
                reason = "no file in its folder holds the flows that it runs"
            elif noderedfolder.file_revision(staging.path(held.flows)) != before.revision:
                reason = f"{held.flows} does not hold the flows that it runs"
            elif noderedfolder.deploying(staging.source, held) or _moved(staging, held):
                reason = "its files changed meanwhile"
            else:
                return before, held
        raise CaptureError(
            f"flows and credentials of {self.name} could not be copied as one set: {reason}",
            hint="look whether the folder is the one mounted at /data, deploy once, try again",
        )

    def _guard_empty(self, flows: Flows, held: FlowSet, previous: ServiceRecord | None) -> None:
        if flows.nodes or held.flows:
            return
        # Node-RED serves an empty set, with "Started flows" in its log, when it lost its file.
        broken = [name for name in held.candidates if files.is_regular(self.place.folder / name)]
        before = previous.counts.get("flow_nodes", 0) if previous is not None else 0
        if broken or before:
            what = f"{broken[0]} cannot be read" if broken else "its flow file is missing"
            raise CaptureError(
                f"{self.name} serves an empty flow set because {what}",
                hint="bring the flows back first: iotops restore latest --service " + self.name,
            )

    # -- looking inside ---------------------------------------------------------------------

    @classmethod
    def telling(cls, path: str) -> bool:
        """The flow files, of projects too, and the file that says which project is active."""
        name = path.rpartition("/")[2]
        plain = not name.startswith(".") and name not in (PACKAGE, LOCK)
        inside = path.startswith("projects/") or "/" not in path
        return path == PROJECTS or (
            path.endswith(".json") and inside and (plain or name == PACKAGE)
        )

    @classmethod
    def differences(
        cls, old: ServiceRecord, new: ServiceRecord, was: Path, now: Path
    ) -> Iterator[Difference]:
        """Compare the flows, node by node."""
        if old.facts.get("rev") == new.facts.get("rev"):
            return
        from iotops import flowdiff

        diff = flowdiff.difference(_held_flows(was, old), _held_flows(now, new))
        for tab in diff.tabs:
            told = flowdiff.words(tab)
            words = {"layout": "drawn elsewhere only"}.get(tab.kind) or told.partition(": ")[2]
            change = tab.kind if tab.kind in ("added", "removed") else "changed"
            what = {"global": "nodes", "tab": "flow"}.get(tab.home, tab.home)
            if change != "changed":
                words = f"{len(tab.nodes)} node{'' if len(tab.nodes) == 1 else 's'}"
            yield Difference(what, change, tab.label, words, tuple(map(_node_words, tab.nodes)))
        if not diff.tabs:
            yield Difference("flows", "changed", "order", "of nodes or of keys only")

    # -- load -------------------------------------------------------------------------------

    def load(self, folder: Path, record: ServiceRecord, live: Path | None) -> tuple[str, ...]:
        """Prove that the key opens the credentials, and put the palette into the folder."""
        held = FlowSet.find(folder, record.facts.get("rev", ""), record.facts.get("flow_file", ""))
        verdict = self._decrypt(folder, held)
        if verdict.error:
            raise LoadError(verdict.error, hint=verdict.hint)
        notes = [verdict.warning] if verdict.warning else []
        if not noderedfolder.dependencies(folder):
            return tuple(notes)
        processor = self._processor()
        if live is not None and processor and (module := noderedfolder.foreign(live, processor)):
            notes.append(f"the present palette is for another processor than {processor}: {module}")
        elif live is not None and noderedfolder.take_over_palette(live, folder):
            return (*notes, "the palette was taken over from the present folder (equal lock)")
        if self.place.rehearsal:
            return (*notes, PALETTE_NOT_PROVEN)
        return (*notes, self._install_palette(folder))

    def _processor(self) -> str:
        """Give Docker's word for the processor that its container runs on; empty = not known."""
        container = self.place.stack.containers().get(self.place.container)
        platform = container.platform.split("/") if container is not None else []
        return platform[1] if len(platform) > 1 else noderedfolder.own_processor()

    def _install_palette(self, folder: Path) -> str:
        """Run npm in the service's own image, as the owner of the folder."""
        command = "ci" if files.is_regular(folder / LOCK) else "install"
        environment = dict(NPM_SETTINGS)
        if self.options.npm_registry:
            environment["npm_config_registry"] = self.options.npm_registry
            # A lock names the registry it was made with; else it would be asked.
            environment["npm_config_replace_registry_host"] = "always"
        state = folder.stat()
        files.remove_tree(folder / MODULES)
        hint = "see that the npm registry can be reached (npm_registry in iotops.toml), try again"
        failed = f"rebuilding the palette of {self.name} failed"
        try:
            ended = self.place.stack.run_once(
                self.place.container,
                [
                    *("npm", command, "--omit=dev", "--no-audit", "--no-fund"),
                    *("--no-update-notifier", "--prefix", "/data"),
                ],
                user=f"{state.st_uid}:{state.st_gid}",
                mounts=[(folder, "/data")],
                environment=environment,
                limit=NPM_LIMIT,
            )
        except TimedOut as error:
            raise LoadError(f"{failed}: {error.message}", hint=hint) from error
        if ended.code != 0:
            files.remove_tree(folder / MODULES)
            raise LoadError(f"{failed}: {_npm_reason(ended.err)}", hint=hint)
        if lacking := noderedfolder.lacking(folder):
            raise LoadError(
                f"npm left the palette of {self.name} without {', '.join(lacking[:5])}", hint=hint
            )
        return f"the palette was rebuilt by npm {command}, install scripts included"

    # -- a candidate ------------------------------------------------------------------------

    def validate(self, tree: Path) -> Iterator[Finding]:
        """Have the image's node load the settings, and today's credentials opened by them."""
        model = self.place.stack.model().services[self.place.container]
        told = noderedtrial.trial(self.place.stack, model)
        if told.failure:
            yield self._finding(
                "nodered.settings",
                Severity.ERROR,
                f"Node-RED could not load its settings: {told.failure}",
                "correct settings.js, or what it needs of .env",
            )
            return
        if not told.admin:
            yield self._open()
        ports = {port.target for port in model.ports}
        if told.port and ports and told.port not in ports:
            yield self._finding(
                "nodered.port",
                Severity.WARNING,
                f"it would listen at port {told.port}, and the Compose file publishes"
                f" {', '.join(map(str, sorted(ports)))} of its container",
                "write the same port into both",
            )
        held = FlowSet.still(self.place.folder, self.options.flow_file)
        if told.plain:
            return
        verdict = self._decrypt(self.place.folder, held, own=told.secret or Secret(""))
        if verdict.error or verdict.key == "unknown":
            yield self._finding(
                "nodered.key",
                Severity.ERROR,
                "its credentialSecret does not open today's credentials: Node-RED would run without"
                " them, and the next deploy would erase them",
                f"keep the credentialSecret: {self.options.secret_env} of .env",
            )

    # -- the key of the credentials ---------------------------------------------------------

    def _decrypt(
        self,
        folder: Path,
        held: FlowSet,
        there: Collection[str] | None = None,
        own: Secret | None = None,
    ) -> _Verdict:
        """Open the credentials of a folder with the key that Node-RED will use there.

        Precedence: the active project's key, else the generated one in `.config.runtime.json`
        (it is tried first, as a migration), else `credentialSecret`.

        Args:
            there: the relative paths that count; None = whatever is there.
            own: the `credentialSecret`, where it is known; empty = there is none.
        """
        counts = held.credentials and (there is None or held.credentials in there)
        data = noderedfolder.read(folder / held.credentials) if counts else None
        document = noderedfolder.as_object(data)
        if data is None or (document is not None and not document):
            return _Verdict(nodes=0)
        if document is None:
            return _Verdict(error=f"{held.credentials} of {self.name} is not JSON")
        sealed = document.get("$")
        if not isinstance(sealed, str) or len(document) > 1:
            return _Verdict(
                nodes=len(document),
                key="none",
                warning="the credentials are stored unencrypted (credentialSecret: false)",
            )
        keys = self._keys(folder, held, own)
        for number, (name, secret) in enumerate(keys):
            opened = decrypt(sealed, secret.reveal())
            if opened is None:
                continue
            warning = ""
            if number:
                warning = (
                    f"Node-RED will try {keys[0][0]} first, which does not open the credentials;"
                    f" {name} does. Deploy once, or remove _credentialSecret from {RUNTIME}"
                )
            return _Verdict(nodes=len(opened), key=name, warning=warning)
        if not keys:
            return _Verdict(
                key="unknown",
                warning=f"the credentials' key is in neither {RUNTIME} nor"
                f" {self.options.secret_env}: not proven that they can be decrypted",
            )
        return _Verdict(
            error=f"the credentials of {self.name} cannot be decrypted with "
            + " or ".join(name for name, _ in keys),
            hint=f"put the right credentialSecret into .env as {self.options.secret_env};"
            " do not deploy before: a deploy would erase the credentials",
        )

    def _keys(self, folder: Path, held: FlowSet, own: Secret | None) -> list[tuple[str, Secret]]:
        """The keys that there are, as Node-RED would try them."""
        if held.project:
            projects = noderedfolder.as_object(noderedfolder.read(folder / PROJECTS)) or {}
            listed = projects.get("projects")
            project = listed.get(held.project) if isinstance(listed, dict) else None
            key = project.get("credentialSecret") if isinstance(project, dict) else None
            if isinstance(key, str) and key:
                return [("the project's key", Secret(key))]
        found: list[tuple[str, Secret]] = []
        generated = (noderedfolder.as_object(noderedfolder.read(folder / RUNTIME)) or {}).get(
            "_credentialSecret"
        )
        if isinstance(generated, str) and generated:
            found.append(("the generated key", Secret(generated)))
        own_secret = self._own_secret(folder) if own is None else own
        if own_secret is not None and own_secret.reveal():
            found.append(("the credentialSecret", own_secret))
        return found

    def _own_secret(self, folder: Path) -> Secret | None:
        secret = self.place.secret(self.options.secret_env)
        if secret is not None and secret.reveal():
            return secret
        for settings in (folder / "settings.js", self.place.hub / "nodered" / "settings.js"):
            text = (noderedfolder.read(settings) or b"").decode("utf-8", "replace")
            line = re.search(
                r"^\s*[\"']?credentialSecret[\"']?\s*:\s*"
                r"(?:\"([^\"\\\n]+)\"|'([^'\\\n]+)'|process\.env\.(\w+))",
                text,
                re.MULTILINE,
            )
            if line is not None and line[3]:
                return self.place.secret(line[3])
            if line is not None:
                return Secret(line[1] or line[2])
        return None

    # -- talking to the server --------------------------------------------------------------

    def _token(self) -> Secret | None:
        token = self.place.secret(self.options.token_env) if self.options.token_env else None
        return token if token is not None and token.reveal() else None

    def _client(self, tries: int = 3) -> JsonClient:
        return JsonClient(
            self.options.url,
            name=f"Node-RED ({self.name})",
            token=self._token(),
            timeout=(5.0, 30.0),
            tries=tries,
            ca_file=Path(self.options.ca_file) if self.options.ca_file else None,
        )

    def _settings(self, client: JsonClient) -> Mapping[str, object]:
        """The two harmless keys of `GET /settings`; nothing without the right to read it."""
        try:
            document = _allowed(client, "/settings", "settings.read", {})
        except Refused:
            return {}
        whole = document if isinstance(document, dict) else {}
        return {key: whole[key] for key in ("version", "flowEncryptionType") if key in whole}

    def _runtime_state(self, *, needs_token: bool) -> Readiness:
        import websocket

        parts = urlsplit(self.options.url)
        scheme = "wss" if parts.scheme == "https" else "ws"
        address = urlunsplit((scheme, parts.netloc, parts.path.rstrip("/") + "/comms", "", ""))
        verify = {"ca_certs": self.options.ca_file} if self.options.ca_file else {}
        try:
            socket = websocket.create_connection(
                address, timeout=HEARD, http_no_proxy=["*"], suppress_origin=True, sslopt=verify
            )
        except websocket.WebSocketBadStatusException as error:
            if error.status_code == 404:  # `disableEditor` removes it; then nothing can be known
                return Readiness(True, "its /comms is switched off: not known whether flows run")
            return Readiness(False, f"/comms answered {error.status_code}")
        except (websocket.WebSocketException, OSError) as error:
            return Readiness(False, f"/comms cannot be reached ({type(error).__name__})")
        try:
            return self._listen(socket, needs_token)
        except websocket.WebSocketTimeoutException:
            return Readiness(False, f"its state was not told within {HEARD:g} s")
        except (websocket.WebSocketException, OSError) as error:
            return Readiness(False, f"/comms hung up ({type(error).__name__})")
        finally:
            socket.close()

    def _listen(self, socket: _Socket, needs_token: bool) -> Readiness:
        token = self._token()
        if needs_token and token is not None:
            socket.send(json.dumps({"auth": token.reveal()}))
            if _message(socket.recv()) != {"auth": "ok"}:
                return Readiness(
                    False, "/comms refuses our token, or it lacks the scope status.read", final=True
                )
        # Only after the answer: a subscription sent at once was sometimes refused (facts 1.6).
        socket.send(json.dumps({"subscribe": "notification/#"}))
        end = time.monotonic() + HEARD
        while time.monotonic() < end:
            told = _message(socket.recv())
            for event in told if isinstance(told, list) else []:
                if isinstance(event, dict) and event.get("topic") == "notification/runtime-state":
                    return _judge_state(event.get("data"), safe=self.place.rehearsal)
        return Readiness(False, f"its state was not told within {HEARD:g} s")

    def _finding(self, code: str, severity: Severity, message: str, hint: str = "") -> Finding:
        return Finding(code, severity, self.name, message, hint)


class _Socket(Protocol):
    """What is used of a websocket connection."""

    def send(self, payload: str) -> int: ...

    def recv(self) -> str | bytes: ...


def _message(raw: object) -> object:
    try:
        value: object = json.loads(raw) if isinstance(raw, str | bytes) and raw else None
    except ValueError:
        return None
    return value


def _judge_state(data: object, *, safe: bool) -> Readiness:
    """Judge what `notification/runtime-state` says; `safe`: safe mode is as it should be."""
    state = data if isinstance(data, dict) else {}
    error = state.get("error")
    if safe and error == "safe-mode":
        return Readiness(True, "in safe mode, as a drill wants it")
    if isinstance(error, str) and error:
        text = PROBLEMS.get(error, f"it reports {error}")
        kinds = state.get("types") or state.get("modules")
        if isinstance(kinds, list) and kinds:
            names = [str(k.get("module", k)) if isinstance(k, dict) else str(k) for k in kinds]
            text += f" ({', '.join(names[:10])})"
        return Readiness(False, text, final=True)
    if state.get("state") != "start":
        return Readiness(False, f"flows are not running: state {state.get('state')}", final=True)
    return Readiness(True)


def _allowed(client: JsonClient, path: str, right: str, headers: Mapping[str, str]) -> object:
    """Read JSON, telling a bad token from a missing right (401 with no challenge, facts 1.2)."""
    merged = {"Accept": "application/json", **headers}
    answer: Response = client.get(path, headers=merged, accept=(401,))
    if answer.status == 401 and "www-authenticate" not in answer.headers:
        raise Refused(
            f"the token for {client.name} lacks the scope {right}",
            hint="add it to the token's scope in settings.js (adminAuth.tokens)",
        )
    if answer.status == 401:
        raise Refused(
            f"{client.name} does not accept the token",
            hint="compare the token in .env with adminAuth.tokens in settings.js",
        )
    return client.document(answer, path)


def _moved(staging: Staging, held: FlowSet) -> bool:
    """Whether a live file of the set is no longer the one that was copied."""
    return any(
        noderedfolder.read(staging.live(name)) != noderedfolder.read(staging.path(name))
        for name in held.all
    )


def _flow_counts(flows: Flows) -> dict[str, int]:
    kinds = [node.get("type") for node in flows.nodes]
    return {"flow_nodes": len(kinds), "tabs": kinds.count("tab")}


def _held_flows(folder: Path, record: ServiceRecord) -> Flows:
    """Read the flows of a captured folder; the flow file is the one that holds the revision.

    Raises:
        FlowsError: none does.
    """
    held = FlowSet.find(folder, record.facts.get("rev", ""), "")
    data = noderedfolder.read(folder / held.flows) if held.flows else None
    if data is None:
        raise FlowsError(f"the snapshot holds no flow file of {record.name} with its revision")
    where = f"{held.flows} of {record.name}"
    return flowdoc.parse(flowdoc.load(data, where=where), where=where)


def _node_words(change: NodeChange) -> str:
    name = f"{change.type} {change.label}".strip()
    keys = f": {', '.join(change.keys)}" if change.keys and change.kind == "changed" else ""
    return f"{name} {'moved' if change.kind == 'layout' else change.kind}{keys}"


# -- credentials --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Verdict:
    """What came out of decrypting: number of nodes with credentials (None = not known), the name
    of the key that opened them, and what to complain about."""

    nodes: int | None = None
    key: str = ""
    warning: str = ""
    error: str = ""
    hint: str = ""


def decrypt(sealed: str, secret: str) -> Mapping[str, object] | None:
    """Open an encrypted credentials text.

    AES-256-CTR with the SHA-256 of the secret; 32 hexadecimal digits of initial counter, then
    base64. There is no authentication tag: that it is a JSON object is the proof.
    (@node-red/runtime/lib/nodes/credentials.js, 4.1.13)

    Args:
        sealed: the value of the key "$" in the credentials file.

    Returns:
        Credentials by node id; None = the secret is not the right one, or the text is damaged.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    try:
        counter = bytes.fromhex(sealed[:32])
        text = base64.b64decode(sealed[32:], validate=True)
        if len(counter) != 16:
            return None
    except (ValueError, binascii.Error):
        return None
    key = hashlib.sha256(secret.encode()).digest()
    plain = Cipher(algorithms.AES(key), modes.CTR(counter)).decryptor().update(text)
    return noderedfolder.as_object(plain)


def _npm_reason(text: str) -> str:
    """What npm says went wrong, in one bounded line."""
    lines = [line.removeprefix("npm error ").strip() for line in text.splitlines()]
    told = [line for line in lines if line and not line.startswith(("npm ", "A complete log"))]
    return "; ".join(told[:3])[:300] or "npm told no reason"
