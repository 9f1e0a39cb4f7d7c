"""Config-sync against real Git, without containers: drift, local edits, adopting, odd remotes."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from iotops.actions import syncapply
from iotops.errors import Conflict
from iotops.hub import Hub
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
def hub(tmp_path: Path) -> LightHub:
    """A hub in Git whose engine runs nothing."""
    return in_git(tmp_path / "base")


def in_git(base: Path) -> LightHub:
    """Make such a hub in a folder."""
    need("git")
    need("restic")
    made = LightHub(base, VERSIONS[-1])
    (made.folder / ".env").write_text(f"API_TOKEN={SECRET}\n")
    (made.folder / ".gitignore").write_text("/.env\n")
    (made.folder / "acl").write_text("topic read one\n")
    git(made.folder, "init", "-q", "-b", "main")
    git(made.folder, "add", "-A")
    git(made.folder, "commit", "-qm", "Begin")
    return made


@pytest.fixture
def desk(hub: LightHub) -> Path:
    """A clone at somebody's desk; the hub follows it."""
    return followed(hub)


def followed(hub: LightHub) -> Path:
    """Make the clone."""
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


def test_what_a_return_put_there_is_no_edit(hub: LightHub) -> None:
    """Else to adopt an edit would take back, without a word, what was committed on the hub."""
    good = git(hub.folder, "rev-parse", "HEAD")
    (hub.folder / "acl").write_text("topic read bad\n")
    assert hub.iotops("sync", "adopt", "-m", "Bad").code == 0
    bad = git(hub.folder, "rev-parse", "HEAD")
    state = Hub.open(hub.folder).state
    state.update(sync={"commit": good, "returned": bad, "why": "it crashed"})
    git(hub.folder, "restore", "--source", good, "acl")  # as a return leaves it
    done = hub.iotops("sync", "adopt")
    assert done.code == 1
    words(done, "nothing was edited", f"acl: as the commit {good[:8]} has it", "git revert")
    (hub.folder / "new.conf").write_text("x\n")
    told = hub.iotops("sync", "adopt")
    assert told.code == 0, told.err
    words(told, "left out: acl")
    assert git(hub.folder, "status", "--short").strip() == "M acl"
    assert hub.good("sync", "adopt", "acl")["paths"] == ["acl"]  # it is meant


def test_files_of_an_apply_are_not_adopted(hub: LightHub) -> None:
    opened = Hub.open(hub.folder)
    opened.guard()
    run = opened.journal.begin("sync")
    (hub.folder / "acl").write_text("half of a commit\n")
    done = hub.iotops("sync", "adopt")
    assert done.code == 1
    words(done, run.id, "goes on")
    run.close("failed")
    assert hub.good("sync", "adopt")["paths"] == ["acl"]


def test_a_compose_file_that_cannot_be_read_is_not_called_equal(hub: LightHub) -> None:
    docker = hub.programs / "docker"
    bad = docker.read_text().replace(
        "*config*)", "*config*) echo 'yaml: line 1' >&2; exit 1 ;;\n*x)"
    )
    docker.write_text(bad)
    for argv in (("sync", "plan"), ("sync", "status"), ("status",)):
        shown = hub.iotops(*argv)
        words(shown, "yaml: line 1")
        assert "equal to" not in shown.out, shown.out


def test_a_large_file_that_git_does_not_know_is_not_read(hub: LightHub) -> None:
    with (hub.folder / "all").open("wb") as file:
        file.truncate(2 << 30)
    shown = hub.iotops("sync", "plan")
    assert shown.code == 0
    words(shown, "all is not in Git", f"+{2 << 30} bytes, not read")
    adopted = hub.iotops("sync", "adopt")
    assert adopted.code == 1
    words(adopted, "all has 2048 MB", "add all to .gitignore")


def test_no_secret_is_adopted(hub: LightHub) -> None:
    head = git(hub.folder, "rev-parse", "HEAD")
    (hub.folder / "passwd").write_text("iotops:$7$x\n")
    by_name = hub.iotops("sync", "adopt")
    assert by_name.code == 1
    words(by_name, "passwd holds secrets", ".gitignore")
    (hub.folder / "passwd").unlink()
    (hub.folder / "server.pem").write_text("-----BEGIN RSA PRIVATE KEY-----\nAAAA\n")
    by_content = hub.iotops("sync", "adopt")
    assert by_content.code == 1
    words(by_content, "server.pem holds a private key", "add server.pem to .gitignore")
    (hub.folder / "server.pem").unlink()
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


