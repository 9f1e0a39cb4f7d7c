"""The two rules of the house: imports only point down, and each outside library has one door.

Read from the syntax tree, imports hidden inside functions included. Why each room stands where it
stands is told in docs/explanation/house.md.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]

FLOORS = (
    ("iotops.__main__", 6),
    ("iotops.cli", 5),
    ("iotops.actions", 4),
    ("iotops.demo", 4),
    *((f"iotops.{room}", 3) for room in ("hub", "journal", "disk", "notify")),
    ("iotops.services", 2),
    ("iotops.clients", 1),
    *((f"iotops.{word}", 0) for word in ("errors", "events", "model", "config", "manifest")),
    *((f"iotops.{word}", 0) for word in ("flowdoc", "flowdiff", "signals", "devices")),
    ("iotops.secretnames", 0),
)

DEMO = "iotops.demo"  # its judges are clients of their own
DOORS = {
    "click": ("iotops.cli",),
    "subprocess": ("iotops.clients.process",),
    "requests": ("iotops.clients.http", DEMO),
    "urllib3": ("iotops.clients.http",),
    "docker": ("iotops.clients.compose",),
    "git": ("iotops.clients.git",),
    "websocket": ("iotops.services.nodered", DEMO),
    "cryptography": ("iotops.services.nodered",),
    "paho": ("iotops.services.mosquitto", "iotops.notify", DEMO),
    "pydantic": ("iotops.config", "iotops.manifest"),
    "pydantic_core": ("iotops.config", "iotops.manifest"),
    "segno": ("iotops.actions.kitpage",),
    "yaml": ("iotops.clients.grafanaprovisioning",),
    "apprise": ("iotops.notify",),
}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in sorted((ROOT / "iotops").rglob("*.py"))}


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def floor(module: str) -> int:
    if module == "iotops":  # the version only
        return 0
    found = [number for room, number in FLOORS if within(module, room)]
    assert found, f"{module} has no floor: give it one here and in docs/explanation/house.md"
    return found[0]


def imports(module: str) -> set[str]:
    """Every module that a module imports, wherever the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute, so that they can be read"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            known = inner & MODULES.keys()
            found |= known
            if known != inner:
                found.add(str(node.module))
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    for other in imports(module) & MODULES.keys():
        assert floor(other) <= floor(module), f"{module} imports {other} from a floor above"
        if within(module, "iotops.services") and within(other, "iotops.services"):
            assert other == "iotops.services.base", f"{module} knows another kind: {other}"
        assert not (within(module, DEMO) and within(other, "iotops.services")), (
            f"{module} judges with the code it judges: {other}"
        )


def test_no_module_reaches_itself() -> None:
    graph = {module: imports(module) & MODULES.keys() - {module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("imports in a circle: " + " -> ".join(error.args[1]))


@pytest.mark.parametrize("module", MODULES)
def test_each_library_has_one_door(module: str) -> None:
    for name in {imported.partition(".")[0] for imported in imports(module)} - {"iotops"}:
        if name in sys.stdlib_module_names and name not in DOORS:
            continue
        assert name in DOORS, f"{module} imports {name}, which has no door yet"
        allowed = any(within(module, room) for room in DOORS[name])
        assert allowed, f"{module} imports {name}; its door is {DOORS[name]}"


IMPORTED_AS = {
    "gitpython": "git",
    "paho-mqtt": "paho",
    "pyyaml": "yaml",
    "websocket-client": "websocket",
}


def test_what_is_installed_is_used() -> None:
    """On a Pi every library costs a download, space on the card, and updates."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[<>=\[ ]", one)[0].lower() for one in project["dependencies"]]
    used = {name.partition(".")[0] for module in MODULES for name in imports(module)}
    assert sorted(name for name in names if IMPORTED_AS.get(name, name) not in used) == []
    page = (ROOT / "docs/explanation/house.md").read_text()
    assert [name for name in names if name not in page.lower()] == []


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["backup", "--help"]])
def test_start_loads_click_only(words: list[str]) -> None:
    argv = [sys.executable, "-X", "importtime", "-m", "iotops", *words]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0 and "iotops" in done.stdout, done.stderr
    names = (line.rpartition("|")[2].strip() for line in done.stderr.splitlines())
    loaded = {name.partition(".")[0] for name in names}
    assert "click" in loaded
    assert loaded & (DOORS.keys() - {"click", "subprocess"}) == set()
