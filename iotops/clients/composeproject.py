"""A Compose project as files, and the Compose program that reads them.

What Compose says about a failure is repeated without the values of `.env`, which it likes to
quote. Not here: containers (`compose.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from iotops.clients import composefiles, dockerprogram, process
from iotops.clients.composefiles import FILES
from iotops.clients.composemodel import (
    Model,
    Variable,
    decode,
    elsewhere,
    has_default,
    inside,
    model,
    reason,
    values_of,
    variables,
)
from iotops.errors import StackError


class Project:
    """The Compose project of a folder; arguments as `compose.ComposeStack`."""

    def __init__(
        self,
        folder: Path,
        files: Sequence[Path],
        name: str | None,
        environment: Mapping[str, str] | None,
        moved: Mapping[Path, Path] | None = None,
        root: Path | None = None,
    ) -> None:
        self.folder = folder.resolve()
        self._root = str(root.resolve()) if root is not None else ""
        self._moved = dict(moved or {})
        self.files = tuple(file.absolute() for file in files)
        self._given_name = name
        self._own = dict(environment or {})
        self._model: Model | None = None
        self._document: Mapping[str, object] | None = None

    def model(self) -> Model:
        """Read the project as Compose understands it; once per instance.

        Returns:
            The model. Its environments hold secrets in clear text.

        Raises:
            StackError: the file is missing or broken, or a required variable is not set.
        """
        if self._model is None:
            self._model = elsewhere(model(self._read()), self._moved)
        return self._model

    def whole(self) -> Model:
        """Read the project with the services of every profile, active or not.

        Raises:
            StackError: as `model`.
        """
        return model(self.document("--profile", "*"))

    def document(self, *options: str) -> Mapping[str, object]:
        """Read the project as Compose says it; it holds secrets in clear text.

        Args:
            options: of Compose itself, beside those that name the project.

        Raises:
            StackError: as `model`.
        """
        doing = f"reading the Compose project in {self._here}"
        ended = self.compose(*options, "config", "--format", "json", doing=doing, limit=60)
        if ended.code != 0:
            raise StackError(
                f"{doing}: {self.reason(ended)}",
                hint=f"mend it, then look: docker compose --project-directory {self._here} "
                "config --quiet",
            )
        found = inside(decode(ended.out, doing), self._root)
        if not isinstance(found, dict):
            raise StackError(f"{doing}: Compose did not answer with a project")
        return found

    def _read(self) -> Mapping[str, object]:
        if self._document is None:
            self._document = self.document()
        return self._document

    def hashes(self) -> Mapping[str, str]:
        """Ask Compose for the hash of each service's declaration, of what `model` has read.

        Asked of the files themselves, it leaves out what stands in an `env_file`, and so tells
        another hash than it writes on the container (2.26 and 2.40, seen).

        Raises:
            StackError: as `model`.
        """
        doing = f"reading the Compose project in {self._here}"
        whole = json.dumps(self._read())
        ended = self.compose("config", "--hash", "*", doing=doing, limit=60, whole=whole)
        if ended.code != 0:
            raise StackError(f"{doing}: {self.reason(ended)}")
        lines = (line.split() for line in ended.out.splitlines())
        return {words[0]: words[1] for words in lines if len(words) == 2}

    def variables(self) -> tuple[Variable, ...]:
        """List the variables that the Compose files name.

        Raises:
            StackError: as `model`, but not for a variable that is not set.
        """
        doing = f"reading the variables of the Compose project in {self.folder}"
        ended = self.compose("config", "--variables", doing=doing, limit=60)
        if ended.code != 0:
            raise StackError(f"{doing}: {self.reason(ended)}")
        # The table does not tell `${NAME:-}` from `${NAME}`.
        texts = "\n".join(self._texts())
        found = variables(ended.out)
        return tuple(
            replace(one, has_default=one.has_default or has_default(one.name, texts))
            for one in found
        )

    def tops(self) -> tuple[Path, ...]:
        """Give the files that Compose starts with."""
        return self.files or composefiles.top_files(self.folder, self._env_text())

    def called(self, paths: Sequence[Path]) -> tuple[Path, ...]:
        """Give files as they are called from outside of a folder that stands for the root."""
        return tuple(Path(str(path).removeprefix(self._root)) for path in paths)

    def names_itself(self) -> bool:
        """Tell whether the project has a name of its own, or is called as its folder is."""
        return composefiles.names_itself(self.tops(), self._env_text())

    @property
    def name(self) -> str:
        """The project's name, without asking Compose where the files make it plain."""
        if self._given_name is not None:
            return self._given_name
        if self._model is None and (plain := self._plain_name()):
            return plain
        return self.model().project

    def compose(
        self, *argv: str, doing: str, limit: float, whole: str | None = None
    ) -> process.Result:
        """Run Compose on this project, whatever its exit code.

        Args:
            whole: the project as one text, which is read in place of its files.

        Raises:
            StackError: there are no files to read, or the engine does not answer.
            ProgramMissing: there is no Compose.
        """
        self._refuse_no_files(doing)
        options = ["--ansi", "never", "--project-directory", str(self.folder)]
        for path in self.files if whole is None else ("-",):
            options += ["--file", str(path)]
        if self._given_name is not None:
            options += ["--project-name", self._given_name]
        ended = dockerprogram.run(
            *("compose", *options, *argv),
            doing=doing,
            stdin=whole,
            limit=limit,
            extra=self._own,
            cwd=self.folder,
        )
        if ended.code != 0:
            dockerprogram.refuse_missing_compose(ended)
            dockerprogram.refuse_silence(ended, doing)
            if "setenv: invalid argument" in ended.err and "\0" in self._env_text():
                raise StackError(
                    f"{doing}: {self._here}/.env holds a NUL byte, so Compose reads none of it",
                    hint="find its line: iotops env check",
                )
        return ended

    def reason(self, ended: process.Result) -> str:
        """Give Compose's words for a failure without any value of `.env`."""
        own = [value for value in self._own.values() if len(value) >= 4]
        said = reason(ended.err, [*values_of(self._env_text()), *own])
        return said.replace(self._root, "") if self._root else said

    @property
    def _here(self) -> str:
        """The project folder as it is called in messages."""
        return str(self.folder).removeprefix(self._root)

    def _refuse_no_files(self, doing: str) -> None:
        """Without a file of its own, Compose would take the one of a folder above."""
        if not self.folder.is_dir():
            raise StackError(f"{doing}: the folder {self._here} does not exist")
        for path in self.files:
            if not path.is_file():
                shown = str(path).removeprefix(self._root)
                raise StackError(f"{doing}: there is no file {shown}")
        if self.files or "COMPOSE_FILE" in self._env_text() or "COMPOSE_FILE" in self._own:
            return
        if not any((self.folder / name).is_file() for name in FILES):
            raise StackError(
                f"{doing}: there is no docker-compose.yaml in {self._here}",
                hint="name the hub folder with --hub DIR, or make a hub with: iotops init DIR",
            )

    def _env_text(self) -> str:
        try:
            return (self.folder / ".env").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def _texts(self) -> list[str]:
        """Read the Compose files; none of them where only Compose itself knows which they are."""
        files = list(self.files)
        if not files:
            found = [self.folder / name for name in FILES if (self.folder / name).is_file()]
            if len(found) != 1:
                return []
            override = found[0].stem + ".override"
            overrides = [self.folder / (override + end) for end in (".yml", ".yaml")]
            files = [*found, *(path for path in overrides if path.is_file())]
        try:
            return [path.read_text(encoding="utf-8") for path in files]
        except (OSError, UnicodeDecodeError):
            return []

    def _plain_name(self) -> str:
        """Read `name:` from the Compose files; empty where only Compose itself can tell."""
        if any(name.startswith("COMPOSE_") for name in self._own):
            return ""
        if re.search(r"^\s*(export\s+)?COMPOSE_", self._env_text(), re.MULTILINE):
            return ""
        name = ""
        for text in self._texts():
            for line in re.findall(r"^[\"']?name[\"']?\s*:.*$|^include\s*:", text, re.MULTILINE):
                plain = re.fullmatch(r"name\s*:\s*[\"']?([a-z0-9][a-z0-9_-]*)[\"']?\s*", line)
                if plain is None:
                    return ""
                name = plain.group(1)
        return name