def test_a_rewritten_history_names_what_only_the_hub_has(hub: LightHub, desk: Path) -> None:
    plan(hub, 0)
    (hub.folder / "mine.conf").write_text("x\n")
    assert hub.iotops("sync", "adopt", "-m", "Mine").code == 0
    git(desk, "commit", "-q", "--amend", "-m", "Another")
    told = hub.iotops("sync", "plan")
    words(told, "does not lead on", f"only here: {git(hub.folder, 'rev-parse', 'HEAD')[:8]} Mine:")


def test_both_have_grown_apart(hub: LightHub, desk: Path) -> None:
    (hub.folder / "acl").write_text("topic read hub\n")
    assert hub.iotops("sync", "adopt").code == 0
    assert codes(plan(hub, 0)) == ["sync.ahead"]
    (desk / "acl").write_text("topic read desk\n")
    git(desk, "commit", "-qam", "Desk")
    assert codes(plan(hub, 4)) == ["sync.diverged"]
    head = git(hub.folder, "rev-parse", "HEAD")
    Hub.open(hub.folder).state.update(sync={"commit": head})  # well, as a device's commit is
    assert codes(plan(hub, 4)) == ["sync.diverged"]
    told = hub.iotops("sync", "plan")
    words(told, f"grown apart (only here: {head[:8]} Adopt", "git pull --no-rebase", "git push")
    assert "reset" not in told.out + told.err


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


def push(desk: Path, **files: str | None) -> str:
    """Commit files at the desk; None = removed."""
    for name, text in files.items():
        path = desk / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
    git(desk, "add", "-A")
    git(desk, "commit", "-qm", "More")
    return git(desk, "rev-parse", "HEAD")


def test_files_alone_are_applied_without_a_snapshot(hub: LightHub, desk: Path) -> None:
    need("root")
    os.chown(hub.folder / "acl", 1883, 1883)
    (hub.folder / "acl").chmod(0o600)
    made = push(desk, acl="topic read two\n", conf__deep="x\n", **{".gitignore": "/.env\n/x\n"})
    (desk / "run.sh").write_text("#!/bin/sh\n")
    (desk / "run.sh").chmod(0o755)
    made = push(desk)
    done = hub.good("sync", "apply", "--auto")
    assert (done["commit"], done["snapshot"], done["services"]) == (made, "", {})
    state = (hub.folder / "acl").stat()
    assert (state.st_uid, state.st_mode & 0o777) == (1883, 0o600)  # as the old one was
    assert (hub.folder / "conf" / "deep").read_text() == "x\n"
    assert os.access(hub.folder / "run.sh", os.X_OK)
    assert git(hub.folder, "rev-parse", "HEAD") == made
    assert git(hub.folder, "status", "--short") == ""
    push(desk, acl=None)
    assert hub.good("sync", "apply", "--yes")["files"] == ["acl"]
    assert not (hub.folder / "acl").exists()

    again = hub.good("sync", "apply", "--auto")  # nothing to do: no run, and told in the state
    assert again["run"] == ""
    last = hub.state()["last"]
    assert isinstance(last, dict) and last["sync"]["outcome"] == "complete"
    assert hub.good("sync", "status")["commit"] == again["commit"]


def test_new_folders_can_be_entered_whatever_the_umask(hub: LightHub, desk: Path) -> None:
    """The unit's umask is 0077, and the containers' users are not the owner."""
    need("root")
    push(desk, **{"conf__deep": "x\n"})
    (desk / "conf" / "inner").mkdir()
    (desk / "conf" / "inner" / "one").write_text("x\n")
    push(desk)
    before = os.umask(0o077)
    try:
        hub.good("sync", "apply", "--auto")
    finally:
        os.umask(before)
    for folder in (hub.folder / "conf", hub.folder / "conf" / "inner"):
        assert folder.stat().st_mode & 0o777 == 0o755


def test_a_file_of_variables_is_applied_behind_a_snapshot(hub: LightHub) -> None:
    """Compose sees only when it is in place which containers it makes anew."""
    need("root")
    text = "name: light\nservices:\n  one:\n    env_file: conf/words\n"
    (hub.folder / "docker-compose.yaml").write_text(text)
    (hub.folder / "conf").mkdir()
    (hub.folder / "conf" / "words").write_text("A=1\n")
    hub.make()
    git(hub.folder, "add", "-A")
    git(hub.folder, "commit", "-qm", "Words")
    desk = followed(hub)
    hub.good("sync", "apply", "--yes")
    push(desk, conf__words="A=2\n")
    done = hub.good("sync", "apply", "--yes")
    assert (done["files"], bool(done["snapshot"])) == (["conf/words"], True)


