"""A Node-RED flows document: read it strictly, split it for Git, judge it.

Pure: bytes and values in, values out. The order of the nodes and of the keys in a node is part of
the document (drawing order, start order, revision), so it is never sorted; the split format keeps
it in `index.json`, and putting the parts together again is proven by the revision.

Not here: how two documents differ (`flowdiff.py`), and where one comes from and goes to
(`services/nodered.py`, `actions/flows.py`). One file, because the serializer, the format and the
guards each need the same few questions answered (which tab is a node on, what is it called).
Facts about Node-RED were checked against 4.1.15 and 5.0.7.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from urllib.parse import quote

from iotops.errors import FlowsError
from iotops.model import Finding, Severity

EMPTY_REVISION = hashlib.sha256(b"[]").hexdigest()
"""Node-RED's revision of no flows at all; it serves this also when its file is missing."""

FORMAT = 1
INDEX, GLOBAL, PALETTE, ATTRIBUTES = "index.json", "global.json", "palette.json", ".gitattributes"
Node = Mapping[str, object]


@dataclass(frozen=True)
class Flows:
    """A flows document: its nodes in order, and the revision that Node-RED gives it."""

    nodes: tuple[Node, ...]
    revision: str

    @classmethod
    def of(cls, nodes: Sequence[Node]) -> Flows:
        """Make a document of nodes and compute its revision."""
        return cls(tuple(nodes), revision(nodes))


# --- reading ---------------------------------------------------------------------------------


def parse(document: object, *, where: str) -> Flows:
    """Check a JSON value that must be an array of nodes.

    Args:
        document: what `json.loads` gave.
        where: what the document is, for messages.

    Raises:
        FlowsError: it is null, not an array of objects, or an id is missing or there twice.
    """
    if document is None:
        raise FlowsError(
            f"{where}: there is no active flow configuration (null)",
            hint="look at Node-RED's log: a project may have failed to load",
        )
    if not isinstance(document, list):
        raise FlowsError(f"{where}: not an array of nodes")
    nodes: list[Node] = []
    seen: set[str] = set()
    for number, node in enumerate(document):
        if not isinstance(node, dict):
            raise FlowsError(f"{where}: entry {number} is not an object")
        name = node.get("id")
        if not isinstance(name, str) or not name:
            raise FlowsError(f"{where}: entry {number} has no id")
        if name in seen:
            raise FlowsError(f"{where}: the id {name} is there twice")
        seen.add(name)
        nodes.append(node)
    return Flows.of(nodes)


def parse_answer(document: object, *, where: str) -> Flows:
    """Check an answer of `GET /flows` in API version 2 and prove its revision.

    Raises:
        FlowsError: as `parse`; or the revision told is not that of the nodes told.
    """
    if document is None:
        return parse(None, where=where)
    if not isinstance(document, dict) or "flows" not in document:
        raise FlowsError(f"{where}: not an answer of API version 2")
    flows = parse(document["flows"], where=where)
    if document.get("rev") != flows.revision:
        raise FlowsError(
            f"{where}: the revision told is not the one of the nodes received",
            hint="try again; if it stays, please report it with Node-RED's version",
        )
    return flows


def load(data: bytes, *, where: str) -> object:
    """Decode JSON as Node-RED does (a byte order mark is skipped).

    Raises:
        FlowsError: it is not UTF-8 or not JSON.
    """
    try:
        value: object = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise FlowsError(f"{where}: not JSON") from error
    return value


# --- JavaScript's way to write JSON ----------------------------------------------------------


def revision(nodes: Sequence[Node]) -> str:
    """Give Node-RED's revision: the SHA-256 of the array as `JSON.stringify` writes it."""
    return hashlib.sha256(stringify(list(nodes)).encode()).hexdigest()


def stringify(value: object, indent: int = 0) -> str:
    """Write a JSON value exactly as JavaScript's `JSON.stringify(value, null, indent)` does.

    Differs from `json.dumps` in numbers (`1e-7`, `1e+21`, no `1.0`), in lone surrogates (escaped),
    and in keys that are array indices (first, ascending).
    """
    pieces: list[str] = []
    _write(value, indent, "\n" if indent else "", pieces)
    return "".join(pieces)


