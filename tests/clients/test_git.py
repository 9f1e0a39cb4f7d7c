"""The door to Git, with the real git: owners, identity, orphan branch, remotes, moved folders."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from iotops.clients import process
from iotops.clients.git import Uncommitted, Worktree, init_repository
from iotops.errors import Conflict, GitError, ProgramMissing, TimedOut, Unreachable
from tests.conftest import need

pytestmark = pytest.mark.clients

SOMEBODY = (12345, 12346)
"""A user and group without an account: also that must do."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the settings of whoever runs the tests out of them."""
    need("git")
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return folder


@pytest.fixture
def hub(tmp_path: Path) -> Worktree:
    folder = tmp_path / "hub"
    folder.mkdir()
    tree = init_repository(folder)
    (folder / "docker-compose.yaml").write_text("services: {}\n")
    (folder / ".gitignore").write_text(".env\n/flows/\n")
    assert tree.commit_all("Begin") is not None
    return tree


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can reach, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="iotops-git-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def git(folder: Path, *words: str) -> str:
    """What a person would type, independent of the client under test."""
    return process.run(["git", "-C", folder, *words]).out


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that nobody has collected yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


# ---- repository and commits ------------------------------------------------------------------


def test_a_new_repository_has_its_branch_and_no_commit(tmp_path: Path) -> None:
    assert not Worktree(tmp_path).exists()
    tree = init_repository(tmp_path)
    assert tree.exists()
    assert tree.branch() == "main"
    assert tree.head() is None
    assert tree.log() == ()


def test_init_leaves_an_existing_repository_as_it_is(hub: Worktree) -> None:
    before = hub.head()
    again = init_repository(hub.path, branch="other")
    assert (again.head(), again.branch()) == (before, "main")


def test_a_folder_inside_a_repository_is_not_one_itself(hub: Worktree) -> None:
    inside = hub.path / "mosquitto"
    inside.mkdir()
    assert not Worktree(inside).exists()
    with pytest.raises(GitError, match="not a git repository"):
        Worktree(inside).head()


def test_a_missing_folder_never_means_the_current_one(
    hub: Worktree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hub.path)
    with pytest.raises(GitError, match="does not exist"):
        Worktree(hub.path / "gone").head()


def test_commit_takes_new_changed_and_deleted_files(hub: Worktree) -> None:
    (hub.path / "acl").write_text("user a\n")
    (hub.path / "docker-compose.yaml").unlink()
    commit = hub.commit_all("Change two files\n\nBecause of a reason.\n# not a comment")
    assert commit == hub.head() == git(hub.path, "rev-parse", "HEAD").strip()
    assert hub.files() == (".gitignore", "acl")
    newest = hub.log()[0]
    assert newest.id == commit
    assert newest.subject == "Change two files"
    assert newest.body == "Because of a reason.\n# not a comment"
    assert newest.author == f"iotops <iotops@{socket.gethostname()}>"
    assert timedelta(0) <= datetime.now(UTC) - newest.time < timedelta(minutes=5)


def test_nothing_changed_is_no_commit(hub: Worktree) -> None:
    before = hub.head()
    (hub.path / "docker-compose.yaml").touch()
    assert hub.commit_all("Again") is None
    assert hub.commit_all("Again", ["docker-compose.yaml", "never-was-there"]) is None
    assert hub.commit_all("Again", ["never-was-there"]) is None
    assert hub.head() == before


def test_commit_of_paths_leaves_what_the_owner_staged(hub: Worktree) -> None:
    for name in ("a*", "ab"):
        (hub.path / name).write_text("old\n")
    hub.commit_all("Two files")
    (hub.path / "staged").write_text("by hand\n")
    git(hub.path, "add", "staged")
    for name in ("a*", "ab"):
        (hub.path / name).write_text("new\n")
    assert hub.commit_all("Only the star", ["a*"]) is not None
    assert (hub.show("HEAD", "a*"), hub.show("HEAD", "ab")) == (b"new\n", b"old\n")
    assert set(hub.status()) == {Uncommitted("A ", "staged"), Uncommitted(" M", "ab")}


def test_a_deleted_path_is_committed_by_its_name(hub: Worktree) -> None:
    (hub.path / "docker-compose.yaml").unlink()
    assert hub.commit_all("Remove", [hub.path / "docker-compose.yaml"]) is not None
    assert hub.files() == (".gitignore",)


