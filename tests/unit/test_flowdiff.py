"""Differences of flow documents and the commit messages made from them."""

from __future__ import annotations

import pytest

from iotops.flowdiff import difference, message
from iotops.flowdoc import Flows, Node

pytestmark = pytest.mark.unit


def tab(name: str, label: str) -> Node:
    return {"id": name, "type": "tab", "label": label}


def function(name: str, home: str, func: str = "return msg;", **more: object) -> Node:
    return {"id": name, "type": "function", "z": home, "name": name, "func": func, **more}


OLD: list[Node] = [
    tab("h", "Heating"),
    tab("g", "Garden"),
    function("a", "h", x=1, y=1, wires=[["c", "d"]]),
    function("b", "h"),
    function("c", "h"),
    function("d", "g", x=10, y=20),
    {"id": "m", "type": "mqtt-broker", "name": "hub", "port": "1883"},
]


def changed(**by_id: Node | None) -> list[Node]:
    """OLD with nodes replaced or removed (None)."""
    nodes = [by_id.get(str(node["id"]), node) for node in OLD]
    return [node for node in nodes if node is not None]


def subject(new: list[Node], notes: tuple[str, ...] = ()) -> str:
    diff = difference(Flows.of(OLD), Flows.of(new))
    return message(diff, nodered_version="4.1.15", notes=notes).splitlines()[0]


def test_nothing_changed_is_false() -> None:
    assert not difference(Flows.of(OLD), Flows.of(OLD))


def test_changes_are_counted_by_tab_in_words() -> None:
    new = changed(
        a=function("a", "h", "return 1;", x=1, y=1, wires=[["c", "d"]]),
        b=function("b", "h", "return 2;"),
        d=function("d", "g", x=11, y=20),
    )
    new.append(function("e", "h"))
    assert subject(new) == "Heating: 2 functions changed, 1 added; layout only in Garden"


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (changed(b=None), "Heating: 1 function removed"),
        (changed(m={**OLD[6], "port": "8883"}), "global nodes: 1 mqtt-broker node changed"),
        (changed(g=tab("g", "Yard")), "Yard: renamed from Garden"),
        (changed(g={**tab("g", "Garden"), "disabled": True}), "Garden: settings changed"),
        (changed(g=None, d=None), "Garden removed (1 node)"),
        ([*OLD, tab("n", "New"), function("o", "n")], "New added (1 node)"),
        (
            [*OLD, {"id": "s", "type": "subflow", "name": "Filter"}],
            "subflow Filter added (0 nodes)",
        ),
        ([OLD[1], OLD[0], *OLD[2:]], "order changed"),
        (changed(b=dict(reversed(list(OLD[3].items())))), "layout only in Heating"),
        (
            changed(a=function("a", "h", x=1, y=1, wires=[["d", "c"]])),
            "layout only in Heating",
        ),
        (
            changed(a=function("a", "h", x=1, y=1, wires=[["c"]])),
            "Heating: 1 function changed",
        ),
        (
            changed(b=function("b", "g"), c={"id": "c", "type": "debug", "z": "h"}),
            "Heating: 1 debug node changed; Garden: 1 function changed",
        ),
    ],
)
def test_each_kind_of_change_has_its_words(new: list[Node], words: str) -> None:
    assert subject(new) == words


def test_the_first_record_and_a_change_outside_the_flows() -> None:
    first = message(difference(None, Flows.of(OLD)), nodered_version="4.1.15")
    assert first.startswith("First record of the flows: 2 tabs, 7 nodes\n\n")
    assert subject(OLD, ("palette: x 1.0.0 to 1.1.0",)) == "palette: x 1.0.0 to 1.1.0"


def test_the_body_names_revision_and_version_and_what_the_subject_had_no_room_for() -> None:
    many = [tab(f"t{n}", f"A rather long tab name {n}") for n in range(6)]
    new = Flows.of([*OLD, *many])
    text = message(difference(Flows.of(OLD), new), nodered_version="4.1.15")
    head, empty, *body = text.splitlines()
    assert len(head) <= 72 and head.endswith("; and 5 more")
    assert empty == ""
    assert [line for line in body if line.startswith("- ")][5] == (
        "- A rather long tab name 5 added (0 nodes)"
    )
    assert body[-2:] == ["Node-RED 4.1.15", f"rev {new.revision}"]


def test_a_label_cannot_break_the_message_into_lines() -> None:
    new = Flows.of([*OLD, tab("x", "a\nSigned-off-by: me\x1b[31m" + "z" * 100)])
    head, *_ = message(difference(Flows.of(OLD), new), nodered_version="").splitlines()
    assert head.startswith("a Signed-off-by: me [31mzzz") and len(head) <= 72


def test_the_difference_names_nodes_and_keys() -> None:
    new = changed(a=function("a", "h", "x", x=5, y=1, wires=[["c", "d"]]))
    (home,) = difference(Flows.of(OLD), Flows.of(new)).tabs
    (node,) = home.nodes
    assert (home.id, home.home, home.label, home.kind) == ("h", "tab", "Heating", "changed")
    assert (node.id, node.kind, node.type, node.keys) == ("a", "changed", "function", ("func", "x"))
