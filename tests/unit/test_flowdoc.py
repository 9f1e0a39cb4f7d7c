"""Flow documents: JavaScript's JSON, split and join as laws, the guards."""

from __future__ import annotations

import hashlib
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iotops import flowdoc
from iotops.errors import FlowsError
from iotops.flowdoc import Flows, Node, join, judge, parse, parse_answer, split, stringify

pytestmark = pytest.mark.unit

WORDS = st.text(max_size=30)
CODE = st.text(alphabet=st.sampled_from('a\n\r\t\0\ud83d\ude00é\\"{}'), max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=8,
)
KINDS = st.sampled_from(
    ["tab", "subflow", "function", "template", "ui_template", "group", "inject", "mqtt-broker"]
)
KEYS = st.sampled_from(
    ["label", "name", "func", "initialize", "info", "template", "format", "wires", "x", "7", "0"]
)


@st.composite
def documents(draw: st.DrawFn) -> list[Node]:
    """Flow documents of every shape, strange ids and homes included."""
    ids = draw(st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=12))
    nodes: list[Node] = []
    for name in ids:
        node: dict[str, object] = {"id": name, "type": draw(KINDS)}
        if draw(st.booleans()):
            node["z"] = draw(st.sampled_from([*ids, "not there", ""]))
        references = st.fixed_dictionaries({"file": st.just(f"code/{name}.func.js")})
        more = st.dictionaries(KEYS, JSON | CODE | references, max_size=5)
        node.update(draw(more))
        if draw(st.booleans()):  # id need not be the first key
            node = dict(sorted(node.items()))
        nodes.append(node)
    return nodes


def sha(nodes: list[Node]) -> str:
    return hashlib.sha256(stringify(nodes).encode()).hexdigest()


@settings(max_examples=300, deadline=None)
@given(documents(), st.randoms(use_true_random=False))
def test_split_and_join_lose_nothing_whatever_the_order_of_nodes_and_files(
    nodes: list[Node], dice: random.Random
) -> None:
    dice.shuffle(nodes)
    files = dict(split(nodes, nodered_version="4.1.0", palette={}))
    names = list(files)
    dice.shuffle(names)
    again = join({name: files[name] for name in names} | {"README.md": b"mine"})
    assert stringify(list(again)) == stringify(nodes)
    for name, content in files.items():
        assert flowdoc.is_ours(name)
        assert ".." not in name.split("/") and len(name.split("/")) <= 2
        assert content.endswith(b"\n") or name.startswith("code/")


@settings(max_examples=100, deadline=None)
@given(documents(), st.data())
def test_a_lost_or_changed_file_never_joins(nodes: list[Node], data: st.DataObject) -> None:
    files = dict(split(nodes, nodered_version="4.1.0", palette={}))
    bearing = sorted(
        name
        for name, content in files.items()
        if name not in (".gitattributes", "palette.json") and content != b"[]\n"
    )
    victim = data.draw(st.sampled_from(bearing))
    without = {name: content for name, content in files.items() if name != victim}
    with pytest.raises(FlowsError):
        join(without)


HEATING = {"id": "t1", "type": "tab", "label": "Heizung / Süd", "disabled": False, "info": ""}
GARDEN = {"id": "t2", "type": "tab", "label": "Garden", "disabled": False, "info": "a\nb"}
FUNCTION = {
    "id": "f1",
    "type": "function",
    "z": "t1",
    "name": "mean",
    "func": "const a = 1;\nreturn msg;",
    "x": 1.5,
    "y": 2,
    "wires": [["d1"]],
}
BROKER = {"id": "b1", "type": "mqtt-broker", "name": "hub", "broker": "mqtt", "port": "1883"}
INNER = {"id": "i1", "type": "inject", "z": "s1", "name": "", "wires": [[]]}
SUBFLOW = {"id": "s1", "type": "subflow", "name": "Filter", "in": [], "out": []}
NODES: list[Node] = [HEATING, GARDEN, SUBFLOW, BROKER, INNER, FUNCTION]


