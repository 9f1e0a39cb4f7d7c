"""What config-sync asks of Git, with the real git and ssh-keygen: remotes, history, signatures."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from iotops.clients.git import init_repository
from iotops.clients.gitremote import Upstream
from iotops.errors import GitError, Unreachable
from tests.conftest import need

pytestmark = pytest.mark.clients


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the settings of whoever runs the tests out of them."""
    need("git")
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "somebody")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "somebody@example.org")
    return folder


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit(folder: Path, text: str, *words: str) -> str:
    (folder / "a.conf").write_text(text)
    git(folder, "add", "a.conf")
    git(folder, *words, "commit", "-qm", text)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """Another person's clone, from which the remote gets its commits."""
    folder = tmp_path / "desk"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    commit(folder, "one")
    return folder


@pytest.fixture
def hub(tmp_path: Path, desk: Path) -> Upstream:
    folder = tmp_path / "hub"
    folder.mkdir()
    tree = Upstream(init_repository(folder).path)
    tree.set_remote("sync", str(desk))
    git(folder, "reset", "-q", "--hard", tree.fetch("sync", "main"))
    return tree


def test_a_fetch_brings_the_commit_and_changes_no_file(hub: Upstream, desk: Path) -> None:
    before, new = hub.head(), commit(desk, "two")
    assert hub.fetch("sync", "main") == new
    assert hub.head() == before and (hub.path / "a.conf").read_text() == "one"
    assert hub.has(new) and not hub.has("0" * 40)
    assert hub.is_ancestor(before or "", new) and not hub.is_ancestor(new, before or "")


def test_a_rewritten_history_is_brought_to_be_seen(hub: Upstream, desk: Path) -> None:
    commit(desk, "two")
    old = hub.fetch("sync", "main")
    git(desk, "reset", "-q", "--hard", "HEAD~1")
    new = commit(desk, "another two")
    assert hub.fetch("sync", "main") == new
    assert not hub.is_ancestor(old, new)


def test_a_remote_that_is_away(hub: Upstream, desk: Path) -> None:
    desk.rename(desk.with_name("gone"))
    with pytest.raises(Unreachable):
        hub.fetch("sync", "main")


def test_a_remote_without_the_branch(hub: Upstream) -> None:
    with pytest.raises(GitError, match="other"):
        hub.fetch("sync", "other")


def test_the_branch_moves_to_files_that_are_there(hub: Upstream, desk: Path) -> None:
    old, new = hub.head() or "", commit(desk, "two")
    hub.fetch("sync", "main")
    (hub.path / "a.conf").write_text("two")
    hub.advance("main", new, old)
    assert hub.head() == new and hub.status() == ()
    git(hub.path, "read-tree", old)  # as if it had been ended in between
    assert hub.status() != ()
    hub.advance("main", new, old)
    assert hub.head() == new and hub.status() == ()
    with pytest.raises(GitError):  # it is elsewhere by now
        hub.advance("main", old, old)
    assert hub.head() == new


def test_modes_come_with_the_files(hub: Upstream) -> None:
    (hub.path / "run.sh").write_text("#!/bin/sh\n")
    (hub.path / "run.sh").chmod(0o755)
    (hub.path / "link").symlink_to("a.conf")
    made = hub.commit_all("More")
    found = hub.entries(made or "")
    assert {path: one.mode for path, one in found.items()} == {
        "a.conf": "100644",
        "link": "120000",
        "run.sh": "100755",
    }
    assert found["link"].data == b"a.conf"


def key(folder: Path, name: str) -> Path:
    path = folder / name
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(path)]
    subprocess.run(argv, check=True)
    return path


def test_only_an_allowed_key_counts(hub: Upstream, desk: Path, tmp_path: Path) -> None:
    need("ssh-keygen")
    allowed, other = key(tmp_path, "allowed"), key(tmp_path, "other")
    signers = tmp_path / "signers"
    public = allowed.with_suffix(".pub").read_text()
    signers.write_text(f"ann@example.org {public}")

    def signed(text: str, by: Path) -> str:
        words = ("-c", "gpg.format=ssh", "-c", f"user.signingkey={by}", "-c", "commit.gpgsign=true")
        return commit(desk, text, *words)

    good = signed("signed", allowed)
    bad = signed("by another", other)
    none = commit(desk, "not signed")
    hub.fetch("sync", "main")
    assert hub.signer(good, signers) == "ann@example.org"
    for one in (bad, none):
        with pytest.raises(GitError, match="checking the signature"):
            hub.signer(one, signers)
    # A commit whose content was exchanged under the signature of another.
    raw = git(desk, "cat-file", "commit", good).replace("signed", "forged")
    argv = ["git", "-C", str(desk), "hash-object", "-t", "commit", "-w", "--stdin"]
    forged = subprocess.run(argv, input=raw, capture_output=True, text=True, check=True)
    git(desk, "reset", "-q", "--hard", forged.stdout.strip())
    with pytest.raises(GitError, match="checking the signature"):
        hub.signer(hub.fetch("sync", "main"), signers)
    signers.unlink()
    with pytest.raises(GitError):
        hub.signer(good, signers)


def test_the_repositorys_own_settings_allow_nobody(
    hub: Upstream, desk: Path, tmp_path: Path
) -> None:
    need("ssh-keygen")
    other, signers = key(tmp_path, "other"), tmp_path / "signers"
    signers.write_text("")
    theirs = tmp_path / "theirs"
    theirs.write_text("x@example.org " + other.with_suffix(".pub").read_text())
    git(hub.path, "config", "gpg.ssh.allowedSignersFile", os.fspath(theirs))
    yes = tmp_path / "yes"
    said = 'Good "git" signature for x@example.org with ED25519 key SHA256:abc'
    yes.write_text(f"#!/bin/sh\necho '{said}'\n")
    yes.chmod(0o755)
    for name in ("gpg.program", "gpg.ssh.program"):
        git(hub.path, "config", name, os.fspath(yes))
    words = ("-c", "gpg.format=ssh", "-c", f"user.signingkey={other}", "-c", "commit.gpgsign=true")
    made = commit(desk, "signed", *words)
    hub.fetch("sync", "main")
    with pytest.raises(GitError, match="checking the signature"):
        hub.signer(made, signers)
