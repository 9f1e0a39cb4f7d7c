"""The door to Docker: the containers of one Compose project, started, stopped, asked, entered.

Three ways lead there. The Compose program reads the project and brings it up; the `docker`
program answers what a fresh process asks first (a listing costs it 50 ms, importing the SDK alone
110 ms on x86 and several times that on a Pi) and carries the streams of `exec` and `run`; the SDK
does the rest. Children get no more of the caller's environment than Docker needs, since a
variable of the shell would beat the same name in `.env`. Not here: reading JSON
(`composemodel.py`), whether a service really answers (the kinds), and in which order things are
stopped (actions).
"""

from __future__ import annotations

import os
import re
import secrets
import signal
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from iotops.clients import composefiles, dockerprogram
from iotops.clients.composemodel import (
    Container,
    Executed,
    Holder,
    Model,
    Mount,
    Port,
    ServiceModel,
    Variable,
    Volume,
    container,
    decode,
    image,
    number,
    reason,
    rows,
    table,
    volume,
    word,
)
from iotops.clients.composeproject import Project
from iotops.clients.stack import Stack
from iotops.errors import IotopsError, StackError
from iotops.model import ImageRecord

if TYPE_CHECKING:
    import docker

__all__ = [
    "ComposeStack",
    "Stack",
    "Model",
    "ServiceModel",
    "Mount",
    "Port",
    "Container",
    "Executed",
    "Holder",
    "Variable",
    "Volume",
]

PULL_LIMIT = 3600.0
"""Seconds that may pass on top of waiting, for images to be pulled over a slow line."""

_LABEL = "com.docker.compose."


