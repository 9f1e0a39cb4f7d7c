"""Retention, check, prune and a copy on a whole hub: once through, as its timers would.

Every rule and every fault is in `tests/clients/test_upkeep.py` and `test_copies.py`.
"""

from __future__ import annotations

import json

import pytest

from tests.support.hubs import HubUnderTest

pytestmark = pytest.mark.e2e


def test_the_repositories_of_a_whole_hub(hub: HubUnderTest) -> None:
    settings = hub.folder / "iotops.toml"
    before, aside = settings.read_text(), hub.base / "repository.aside"
    try:
        made = hub.iotops(
            *("init", "--repository", str(hub.base / "copy"), "--copy", "disk"),
            *("--password-file", str(hub.base / "secrets" / "copy-password")),
        )
        assert made.code == 0, made.err
        settings.write_text(settings.read_text() + "\n[retention]\nkeep_last = 1\n")
        refused = hub.iotops("backup")
        assert refused.code == 2 and "unknown key" in refused.err
        text = settings.read_text().replace("keep_last = 1", "keep_daily = 1\nkeep_at_least = 1")
        settings.write_text(text)
        first = hub.iotops("backup", "--json")
        assert first.code == 0, first.err
        result = first.result()
        forgotten, copies = result["forgotten"], result["copies"]
        assert isinstance(forgotten, list) and len(forgotten) >= 1
        assert isinstance(copies, list) and copies[0]["standing"] == "complete"
        for command in (("check", "--all"), ("prune", "--yes"), ("retention",), ("doctor",)):
            done = hub.iotops(*command)
            assert done.code in (0, 1) if command == ("doctor",) else done.code == 0, done.err
        status = hub.iotops("status", "--json").result()
        assert {one["action"] for one in status["last"]} >= {  # type: ignore[attr-defined]
            *("backup", "check", "copy", "prune", "retention")
        }
        # The first repository is lost: one service comes back from the copy.
        hub.repository.rename(aside)
        lost = hub.iotops("restore", "latest", "--service", "mosquitto", "--yes")
        assert lost.code == 10
        argv = ("restore", "latest", "--service", "mosquitto", "--from", "disk", "--yes")
        back = hub.iotops(*argv, "--json")
        assert back.code == 0, back.err + back.out
        (copied,) = json.loads(hub.iotops("snapshots", "--from", "disk", "--json").out)
        assert back.result()["snapshot"] == copied["id"]
    finally:
        if aside.exists():
            aside.rename(hub.repository)
        settings.write_text(before)
    assert hub.iotops("backup").code == 0
