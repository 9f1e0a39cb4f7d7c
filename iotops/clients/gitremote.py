"""What config-sync asks of Git beyond a worktree: the remote's commit, its signer, its history.

Through the same door as `git.py`. A signature counts only when Git finds its SSH key in the file of
allowed signers that the settings name: neither the owner's keyring nor the repository's own
configuration decides anything. Not here: what follows from the answers (`actions/sync.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from iotops.clients import process
from iotops.clients.git import REMOTE_LIMIT, Worktree, _clean, _last, _plain
from iotops.errors import GitError, Refused, Unreachable

_AWAY = re.compile(
    r"Could not read from remote|Could not resolve host|unable to access|not a git repository"
    r"|does not appear to be a git|Connection (refused|timed out|closed)|No route to host"
    r"|hung up|early EOF"
)


@dataclass(frozen=True)
class Entry:
    """A file of a commit: Git's mode as text ("100644", "100755", "120000") and its content."""

    mode: str
    data: bytes


class Upstream(Worktree):
    """A worktree whose branch follows another repository's; arguments as `Worktree`."""

    def fetch(self, remote: str, branch: str, *, limit: float = REMOTE_LIMIT) -> str:
        """Bring a remote's branch here, whatever became of its history; nothing is checked out.

        Args:
            remote: the name of a remote that is set.
            limit: seconds that it may take.

        Returns:
            The commit that the branch is at there.

        Raises:
            TimedOut, Unreachable: the remote does not answer. Refused: it does not let us in.
            GitError: it has no such branch, or sends what Git does not accept.
        """
        doing = f"fetching the branch {branch} from {remote}"
        place = f"refs/remotes/{remote}/{branch}"
        found = self._git(
            *("-c", "fetch.fsckObjects=true", "-c", "fetch.recurseSubmodules=false"),
            *("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", remote),
            f"+refs/heads/{branch}:{place}",
            doing=doing,
            ok=None,
            limit=limit,
        )
        if found.code != 0:
            said = _clean(found.err)
            if re.search(r"Permission denied|Authentication failed|could not read Username", said):
                raise Refused(f"{doing}: it does not let us in: {_last(said)}")
            if _AWAY.search(said):
                raise Unreachable(f"{doing}: it does not answer: {_last(said)}")
            raise self._failure(doing, found)
        return self.resolve(place)

    def has(self, commit: str) -> bool:
        """Tell whether a commit is in this repository."""
        doing = f"looking for the commit {commit}"
        name = _plain(commit, doing) + "^{commit}"
        return self._git("cat-file", "-e", name, doing=doing, ok=None).code == 0

    def is_ancestor(self, older: str, newer: str) -> bool:
        """Tell whether one commit leads to another (or is it)."""
        doing = f"comparing {older[:8]} with {newer[:8]}"
        words = ("merge-base", "--is-ancestor", _plain(older, doing), _plain(newer, doing))
        return self._git(*words, doing=doing, ok=(0, 1)).code == 0

    def signer(self, commit: str, allowed: Path) -> str:
        """Give who signed a commit, by an SSH key that is allowed.

        Args:
            allowed: a file of allowed signers (ssh-keygen(1)), readable by the owner.

        Returns:
            The signer's name in that file.

        Raises:
            GitError: the commit has no signature, a bad one, or one of another key.
        """
        doing = f"checking the signature of the commit {commit[:8]}"
        program = process.find("ssh-keygen", hint="apt-get install openssh-client")
        nothing = process.find("false", hint="apt-get install coreutils")
        settings = {
            "gpg.ssh.allowedSignersFile": os.fspath(allowed),
            "gpg.ssh.program": program,
            "gpg.ssh.revocationFile": "",
            "gpg.minTrustLevel": "fully",
            "gpg.program": nothing,  # the owner's keyring allows nobody
            "gpg.openpgp.program": nothing,
            "gpg.x509.program": nothing,
            "log.showSignature": "false",
        }
        words = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        found = self._git(
            *words, "verify-commit", "--raw", _plain(commit, doing), doing=doing, ok=None
        )
        good = re.search(r'^Good "git" signature for (.+?) with ', found.err, re.MULTILINE)
        if found.code != 0 or good is None:
            said = _last(_clean(found.err)) if found.err.strip() else "it is not signed"
            raise GitError(f"{doing}: {said}", code=found.code or 1)
        return good[1]

    def entries(self, revision: str) -> Mapping[str, Entry]:
        """Give all files of a revision with their modes, by two calls of Git."""
        doing = f"listing the files of revision {revision}"
        listed = self._git(
            "ls-tree", "-r", "-z", "--full-tree", _plain(revision, doing), doing=doing
        )
        modes: dict[str, str] = {}
        for line in listed.out.decode("utf-8", "surrogateescape").split("\x00"):
            facts, _, path = line.partition("\t")
            if path:
                modes[path] = facts.split(" ")[0]
        contents = self.contents(revision)
        return {path: Entry(modes[path], data) for path, data in contents.items()}

    def advance(self, branch: str, new: str, old: str) -> None:
        """Move the branch that is checked out to a newer commit whose files are there already.

        It may be done again, after it was ended between its two calls of Git.

        Args:
            old: where it must still be.

        Raises:
            GitError: it is elsewhere by now, or the index is in use.
        """
        doing = f"moving the branch {branch} to {new[:8]}"
        if self.head() != new:
            words = ("-m", "iotops sync", f"refs/heads/{branch}", new, old)
            self._git("update-ref", *words, doing=doing)
        self._git("reset", "--quiet", doing=doing)  # the index only