def _write(value: object, indent: int, line: str, out: list[str]) -> None:
    inner = line + " " * indent
    if isinstance(value, str):
        out.append(_string(value))
    elif value is None or isinstance(value, bool):
        out.append("null" if value is None else str(value).lower())
    elif isinstance(value, int | float):
        out.append(_number(value))
    elif isinstance(value, Mapping):
        opening = "{"
        for key in _js_order(value):
            out += (opening, inner, _string(key), ": " if indent else ":")
            _write(value[key], indent, inner, out)
            opening = ","
        out.append("{}" if opening == "{" else line + "}")
    elif isinstance(value, list | tuple):
        opening = "["
        for item in value:
            out += (opening, inner)
            _write(item, indent, inner, out)
            opening = ","
        out.append("[]" if opening == "[" else line + "]")
    else:
        raise FlowsError(f"{type(value).__name__} is no JSON value")


def _js_order(value: Mapping[str, object]) -> Sequence[str]:
    keys = list(value)
    if not any(key[:1].isdigit() for key in keys):
        return keys
    indices = [key for key in keys if re.fullmatch("0|[1-9][0-9]{0,9}", key)]
    indices = sorted((key for key in indices if int(key) < 2**32 - 1), key=int)
    return [*indices, *(key for key in keys if key not in set(indices))]


_SURROGATE = re.compile("[\ud800-\udfff]")


def _string(text: str) -> str:
    if _SURROGATE.search(text):  # two halves side by side are one character in JavaScript
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    written = json.dumps(text, ensure_ascii=False)
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", written)


def _number(value: float) -> str:
    if isinstance(value, int) and abs(value) <= 2**53:
        return str(value)
    try:
        value = float(value)
    except OverflowError:
        return "null"
    if not math.isfinite(value):
        return "null"
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    parts = Decimal(repr(abs(value))).normalize().as_tuple()
    digits = "".join(map(str, parts.digits))
    point = len(digits) + int(parts.exponent)  # digits before the decimal point
    if len(digits) <= point <= 21:
        return sign + digits + "0" * (point - len(digits))
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    fraction = f".{digits[1:]}" if len(digits) > 1 else ""
    return f"{sign}{digits[0]}{fraction}e{point - 1:+d}"


# --- split and join --------------------------------------------------------------------------


def split(
    nodes: Sequence[Node], *, nodered_version: str, palette: Mapping[str, str]
) -> Mapping[str, bytes]:
    """Split a document into files that are good to read and to compare.

    Args:
        nodes: in their order, with unique ids.
        nodered_version: of the server they come from.
        palette: exact version of each installed module.

    Returns:
        Relative file name to content: `index.json`, `tabs/<label>--<id>.json`,
        `subflows/<label>--<id>.json`, `global.json`, `code/<id>.<key>.<ending>` for texts of
        several lines, `palette.json`, `.gitattributes`.
    """
    groups: dict[str, list[object]] = {GLOBAL: []}
    files: dict[str, bytes] = {}
    homes = homes_of(nodes)
    names = {home: _file_name(node) for home, node in homes.items()}
    for node in nodes:
        home = home_of(node, homes)
        place = names[home] if home else GLOBAL
        groups.setdefault(place, []).append(_take_out_code(node, files))
    files |= {place: _pretty(group) for place, group in groups.items()}
    files[INDEX] = _pretty(
        {
            "format": FORMAT,
            "nodered": nodered_version,
            "rev": revision(nodes),
            "order": [node["id"] for node in nodes],
        }
    )
    files[PALETTE] = _pretty(dict(sorted(palette.items())))
    files[ATTRIBUTES] = b"* -text\n"
    return files


def join(files: Mapping[str, bytes]) -> tuple[Node, ...]:
    """Put a split document together again.

    Args:
        files: relative file name to content; names that are not of the format are ignored.

    Returns:
        The nodes in their order, with the very revision they had.

    Raises:
        FlowsError: a file is missing or damaged, an id is missing, unknown or there twice, or
            the revision is not the recorded one.
    """
    index = _index(files)
    found: dict[str, Node] = {}
    for name in sorted(files):
        if name != GLOBAL and not re.fullmatch(r"(tabs|subflows)/[^/]+\.json", name):
            continue
        for node in parse(load(files[name], where=name), where=name).nodes:
            key = str(node["id"])
            if key in found:
                raise FlowsError(f"{name}: the id {key} is also in another file")
            found[key] = _put_in_code(node, files)
    order = index.get("order")
    if not isinstance(order, list) or not all(isinstance(key, str) for key in order):
        raise FlowsError(f"{INDEX}: no order of ids in it")
    if twice := [key for key, count in Counter(order).items() if count > 1]:
        raise FlowsError(f"{INDEX}: the id {twice[0]} is in the order twice")
    if missing := [key for key in order if key not in found]:
        raise FlowsError(f"the node {missing[0]} is in {INDEX} but in no file")
    if extra := sorted(found.keys() - set(order)):
        raise FlowsError(f"the node {extra[0]} is in a file but not in {INDEX}")
    nodes = tuple(found[key] for key in order)
    if revision(nodes) != index.get("rev"):
        raise FlowsError(
            f"the files do not give the revision in {INDEX}: one of them was changed or is missing",
            hint="take the files of one commit as they are",
        )
    return nodes


