"""Grafana's provisioning files, read as Grafana reads them: what would end or spoil its start.

A file of data sources or dashboard providers that is no YAML ends the start, and so does a second
default data source (upstream `pkg/services/provisioning`). `$NAME` and `${NAME}` are filled in from
the container's environment, `$$` is a dollar sign. No value is ever repeated. The door to PyYAML.
Not here: whether Grafana can use what it was given, which only a server knows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from iotops.clients import files
from iotops.model import Severity

FOLDERS = ("datasources", "dashboards", "alerting", "plugins", "access-control", "notifiers")
"""What Grafana reads below its provisioning folder, each file that ends in .yaml or .yml."""

_NAMED = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")


@dataclass(frozen=True)
class Fault:
    """Something wrong in a provisioning file; its `place` is below the provisioning folder."""

    code: str
    severity: Severity
    place: str
    message: str
    hint: str = ""


def faults(
    folder: Path, environment: Mapping[str, str], there: Callable[[str], Path | None]
) -> Iterator[Fault]:
    """Yield what is wrong with a provisioning folder.

    Args:
        folder: on this machine. environment: of the container.
        there: gives the place on this machine of a path in the container; None = not mounted.
    """
    documents: dict[str, list[tuple[str, Mapping[str, object]]]] = {}
    for kind in FOLDERS:
        for path in sorted((folder / kind).glob("*")) if (folder / kind).is_dir() else ():
            if path.suffix not in (".yaml", ".yml"):
                continue
            place = path.relative_to(folder).as_posix()
            try:
                document = read(path)
            except ValueError as error:
                text = f"{place} cannot be read: {error}; Grafana would not start"
                yield Fault("grafana.yaml", Severity.ERROR, place, text, "correct the file")
                continue
            documents.setdefault(kind, []).append((place, document))
            if kind == "datasources":  # in alerting, `$labels` and its like stand for themselves
                yield from _unset(place, document, environment)
    yield from _data_sources(documents.get("datasources", []))
    yield from _providers(documents.get("dashboards", []), there)


def read(path: Path) -> Mapping[str, object]:
    """Read one YAML file, whose top must be a table; an empty one is an empty table.

    Raises:
        ValueError: it is not, with the line and without the text that stands there.
    """
    import yaml

    try:
        # Grafana fills variables in first; as YAML they are plain texts.
        found = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = re.sub(r"(['\"]).*?\1", "...", str(getattr(error, "problem", "") or ""))
        where = f"line {mark.line + 1}: " if mark is not None else ""
        raise ValueError(f"{where}{problem or 'it is not YAML'}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(getattr(error, "strerror", "") or "it is not YAML") from None
    if found is None:
        return {}
    if isinstance(found, list):  # the first form of dashboard providers, without apiVersion
        return {"providers": found}
    if not isinstance(found, dict):
        raise ValueError("its top is no table of names and values")
    return {str(key): value for key, value in found.items()}


def _unset(
    place: str, document: Mapping[str, object], environment: Mapping[str, str]
) -> Iterator[Fault]:
    names: set[str] = set()
    for text in _texts(document):
        names |= {one or other for one, other in _NAMED.findall(text.replace("$$", ""))}
    for name in sorted(names - environment.keys()):
        yield Fault(
            "grafana.variable",
            Severity.WARNING,
            place,
            f"{place} names ${name}, which the container does not have: an empty text takes its"
            " place",
            f"add {name} to the environment of the container, or write $$ for a dollar sign",
        )


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        # `$__file{...}`, and what a query names by itself, are no variables.
        yield re.sub(r"\$__\w*(\{[^}]*\})?", "", value)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)


def _rows(value: object) -> Iterator[Mapping[str, object]]:
    for one in value if isinstance(value, list) else ():
        if isinstance(one, dict):
            yield one


def _data_sources(documents: list[tuple[str, Mapping[str, object]]]) -> Iterator[Fault]:
    uids: dict[str, str] = {}
    names: dict[tuple[object, str], str] = {}
    defaults: dict[object, str] = {}
    for place, document in documents:
        for one in _rows(document.get("datasources")):
            name, uid = str(one.get("name") or ""), str(one.get("uid") or "")
            org = one.get("orgId") or 1
            shown = f"the data source {name or 'without a name'}"
            if missing := [key for key in ("name", "type") if not one.get(key)]:
                text = f"{place}: {shown} has no {' and no '.join(missing)}: nothing can use it"
                yield Fault("grafana.datasource", Severity.ERROR, place, text, "add it")
            if not uid:
                yield Fault(
                    "grafana.uid",
                    Severity.WARNING,
                    place,
                    f"{place}: {shown} has no uid: after a new start on another disk dashboards do"
                    " not find it",
                    "give it a uid of its own, for ever: uid: " + (name.lower() or "NAME"),
                )
            elif uid in uids:
                text = f"{place}: {shown} has the uid {uid}, which {uids[uid]} has too"
                yield Fault("grafana.twice", Severity.ERROR, place, text, "give it another uid")
            if name and (org, name) in names:
                text = f"{place}: {shown} is there twice, in {names[org, name]} too"
                yield Fault("grafana.twice", Severity.ERROR, place, text, "give it another name")
            if one.get("isDefault") is True:
                if org in defaults:
                    text = f"{place}: {shown} is the second default one: Grafana does not start"
                    hint = f"isDefault: true may stand once; it does in {defaults[org]}"
                    yield Fault("grafana.default", Severity.ERROR, place, text, hint)
                defaults.setdefault(org, place)
            uids.setdefault(uid, shown)
            names.setdefault((org, name), place)
            yield from _plain_secrets(place, shown, one)


def _plain_secrets(place: str, shown: str, source: Mapping[str, object]) -> Iterator[Fault]:
    secure = source.get("secureJsonData")
    for key, value in secure.items() if isinstance(secure, dict) else ():
        text = str(value or "")
        if text and "$" not in text.replace("$$", ""):
            yield Fault(
                "grafana.secret",
                Severity.ERROR,
                place,
                f"{place}: {key} of {shown} stands there in clear text, and goes into Git",
                f"put it into .env and name it here: {key}: $NAME",
            )


def _providers(
    documents: list[tuple[str, Mapping[str, object]]], there: Callable[[str], Path | None]
) -> Iterator[Fault]:
    dashboards: dict[str, str] = {}
    seen: set[Path] = set()
    for place, document in documents:
        for one in _rows(document.get("providers")):
            options = one.get("options")
            named = options if isinstance(options, dict) else {}
            path = named.get("path") or named.get("folder")
            shown = f"the provider {one.get('name') or 'without a name'}"
            if not isinstance(path, str) or not path:
                text = f"{place}: {shown} has no options.path: Grafana does not start"
                yield Fault("grafana.provider", Severity.ERROR, place, text, "add the path")
                continue
            if "$" in path:
                continue
            folder = there(path)
            if folder is None or not folder.exists():
                text = f"{place}: {shown} reads {path}, which is not there in the container"
                hint = "mount the folder, or correct the path"
                yield Fault("grafana.provider", Severity.WARNING, place, text, hint)
            elif folder.resolve() not in seen:
                seen.add(folder.resolve())
                yield from _dashboards(folder, dashboards)


def _dashboards(folder: Path, known: dict[str, str]) -> Iterator[Fault]:
    """Judge the dashboards of a folder: Grafana leaves out one that it cannot read, silently."""
    for path in sorted(folder.rglob("*.json")):
        if not files.is_regular(path):
            continue
        place = path.relative_to(folder).as_posix()
        try:
            document = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            line = getattr(error, "lineno", 0)
            text = f"the dashboard {place} is not JSON" + (f" (line {line})" if line else "")
            yield Fault("grafana.dashboard", Severity.ERROR, place, text, "correct or remove it")
            continue
        if not isinstance(document, dict) or not document.get("title"):
            text = f"the dashboard {place} has no title: Grafana leaves it out"
            yield Fault("grafana.dashboard", Severity.ERROR, place, text, "give it a title")
            continue
        uid = str(document.get("uid") or "")
        if not uid:
            text = f"the dashboard {place} has no uid: its address changes with every new start"
            yield Fault("grafana.uid", Severity.WARNING, place, text, "give it a uid of its own")
        elif uid in known:
            text = f"the dashboards {place} and {known[uid]} have the same uid: one is left out"
            yield Fault("grafana.twice", Severity.ERROR, place, text, "give one another uid")
        known.setdefault(uid, place)
