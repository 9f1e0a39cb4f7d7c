"""How two Node-RED flows documents differ, node by node, and the words for it.

Pure. A change of what a node does is told apart from one of where it is drawn. Not here: what a
document is (`flowdoc.py`), and who asks (`actions/flows.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from iotops.flowdoc import Flows, Node, home_of, homes_of, label_of, stringify

LAYOUT_KEYS = frozenset({"x", "y", "w", "h"})
"""Keys that say where a node is drawn and nothing else."""


@dataclass(frozen=True)
class NodeChange:
    """What became of one node.

    Attributes:
        kind: "added", "removed", "changed", or "layout" (moved on the screen only).
        type, label: of the node. keys: which of its keys differ.
    """

    id: str
    kind: str
    type: str
    label: str
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class TabDifference:
    """What became of one tab, subflow, or (`home` = "global") of the nodes outside of both.

    Attributes:
        kind: "added", "removed", "changed", or "layout".
        old_label: what it was called before, when that differs; else empty.
        nodes: changes of its nodes; the tab itself is not among them.
    """

    id: str
    home: str
    label: str
    kind: str
    old_label: str = ""
    nodes: tuple[NodeChange, ...] = ()


@dataclass(frozen=True)
class FlowsDifference:
    """The difference of two documents on the level of nodes.

    Attributes:
        first: there was no old document.
        reordered: the order of what is in both differs.
    """

    old_revision: str
    new_revision: str
    tabs: tuple[TabDifference, ...]
    first: bool
    reordered: bool
    nodes: int

    def __bool__(self) -> bool:
        return self.old_revision != self.new_revision


def difference(old: Flows | None, new: Flows) -> FlowsDifference:
    """Compare two documents.

    Args:
        old: None when there was none.
    """
    before = old if old is not None else Flows.of(())
    old_nodes = {str(node["id"]): node for node in before.nodes}
    new_nodes = {str(node["id"]): node for node in new.nodes}
    old_homes, new_homes = homes_of(before.nodes), homes_of(new.nodes)
    changes: dict[str, list[NodeChange]] = {}
    for key, node in new_nodes.items():
        change = _node_change(key, old_nodes.get(key), node)
        if change is not None:
            changes.setdefault(home_of(node, new_homes), []).append(change)
    for key, node in old_nodes.items():
        if key not in new_nodes:
            gone = NodeChange(key, "removed", str(node.get("type")), label_of(node))
            changes.setdefault(home_of(node, old_homes), []).append(gone)
    order = [home for home in (*new_homes, *old_homes, "") if home in changes]
    tabs = tuple(
        _tab(home, changes[home], old_homes.get(home), new_homes.get(home))
        for home in dict.fromkeys(order)
    )
    common = [key for key in old_nodes if key in new_nodes]
    reordered = common != [key for key in new_nodes if key in old_nodes]
    return FlowsDifference(
        before.revision, new.revision, tabs, old is None, reordered, len(new.nodes)
    )


def _node_change(key: str, old: Node | None, new: Node) -> NodeChange | None:
    kind, label = str(new.get("type")), label_of(new)
    if old is None:
        return NodeChange(key, "added", kind, label)
    keys = tuple(
        name
        for name in dict.fromkeys((*new, *old))
        if name not in old or name not in new or stringify(old[name]) != stringify(new[name])
    )
    if not keys:
        return None if list(old) == list(new) else NodeChange(key, "layout", kind, label)
    drawn = all(name in LAYOUT_KEYS or (name == "wires" and _rewired(old, new)) for name in keys)
    return NodeChange(key, "layout" if drawn else "changed", kind, label, keys)


def _rewired(old: Node, new: Node) -> bool:
    """Whether the wires of both lead to the same nodes, in another order inside an output."""

    def outputs(node: Node) -> list[list[str]]:
        wires = node.get("wires")
        ports = wires if isinstance(wires, list) else []
        return [sorted(map(str, port)) if isinstance(port, list) else [] for port in ports]

    return outputs(old) == outputs(new)


def _tab(home: str, changes: list[NodeChange], old: Node | None, new: Node | None) -> TabDifference:
    itself = new or old
    nodes = tuple(change for change in changes if not home or change.id != home)
    if itself is None:
        kind = "layout" if all(change.kind == "layout" for change in nodes) else "changed"
        return TabDifference("", "global", "global nodes", kind, "", nodes)
    renamed = label_of(old) if old and new and label_of(old) != label_of(new) else ""
    if old is None or new is None:
        kind = "added" if old is None else "removed"
    else:
        kind = "layout" if all(change.kind == "layout" for change in changes) else "changed"
    return TabDifference(home, str(itself["type"]), label_of(itself), kind, renamed, nodes)


SUBJECT = 72


def message(diff: FlowsDifference, *, nodered_version: str, notes: Sequence[str] = ()) -> str:
    """Write the commit message of a difference.

    Args:
        nodered_version: of the server the flows come from.
        notes: further changes in words, for example of the palette.

    Returns:
        A subject of at most 72 characters ("Heating: 2 functions changed, 1 added; layout only in
        Garden"), an empty line, every change where the subject has no room, revision and version.
    """
    parts = [words(tab) for tab in diff.tabs if tab.kind != "layout"]
    if drawn := [tab.label for tab in diff.tabs if tab.kind == "layout"]:
        parts.append("layout only in " + ", ".join(drawn))
    if diff and not parts:
        parts.append("order changed" if diff.reordered else "keys rearranged")
    parts += notes
    if diff.first:
        tabs = sum(1 for tab in diff.tabs if tab.home == "tab")
        subject = f"First record of the flows: {_many(tabs, 'tab')}, {_many(diff.nodes, 'node')}"
    else:
        subject = "; ".join(parts) or "No change"
        if len(subject) > SUBJECT:
            subject = _shortened(parts)
    body = [] if subject == "; ".join(parts) else [f"- {part}" for part in parts]
    body += [""] if body else []
    body += [f"Node-RED {nodered_version or 'of unknown version'}", f"rev {diff.new_revision}"]
    return subject + "\n\n" + "\n".join(body) + "\n"


def _shortened(parts: Sequence[str]) -> str:
    for count in range(len(parts) - 1, 0, -1):
        text = "; ".join(parts[:count]) + f"; and {len(parts) - count} more"
        if len(text) <= SUBJECT:
            return text
    cut = parts[0] if len(parts) == 1 else f"{parts[0]}; and {len(parts) - 1} more"
    return cut if len(cut) <= SUBJECT else cut[: SUBJECT - 3].rstrip() + "..."


def words(tab: TabDifference) -> str:
    """Say what became of a tab: "Heating: 2 functions changed, 1 added"."""
    name = f"subflow {tab.label}" if tab.home == "subflow" else tab.label
    if tab.kind in ("added", "removed"):
        return f"{name} {tab.kind} ({_many(len(tab.nodes), 'node')})"
    told = [f"renamed from {tab.old_label}"] if tab.old_label else []
    noun = ""
    for kind in ("changed", "added", "removed"):
        types = [change.type for change in tab.nodes if change.kind == kind]
        if not types:
            continue
        now = _noun(types)
        told.append(f"{len(types)} {kind}" if now == noun else f"{_many(len(types), now)} {kind}")
        noun = now
    return f"{name}: " + ", ".join(told or ["settings changed"])


def _noun(types: Sequence[str]) -> str:
    if len(set(types)) > 1:
        return "node"
    return types[0] if types[0] in ("function", "group", "subflow") else f"{types[0]} node"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
