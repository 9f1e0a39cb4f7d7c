"""Config-sync against real Git, without containers: drift, local edits, adopting, odd remotes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import need
from tests.support.lighthub import VERSIONS, LightHub, words

pytestmark = pytest.mark.clients

SECRET = "a-long-value-of-env"


def git(folder: Path, *argv: str) -> str:
    who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_CONFIG_NOSYSTEM": "1"}
    who |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b", "HOME": "/nonexistent"}
    done = subprocess.run(
        ["git", "-C", folder, *argv],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **who},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LightHub]:
    """A hub in Git whose engine runs nothing."""
    need("git")
    need("restic")
    made = LightHub(tmp_path / "base", VERSIONS[-1])
    (made.folder / ".env").write_text(f"API_TOKEN={SECRET}\n")
    (made.folder / ".gitignore").write_text("/.env\n")
    (made.folder / "acl").write_text("topic read one\n")
    git(made.folder, "init", "-q", "-b", "main")
    git(made.folder, "add", "-A")
    git(made.folder, "commit", "-qm", "Begin")
    yield made


@pytest.fixture
def desk(hub: LightHub) -> Path:
    """A clone at somebody's desk; the hub follows it."""
    folder = hub.base / "desk"
    git(hub.base, "clone", "-q", str(hub.folder), str(folder))
    hub.add(f'[sync]\nremote = "{folder}"\n')
    shutil.copy(hub.settings, folder / "iotops.toml")
    git(folder, "commit", "-qam", "Follow the desk")
    git(hub.folder, "commit", "-qam", "Follow the desk")
    git(hub.folder, "fetch", "-q", str(folder), "main")
    git(hub.folder, "reset", "-q", "--hard", "FETCH_HEAD")
    return folder


def plan(hub: LightHub, code: int) -> dict[str, object]:
    done = hub.iotops("sync", "plan", "--exit-code", "--json")
    assert done.code == code, done.out + done.err
    return done.result()


def codes(found: dict[str, object]) -> list[str]:
    findings = found["findings"]
    assert isinstance(findings, list)
    return [one["code"] for one in findings]


def test_equal_then_edited_then_adopted(hub: LightHub) -> None:
    assert plan(hub, 0)["changes"] == []
    (hub.folder / "acl").write_text("topic read two\n")
    (hub.folder / "new.conf").write_text("x\n")
    assert codes(plan(hub, 4)) == ["sync.local", "sync.local"]
    shown = hub.iotops("sync", "plan")
    assert shown.code == 0
    words(shown, "local acl", "-topic read one", "+topic read two", "iotops sync adopt")
    told = hub.iotops("sync", "status", "--exit-code")
    assert told.code == 4
    words(told, "nothing has been applied yet", "differs: files: 2")

    one = hub.iotops("sync", "adopt", "acl", "-m", "Two")
    assert one.code == 0, one.err
    assert git(hub.folder, "log", "-1", "--format=%s %an") == "Two iotops"
    assert git(hub.folder, "status", "--short") == "?? new.conf"
    rest = hub.good("sync", "adopt")
    assert rest["paths"] == ["new.conf"]
    assert plan(hub, 0)["changes"] == []
    assert hub.good("sync", "adopt")["commit"] == ""
    unknown = hub.iotops("sync", "adopt", "acl")
    assert unknown.code == 2
    words(unknown, "acl was not edited")


def test_no_secret_is_adopted(hub: LightHub) -> None:
    head = git(hub.folder, "rev-parse", "HEAD")
    (hub.folder / "passwd").write_text("iotops:$7$x\n")
    by_name = hub.iotops("sync", "adopt")
    assert by_name.code == 1
    words(by_name, "passwd holds secrets", ".gitignore")
    (hub.folder / "passwd").unlink()
    (hub.folder / "acl").write_text(f"user {SECRET}\n")
    by_value = hub.iotops("sync", "adopt", "acl")
    assert by_value.code == 1
    words(by_value, "acl holds a value of .env")
    shown = hub.iotops("sync", "plan")
    words(shown, "+user ***")
    for done in (by_name, by_value, shown):
        assert SECRET not in done.out + done.err
    assert git(hub.folder, "rev-parse", "HEAD") == head