def recorded(files: Mapping[str, bytes]) -> tuple[str, str, Mapping[str, str]]:
    """Read what a split document says of itself.

    Returns:
        Revision, Node-RED's version, and the palette (module to version).
    """
    index = _index(files)
    palette = load(files.get(PALETTE, b"{}"), where=PALETTE)
    modules = palette if isinstance(palette, dict) else {}
    return (
        str(index.get("rev", "")),
        str(index.get("nodered", "")),
        {str(module): str(version) for module, version in modules.items()},
    )


def order(files: Mapping[str, bytes]) -> tuple[str, ...]:
    """Read the ids that a split document lists, whether or not their files are whole."""
    listed = _index(files).get("order")
    return tuple(str(key) for key in listed) if isinstance(listed, list) else ()


def is_ours(name: str) -> bool:
    """Tell whether a relative file name belongs to the split format, so may be replaced."""
    return name in (INDEX, GLOBAL, PALETTE, ATTRIBUTES) or bool(
        re.fullmatch(r"(tabs|subflows)/[^/]+\.json|code/[^/]+", name)
    )


def _index(files: Mapping[str, bytes]) -> dict[str, object]:
    if INDEX not in files:
        raise FlowsError(f"{INDEX} is missing")
    index = load(files[INDEX], where=INDEX)
    if not isinstance(index, dict):
        raise FlowsError(f"{INDEX}: not an object")
    if index.get("format") != FORMAT:
        raise FlowsError(f"{INDEX}: its format is not {FORMAT}", hint="use a newer iotops")
    return index


def _pretty(value: object) -> bytes:
    return (stringify(value, 2) + "\n").encode()


def homes_of(nodes: Sequence[Node]) -> dict[str, Node]:
    """The tabs and subflow definitions, which other nodes name by `z`."""
    return {str(node["id"]): node for node in nodes if node.get("type") in ("tab", "subflow")}


def home_of(node: Node, homes: Mapping[str, Node]) -> str:
    """The id of the tab or subflow a node belongs to; empty for none (or one not there)."""
    if node.get("id") in homes:
        return str(node["id"])
    home = node.get("z")
    return home if isinstance(home, str) and home in homes else ""


def _file_name(home: Node) -> str:
    tab = home.get("type") == "tab"
    label = unicodedata.normalize("NFKD", label_of(home)).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", label).strip("-")[:40] or ("tab" if tab else "subflow")
    return f"{'tabs' if tab else 'subflows'}/{slug}--{_safe(str(home['id']))}.json"


def _safe(name: str) -> str:
    """An id as part of a file name; one of unusual characters is replaced by its hash."""
    if re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"~{digest[:16]}"


_CODE = {"func": "js", "initialize": "js", "finalize": "js", "info": "md"}
_TEMPLATES = {"template": "template", "ui_template": "format", "ui-template": "format"}
_ENDINGS = {"html": "html", "markdown": "md", "json": "json", "javascript": "js", "css": "css"}
_REFERENCE = "file"


def _sidecar(node: Node, key: str) -> str | None:
    """The file for the text of a node's key, None where this key holds no such text."""
    kind = str(node.get("type"))
    if key == "info" or (kind == "function" and key in _CODE):
        ending = _CODE[key]
    elif _TEMPLATES.get(kind) == key:
        ending = "html" if key == "format" else _ENDINGS.get(str(node.get("format")), "txt")
    else:
        return None
    return f"code/{_safe(str(node['id']))}.{key}.{ending}"


def _take_out_code(node: Node, files: dict[str, bytes]) -> Node:
    result: dict[str, object] = {}
    for key, value in node.items():
        result[key] = value
        name = _sidecar(node, key)
        if name is None or not isinstance(value, str) or "\n" not in value or "\0" in value:
            continue
        if not _SURROGATE.search(value):
            files[name] = value.encode()
            result[key] = {_REFERENCE: name}
    return result