def test_everything_happens_as_the_owner() -> None:
    """Root applies, Git and the files are the owner's: root's own Git would refuse the folder."""
    need("root")
    owner = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory(prefix="iotops-sync-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        hub = in_git(Path(folder) / "base")
        hub.settings.write_text(hub.settings.read_text().replace('"root"', '"nobody"'))
        desk = followed(hub)
        made = push(desk, acl="topic read two\n", conf__deep="x\n")
        for top in (hub.folder, desk):
            for path in [top, *top.rglob("*")]:
                os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)
        done = hub.good("sync", "apply", "--auto")
        assert done["commit"] == made
        (hub.folder / "acl").write_text("topic read three\n")
        assert hub.good("sync", "adopt")["paths"] == ["acl"]
        owners = {path.lstat().st_uid for path in [hub.folder, *hub.folder.rglob("*")]}
        assert owners == {owner.pw_uid}


@pytest.mark.parametrize("how", [("--auto",), ("--yes",)])
@pytest.mark.parametrize("signed", ["by nobody", "by a key that is not allowed"])
def test_a_commit_that_nobody_allowed_has_signed_is_not_applied(
    hub: LightHub, desk: Path, how: tuple[str, ...], signed: str
) -> None:
    need("root")
    need("ssh-keygen")
    keys = hub.base / "keys"
    keys.mkdir()
    for name in ("ann", "bob"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(keys / name)]
        subprocess.run(argv, check=True)
    signers = keys / "signers"
    signers.write_text("ann " + (keys / "ann.pub").read_text())
    settings = (desk / "iotops.toml").read_text()
    by_ann, by_bob = (
        ("-c", "gpg.format=ssh", "-c", f"user.signingkey={keys / name}") for name in ("ann", "bob")
    )
    (desk / "iotops.toml").write_text(settings + f'allowed_signers = "{signers}"\n')
    git(desk, *by_ann, "commit", "-S", "-qam", "Require it")
    hub.good("sync", "apply", "--yes")
    good = git(hub.folder, "rev-parse", "HEAD")

    (desk / "acl").write_text("topic readwrite #\n")
    sign = (*by_bob, "commit", "-S") if signed != "by nobody" else ("commit",)
    git(desk, *sign, "-qam", "Open it")
    assert ("gpgsig" in git(desk, "cat-file", "commit", "HEAD")) == (signed != "by nobody")
    done = hub.iotops("sync", "apply", *how)
    assert done.code == 4, done.err + done.out
    words(done, "is not signed by an allowed key", str(signers))
    assert git(hub.folder, "rev-parse", "HEAD") == good
    assert (hub.folder / "acl").read_text() == "topic read one\n"

    git(desk, *by_ann, "commit", "-S", "--allow-empty", "-qm", "I vouch for it")
    hub.good("sync", "apply", *how)
    assert (hub.folder / "acl").read_text() == "topic readwrite #\n"


def test_a_timer_applies_nothing_odd(hub: LightHub, desk: Path) -> None:
    need("root")
    old = git(hub.folder, "rev-parse", "HEAD")
    hub.good("sync", "apply", "--auto")
    push(desk, acl="topic read two\n")
    (hub.folder / "acl").write_text("edited\n")
    edited = hub.iotops("sync", "apply", "--auto")
    assert edited.code == 4
    words(edited, "acl was edited on the hub")
    git(hub.folder, "checkout", "--", "acl")
    gone = desk.rename(desk.with_name("gone"))
    away = hub.iotops("sync", "apply", "--auto")
    assert away.code == 75
    words(away, "does not answer")
    gone.rename(desk)
    git(desk, "commit", "--amend", "-qm", "Another")
    git(desk, "commit", "--allow-empty", "-qm", "On top")
    rewritten = hub.iotops("sync", "apply", "--auto")
    assert rewritten.code == 4
    words(rewritten, "does not lead on", "reset --keep")
    told = hub.iotops("status")
    words(told, "does not lead on")
    assert git(hub.folder, "rev-parse", "HEAD") == old
    assert (hub.folder / "acl").read_text() == "topic read one\n"
    both = hub.iotops("sync", "apply", "--auto", "--without-backup")
    assert both.code == 2