class ComposeStack:
    """The Compose project of a folder.

    Args:
        folder: the project folder, with the Compose file and `.env`.
        files: the Compose files; empty = what Compose itself finds in the folder, an override
            file included.
        project: the project's name; None = as Compose decides it (the file's `name:`).
        environment: variables for Compose that stand before the ones in `.env`.
        moved: folders of the host as the files name them, and where `model` has them instead.
        root: a folder around the project's that stands for the root folder: what the project
            names below it is given as from there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        files: Sequence[Path] = (),
        project: str | None = None,
        environment: Mapping[str, str] | None = None,
        moved: Mapping[Path, Path] | None = None,
        root: Path | None = None,
    ) -> None:
        self._project = Project(folder, files, project, environment, moved, root)
        self._images: dict[str, Mapping[str, object]] = {}
        self._versions: tuple[str, str] | None = None
        self._client: docker.APIClient | None = None

    def model(self) -> Model:
        """Read the project as Compose understands it; once per instance.

        Returns:
            The model. Its environments hold secrets in clear text.

        Raises:
            StackError: the file is missing or broken, or a required variable is not set.
        """
        return self._project.model()

    def document(self) -> Mapping[str, object]:
        """Read the project as Compose says it, whole; it holds secrets in clear text.

        Raises:
            StackError: as `model`.
        """
        return self._project.document()

    def hashes(self) -> Mapping[str, str]:
        """Give Compose's hash of each service's declaration, as a container made of it carries it.

        Not always: one that was made without its dependencies carries another (2.26, seen), and
        one with a `label_file` (2.40, seen).

        Raises:
            StackError: as `model`.
        """
        return self._project.hashes()

    def image_ids(self, references: Sequence[str]) -> Mapping[str, str]:
        """Give the ids that image references stand for on this machine; missing ones are left out.

        Raises:
            StackError: the engine does not answer.
        """
        found: dict[str, str] = {}
        for reference in references:  # an answer for several does not say which is whose
            for item in rows(decode(self._inspect("image", [reference]), "looking at images")):
                found[reference] = word(item.get("Id"))
        return found

    def name_image(self, image: str, name: str) -> None:
        """Let a name stand for an image that is here; `image` is its id.

        Raises:
            StackError: it is not here, or the name has a digest.
        """
        dockerprogram.must("image", "tag", image, name, doing=f"naming the image {name}")

    def variables(self) -> tuple[Variable, ...]:
        """List the variables that the Compose files name, without a value of any.

        Raises:
            StackError: a file or `.env` cannot be read.
        """
        return self._project.variables()

    def whole(self) -> Model:
        """Read the project with the services of every profile, active or not.

        Raises:
            StackError: as `model`.
        """
        return self._project.whole()

    def files(self) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
        """Give the Compose files of the project, and every file that it is made of."""
        tops = self._project.tops()
        return self._project.called(tops), self._project.called(composefiles.parts(tops))

    def names_itself(self) -> bool:
        """Tell whether the project has a name of its own, or is called as its folder is."""
        return self._project.names_itself()

    def other_names(self) -> tuple[str, ...]:
        """Give other names under which containers were made from this project folder."""
        here = f"label={_LABEL}project.working_dir={self._project.folder}"
        shown = '{{.Label "' + _LABEL + 'project"}}'
        doing = f"looking for containers of {self._project.folder}"
        listed = dockerprogram.must("ps", "--all", "--filter", here, "--format", shown, doing=doing)
        return tuple(sorted({*listed.out.split()} - {self.project}))

    @property
    def project(self) -> str:
        """The Compose project's name."""
        return self._project.name

    def versions(self) -> tuple[str, str]:
        """Give the versions of the engine and of Compose; asked once, also by `require`.

        Raises:
            ProgramMissing: one is missing. StackError: the engine does not answer.
        """
        if self._versions is None:
            self._versions = dockerprogram.engine_version()[0], dockerprogram.compose_version()
        return self._versions

    def require(self) -> None:
        """See that Docker and Compose are there, new enough, and answer.

        Raises:
            ProgramMissing: one is missing or too old; the hint names the package.
            StackError: the engine does not answer.
        """
        self._versions = dockerprogram.require()

    # ---- what is there ---------------------------------------------------------------------

    def containers(self) -> Mapping[str, Container]:
        """Look at the containers of the project, running or not; three short calls.

        Returns:
            By service name, those of `run` commands left out. Of a scaled service the first.

        Raises:
            StackError: the engine does not answer.
        """
        doing = f"looking at the containers of {self.project}"
        listed = dockerprogram.must(
            "ps", "--all", "--quiet", "--no-trunc", *self._filters(), doing=doing
        )
        ids = listed.out.split()
        if not ids:
            return {}
        # One may vanish in between: the others are printed all the same, with exit code 1.
        found = list(rows(decode(self._inspect("container", ids), doing)))
        self._learn_images({word(item.get("Image")) for item in found})
        result: dict[str, Container] = {}
        for item in sorted(found, key=_replica):
            one = container(item, self._images.get(word(item.get("Image")), {}))
            result.setdefault(one.service, one)
        return dict(sorted(result.items()))

    def _learn_images(self, ids: set[str]) -> None:
        unknown = sorted(one for one in ids if one and one not in self._images)
        if unknown:
            doing = f"looking at the images of {self.project}"
            for item in rows(decode(self._inspect("image", unknown), doing)):
                self._images[word(item.get("Id"))] = item

    def _inspect(self, kind: str, ids: Sequence[str]) -> str:
        doing = f"inspecting {kind}s"
        ended = dockerprogram.run(kind, "inspect", *ids, doing=doing)
        dockerprogram.refuse_silence(ended, doing)
        return ended.out.strip() or "[]"

    def volumes(self, names: Sequence[str]) -> Mapping[str, Volume]:
        """Look at volumes of the engine.

        Args:
            names: as the engine knows them.

        Returns:
            By name; one that does not exist (yet) is left out.

        Raises:
            StackError: the engine does not answer.
        """
        if not names:
            return {}
        found = rows(decode(self._inspect("volume", names), "looking at volumes"))
        return {one.name: one for one in map(volume, found)}

    def images(self, references: Collection[str]) -> Mapping[str, ImageRecord]:
        """Look at images that are on this machine; nothing is pulled.

        Args:
            references: names, as a Compose file has them.

        Returns:
            By reference; one that is not here is left out.

        Raises:
            StackError: the engine does not answer.
        """
        found: dict[str, ImageRecord] = {}
        for reference in sorted(references):
            for item in rows(decode(self._inspect("image", [reference]), "looking at images")):
                found[reference] = image(reference, item)
        return found

    def logs(self, service: str, lines: int = 20) -> tuple[str, ...]:
        """Give the last lines a service printed, both streams, without control characters.

        Args:
            service: its name.
            lines: how many.

        Returns:
            The lines, oldest first; none when it has no container or keeps no log.
        """
        import docker.errors

        with self._sdk(f"reading the log of {service}") as client:
            found = self._listed(client, service)
            if not found:
                return ()
            try:
                raw = client.logs(word(found[0].get("Id")), tail=lines, stdout=True, stderr=True)
            except docker.errors.APIError as error:
                if error.status_code == 501:  # the log driver cannot be read
                    return ()
                raise
        text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else word(raw)
        text = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[^\x20-\x7e\n\t\u00a0-\U0010ffff]", "", text)
        return tuple(line.rstrip() for line in text.splitlines())[-lines:]

    def mounting(self, path: Path) -> tuple[Holder, ...]:
        """Find the running containers that mount a folder, one in it or one around it.

        Args:
            path: a folder of the host; need not exist.

        Returns:
            All of the daemon's, also those of other projects and without any; a named volume
            that is a bind mount in truth (`driver_opts` with `o: bind`) counts.
        """
        wanted = path.resolve()
        with self._sdk(f"looking for containers that mount {path}") as client:
            listed = list(rows(client.containers()))
            volumes: dict[str, str] = {}
            if any(item.get("Type") == "volume" for one in listed for item in rows(one["Mounts"])):
                volumes = {
                    word(item.get("Name")): word(table(item, "Options").get("device"))
                    for item in rows(table(client.volumes()).get("Volumes"))
                }
        found: list[Holder] = []
        for one in listed:
            for item in rows(one.get("Mounts")):
                name = volumes.get(word(item.get("Name")), "")
                source = word(item.get("Source")) if item.get("Type") == "bind" else name
                if source.startswith("/") and (relation := _relation(Path(source), wanted)):
                    holder = self._holder(one, Path(source), above=relation == "above")
                    found.append(replace(holder, writes=item.get("RW") is not False))
        return _one_each(found)

    def _holder(self, one: Mapping[str, object], source: Path, *, above: bool) -> Holder:
        labels = table(one, "Labels")
        ours = labels.get(_LABEL + "project") == self.project
        names = one.get("Names")
        name = word(names[0]) if isinstance(names, list) and names else word(one.get("Id"))
        return Holder(
            name=name.removeprefix("/"),
            id=word(one.get("Id")),
            service=word(labels.get(_LABEL + "service")) if ours else "",
            source=source,
            above=above,
        )

    def platforms(self, image: str) -> tuple[str, ...]:
        """Ask an image's registry, through the engine, for which platforms it has the image.

        Nothing of the image is loaded.

        Args:
            image: as a Compose file names it.

        Returns:
            For example "linux/arm64"; empty = the registry has it and does not say.

        Raises:
            StackError: the registry does not answer, or has no such image.
        """
        with self._sdk(f"asking the registry for {image}") as client:
            said = client.inspect_distribution(image)  # type: ignore[no-untyped-call]
            found = [
                (word(one.get("os")), word(one.get("architecture")))
                for one in rows(table(said).get("Platforms"))
            ]
            # What a builder says about an image lies beside it, as of an unknown platform.
            named = [f"{system}/{kind}" for system, kind in found if kind not in ("", "unknown")]
            return tuple(dict.fromkeys(named))

    def pull(self, image: str) -> None:
        """Fetch an image; what runs goes on.

        Raises:
            StackError: the registry does not answer, or has no such image.
        """
        doing = f"fetching the image {image}"
        ended = dockerprogram.run("pull", "--quiet", image, doing=doing, limit=PULL_LIMIT)
        if ended.code != 0:
            dockerprogram.refuse_silence(ended, doing)
            raise StackError(f"{doing}: {reason(ended.err)}")

    # ---- life cycle ------------------------------------------------------------------------

    def up(self, services: Sequence[str] = (), *, wait: float = 120) -> None:
        """Create and start what is not as declared, and wait until it is healthy.

        A container without health check counts as soon as it runs, so that one in a crash loop
        may pass here (Compose says the same): look again after some seconds.

        Args:
            services: names; empty = all.
            wait: seconds until all must be healthy, without the time for pulling images.

        Raises:
            StackError: with the `services` that did not come up, and Compose's words.
        """
        options = ["--wait", "--wait-timeout", str(max(1, round(wait)))]
        self._up(services, options, wait + PULL_LIMIT)

    def create(self, services: Sequence[str] = (), *, alone: bool = False) -> None:
        """Create and start what is not as declared, without waiting for health.

        Args:
            services: names; empty = all.
            alone: leave what they depend on as it is.

        Raises:
            StackError: with the `services` that did not start, and Compose's words.
        """
        self._up(services, ["--no-deps"] if alone else [], PULL_LIMIT)

    def prepare(self, services: Sequence[str]) -> None:
        """Create what is not as declared, without starting anything.

        Not by `up --no-start --no-deps`: without its dependencies a service gets another hash
        (2.26, seen), and the next plain `up` would make it anew.

        Raises:
            StackError: with Compose's words.
        """
        doing = f"making the containers of {', '.join(services)}"
        ended = self._project.compose("create", *services, doing=doing, limit=PULL_LIMIT)
        if ended.code != 0:
            raise StackError(f"{doing}: {self._project.reason(ended)}", services=services)

    def _up(self, services: Sequence[str], options: Sequence[str], limit: float) -> None:
        named = ", ".join(services) or self.project
        doing = f"starting {named}"
        ended = self._project.compose(
            "up", "--detach", *options, *services, doing=doing, limit=limit
        )
        waited = "--wait" in options
        if ended.code == 0 and not waited:
            return
        down = self._not_up(services, waited=waited)
        if ended.code == 0 and not down:
            return
        states = ", ".join(f"{name} {state}" for name, state in down.items())
        words = "" if ended.code == 0 else self._project.reason(ended)
        first = next(iter(down), "")
        look = f"docker compose --project-directory {self._project.folder}"
        raise StackError(
            ": ".join(part for part in (doing, states, words) if part),
            services=tuple(down),
            hint=f"look at it: {look} logs {first}" if first else f"look at it: {look} ps --all",
        )

    def _not_up(self, services: Sequence[str], *, waited: bool) -> dict[str, str]:
        """Say of each service that should run and does not, how it is."""
        try:
            wanted = list(services) or list(self.model().services)
            present = self.containers()
        except IotopsError:  # the failure at hand tells more
            return {}
        down: dict[str, str] = {}
        for name in wanted:
            one = present.get(name)
            if one is None:
                down[name] = "has no container"
            elif one.state == "exited":
                down[name] = f"ended with exit code {one.exit_code}"
            elif one.state == "restarting":
                down[name] = f"keeps restarting (exit code {one.exit_code})"
            elif one.state != "running":
                down[name] = f"is {one.state}"
            elif waited and one.health in ("unhealthy", "starting"):
                down[name] = f"is {one.health}"
        return down

    def down(self) -> None:
        """Stop and remove the containers and networks; volumes and all data stay.

        Raises:
            StackError: with Compose's words.
        """
        doing = f"taking {self.project} down"
        ended = self._project.compose("down", "--timeout", "60", doing=doing, limit=600)
        if ended.code != 0:
            raise StackError(f"{doing}: {self._project.reason(ended)}")

    def discard(self, service: str = "") -> None:
        """Kill and remove containers, and without a service the networks, by the project's labels.

        Works without any Compose file; meant for projects of our own, which hold no data.

        Args:
            service: only this one's containers.

        Raises:
            StackError: something could not be removed.
        """
        labels = [f"{_LABEL}project={self.project}"]
        if service:
            labels.append(f"{_LABEL}service={service}")
        with self._sdk(f"removing {self.project}") as client:
            for one in rows(client.containers(all=True, filters={"label": labels})):
                client.remove_container(word(one.get("Id")), force=True, v=True)
            if not service:
                for one in rows(client.networks(filters={"label": labels})):
                    client.remove_network(word(one.get("Id")))

    def address(self, service: str) -> str:
        """Give the address of a service's container on its own network, for this machine.

        Raises:
            StackError: it has no container, or that has no address.
        """
        with self._sdk(f"looking for the address of {service}", service) as client:
            for one in self._of(client, service):
                networks = table(client.inspect_container(one), "NetworkSettings", "Networks")
                for network in rows([*networks.values()]):
                    if found := word(network.get("IPAddress")):
                        return found
        raise StackError(f"the container of {service} has no address", services=(service,))

    def memory(self, service: str) -> int:
        """Give the most memory a service's container has taken, in bytes.

        Where the kernel keeps no such mark (cgroup v2 before 5.19) it is what it takes now.

        Raises:
            StackError: it has no container.
        """
        with self._sdk(f"looking at the memory of {service}", service) as client:
            for one in self._of(client, service):
                used = table(client.stats(one, stream=False, one_shot=True), "memory_stats")
                return number(used.get("max_usage")) or number(used.get("usage"))
        return 0

    def stop(self, services: Sequence[str], grace: float = 60) -> None:
        """Stop services one after the other, in the order given; their containers stay.

        Through the engine and not through Compose, so that it works with a broken Compose file.

        Args:
            services: names; one that is stopped already is fine.
            grace: seconds until a container that does not end is killed.

        Raises:
            StackError: one has no container, or the engine refused.
        """
        for service in services:
            with self._sdk(f"stopping {service}", service) as client:
                for one in self._of(client, service):
                    client.stop(one, timeout=round(grace))

    def start(self, services: Sequence[str]) -> None:
        """Start the containers of services, in the order given, without waiting for health.

        Args:
            services: names; one that runs already is fine.

        Raises:
            StackError: one has no container, or did not start.
        """
        for service in services:
            with self._sdk(f"starting {service}", service) as client:
                for one in self._of(client, service):
                    client.start(one)

    def restart(self, services: Sequence[str], grace: float = 60) -> None:
        """Stop and start the containers of services, in the order given.

        Raises:
            StackError: one has no container, or did not start again.
        """
        for service in services:
            with self._sdk(f"restarting {service}", service) as client:
                for one in self._of(client, service):
                    client.restart(one, timeout=round(grace))

    def _listed(self, client: docker.APIClient, service: str) -> list[Mapping[str, object]]:
        labels = [*self._labels(), f"{_LABEL}service={service}"]
        return list(rows(client.containers(all=True, filters={"label": labels})))

    def _of(self, client: docker.APIClient, service: str) -> list[str]:
        found = [word(one.get("Id")) for one in self._listed(client, service)]
        if not found:
            raise StackError(
                f"the service {service} of {self.project} has no container",
                services=(service,),
                hint="iotops up",
            )
        return found

    # ---- programs in containers ------------------------------------------------------------

    def execute(
        self,
        service: str,
        argv: Sequence[str],
        *,
        stdin: str | None = None,
        user: str = "",
        environment: Mapping[str, str] | None = None,
        limit: float = 300,
    ) -> Executed:
        """Run a program inside a service's running container.

        Args:
            service: its name.
            argv: program and arguments; never a secret among them.
            stdin: text for its standard input; None = nothing to read.
            user: name or numeric id; empty = the container's own.
            environment: more variables for it; their values are on no command line.
            limit: seconds; later the call is given up. The program inside may then still run.

        Returns:
            Its exit code and output: a code other than 0 is not raised. A program that the
            container does not have gives 126 or 127.

        Raises:
            StackError: the container does not run.
            TimedOut: the limit was passed.
        """
        doing = f"running {argv[0]} in {service}"
        label = f"label={_LABEL}service={service}"
        running = dockerprogram.must(
            "ps", "--quiet", "--no-trunc", *self._filters(), "--filter", label, doing=doing
        ).out.split()
        if not running:
            raise StackError(
                f"{doing}: it does not run", services=(service,), hint=f"iotops up {service}"
            )
        names, values = self._passed(environment)
        options = [*names, *(["--user", user] if user else [])]
        options += ["--interactive"] if stdin is not None else []
        ended = dockerprogram.run(
            *("exec", *options, running[-1], *argv),
            doing=doing,
            stdin=stdin,
            limit=limit,
            extra=values,
        )
        if ended.code in (1, 125, 126) and ended.err.startswith("Error response from daemon"):
            raise StackError(f"{doing}: {ended.err.strip()}", services=(service,))
        return Executed(ended.code, ended.out, ended.err)

    def run_once(
        self,
        service: str,
        argv: Sequence[str],
        *,
        user: str = "",
        mounts: Sequence[tuple[Path, str]] = (),
        network: bool = True,
        limit: float = 600,
        stdin: str | None = None,
        environment: Mapping[str, str] | None = None,
        shown: Sequence[tuple[Path, str]] = (),
        declared: bool = False,
    ) -> Executed:
        """Run a program in a container of its own, made from a service's image.

        The container has none of the service's volumes, ports, variables and networks, writes no
        log to the disk, and is removed in every case: by the engine when it ends, also after we
        were killed, and by us when it does not end.

        Args:
            service: whose image: the one its container runs, else the one the file names.
            argv: program (it replaces the image's entry point) and arguments; no secrets.
            user: name, or numeric "uid:gid"; empty = the image's own.
            mounts: folders of the host and where they are seen inside, writable.
            network: whether it can reach anything, over Docker's default network.
            limit: seconds until it is removed.
            stdin: text for its standard input; None = nothing to read.
            environment: variables for it; their values are on no command line.
            shown: as `mounts`, but read-only; single files too.
            declared: the image that the file names, also where a container runs another one; it
                is not pulled.

        Returns:
            Its exit code and output: a code other than 0 is not raised.

        Raises:
            StackError: Docker could not start it, for example because a folder is missing.
            TimedOut: the limit was passed.
        """
        doing = f"running {argv[0]} in a container of {service}'s image"
        name = f"iotops-once-{secrets.token_hex(8)}"
        names, values = self._passed(environment)
        options = [
            *("--rm", "--name", name, "--label", f"iotops.once={self.project}"),
            *("--network", "bridge" if network else "none"),
            *("--log-driver", "none", "--no-healthcheck", "--entrypoint", argv[0], *names),
        ]
        options += ["--interactive"] if stdin is not None else []
        options += ["--user", user] if user else []
        options += ["--pull", "never"] if declared else []
        for source, target in mounts:
            options += ["--mount", _mount_option(source.absolute(), target)]
        for source, target in shown:
            options += ["--mount", _mount_option(source.absolute(), target, read_only=True)]
        try:
            ended = dockerprogram.run(
                *("run", *options, self._image(service, declared=declared), *argv[1:]),
                doing=doing,
                stdin=stdin,
                limit=limit,
                extra=values,
                # Asked nicely, `docker run` passes the signal on, and waits for a program that
                # as process 1 ignores it.
                ladder=((signal.SIGKILL, 10.0),),
            )
        except BaseException:
            # The program at our end was killed; the container does not end with it.
            with suppress(IotopsError):
                dockerprogram.run("rm", "--force", "--volumes", name, doing=f"removing {name}")
            raise
        if ended.code in (125, 126, 127) and "Error response from daemon" in ended.err:
            words = ended.err.partition("Error response from daemon:")[2].strip().splitlines()
            raise StackError(f"{doing}: {words[0] if words else ''}", services=(service,))
        return Executed(ended.code, ended.out, ended.err)

    def _image(self, service: str, *, declared: bool) -> str:
        present = None if declared else self.containers().get(service)
        if present is not None and present.image_id:
            return present.image_id
        named = self.model().services.get(service)
        if named is None or not named.image:
            raise StackError(f"the Compose project {self.project} names no image for {service}")
        return named.image

    @staticmethod
    def _passed(environment: Mapping[str, str] | None) -> tuple[list[str], dict[str, str]]:
        """Pass variables by name, their values through the environment of the program.

        The few names that the program itself needs cannot go that way; they are no secrets.
        """
        names: list[str] = []
        values: dict[str, str] = {}
        for key, value in (environment or {}).items():
            names += ["--env", f"{key}={value}" if key in dockerprogram.KEPT else key]
            if key not in dockerprogram.KEPT:
                values[key] = value
        return names, values

    def _labels(self) -> list[str]:
        return [f"{_LABEL}project={self.project}", f"{_LABEL}oneoff=False"]

    def _filters(self) -> list[str]:
        return [part for label in self._labels() for part in ("--filter", f"label={label}")]

    # ---- the SDK ---------------------------------------------------------------------------

    @contextmanager
    def _sdk(self, doing: str, service: str = "") -> Iterator[docker.APIClient]:
        """Open the engine's API, with its errors as ours."""
        import docker.errors

        about = (service,) if service else ()
        try:
            if self._client is None:
                self._client = _connect()
            yield self._client
        except docker.errors.APIError as error:
            said = word(error.explanation) or str(error)
            raise StackError(f"{doing}: {said.strip()}", services=about) from error
        except (docker.errors.DockerException, OSError) as error:  # OSError: those of requests
            raise dockerprogram.silent_engine(doing) from error