def test_the_format_is_one_file_per_tab_and_subflow_with_code_beside() -> None:
    files = split(NODES, nodered_version="4.1.15", palette={"b": "2.0.0", "a": "1.0.0"})
    assert set(files) == {
        ".gitattributes",
        "index.json",
        "global.json",
        "palette.json",
        "tabs/heizung-sud--t1.json",
        "tabs/garden--t2.json",
        "subflows/filter--s1.json",
        "code/f1.func.js",
        "code/t2.info.md",
    }
    assert files["code/f1.func.js"] == b"const a = 1;\nreturn msg;"
    assert files[".gitattributes"] == b"* -text\n"
    assert [n["id"] for n in json.loads(files["tabs/heizung-sud--t1.json"])] == ["t1", "f1"]
    assert [n["id"] for n in json.loads(files["subflows/filter--s1.json"])] == ["s1", "i1"]
    assert [n["id"] for n in json.loads(files["global.json"])] == ["b1"]
    index = json.loads(files["index.json"])
    assert index["order"] == [node["id"] for node in NODES]
    assert index["rev"] == sha(NODES)
    assert files["palette.json"] == b'{\n  "a": "1.0.0",\n  "b": "2.0.0"\n}\n'
    assert flowdoc.recorded(files) == (sha(NODES), "4.1.15", {"a": "1.0.0", "b": "2.0.0"})


def test_a_text_that_git_would_call_binary_stays_in_its_node() -> None:
    node: Node = {**FUNCTION, "func": "a\n\0b"}
    assert not any(
        name.startswith("code/") for name in split([node], nodered_version="", palette={})
    )


def test_a_renamed_tab_keeps_its_id_in_the_file_name_and_paths_cannot_escape() -> None:
    wild: list[Node] = [{"id": "../../etc/x", "type": "tab", "label": "../.. \n"}]
    names = [name for name in split(wild, nodered_version="", palette={}) if name[:4] == "tabs"]
    digest = hashlib.sha256(b"../../etc/x").hexdigest()[:16]
    assert names == [f"tabs/tab--~{digest}.json"]


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda f: f.pop("index.json"), "index.json is missing"),
        (lambda f: f.pop("tabs/garden--t2.json"), "t2 is in index.json but in no file"),
        (lambda f: f.update({"tabs/old--t9.json": b'[{"id":"t9"}]'}), "t9 is in a file but not"),
        (lambda f: f.update({"tabs/copy--t2.json": f["tabs/garden--t2.json"]}), "t2 is also in"),
        (lambda f: f.pop("code/f1.func.js"), "do not give the revision"),
        (lambda f: f.update({"code/f1.func.js": b"return 1;\n"}), "do not give the revision"),
        (lambda f: f.update({"code/f1.func.js": b"\xff\n"}), "not UTF-8"),
        (lambda f: f.update({"global.json": b"[{]"}), "global.json: not JSON"),
        (lambda f: f.update({"global.json": b"{}"}), "global.json: not an array"),
        (lambda f: f.update({"index.json": b'{"format": 99}'}), "format"),
        (lambda f: f.update({"index.json": b'{"format": 1}'}), "no order"),
        (
            lambda f: f.update({"index.json": f["index.json"].replace(b'"t2"', b'"t1"')}),
            "t1 is in the order twice",
        ),
    ],
)
def test_damage_is_refused_by_name(break_it: object, told: str) -> None:
    files = dict(split(NODES, nodered_version="4.1.15", palette={}))
    assert callable(break_it)
    break_it(files)
    with pytest.raises(FlowsError, match=told):
        join(files)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-5, "0.00001"),
        (1e-7, "1e-7"),
        (1.5e-9, "1.5e-9"),
        (0.000001, "0.000001"),
        (1e20, "100000000000000000000"),
        (1e21, "1e+21"),
        (1.25e300, "1.25e+300"),
        (5e-324, "5e-324"),
        (123456789012345680000, "123456789012345680000"),
        (12345678901234567890, "12345678901234567000"),
        (2**53, "9007199254740992"),
        (-0.0, "0"),
        (-1.0, "-1"),
        (100.25, "100.25"),
        (float("inf"), "null"),
        (10**400, "null"),
        ("\ud800", '"\\ud800"'),
        ("\ud83d\ude00", '"😀"'),
        ('é\u2028\x7f\x1f\b"\\/', '"é\u2028\x7f\\u001f\\b\\"\\\\/"'),
        ({"b": 1, "10": 2, "9": 3, "01": 4, "4294967295": 5}, None),
        ([], "[]"),
        ({}, "{}"),
        ([True, None, {"a": []}], '[true,null,{"a":[]}]'),
    ],
)
def test_json_is_written_as_javascript_does(value: object, text: str | None) -> None:
    assert stringify(value) == (text or '{"9":3,"10":2,"b":1,"01":4,"4294967295":5}')


