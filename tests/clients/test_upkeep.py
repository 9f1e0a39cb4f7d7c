"""Retention, check, prune and damage on a hub with a real repository, in every version of restic.

The rules themselves are in `tests/unit/test_retention.py`; here they meet restic's own plan, the
state file, and repositories that were really harmed. The printed next steps are followed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.hubs import Ended
from tests.support.lab import lab
from tests.support.lighthub import ENDS, HUB, ONE, VERSIONS, LightHub, words
from tests.support.resticbench import died_with_lock, environment

pytestmark = pytest.mark.clients

DAY = timedelta(days=1)
NOW = datetime.now(UTC)


# -- retention ------------------------------------------------------------------------------------


def fates(hub: LightHub) -> dict[str, tuple[str, str]]:
    """Give what the shown plan says of each snapshot."""
    found = hub.good("retention")["snapshots"]
    assert isinstance(found, list)
    return {one["id"]: (one["fate"], one["why"]) for one in found}


@ENDS
def test_the_plan_is_shown_and_a_backup_applies_it(hub: LightHub) -> None:
    (today,) = hub.ids()
    week = [hub.old(NOW - DAY * day) for day in (1, 2, 3, 30, 31)]
    hub.add("[retention]\nkeep_daily = 3\nkeep_at_least = 2\n")
    plan = fates(hub)
    assert [plan[one][0] for one in week] == ["stays", "stays", "goes", "goes", "goes"]
    assert plan[today] == ("stays", "last snapshot, daily snapshot")
    assert plan[week[2]][1] == "no keep rule holds it"
    shown = hub.iotops("retention")
    words(shown, "3 stay, 3 go", week[4][:8])
    assert len(hub.ids()) == 6  # shown only
    refused = hub.iotops("retention", "--apply")
    assert (refused.code, len(hub.ids())) == (2, 6)
    words(refused, "--yes")
    # The new one of today takes the place of the first: one a day, and two at least.
    made = hub.good("backup")
    assert {str(made["snapshot"]), week[0], week[1]} <= {*hub.ids()}
    gone = made["forgotten"]
    assert isinstance(gone, list) and {*week[2:]} <= {*gone}
    assert not {*hub.ids()} & {*gone}
    # Once a day: an old one that comes now waits for tomorrow, or for a hand.
    late = hub.old(NOW - DAY * 40)
    assert hub.good("backup")["forgotten"] == [] and late in hub.ids()
    done = hub.good("retention", "--apply", "--yes")
    assert late in done["forgotten"] and late not in hub.ids()  # type: ignore[operator]


@ENDS
def test_a_partial_one_never_displaces_a_complete_one(hub: LightHub) -> None:
    """Both of one day; the partial one is the newer, and would hold the daily rule's place."""
    morning = hub.old(NOW - DAY * 3 - timedelta(hours=5))
    hub.old(NOW - DAY * 3, "partial")
    stale = hub.old(NOW - DAY * 20, "partial")
    hub.add("[retention]\nkeep_daily = 5\nkeep_at_least = 1\n")
    plan = fates(hub)
    assert plan[morning][0] == "stays"
    assert plan[stale] == (
        "goes",
        "partial, older than 7 days, a newer complete one exists",
    )
    hub.good("retention", "--apply", "--yes")
    assert morning in hub.ids() and stale not in hub.ids()


@ONE
def test_a_repaired_one_takes_no_complete_ones_place(hub: LightHub) -> None:
    """restic itself would keep the repaired one of that day, and forget the complete one."""
    morning = hub.old(NOW - DAY * 3 - timedelta(minutes=2))
    evening = hub.old(NOW - DAY * 3)
    hub.restic("tag", "--add", "repaired", evening)
    week = [hub.old(NOW - DAY * day) for day in (5, 6, 7)]
    hub.add("[retention]\nkeep_daily = 3\nkeep_at_least = 1\n")
    plan = fates(hub)
    assert plan[morning][0] == plan[week[0]][0] == "stays"
    assert plan[week[2]][0] == "goes"


@ONE
def test_the_last_drilled_one_stays_and_strangers_are_left_alone(hub: LightHub) -> None:
    drilled, other = hub.old(NOW - DAY * 60), hub.old(NOW - DAY * 61)
    # Another hub's snapshot in the same repository.
    hub.restic("tag", "--set", "iotops,ffffffffffffffff,complete", other)
    (other,) = [one["id"] for one in listed(hub) if HUB not in one["tags"]]
    path = hub.base / "state" / f"{HUB}.json"
    state = hub.state()
    last = state["last"]
    assert isinstance(last, dict)
    last["drill"] = {"time": "2026-01-01T00:00:00+00:00", "outcome": "complete", "message": ""}
    last["drill"]["snapshot"] = drilled
    path.write_text(json.dumps(state))
    hub.add("[retention]\nkeep_daily = 1\nkeep_at_least = 1\n")
    assert fates(hub)[drilled] == ("stays", "the last one that a drill has proven")
    hub.good("retention", "--apply", "--yes")
    assert {drilled, other} <= set(hub.ids())