def _connect() -> docker.APIClient:
    """Connect to the engine the docker program would use: DOCKER_HOST, else the context."""
    import docker
    from docker.context import ContextAPI
    from docker.utils import kwargs_from_env

    if os.environ.get("DOCKER_HOST"):
        return docker.APIClient(version="auto", **kwargs_from_env())
    chosen = ContextAPI.get_context(os.environ.get("DOCKER_CONTEXT") or None)
    if chosen is None or chosen.Name == "default":
        return docker.APIClient(version="auto")
    return docker.APIClient(base_url=chosen.Host, version="auto", tls=chosen.TLSConfig or False)


def _replica(item: Mapping[str, object]) -> int:
    return number(table(item, "Config", "Labels").get(_LABEL + "container-number"))


def _relation(source: Path, wanted: Path) -> str:
    """Say how a mounted folder lies to another: "same", "below", "above", or not at all."""
    mounted = source.resolve()
    if mounted == wanted:
        return "same"
    if mounted.is_relative_to(wanted):
        return "below"
    return "above" if wanted.is_relative_to(mounted) else ""


def _one_each(holders: Sequence[Holder]) -> tuple[Holder, ...]:
    """Keep one of each container's, preferring a mount that is not above."""
    best: dict[str, Holder] = {}
    for holder in holders:
        known = best.get(holder.id)
        if known is None or (known.above and (not holder.above or holder.writes)):
            best[holder.id] = holder
    return tuple(sorted(best.values(), key=lambda holder: (holder.service == "", holder.name)))


def _mount_option(source: Path, target: str, *, read_only: bool = False) -> str:
    """Write a bind mount for `--mount`, whose value is one line of CSV."""
    fields = ["type=bind", f"source={source}", f"target={target}"]
    fields += ["readonly"] if read_only else []
    return ",".join('"' + field.replace('"', '""') + '"' for field in fields)