def test_what_the_remote_has_is_shown_and_nothing_is_written(hub: LightHub, desk: Path) -> None:
    (desk / "acl").write_text("topic read desk\n")
    (desk / "more.conf").write_text("x\n")
    git(desk, "add", "-A")
    git(desk, "commit", "-qm", "From the desk")
    found = plan(hub, 4)
    assert found["target"] == git(desk, "rev-parse", "HEAD") and not found["findings"]
    shown = hub.iotops("sync", "plan")
    words(shown, "changed acl", "-topic read one", "+topic read desk", "added more.conf")
    assert (hub.folder / "acl").read_text() == "topic read one\n"
    assert not (hub.folder / "more.conf").exists()
    status = hub.iotops("status", "--json").result()
    assert "files: 2" in str(status["sync"])


def test_a_remote_that_is_away_is_tried_later(hub: LightHub, desk: Path) -> None:
    desk.rename(desk.with_name("gone"))
    done = hub.iotops("sync", "plan")
    assert done.code == 75
    words(done, "does not answer", "iotops sync plan")
    assert hub.iotops("sync", "status").code == 0  # does not ask it


def test_a_rewritten_history_is_a_finding(hub: LightHub, desk: Path) -> None:
    (desk / "acl").write_text("topic read two\n")
    git(desk, "commit", "-qam", "Two")
    plan(hub, 4)
    git(desk, "reset", "-q", "--hard", "HEAD~1")  # back to what the hub is at: older, not equal
    (desk / "acl").write_text("topic read three\n")
    git(desk, "commit", "-qam", "Three")
    assert codes(plan(hub, 4)) == ["sync.rewritten"]
    assert codes(plan(hub, 4)) == ["sync.rewritten"]  # it is not forgotten by having been seen
    git(hub.folder, "reset", "-q", "--keep", "sync/main")  # as the hint says
    assert plan(hub, 0)["findings"] == []


def test_both_have_grown_apart(hub: LightHub, desk: Path) -> None:
    (hub.folder / "acl").write_text("topic read hub\n")
    assert hub.iotops("sync", "adopt").code == 0
    assert codes(plan(hub, 0)) == ["sync.ahead"]
    (desk / "acl").write_text("topic read desk\n")
    git(desk, "commit", "-qam", "Desk")
    assert codes(plan(hub, 4)) == ["sync.diverged"]


def test_an_unsigned_commit_is_a_finding(hub: LightHub, desk: Path) -> None:
    need("ssh-keygen")
    keys = hub.base / "keys"
    keys.mkdir()
    key, signers = keys / "key", keys / "signers"
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "ann", "-f", str(key)]
    subprocess.run(argv, check=True)
    signers.write_text("ann " + key.with_suffix(".pub").read_text())
    settings = desk / "iotops.toml"
    settings.write_text(settings.read_text() + f'allowed_signers = "{signers}"\n')
    sign = ("-c", "gpg.format=ssh", "-c", f"user.signingkey={key}")
    git(desk, *sign, "commit", "-S", "-qam", "Require it")
    plan(hub, 4)
    git(hub.folder, "reset", "-q", "--hard", "sync/main")
    assert plan(hub, 0)["findings"] == []
    (desk / "acl").write_text("topic readwrite #\n")
    git(desk, "commit", "-qam", "By nobody")
    assert codes(plan(hub, 4)) == ["sync.unsigned"]
    git(desk, *sign, "commit", "-S", "--amend", "-qm", "By Ann")
    assert codes(plan(hub, 4)) == []  # what was never taken for good may be rewritten


def test_a_hub_folder_that_is_not_at_main(hub: LightHub) -> None:
    git(hub.folder, "checkout", "-q", "--detach")
    done = hub.iotops("sync", "plan")
    assert done.code == 1
    words(done, "not at main", "checkout main")
    shutil.rmtree(hub.folder / ".git")
    words(hub.iotops("sync", "plan"), "is not in Git", "git init")