def _put_in_code(node: Node, files: Mapping[str, bytes]) -> Node:
    result: dict[str, object] = {}
    for key, value in node.items():
        result[key] = value
        if isinstance(value, dict) and value.keys() == {_REFERENCE}:
            name = _sidecar(node, key)
            # Any other object stays what it is; the revision tells a lost file.
            if name is not None and value[_REFERENCE] == name and name in files:
                try:
                    result[key] = files[name].decode()
                except ValueError as error:
                    raise FlowsError(f"{name}: not UTF-8") from error
    return result


# --- guards ----------------------------------------------------------------------------------

KEY_PATTERNS = {
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----",
    "an InfluxDB token": r"(?<![\w-])[\w-]{86}==",
    "a web token (JWT)": r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}",
    "a GitHub token": r"\b(gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{40})",
    "an AWS access key": r"\bA(KI|SI)A[0-9A-Z]{16}\b",
    "a Google API key": r"\bAIza[\w-]{35}\b",
    "a Grafana token": r"\bgls[ac]_\w{32}",
    "a Slack token": r"\bxox[abprs]-[\w-]{10,}",
    "a Telegram bot token": r"\b\d{8,10}:AA[\w-]{33}\b",
    "a password in an address": r"\b[a-z][a-z0-9+.-]*://[^\s/:@\"'{}$<]+:[^\s/:@\"'{}$<]+@",
}
"""What a secret looks like; chosen to be rarely wrong, because a hit refuses the pull."""

_PATTERNS = {what: re.compile(pattern) for what, pattern in KEY_PATTERNS.items()}


def judge(
    flows: Flows,
    previous: Flows | None,
    *,
    allow_empty: bool = False,
    allow_shrink: bool = False,
    secrets: Mapping[str, str] | None = None,
    accepted: Collection[str] = (),
) -> tuple[Finding, ...]:
    """Judge whether a document may replace the last one in Git.

    Args:
        previous: the last one, None when there is none yet.
        allow_empty, allow_shrink: switch the guard of that name off.
        secrets: values that must not be in it, by name. Only names go into findings.
        accepted: places ("<node id>.<key>") where what looks like a secret is none.

    Returns:
        Findings of severity ERROR; empty when it may.
    """
    findings: list[Finding] = []
    before = len(previous.nodes) if previous is not None else 0
    if not flows.nodes and not allow_empty and (previous is None or before):
        findings.append(
            _refusal(
                "flows.empty",
                "Node-RED serves an empty flow set, as it also does when its flow file is missing",
                "look at Node-RED's log and flow file; if it is meant: --allow-empty",
            )
        )
    elif flows.nodes and len(flows.nodes) * 2 < before and not allow_shrink:
        findings.append(
            _refusal(
                "flows.shrunk",
                f"the flows fell from {before} to {len(flows.nodes)} nodes",
                "look at Node-RED; if it is meant: --accept-shrink",
            )
        )
    homes = homes_of(flows.nodes)
    for node in flows.nodes:
        for key, what in _found_secrets(node, secrets or {}):
            if f"{node['id']}.{key}" not in accepted:
                findings.append(
                    _refusal(
                        "flows.secret",
                        f"{what} stands in {_place(node, homes)}, key {key}",
                        "move it into a credential field or an environment variable; if it is"
                        f" no secret: --accept {node['id']}.{key}",
                    )
                )
    return tuple(findings)


def _refusal(code: str, message: str, hint: str) -> Finding:
    return Finding(code, Severity.ERROR, "flows", message, hint)


def _found_secrets(node: Node, secrets: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Top-level key and name of each secret in a node, each once."""
    for key, value in node.items():
        if key == "credentials" and value:
            yield key, "a credential"
            continue
        texts = list(_texts(value))
        for name, secret in secrets.items():
            if any(_holds(text, secret) for text in texts):
                yield key, f"the value of {name}"
        for what, pattern in _PATTERNS.items():
            if any(pattern.search(text) for text in texts):
                yield key, f"what looks like {what}"


def _holds(text: str, secret: str) -> bool:
    if len(secret) < 8:  # a short one inside a longer text is chance
        return len(secret) >= 4 and text == secret
    return secret in text or quote(secret, safe="") in text


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)


def _place(node: Node, homes: Mapping[str, Node]) -> str:
    home = homes.get(home_of(node, homes))
    where = "the global nodes" if home is None else f"{home['type']} {label_of(home)!r}"
    return f"{where}, {node.get('type')} node {label_of(node)!r}"


def label_of(node: Node) -> str:
    """A node's name for people, in one line."""
    for key in ("label", "name"):
        text = node.get(key)
        if isinstance(text, str) and text.strip():
            return " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return str(node.get("id"))
