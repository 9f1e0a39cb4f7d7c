"""Reading and writing `manifest.json`, checked on the way in and out.

Its own file because it is the one place beside the settings where outside text becomes a value.
Not here: what the fields mean (`model.Manifest`).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from iotops.errors import ManifestError
from iotops.model import MANIFEST_FORMAT, Artifact, Manifest

if TYPE_CHECKING:
    from pydantic import TypeAdapter

NAME = "manifest.json"


@functools.cache
def _adapter() -> TypeAdapter[Manifest]:
    from pydantic import TypeAdapter  # slow to import; not needed by `--help`

    return TypeAdapter(Manifest)


@functools.cache
def _artifact() -> TypeAdapter[Artifact]:
    from pydantic import TypeAdapter

    return TypeAdapter(Artifact)


_OPENS, _CLOSES = b'"artifacts": [', b"]"


def pieces(manifest: Manifest) -> Iterator[bytes]:
    """Give the text of a manifest piece by piece: JSON, one artifact a line, final newline.

    Each piece is read again as it is made: a manifest that would not read back is never written.
    With many thousand files the whole of it would be held several times otherwise.

    Raises:
        ManifestError: a part does not read back as it was written, or a path is claimed twice or
            outside of its part.
    """
    if (path := _misplaced(manifest)) is not None:
        raise _unfaithful(path)
    bare = _bare(manifest)
    text = _adapter().dump_json(bare, indent=2)
    if _adapter().validate_json(text) != bare:
        raise _unfaithful("its head")
    groups = [record.artifacts for record in manifest.services]
    groups += [part.artifacts for part in manifest.parts]
    each = iter(groups)
    for line in text.splitlines():
        if line.strip().rstrip(b",") != _OPENS + _CLOSES:
            yield line + b"\n"
            continue
        end = line[len(line.rstrip(b",")) :]
        yield line.rstrip(b",").removesuffix(_CLOSES) + b"\n"
        separator = b""
        for artifact in next(each):
            one = _artifact().dump_json(artifact)
            if _artifact().validate_json(one) != artifact:
                raise _unfaithful(artifact.path)
            yield separator + one
            separator = b",\n"
        yield (b"\n" if separator else b"") + _CLOSES + end + b"\n"


def encode(manifest: Manifest) -> bytes:
    """Give all bytes of a manifest."""
    return b"".join(pieces(manifest))


def read(lines: Iterable[bytes], *, where: str) -> Manifest:
    """Read a manifest that `pieces` wrote, line by line; for files of our own that nobody forged.

    Raises:
        ManifestError: it is damaged, of another layout, or of a newer format.
    """
    from pydantic import ValidationError

    head: list[bytes] = []
    groups: list[tuple[Artifact, ...]] = []
    inside: list[Artifact] | None = None
    for line in lines:
        if inside is None:
            head.append(line)
            if line.strip() == _OPENS:
                inside = []
        elif line.startswith(_CLOSES):
            head.append(line)
            groups.append(tuple(inside))
            inside = None
        else:
            try:
                inside.append(_artifact().validate_json(line.rstrip(b",\n")))
            except ValidationError as error:
                raise _damaged(where) from error
    made = decode(b"".join(head), where=where)
    if len(groups) != len(made.services) + len(made.parts):
        raise _damaged(where)
    each = iter(groups)
    services = tuple(replace(one, artifacts=next(each)) for one in made.services)
    parts = tuple(replace(one, artifacts=next(each)) for one in made.parts)
    return replace(made, services=services, parts=parts)


def _bare(manifest: Manifest) -> Manifest:
    """Give a manifest without its artifacts."""
    services = tuple(replace(one, artifacts=()) for one in manifest.services)
    return replace(
        manifest,
        services=services,
        parts=tuple(replace(one, artifacts=()) for one in manifest.parts),
    )


def _unfaithful(what: str) -> ManifestError:
    return ManifestError(
        f"writing the manifest: {what} does not read back as it was written",
        hint="report this, with what is special about that file's name",
    )


def _damaged(where: str, why: str = "") -> ManifestError:
    return ManifestError(
        f"the manifest of {where} is damaged{why}",
        hint="choose another snapshot: iotops snapshots",
    )


def decode(data: bytes, *, where: str) -> Manifest:
    """Read a manifest.

    Args:
        data: the file's bytes.
        where: what the message of an error calls it, for example "snapshot 1a2b3c4d".

    Raises:
        ManifestError: it is damaged, of a newer format than this iotops knows, or claims a path
            twice or outside of its part: a snapshot is not trusted.
    """
    from pydantic import ValidationError

    try:
        made = _adapter().validate_json(data)
    except ValidationError as error:
        raise _newer(data, where) or _damaged(where) from error
    if made.format > MANIFEST_FORMAT:
        raise _too_new(made.format, where)
    if (path := _misplaced(made)) is not None:
        raise _damaged(where, f": {path!r} is claimed twice, or outside of its part")
    return made


def _newer(data: bytes, where: str) -> ManifestError | None:
    """Tell a format that we do not know from damage."""
    try:
        document: object = json.loads(data)
    except (ValueError, RecursionError):  # the latter: nested for ever
        return None
    number = document.get("format") if isinstance(document, dict) else None
    return _too_new(number, where) if isinstance(number, int) and number > MANIFEST_FORMAT else None


def _too_new(number: int, where: str) -> ManifestError:
    return ManifestError(
        f"the manifest of {where} has format {number}; this iotops reads up to {MANIFEST_FORMAT}",
        hint="install the iotops version that made the snapshot, or a newer one",
    )


def _misplaced(made: Manifest) -> str | None:
    """Give a path that is claimed twice, by the wrong part, or that leads out of the snapshot."""
    seen: set[str] = set()
    records = [(record.folder, record.artifacts) for record in made.services]
    records += [(part.name, part.artifacts) for part in made.parts]
    for folder, artifacts in records:
        for path in (artifact.path for artifact in artifacts):
            inside = path == folder or path.startswith(f"{folder}/")
            if not inside or path in seen or not {"", ".", ".."}.isdisjoint(path.split("/")):
                return path
            seen.add(path)
    return None
