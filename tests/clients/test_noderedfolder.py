"""What lies in a Node-RED user directory, told from the files alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from iotops import flowdoc
from iotops.clients import noderedfolder
from iotops.clients.noderedfolder import FlowSet

pytestmark = pytest.mark.clients

NODES = [{"id": "t", "type": "tab", "label": "x"}]
REV = flowdoc.revision(NODES)


def write(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=4))
    return path


def test_the_flow_file_is_found_by_its_content_whatever_it_is_called(tmp_path: Path) -> None:
    write(tmp_path / "flows.json", [])
    write(tmp_path / "flows_raspberrypi.json", NODES)
    write(tmp_path / "package.json", {"dependencies": {}})
    found = FlowSet.find(tmp_path, REV, "")
    assert (found.flows, found.credentials) == (
        "flows_raspberrypi.json",
        "flows_raspberrypi_cred.json",
    )
    assert FlowSet.find(tmp_path, "0" * 64, "").flows == ""


def test_a_chosen_file_may_lie_below_and_has_its_credentials_beside_or_on_top(
    tmp_path: Path,
) -> None:
    write(tmp_path / "sub" / "mine.json", NODES)
    write(tmp_path / "sub" / "mine_cred.json", {})
    assert FlowSet.find(tmp_path, REV, "sub/mine.json").credentials == "sub/mine_cred.json"
    write(tmp_path / "mine_cred.json", {})
    assert FlowSet.find(tmp_path, REV, "sub/mine.json").credentials == "mine_cred.json"
    assert FlowSet.still(tmp_path, "sub/mine.json").flows == "sub/mine.json"


def test_the_active_project_holds_the_flows_and_the_old_ones_are_stale(tmp_path: Path) -> None:
    write(tmp_path / "flows.json", [])
    write(tmp_path / ".config.projects.json", {"activeProject": "home", "projects": {"home": {}}})
    project = tmp_path / "projects" / "home"
    write(project / "flow.json", NODES)
    write(
        project / "package.json",
        {"node-red": {"settings": {"flowFile": "flow.json", "credentialsFile": "secret.json"}}},
    )
    found = FlowSet.find(tmp_path, REV, "")
    assert (found.flows, found.credentials, found.project) == (
        "projects/home/flow.json",
        "projects/home/secret.json",
        "home",
    )
    assert FlowSet.still(tmp_path, "") == found
    # Projects switched off again: the old file is the one that runs.
    assert FlowSet.find(tmp_path, flowdoc.EMPTY_REVISION, "").flows == "flows.json"


@pytest.mark.parametrize("evil", ["../home", "/etc", "", 7])
def test_a_project_name_cannot_lead_out_of_the_folder(tmp_path: Path, evil: object) -> None:
    write(tmp_path / ".config.projects.json", {"activeProject": evil})
    assert noderedfolder.active_project(tmp_path) is None


def test_nothing_is_read_through_a_link(tmp_path: Path) -> None:
    real = write(tmp_path / "elsewhere", NODES)
    (tmp_path / "flows.json").symlink_to(real)
    assert noderedfolder.read(tmp_path / "flows.json") is None
    assert FlowSet.find(tmp_path, REV, "").flows == ""


def palette(folder: Path, version: str = "1.0.0", installed: str = "1.0.0") -> None:
    write(folder / "package.json", {"dependencies": {"a": "~1.0.0"}})
    write(
        folder / "package-lock.json",
        {
            "packages": {
                "": {},
                "node_modules/a": {"version": version},
                "node_modules/a/node_modules/b": {"version": "2.0.0"},
                "node_modules/fsevents": {"version": "2.3.3", "optional": True},
                "node_modules/dev": {"version": "1.0.0", "dev": True},
            }
        },
    )
    write(folder / "node_modules" / "a" / "package.json", {"version": installed})
    write(folder / "node_modules/a/node_modules/b" / "package.json", {"version": "2.0.0"})


def test_an_equal_lock_reuses_a_whole_palette_and_nothing_else(tmp_path: Path) -> None:
    live, folder = tmp_path / "live", tmp_path / "new"
    palette(live)
    (live / "node_modules" / "link").symlink_to("a")
    folder.mkdir()
    assert not noderedfolder.take_over_palette(live, folder)
    (folder / "package-lock.json").write_bytes((live / "package-lock.json").read_bytes())
    assert noderedfolder.lacking(folder) == ["a", "b"]
    assert noderedfolder.take_over_palette(live, folder)
    assert (folder / "node_modules" / "link").is_symlink()
    assert noderedfolder.lacking(folder) == []


def test_a_palette_that_does_not_fit_its_own_lock_is_not_reused(tmp_path: Path) -> None:
    live, folder = tmp_path / "live", tmp_path / "new"
    palette(live, installed="0.9.0")
    folder.mkdir()
    (folder / "package-lock.json").write_bytes((live / "package-lock.json").read_bytes())
    assert noderedfolder.lacking(live) == ["a"]
    assert not noderedfolder.take_over_palette(live, folder)


def compiled(path: Path, processor: int) -> None:
    """Write the head of a compiled module: an ELF file of 64 bits, little end first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + (3).to_bytes(2, "little")
    path.write_bytes(head + processor.to_bytes(2, "little") + bytes(40))


def test_a_module_compiled_for_another_processor_is_named(tmp_path: Path) -> None:
    """As on a disk that was moved from a Pi to another machine."""
    palette(tmp_path)
    modules = tmp_path / "node_modules"
    assert noderedfolder.foreign(tmp_path, "amd64") == ""
    compiled(modules / "a/build/Release/a.node", 183)
    # Packages bring these for all processors, and choose themselves.
    compiled(modules / "b/prebuilds/linux-arm/b.node", 40)
    (modules / "a/no.node").write_text("no ELF file")
    (modules / "a/link.node").symlink_to("gone")
    assert noderedfolder.foreign(tmp_path, "arm64") == ""
    assert noderedfolder.foreign(tmp_path, "amd64") == "a/build/Release/a.node"
    assert noderedfolder.foreign(tmp_path / "none", "amd64") == ""


def test_this_machines_own_processor_is_known() -> None:
    usual = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
    assert noderedfolder.own_processor() in {usual.get(os.uname().machine), "arm", "386"}