def test_an_ignored_path_is_refused_by_name(hub: Worktree) -> None:
    (hub.path / ".env").write_text("A=1\n")
    with pytest.raises(GitError, match="committing in") as caught:
        hub.commit_all("Secrets", [".env"])
    assert ".env" in "\n".join(caught.value.tail)
    assert ".env" not in hub.files()


def test_a_hook_that_refuses_stops_the_commit_with_its_words(hub: Worktree) -> None:
    hook = hub.path / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho 'runtime state does not belong here' >&2\nexit 1\n")
    hook.chmod(0o755)
    before = hub.head()
    (hub.path / "acl").write_text("x\n")
    with pytest.raises(GitError, match="runtime state does not belong here"):
        hub.commit_all("Refused")
    assert hub.head() == before


def test_a_stale_lock_is_explained(hub: Worktree) -> None:
    (hub.path / ".git" / "index.lock").touch()
    (hub.path / "acl").write_text("x\n")
    with pytest.raises(GitError) as caught:
        hub.commit_all("Locked out")
    assert "index.lock" in caught.value.hint
    assert str(hub.path) in caught.value.message


# ---- identity and environment ----------------------------------------------------------------


def test_the_repositorys_own_author_wins_and_the_users_settings_do_not(
    hub: Worktree, home: Path
) -> None:
    (home / ".gitconfig").write_text(
        "[user]\nname = From Home\nemail = home@example.org\n"
        "[commit]\ngpgsign = true\n[core]\nautocrlf = true\n"
    )
    (hub.path / "acl").write_bytes(b"one\r\ntwo\n")
    hub.commit_all("By iotops")
    assert hub.log(1)[0].author.startswith("iotops <iotops@")
    assert hub.show("HEAD", "acl") == b"one\r\ntwo\n"
    git(hub.path, "config", "user.name", "The Owner")
    (hub.path / "acl").write_bytes(b"three\n")
    hub.commit_all("By the owner")
    assert hub.log(1)[0].author == f"The Owner <iotops@{socket.gethostname()}>"


def test_inherited_git_variables_are_dropped(
    hub: Worktree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    init_repository(other)
    head = hub.head()
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / "index"))
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Intruder")
    monkeypatch.setenv("GIT_TERMINAL_PROMPT", "1")
    assert hub.head() == head
    (hub.path / "acl").write_text("x\n")
    assert hub.commit_all("Still here") == hub.head() != head
    assert "Intruder" not in hub.log(1)[0].author