def listed(hub: LightHub) -> list[dict[str, str]]:
    found = json.loads(hub.restic("snapshots", "--json", "--no-lock"))
    assert isinstance(found, list)
    return found


@ONE
def test_nothing_is_forgotten_after_a_partial_run(hub: LightHub) -> None:
    old = hub.old(NOW - DAY * 60)
    hub.add("[retention]\nkeep_daily = 1\nkeep_at_least = 1\n")
    hub.add('[services.gone]\nkind = "files"\nfolder = "gone"\nhot = true\n')
    done = hub.iotops("backup")
    assert done.code == 3 and old in hub.ids()
    words(done, "missing: gone")
    assert "retention" not in hub.state()["last"]  # type: ignore[operator]


@ONE
def test_nothing_is_forgotten_after_a_run_that_was_not_verified(hub: LightHub) -> None:
    """restic that gives back another manifest than was saved."""
    old = hub.old(NOW - DAY * 60)
    hub.add("[retention]\nkeep_daily = 1\nkeep_at_least = 1\n")
    liar = hub.programs / "restic"
    liar.unlink()
    liar.write_text(
        f'#!/bin/sh\n[ "$1" = dump ] && {{ echo "{{}}"; exit 0; }}\n'
        f'exec {hub.restic_program} "$@"\n'
    )
    liar.chmod(0o755)
    before = hub.ids()
    done = hub.iotops("backup")
    assert done.code == 1 and old in hub.ids()
    words(done, "gives back another manifest")
    assert hub.ids() == before  # what does not count was forgotten
    assert "retention" not in hub.state()["last"]  # type: ignore[operator]


@ONE
def test_without_the_table_nothing_is_ever_forgotten(hub: LightHub) -> None:
    old = hub.old(NOW - DAY * 900)
    assert hub.good("backup")["forgotten"] == [] and old in hub.ids()
    done = hub.iotops("retention")
    assert done.code == 2
    words(done, "nothing is ever forgotten", "keep_daily = 7")


@ONE
def test_a_snapshot_of_the_future_stops_the_retention_and_not_the_backup(hub: LightHub) -> None:
    hub.old(NOW + DAY * 30)
    old = hub.old(NOW - DAY * 60)
    hub.add("[retention]\nkeep_daily = 1\nkeep_at_least = 1\n")
    shown = hub.iotops("retention")
    assert shown.code == 1
    words(shown, "lies in the future", "timedatectl")
    made = hub.good("backup")
    assert made["forgotten"] == [] and old in hub.ids()
    words(hub.iotops("status"), "the last retention failed", "lies in the future")


# -- check and prune ------------------------------------------------------------------------------


@ENDS
def test_the_parts_take_turns_over_restarts_and_prune_frees(hub: LightHub) -> None:
    scopes = [hub.good("check", "--parts", "3")["scope"] for _ in range(4)]
    assert scopes == ["1/3", "2/3", "3/3", "1/3"]
    assert hub.state()["check"] == {"part": "1", "of": "3"}
    assert hub.good("check", "--all")["scope"] == "all"
    assert hub.state()["check"] == {"part": "1", "of": "3"}
    assert hub.good("check", "--parts", "2")["scope"] == "1/2"  # another division begins anew
    hub.change(os.urandom(300_000).hex())
    made = hub.good("backup")
    (hub.notes / "two.txt").unlink()
    hub.good("backup", "--accept-shrink")
    hub.restic("forget", str(made["snapshot"]))
    refused = hub.iotops("prune")
    assert refused.code == 2
    words(refused, "--yes")
    size = weight(hub.repository)
    freed = hub.good("prune", "--yes", "--max-unused", "0%")["freed"]
    assert isinstance(freed, str) and freed.endswith("KiB"), freed
    assert weight(hub.repository) < size - 250_000
    assert hub.good("check", "--all")["scope"] == "all"


