"""The manifest: what is written is read again, and what is not a manifest is refused by name."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotops import manifest
from iotops.clients.files import path_text
from iotops.errors import CaptureError, ManifestError
from iotops.model import (
    MANIFEST_FORMAT,
    Artifact,
    HostRecord,
    LeftOut,
    Manifest,
    Mode,
    Outcome,
    PartRecord,
    PublishedPort,
    ServiceRecord,
)

pytestmark = pytest.mark.unit

FOREIGN = b"mqtt/a\xe9".decode("utf-8", "surrogateescape")
"""A file name that is no UTF-8, as Python reads it from the disk."""

MADE = Manifest(
    format=MANIFEST_FORMAT,
    hub_id="0123456789abcdef",
    hub_name="iot-hub",
    run="20260301T120000Z-backup-aaaa",
    host=HostRecord("pi", "aarch64", "Debian GNU/Linux 12", "ab12"),
    versions={"iotops": "0.1.0", "restic": "0.18.0"},
    started=datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC),
    ended=datetime(2026, 3, 1, 12, 0, 9, tzinfo=UTC),
    outcome=Outcome.PARTIAL,
    commits={"main": "c0ffee"},
    services=(
        ServiceRecord(
            name="mqtt",
            kind="mosquitto",
            container="mosquitto",
            folder="mqtt",
            mode=Mode.HOT,
            counts={"retained": 3},
            artifacts=(
                Artifact(path_text(FOREIGN), "file", 1, 0o600, 1883, 1883, 10**18, 7, "ab" * 32),
                Artifact("mqtt/link", "symlink", 0, 0o777, 0, 0, 1, target="a"),
            ),
            left_out=(LeftOut("log/", "the broker's log", 2, 99),),
            warnings=("careful",),
            extra='{"a": 1}',
        ),
    ),
    parts=(PartRecord("hub", error="gone"),),
)


def test_what_is_written_is_read_again() -> None:
    data = manifest.encode(MADE)
    assert manifest.decode(data, where="x") == MADE
    assert data.endswith(b"}\n") and b'\n  "format": 1' in data
    assert [one.path for one in MADE.artifacts()] == ["mqtt/a\\xe9", "mqtt/link"]
    assert MADE.service("mqtt") is MADE.services[0] and MADE.service("x") is None


def test_a_manifest_of_an_earlier_iotops_is_read_without_the_newer_fields() -> None:
    newer = dataclasses.replace(
        MADE,
        host=dataclasses.replace(MADE.host, addresses=("192.168.1.5",)),
        root="/mnt/iot-data",
        ports={"mosquitto": (PublishedPort("", 1883, 1883, "tcp"),), "influxdb": ()},
    )
    data = manifest.encode(newer)
    assert manifest.decode(data, where="x") == newer
    assert manifest.read(data.splitlines(keepends=True), where="x") == newer
    document = json.loads(data)
    for table, key in ((document["host"], "addresses"), (document, "root"), (document, "ports")):
        del table[key]
    assert manifest.decode(json.dumps(document).encode(), where="x") == MADE
    assert MADE.ports is None and MADE.root == ""


def test_what_is_written_is_read_again_line_by_line() -> None:
    data = manifest.encode(MADE)
    assert b'\n{"path":"mqtt/' in data  # one artifact a line
    assert manifest.read(data.splitlines(keepends=True), where="x") == MADE
    bare = dataclasses.replace(MADE, services=(), parts=())
    assert manifest.read(manifest.encode(bare).splitlines(keepends=True), where="x") == bare


def test_a_manifest_cut_short_or_of_another_layout_is_not_read_by_lines() -> None:
    lines = manifest.encode(MADE).splitlines(keepends=True)
    other = json.dumps(json.loads(b"".join(lines)), indent=2).encode().splitlines(keepends=True)
    for wrong in (other, *(lines[:length] for length in range(len(lines) - 1))):
        with pytest.raises(ManifestError, match="the manifest of x is damaged"):
            manifest.read(wrong, where="x")


def test_a_text_that_looks_like_the_layout_does_no_harm() -> None:
    trap = '"artifacts": [\n"artifacts": []\n]'
    service = dataclasses.replace(MADE.services[0], extra=trap, warnings=(trap, '"artifacts": []'))
    made = dataclasses.replace(MADE, services=(service,))
    data = manifest.encode(made)
    assert manifest.decode(data, where="x") == made
    assert manifest.read(data.splitlines(keepends=True), where="x") == made


@pytest.mark.parametrize(
    "path", ["mqtt/a\\xe9", "other/mqtt", "/etc/passwd", "mqtt/../x", "mqtt//x", "mqttx", ""]
)
def test_a_path_claimed_twice_or_elsewhere_is_neither_written_nor_read(path: str) -> None:
    service = MADE.services[0]
    more = dataclasses.replace(service.artifacts[0], path=path)
    made = dataclasses.replace(
        MADE, services=(dataclasses.replace(service, artifacts=(*service.artifacts, more)),)
    )
    with pytest.raises(ManifestError, match="does not read back"):
        manifest.encode(made)
    document = json.loads(manifest.encode(MADE))
    (first,) = document["services"]
    first["artifacts"].append({**first["artifacts"][0], "path": path})
    with pytest.raises(ManifestError, match="is claimed twice, or outside of its part"):
        manifest.decode(json.dumps(document).encode(), where="x")


def test_an_error_about_a_file_whose_name_is_no_text_can_be_written() -> None:
    error = CaptureError(f"{FOREIGN} cannot be copied", hint=f"rm {FOREIGN}")
    part = PartRecord("other", error=str(error))
    made = dataclasses.replace(MADE, parts=(part,))
    assert manifest.decode(manifest.encode(made), where="x") == made
    assert "cannot be copied" in part.error and error.hint.encode()


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": "1"}', b'{"format": 1}', b"{}"],
)
def test_a_damaged_manifest_is_refused_with_the_next_step(data: bytes) -> None:
    with pytest.raises(ManifestError, match="the manifest of snapshot 1a2b is damaged") as caught:
        manifest.decode(data, where="snapshot 1a2b")
    assert "iotops snapshots" in caught.value.hint


def test_a_manifest_cut_short_anywhere_is_damaged() -> None:
    data = manifest.encode(MADE)
    for length in range(0, len(data) - 2, 7):
        with pytest.raises(ManifestError, match="damaged"):
            manifest.decode(data[:length], where="x")


def test_a_newer_format_is_told_from_damage() -> None:
    with pytest.raises(ManifestError, match=r"format 2; this iotops reads up to 1") as caught:
        manifest.decode(json.dumps({"format": 2, "shape": "unknown"}).encode(), where="x")
    assert "newer" in caught.value.hint


@pytest.mark.parametrize("field", ["hub_id", "services", "outcome", "started"])
def test_a_missing_or_wrong_field_is_damage(field: str) -> None:
    document = json.loads(manifest.encode(MADE))
    values: tuple[object, ...] = (
        None,
        {"x": []},
        "nothing of the kind" if field != "hub_id" else 7,
    )
    for value in values:
        with pytest.raises(ManifestError, match="damaged"):
            manifest.decode(json.dumps({**document, field: value}).encode(), where="x")
    del document[field]
    if field != "services":  # a snapshot of no service has none
        with pytest.raises(ManifestError, match="damaged"):
            manifest.decode(json.dumps(document).encode(), where="x")


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_its_own_error(data: bytes) -> None:
    with pytest.raises(ManifestError):
        manifest.decode(data, where="x")


def test_deep_nesting_is_damage_too() -> None:
    with pytest.raises(ManifestError, match="damaged"):
        manifest.decode(b'{"format": 1, "hub_id": ' + b"[" * 200_000, where="x")