def test_what_changed_since_it_was_looked_at_is_not_overwritten(
    hub: LightHub, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("root")
    monkeypatch.setenv("PATH", f"{hub.programs}:{os.environ['PATH']}")
    push(desk, acl="topic read two\n", more="x\n")
    opened = Hub.open(hub.folder)
    decided = syncapply.prepare(opened)
    (hub.folder / "acl").write_text("edited meanwhile\n")
    with pytest.raises(Conflict, match="acl has changed since"):
        syncapply.apply(opened, decided)
    assert (hub.folder / "acl").read_text() == "edited meanwhile\n"
    assert not (hub.folder / "more").exists()
    git(hub.folder, "commit", "-qam", "Mine")
    with pytest.raises(Conflict, match="main has changed since"):
        syncapply.apply(opened, decided)


def test_a_folder_in_the_way_of_a_file(hub: LightHub, desk: Path) -> None:
    need("root")
    before = git(hub.folder, "rev-parse", "HEAD")
    (hub.folder / "later").mkdir()
    (hub.folder / "later" / ".gitignore").write_text("*\n")
    made = push(desk, acl="topic read two\n", later="x\n")
    done = hub.iotops("sync", "apply", "--auto")
    assert done.code == 4
    words(done, "the commit brings later, and later/.gitignore is in its way")
    assert (hub.folder / "acl").read_text() == "topic read one\n"
    assert git(hub.folder, "rev-parse", "HEAD") == before
    (hub.folder / "later" / ".gitignore").unlink()
    assert hub.good("sync", "apply", "--auto")["commit"] == made
    assert (hub.folder / "later").read_text() == "x\n"


def test_a_link_or_a_file_where_the_commit_has_a_folder(hub: LightHub, desk: Path) -> None:
    (hub.base / "elsewhere").mkdir()
    (hub.folder / ".git" / "info" / "exclude").write_text("/one\n/two\n")
    (hub.folder / "one").symlink_to(hub.base / "elsewhere")
    (hub.folder / "two").write_text("mine\n")
    push(desk, one__x="x\n", two__deep="x\n")
    found = plan(hub, 4)
    assert codes(found) == ["sync.blocked", "sync.blocked"]
    words(hub.iotops("sync", "plan"), "one is in its way", "two is in its way", "ls -ld two")


def test_a_folder_becomes_a_file_and_a_folder_again(hub: LightHub, desk: Path) -> None:
    need("root")
    for text in ("first\n", "second\n"):
        push(desk, part__deep=text, part__other=text)
        hub.good("sync", "apply", "--auto")
        assert (hub.folder / "part" / "deep").read_text() == text
        shutil.rmtree(desk / "part")
        push(desk, part="a file\n")
        hub.good("sync", "apply", "--auto")
        assert (hub.folder / "part").read_text() == "a file\n"
        assert git(hub.folder, "status", "--short") == ""
        (desk / "part").unlink()


def test_a_file_that_cannot_be_written_is_held_against_the_commit(
    hub: LightHub, desk: Path
) -> None:
    """A timer would take a snapshot and fail every quarter of an hour."""
    need("root")
    push(desk, zlast="one\n", part__deep="x\n")
    before = hub.good("sync", "apply", "--auto")["commit"]
    shutil.rmtree(desk / "part")
    more = {"conf__deep": "x\n", "kept__deep": "x\n", "part": "now a file\n"}
    bad = push(desk, acl="topic read two\n", zlast="two\n", **more)
    (hub.folder / "kept").mkdir()  # is there before, and empty as Git sees it
    last = hub.folder / "zlast"
    subprocess.run(["mount", "--bind", last, last], check=True)
    try:
        done = hub.iotops("sync", "apply", "--auto")
        assert done.code == 1
        words(done, f"the commit {bad[:8]} was returned from", "busy")
        assert (hub.folder / "acl").read_text() == "topic read one\n"  # written, and put back
        assert (hub.folder / "part" / "deep").read_text() == "x\n"
        assert not (hub.folder / "conf").exists() and not [*(hub.folder / "kept").iterdir()]
        assert git(hub.folder, "rev-parse", "HEAD") == before
        assert git(hub.folder, "status", "--short") == ""
        again = hub.iotops("sync", "apply", "--auto")
        assert again.code == 4
        words(again, f"{bad[:8]} was returned from before", "by hand")
    finally:
        subprocess.run(["umount", last], check=True)
    assert hub.good("sync", "apply", "--yes")["commit"] == bad
    assert "returned" not in dict(hub.state()["sync"])  # type: ignore[call-overload]


def test_a_hub_folder_that_is_not_at_main(hub: LightHub) -> None:
    git(hub.folder, "checkout", "-q", "--detach")
    done = hub.iotops("sync", "plan")
    assert done.code == 1
    words(done, "not at main", "checkout main")
    shutil.rmtree(hub.folder / ".git")
    words(hub.iotops("sync", "plan"), "is not in Git", "git init")