def weight(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@ONE
def test_a_check_that_failed_does_not_advance_and_stops_the_prune(hub: LightHub) -> None:
    assert hub.good("check", "--parts", "3")["scope"] == "1/3"
    password = hub.password_file.read_text()
    hub.password_file.write_text("another one\n")
    failed = hub.iotops("check", "--parts", "3")
    assert failed.code == 12
    hub.password_file.write_text(password)
    assert hub.state()["check"] == {"part": "1", "of": "3"}
    words(hub.iotops("status"), "the last check failed")
    refused = hub.iotops("prune", "--yes")
    assert refused.code == 1
    words(refused, "nothing is pruned after a check that failed", "next:  check again first")
    assert hub.good("check", "--parts", "3")["scope"] == "2/3"
    hub.good("prune", "--yes")


@ONE
def test_what_a_killed_check_left_in_the_cache_is_swept(hub: LightHub) -> None:
    left = hub.root / ".iotops" / "restic-cache" / "restic-check-cache-1234"
    left.mkdir(parents=True)
    hub.good("check")
    assert not left.exists()


@ONE
@pytest.mark.parametrize("amount", ["ten", "10 %", "-1", "10%; rm"])
def test_an_amount_that_is_none_is_refused(hub: LightHub, amount: str) -> None:
    done = hub.iotops("prune", "--yes", f"--max-unused={amount}")
    assert done.code == 2
    words(done, "is no amount")


# -- damage ---------------------------------------------------------------------------------------


def packs(hub: LightHub) -> list[Path]:
    """Give the repository's packs, those with the contents of files first."""
    found = [path for path in (hub.repository / "data").rglob("*") if path.is_file()]
    return sorted(found, key=lambda path: path.stat().st_size, reverse=True)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.chmod(0o600)
    path.write_bytes(data)


def grown(hub: LightHub) -> str:
    """Make a snapshot whose data nothing else has, then change the hub; gives its id."""
    (hub.notes / "lost.bin").write_bytes(os.urandom(200_000))
    made = hub.good("backup")
    return str(made["snapshot"])


def damaged(hub: LightHub) -> tuple[Ended, list[str]]:
    """Check the whole repository, which must find damage; gives the end and the printed steps."""
    before = {path: path.stat().st_mtime_ns for path in kept(hub)}
    done = hub.iotops("check", "--all")
    assert done.code == 1, done.out + done.err
    words(done, "is damaged", "next:", "nothing was changed; do these by hand, in this order:")
    assert {path: path.stat().st_mtime_ns for path in kept(hub)} == before
    assert hub.state()["check"]["damaged"]  # type: ignore[index]
    return done, re.findall(r"(?m)^  \d+\. (.+)$", done.err)


def kept(hub: LightHub) -> list[Path]:
    """Give all files of the repository but locks, which come and go."""
    found = [path for path in hub.repository.rglob("*") if path.is_file()]
    return [path for path in found if path.parent.name != "locks"]


def stopped(hub: LightHub) -> None:
    """Nothing that removes is done, unattended or by hand; status says why."""
    old = len(hub.ids())
    refused = hub.iotops("prune", "--yes")
    assert refused.code == 1
    words(refused, "nothing is pruned while the repository is damaged", "iotops check")
    refused = hub.iotops("retention", "--apply", "--yes")
    assert refused.code == 1
    words(refused, "nothing is forgotten while the repository is damaged")
    assert len(hub.ids()) == old
    status = hub.iotops("status")
    assert status.code == 1
    words(status, "found damage")


def follow(hub: LightHub, steps: list[str]) -> list[str]:
    """Do what the steps say, each in the shell as a person would; gives what was done."""
    environment = hub.environment({"PATH": f"{hub.programs}:{os.environ['PATH']}"})
    environment["IOTOPS_HUB"] = str(hub.folder)
    environment["HOME"] = str(hub.base)
    done: list[str] = []
    exported = said = ""
    for step in steps:
        text = re.sub(r"^[a-z ]+: (?=sudo )", "", step)
        text = re.sub(r" \((?:saves|makes|of) [^)]*\)$", "", text).replace("sudo ", "")
        if text == "restic forget ID ...":
            parts = re.split(r"(?m)^snapshot (?=[0-9a-f]{8} of )", said)
            repaired = [part[:8] for part in parts[1:] if "saved new snapshot" in part]
            if not repaired:
                continue
            text = f"restic forget {' '.join(repaired)}"
        if text.startswith("export "):
            exported = text + "; "
            continue
        if moved := re.fullmatch(r"move data/(\S+) out of the repository", text):
            (hub.repository / "data" / moved[1]).rename(hub.base / Path(moved[1]).name)
        elif text.startswith("if the next check"):
            continue
        else:
            assert text.split()[0] in ("cp", "restic", "iotops"), step
            line = text.replace("iotops ", f"{shlex.quote(sys_executable())} -m iotops ", 1)
            ended = subprocess.run(
                ["sh", "-c", exported + (line if text.startswith("iotops") else text)],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                cwd=hub.base,  # `repair packs` keeps the packs that it mends in the current folder
            )
            assert ended.returncode == 0 or text.startswith("iotops check"), (
                step + ended.stdout + ended.stderr
            )
            said = ended.stdout
        done.append(text)
    return done


def sys_executable() -> str:
    import sys

    return sys.executable


@pytest.mark.parametrize("harm", ["flipped", "missing"])
def test_a_damaged_or_missing_pack(hub: LightHub, harm: str) -> None:
    """What the hub still has is whole again; only an old snapshot loses what nobody has."""
    hub.add("[retention]\nkeep_daily = 7\n")
    old = grown(hub)
    lost_pack = packs(hub)[0]
    (hub.notes / "lost.bin").unlink()  # the hub no longer has it
    newest = str(hub.good("backup", "--accept-shrink")["snapshot"])
    if harm == "flipped":
        flip(lost_pack, 1000)
    else:
        lost_pack.unlink()
    done, steps = damaged(hub)
    assert done.out.count("\n") < 30, "too much of restic's own words"
    assert lost_pack.name[:8] in done.out, done.out
    if harm == "flipped":  # restic 0.14 looks for a missing one for most of a minute
        assert hub.iotops("check").code == 1  # the same part again, until it is found whole
    assert hub.state()["check"]["scope"] == "all"  # type: ignore[index]
    stopped(hub)
    followed = follow(hub, steps)
    assert followed[0].startswith("cp -a") and (hub.base / "repository.damaged").is_dir()
    modern = [int(part) for part in hub.version.split(".")] >= [0, 16, 0]
    if modern:
        again = hub.iotops("check", "--all")
        assert again.code == 0, again.out + again.err
        assert hub.state()["check"].keys() <= {"part", "of"}  # type: ignore[attr-defined]
        assert newest in hub.ids() and old not in hub.ids()  # rewritten without what is lost
    else:
        again = hub.iotops("check", "--all")
        assert again.code == 1  # restic 0.14 has no repair of snapshots; it names what is lost
        words(again, "on another machine")
        # As the step says: with a newer restic, on the same repository.
        newer = lab().restic[VERSIONS[-1]]
        hub.restic("repair", "snapshots", program=newer)
        hub.restic("forget", old, program=newer)
        again = hub.iotops("check", "--all")
        assert again.code == 0, again.out + again.err
    words(hub.iotops("retention"), "neither complete nor partial by its tags")
    for snapshot in (newest, hub.ids()[-1]):
        target = hub.base / f"out-{snapshot[:4]}"
        back = hub.iotops("restore", snapshot, "--into", str(target))
        assert back.code == 0, back.err
        assert (target / "notes" / "one.txt").read_bytes() == (hub.notes / "one.txt").read_bytes()


def test_a_missing_index(hub: LightHub) -> None:
    """Nothing is lost: the index is made again from the packs."""
    hub.add("[retention]\nkeep_daily = 7\n")
    before = hub.ids()
    for path in (hub.repository / "index").iterdir():
        path.unlink()
    _, steps = damaged(hub)
    stopped(hub)
    follow(hub, steps)
    again = hub.iotops("check", "--all")
    assert again.code == 0, again.out + again.err
    assert set(before) <= set(hub.ids())
    target = hub.base / "out"
    assert hub.iotops("restore", before[0], "--into", str(target)).code == 0


@pytest.mark.parametrize("size", [0, 60])
def test_a_truncated_config(hub: LightHub, size: int) -> None:
    """Every call says so; the file put back from a copy makes all well."""
    config = hub.repository / "config"
    spare = config.read_bytes()
    config.chmod(0o600)
    os.truncate(config, size)
    done = hub.iotops("backup")
    assert done.code == 1
    words(done, "the repository is damaged", "next:")
    done, steps = damaged(hub)
    assert "put the file `config` back from any copy" in steps[1]
    assert "iotops init --repository URL" in steps[2]
    refused = hub.iotops("prune", "--yes")
    assert refused.code == 1
    config.write_bytes(spare)
    assert hub.iotops("check").code == 0
    assert hub.good("backup")["outcome"] == "complete"


@ENDS
def test_the_lock_of_a_restic_that_nobody_has_reaped(hub: LightHub) -> None:
    """Its number is taken as long as its parent does not look, and restic asks by number."""
    values = environment(hub.repository, hub.password_file, hub.base)
    child = died_with_lock(hub.restic_program, values)
    try:
        assert [*(hub.repository / "locks").iterdir()]
        done = hub.iotops("prune", "--yes")
        assert done.code == 0, done.err
        assert not [*(hub.repository / "locks").iterdir()]
    finally:
        child.wait()
    assert child.returncode < 0