def test_git_is_told_not_to_ask(hub: Worktree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_TERMINAL_PROMPT", "1")
    hook = hub.path / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text('#!/bin/sh\necho "prompt=$GIT_TERMINAL_PROMPT" >&2\n: >/dev/tty\nexit 1\n')
    hook.chmod(0o755)
    (hub.path / "acl").write_text("x\n")
    with pytest.raises(GitError) as caught:
        hub.commit_all("Asked")
    words = "\n".join(caught.value.tail)
    assert "prompt=0" in words
    assert "/dev/tty" in words  # the shell could not open a terminal


def test_git_missing_names_the_package(
    hub: Worktree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProgramMissing) as caught:
        hub.head()
    assert "apt-get install git" in caught.value.hint


def test_an_interrupted_commit_leaves_no_process(hub: Worktree) -> None:
    """The owner's Ctrl-C arrives as an exception in the waiting thread."""
    hook = hub.path / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    pipe = hub.path / ".git" / "ready"
    os.mkfifo(pipe)
    hook.write_text(f"#!/bin/sh\necho $$ >'{pipe}'\nexec sleep 300\n")
    hook.chmod(0o755)
    (hub.path / "acl").write_text("x\n")
    pids: list[int] = []

    def interrupt() -> None:
        pids.append(int(pipe.read_text()))
        os.kill(os.getpid(), 2)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    with pytest.raises(KeyboardInterrupt):
        hub.commit_all("Interrupted")
    watcher.join(10)
    until = time.monotonic() + 10
    while alive(pids[0]) and time.monotonic() < until:
        time.sleep(0.01)
    assert not alive(pids[0])


# ---- reading ---------------------------------------------------------------------------------


def test_files_of_old_revisions_come_back_byte_for_byte(hub: Worktree) -> None:
    folder = hub.path / "tabs" / "häuser"
    folder.mkdir(parents=True)
    bodies = {"tabs/häuser/a b.json": b'{"x": 1}\n\n', "tabs/häuser/bin": bytes(range(256))}
    for name, body in bodies.items():
        (hub.path / name).write_bytes(body)
    (hub.path / "tabs" / "empty").touch()
    first = hub.commit_all("First")
    assert first is not None
    (folder / "a b.json").write_bytes(b"other")
    hub.commit_all("Second")
    assert hub.show(first, "tabs/häuser/a b.json") == b'{"x": 1}\n\n'
    assert hub.contents("HEAD~1", "tabs") == {**bodies, "tabs/empty": b""}
    assert hub.contents("HEAD", "nothing") == {}
    assert hub.files(first, "tabs") == ("tabs/empty", *sorted(bodies))
    assert hub.resolve("HEAD~1") == first
    assert [commit.subject for commit in hub.log(paths=["tabs/häuser/a b.json"])] == [
        "Second",
        "First",
    ]
    assert len(hub.log(1)) == 1


@pytest.mark.parametrize("revision", ["--help", "no-such", "HEAD..main", "", "HEAD:acl"])
def test_a_wrong_revision_is_an_error_not_an_option(hub: Worktree, revision: str) -> None:
    with pytest.raises(GitError):
        hub.resolve(revision)
    with pytest.raises(GitError):
        hub.show(revision, "docker-compose.yaml")


def test_a_file_that_the_revision_lacks(hub: Worktree) -> None:
    with pytest.raises(GitError, match="reading acl of revision HEAD"):
        hub.show("HEAD", "acl")


# ---- the branch flows ------------------------------------------------------------------------


def test_flows_is_a_branch_of_its_own_in_a_linked_folder(hub: Worktree) -> None:
    flows = hub.add_orphan_worktree("flows", at=hub.path / "flows")
    assert flows.exists()
    assert flows.branch() == "flows"
    assert hub.branch() == "main"
    assert flows.files() == ()
    (flows.path / "index.json").write_text("{}\n")
    assert flows.commit_all("First flows") is not None
    assert flows.files() == ("index.json",)
    assert hub.status() == ()
    assert process.run(["git", "-C", hub.path, "merge-base", "main", "flows"], ok=None).code == 1


def test_linking_flows_again_changes_nothing(hub: Worktree) -> None:
    at = hub.path / "flows"
    first = hub.add_orphan_worktree(at=at)
    head = first.head()
    assert hub.add_orphan_worktree(at=at).head() == head


def test_a_lost_flows_folder_is_linked_to_its_branch_again(hub: Worktree) -> None:
    at = hub.path / "flows"
    flows = hub.add_orphan_worktree(at=at)
    (flows.path / "index.json").write_text("{}\n")
    head = flows.commit_all("First flows")
    shutil.rmtree(at)
    again = hub.add_orphan_worktree(at=at)
    assert again.head() == head
    assert (at / "index.json").exists()


def test_a_folder_in_use_is_not_taken(hub: Worktree) -> None:
    hub.add_orphan_worktree("flows", at=hub.path / "flows")
    with pytest.raises(GitError, match="worktree of flows"):
        hub.add_orphan_worktree("other", at=hub.path / "flows")
    with pytest.raises(GitError, match="checked out in"):
        hub.add_orphan_worktree("flows", at=hub.path / "second")
    full = hub.path / "full"
    full.mkdir()
    (full / "file").touch()
    with pytest.raises(GitError, match="already exists"):
        hub.add_orphan_worktree("third", at=full)
    assert git(hub.path, "branch", "--format=%(refname:short)").split() == ["flows", "main"]


def test_repair_after_the_hub_was_moved(hub: Worktree, tmp_path: Path) -> None:
    hub.add_orphan_worktree("flows", at=hub.path / "flows")
    moved = tmp_path / "elsewhere"
    hub.path.rename(moved)
    flows = Worktree(moved / "flows")
    assert not flows.exists()
    with pytest.raises(GitError) as caught:
        flows.head()
    assert "git worktree repair" in caught.value.hint
    Worktree(moved).repair(moved / "flows")
    assert flows.branch() == "flows"
    (flows.path / "index.json").write_text("{}\n")
    assert flows.commit_all("After the move") is not None


# ---- remotes ---------------------------------------------------------------------------------


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    folder = tmp_path / "remote.git"
    process.run(["git", "init", "--quiet", "--bare", folder])
    return folder


def test_push_brings_the_branch_to_the_remote(hub: Worktree, remote: Path) -> None:
    hub.set_remote("origin", "/somewhere/else")
    hub.set_remote("origin", str(remote))
    assert hub.remote() == str(remote)
    hub.push("origin", "main")
    assert git(remote, "rev-parse", "main").strip() == hub.head()
    hub.push("origin", "main")


def test_push_never_overwrites(hub: Worktree, remote: Path, tmp_path: Path) -> None:
    hub.set_remote("origin", str(remote))
    hub.push("origin", "main")
    clone = tmp_path / "clone"
    process.run(["git", "clone", "--quiet", "--branch", "main", remote, clone])
    other = Worktree(clone)
    (clone / "theirs").touch()
    theirs = other.commit_all("Theirs")
    other.push("origin", "main")
    (hub.path / "ours").touch()
    hub.commit_all("Ours")
    with pytest.raises(Conflict):
        hub.push("origin", "main")
    assert git(remote, "rev-parse", "main").strip() == theirs


def test_push_to_a_remote_that_is_away(hub: Worktree, tmp_path: Path) -> None:
    hub.set_remote("origin", str(tmp_path / "unplugged"))
    with pytest.raises(Unreachable):
        hub.push("origin", "main")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    # Written by hand: set_remote() refuses a name in such an address.
    git(hub.path, "remote", "set-url", "origin", f"http://somebody@127.0.0.1:{port}/hub.git")
    with pytest.raises(Unreachable) as caught:
        hub.push("origin", "main")
    assert "somebody" not in caught.value.message


def test_push_to_a_remote_that_is_silent_ends(hub: Worktree) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        hub.set_remote("origin", f"http://127.0.0.1:{server.getsockname()[1]}/hub.git")
        with pytest.raises(TimedOut, match="pushing the branch main"):
            hub.push("origin", "main", limit=0.5)


def test_push_without_a_remote_says_so(hub: Worktree) -> None:
    with pytest.raises(GitError, match="no such remote"):
        hub.push("origin", "main")


@pytest.mark.parametrize("secret", ["me:hunter2", "hunter2"])
def test_a_secret_in_an_address_is_refused(hub: Worktree, secret: str) -> None:
    with pytest.raises(GitError) as caught:
        hub.set_remote("origin", f"https://{secret}@example.org/hub.git")
    assert "hunter2" not in str(caught.value) + caught.value.hint
    assert hub.remote() is None


# ---- as root for another user ----------------------------------------------------------------


def owned(folder: Path) -> Path:
    hub = folder / "hub"
    hub.mkdir()
    os.chown(hub, *SOMEBODY)
    return hub


def test_root_works_as_the_owner(open_folder: Path) -> None:
    need("root")
    folder = owned(open_folder)
    tree = init_repository(folder, SOMEBODY)
    (folder / "acl").write_text("x\n")
    os.chown(folder / "acl", *SOMEBODY)
    assert tree.commit_all("As the owner") is not None
    flows = tree.add_orphan_worktree(at=folder / "flows")
    assert flows.branch() == "flows"
    owners = {
        (status.st_uid, status.st_gid)
        for status in (path.lstat() for path in (folder / ".git").rglob("*"))
    }
    assert owners == {SOMEBODY}


def test_root_itself_is_refused_with_an_explanation(open_folder: Path) -> None:
    need("root")
    folder = owned(open_folder)
    init_repository(folder, SOMEBODY)
    with pytest.raises(GitError, match="dubious ownership") as caught:
        Worktree(folder).status()
    assert "owner" in caught.value.hint


def test_the_owner_may_not_write(open_folder: Path) -> None:
    need("root")
    folder = open_folder / "closed"
    folder.mkdir(mode=0o755)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    with pytest.raises(GitError, match=r"making .* a Git repository"):
        init_repository(folder, SOMEBODY)