@given(JSON)
def test_json_written_is_the_same_value_read(value: object) -> None:
    assert stringify(json.loads(stringify(value))) == stringify(value)
    assert stringify(json.loads(stringify(value, 2))) == stringify(value)


def test_a_document_must_be_an_array_of_objects_with_unique_ids() -> None:
    assert parse(NODES, where="here").revision == sha(NODES)
    assert parse([], where="here").revision == flowdoc.EMPTY_REVISION
    assert flowdoc.EMPTY_REVISION.startswith("4f53cda18c2baa0c")
    cases: list[tuple[object, str]] = [
        (None, "no active flow configuration"),
        ({}, "not an array"),
        ("x", "not an array"),
        ([1], "entry 0 is not an object"),
        ([{"type": "tab"}], "entry 0 has no id"),
        ([{"id": ""}], "entry 0 has no id"),
        ([{"id": "a"}, {"id": "a"}], "id a is there twice"),
    ]
    for document, told in cases:
        with pytest.raises(FlowsError, match=told):
            parse(document, where="here")


def test_an_answer_is_proven_by_its_revision() -> None:
    assert parse_answer({"flows": NODES, "rev": sha(NODES)}, where="x").nodes == tuple(NODES)
    wrong: list[object] = [
        None,
        [],
        {"rev": "1"},
        {"flows": NODES, "rev": "0" * 64},
        {"flows": NODES},
    ]
    for document in wrong:
        with pytest.raises(FlowsError):
            parse_answer(document, where="x")


def codes(
    flows: list[Node],
    previous: list[Node] | None,
    *,
    allow_empty: bool = False,
    allow_shrink: bool = False,
) -> list[str]:
    before = None if previous is None else Flows.of(previous)
    found = judge(Flows.of(flows), before, allow_empty=allow_empty, allow_shrink=allow_shrink)
    return [finding.code for finding in found]


def test_an_empty_or_shrunk_document_is_refused_unless_allowed() -> None:
    assert codes([], None) == ["flows.empty"]
    assert codes([], NODES) == ["flows.empty"]
    assert codes([], NODES, allow_empty=True) == []
    assert codes([], []) == []
    assert codes(NODES[:2], NODES) == ["flows.shrunk"]
    assert codes(NODES[:3], NODES) == []
    assert codes(NODES[:2], NODES, allow_shrink=True) == []
    assert codes(NODES, NODES) == codes(NODES, None) == []


TOKEN = "aZ09_-" * 14 + "Qw=="


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("func", "x = 'correct horse'", "the value of MQTT_PASSWORD"),
        ("url", "http://h/?p=correct%20horse", "the value of MQTT_PASSWORD"),
        ("props", [{"p": {"v": "correct horse"}}], "the value of MQTT_PASSWORD"),
        ("payload", "1234", "the value of PIN"),
        ("headers", {"a": f"Token {TOKEN}"}, "an InfluxDB token"),
        ("url", "mqtt://me:s3cret@mqtt", "a password in an address"),
        ("info", "-----BEGIN RSA PRIVATE KEY-----\nMI", "a private key"),
        ("func", "ghp_" + "a1B2" * 9, "a GitHub token"),
        ("credentials", {"user": "a"}, "a credential"),
    ],
)
def test_a_secret_is_refused_with_its_place_and_never_its_value(
    key: str, value: object, what: str
) -> None:
    node: Node = {**FUNCTION, key: value}
    secrets = {"MQTT_PASSWORD": "correct horse", "PIN": "1234"}
    (finding,) = judge(Flows.of([HEATING, node]), None, secrets=secrets)
    assert finding.code == "flows.secret"
    assert what in finding.message
    assert f"tab 'Heizung / Süd', function node 'mean', key {key}" in finding.message
    for text in (finding.message, finding.hint):
        assert "correct" not in text and "1234" not in text and TOKEN not in text
        assert "s3cret" not in text
    assert judge(Flows.of([HEATING, node]), None, secrets=secrets, accepted=[f"f1.{key}"]) == ()


def test_ordinary_content_is_no_secret() -> None:
    harmless: Node = {
        **FUNCTION,
        "url": "http://influxdb:8086/api/v2/write?org=home",
        "func": "// https://example.org/a:b@c\nreturn {topic: '12345', url: `http://${u}:${p}@h`};",
    }
    assert judge(Flows.of([harmless]), None, secrets={"PIN": "1234", "EMPTY": ""}) == ()
