"""The door to Git, through GitPython: the two worktrees of a hub's repository.

Git always runs as the hub's owner, also when iotops runs as root (as root it refuses another
user's repository with "dubious ownership"), asks nothing, takes nothing from the caller's GIT_*
variables, and never looks above the worktree's own folder for a repository. What it has done is
on the disk when it returns: no collection goes on in the background, so that `.git` can be
copied as files at any time. Not here: what is committed when, and what a diff of flows means
(actions).
"""

from __future__ import annotations

import os
import pwd
import re
import socket
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from iotops.clients import process
from iotops.config import git_secret
from iotops.errors import Conflict, GitError, ProgramMissing, Refused, TimedOut, Unreachable

LOCAL_LIMIT = 120.0
"""Seconds that a command without network may take."""

REMOTE_LIMIT = 300.0
"""Seconds that a push may take."""

INSTALL = "apt-get install git"

SETTINGS = (
    "core.fsync=all",  # a power cut after the commit must not leave empty objects (Git >= 2.36)
    "core.autocrlf=false",  # files are compared byte by byte with their source
    "core.quotePath=false",
    "gc.autoDetach=false",
    "maintenance.autoDetach=false",
    "core.fsmonitor=false",  # would leave a process behind
    "i18n.logOutputEncoding=UTF-8",
)
"""Given with every command, so that the owner's own ~/.gitconfig does not change what we do."""

_UNIT, _RECORD = "\x1f", "\x00"


@dataclass(frozen=True)
class Commit:
    """One commit. `time` is the committer's, in UTC; `author` is "Name <address>"."""

    id: str
    time: datetime
    author: str
    subject: str
    body: str


@dataclass(frozen=True)
class Uncommitted:
    """A file that differs from HEAD: Git's two letters (`git status --short`) and its path."""

    code: str
    path: str


@dataclass(frozen=True)
class _Output:
    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode("utf-8", "surrogateescape").strip("\n")


class Worktree:
    """One folder with files under Git: the hub folder itself, or the linked `flows` in it.

    Args:
        path: the folder; need not be a repository yet.
        owner: numeric user and group Git runs as; None = the user of this process. Only root can
            be somebody else, any other user runs Git as itself.
    """

    def __init__(self, path: Path, *, owner: tuple[int, int] | None = None) -> None:
        self.path = path.resolve()
        self.owner = owner

    # ---- reading ---------------------------------------------------------------------------

    def exists(self) -> bool:
        """Tell whether this very folder is the top of a worktree."""
        if not self.path.is_dir():
            return False
        # One inside `.git`, or below the top, answers with another folder or none.
        found = self._git("rev-parse", "--show-toplevel", doing="looking for a repository", ok=None)
        return found.code == 0 and bool(found.text) and Path(found.text) == self.path

    def head(self) -> str | None:
        """Give the id of the commit the files are based on; None = nothing committed yet."""
        found = self._git(
            "rev-parse", "--verify", "--quiet", "HEAD", doing="asking for the commit", ok=(0, 1)
        )
        return found.text or None

    def branch(self) -> str | None:
        """Give the branch that is checked out; None = a detached commit."""
        found = self._git(
            "symbolic-ref", "--short", "--quiet", "HEAD", doing="asking for the branch", ok=(0, 1)
        )
        return found.text or None

    def resolve(self, revision: str) -> str:
        """Give the full commit id of a revision.

        Args:
            revision: anything Git understands: an id, `HEAD~2`, a branch, `main@{yesterday}`.

        Raises:
            GitError: there is no such commit.
        """
        doing = f"looking for revision {revision}"
        found = self._git(
            "rev-parse",
            "--verify",
            "--quiet",
            _plain(revision, doing) + "^{commit}",
            doing=doing,
            ok=None,
        )
        if found.code != 0:
            raise GitError(
                f"{doing}: there is no such commit in {self.path}",
                code=found.code,
                hint=f"git -C {self.path} log --oneline",
            )
        return found.text

    def log(
        self,
        limit: int = 20,
        *,
        revision: str = "HEAD",
        without: str = "",
        paths: Sequence[str] = (),
    ) -> tuple[Commit, ...]:
        """List commits, newest first.

        Args:
            limit: at most so many.
            revision: where to begin.
            without: leave out what leads to this revision; empty = nothing.
            paths: only commits that changed one of these; empty = all.

        Returns:
            The commits; none when nothing was committed yet.
        """
        if revision == "HEAD" and self.head() is None:
            return ()
        doing = f"reading the history of {self.path}"
        form = "%x1f".join(("%H", "%ct", "%an <%ae>", "%s", "%b"))
        found = self._git(
            "log",
            "-z",
            f"--max-count={limit}",
            f"--format=tformat:{form}",
            _plain(revision, doing),
            *([f"^{_plain(without, doing)}"] if without else []),
            "--",
            *(_literal(path) for path in paths),
            doing=doing,
        )
        text = found.out.decode("utf-8", "replace")
        return tuple(_commit(record) for record in text.split(_RECORD) if record.strip())

    def files(self, revision: str = "HEAD", under: str = "") -> tuple[str, ...]:
        """List the paths of a revision's files.

        Args:
            revision: which commit.
            under: only what is in this folder of it.
        """
        return tuple(self._tree(revision, under))

    def show(self, revision: str, path: str) -> bytes:
        """Give one file of a revision, byte for byte.

        Raises:
            GitError: the revision has no such file.
        """
        doing = f"reading {path} of revision {revision}"
        name = f"{_plain(revision, doing)}:{path}"
        return self._git("cat-file", "blob", name, doing=doing).out

    def contents(self, revision: str = "HEAD", under: str = "") -> Mapping[str, bytes]:
        """Give all files of a revision at once: path to bytes, by two calls of Git.

        Args:
            revision: which commit.
            under: only what is in this folder of it.
        """
        tree = self._tree(revision, under)
        if not tree:
            return {}
        doing = f"reading the files of revision {revision}"
        request = "".join(f"{blob}\n" for blob in tree.values()).encode()
        raw = self._git("cat-file", "--batch", stdin=request, doing=doing).out
        found: dict[str, bytes] = {}
        at = 0
        for path in tree:
            end = raw.index(b"\n", at)
            size = int(raw[at:end].split(b" ")[2])
            found[path] = raw[end + 1 : end + 1 + size]
            at = end + 1 + size + 1
        return found

    def status(self) -> tuple[Uncommitted, ...]:
        """List what differs from HEAD, new files included, ignored ones not."""
        found = self._git(
            "--no-optional-locks",
            "status",
            "--porcelain=v1",
            "-z",
            "--no-renames",
            "--untracked-files=all",
            doing=f"comparing {self.path} with its last commit",
        )
        lines = found.out.decode("utf-8", "surrogateescape").split("\x00")
        return tuple(Uncommitted(line[:2], line[3:]) for line in lines if line)

    def tracked(self, path: str) -> bool:
        """Tell whether a file is in the index, committed already or about to be."""
        doing = f"looking whether {path} is under Git"
        return bool(self._git("ls-files", "-z", "--", _literal(path), doing=doing).out)

    def ignored(self, path: str) -> bool:
        """Tell whether `.gitignore` and its like keep a file out, whether or not it is there."""
        doing = f"looking whether {path} is ignored"
        return self._git("check-ignore", "--quiet", "--", path, doing=doing, ok=(0, 1)).code == 0

    def remote(self, name: str = "origin") -> str | None:
        """Give the address of a remote; None = there is none of that name."""
        found = self._git(
            "config", "--get", f"remote.{name}.url", doing="asking for a remote", ok=(0, 1)
        )
        return found.text or None

    def _tree(self, revision: str, under: str) -> dict[str, str]:
        doing = f"listing the files of revision {revision}"
        only = [under.rstrip("/") + "/"] if under else []
        found = self._git(
            "ls-tree", "-r", "-z", "--full-tree", _plain(revision, doing), "--", *only, doing=doing
        )
        tree: dict[str, str] = {}
        for line in found.out.decode("utf-8", "surrogateescape").split("\x00"):
            facts, _, path = line.partition("\t")
            if path and facts.split(" ")[1] == "blob":  # a submodule is a commit, not a file
                tree[path] = facts.split(" ")[2]
        return tree

    # ---- writing ---------------------------------------------------------------------------

    def commit_all(self, message: str, paths: Sequence[Path | str] = ()) -> str | None:
        """Commit every change below some paths: new, changed and deleted files.

        What the owner has staged elsewhere is left alone.

        Args:
            message: subject, and after an empty line the body.
            paths: files or folders of this worktree; empty = all of it. A path that neither is
                nor was there counts as unchanged.

        Returns:
            The id of the new commit; None = nothing had changed, nothing was committed.

        Raises:
            GitError: Git or a commit hook refused, or a path is ignored by .gitignore.
        """
        doing = f"committing in {self.path}"
        known = self._known([str(path) for path in paths]) if paths else ["."]
        if not known:
            return None
        chosen = [_literal(path) for path in known]
        self._git("add", "--all", "--", *chosen, doing=doing)
        differs = self._git(
            "diff", "--cached", "--quiet", "--no-ext-diff", "--", *chosen, doing=doing, ok=(0, 1)
        )
        if differs.code == 0:
            return None
        self._git(
            *self._identity(),
            "commit",
            "--quiet",
            "--no-gpg-sign",  # would ask for a passphrase
            "--cleanup=whitespace",
            f"--message={message}",
            "--only",
            "--",
            *chosen,
            doing=doing,
        )
        return self.head()

    def add_orphan_worktree(self, branch: str = "flows", *, at: Path) -> Worktree:
        """Link a folder to a branch that shares no history with this one, and make both if needed.

        Git before 2.42 has no `worktree add --orphan`, so the branch begins with an empty commit
        made by `commit-tree`. Calling it again changes nothing.

        Args:
            branch: its name.
            at: the folder; missing or empty, or already the worktree of that branch.

        Raises:
            GitError: the folder is in use, or the branch is checked out elsewhere.
        """
        doing = f"linking {at} to the branch {branch}"
        linked = Worktree(at, owner=self.owner)
        if linked.exists():
            if linked.branch() == branch:
                return linked
            raise GitError(f"{doing}: that folder is the worktree of {linked.branch()}")
        # Looked at first: Git makes the new branch before it finds the folder in its way.
        if os.path.lexists(at) and (not at.is_dir() or any(at.iterdir())):
            raise GitError(f"{doing}: it already exists and is not an empty folder")
        found = self._git(
            "rev-parse", "--verify", "--quiet", f"refs/heads/{branch}", doing=doing, ok=(0, 1)
        )
        if found.code == 0:
            # Once forced: a worktree that is registered but gone may be made again. A branch
            # that is checked out elsewhere is our own check, since force would allow that too.
            elsewhere = [place for place in self._checked_out(branch) if place.is_dir()]
            if elsewhere:
                raise GitError(f"{doing}: it is checked out in {elsewhere[0]}")
            self._git(*self._identity(), "worktree", "add", "--force", str(at), branch, doing=doing)
            return linked
        tree = self._git("mktree", doing=doing).text
        start = self._git(
            *self._identity(),
            "commit-tree",
            tree,
            "-m",
            f"Begin the branch {branch}",
            doing=doing,
        ).text
        self._git(
            *self._identity(),
            "worktree",
            "add",
            "--force",
            "-b",
            branch,
            str(at),
            start,
            doing=doing,
        )
        return linked

    def repair(self, *linked: Path) -> None:
        """Make worktrees find each other again after the hub folder was moved or restored.

        Args:
            linked: the present places of the linked worktrees.
        """
        places = [str(place) for place in linked]
        self._git("worktree", "repair", *places, doing=f"repairing the worktrees of {self.path}")

    def set_remote(self, name: str, url: str) -> None:
        """Name a remote repository, or change its address.

        Raises:
            GitError: the address holds a password, which Git would keep in clear text.
        """
        doing = f"setting the remote {name}"
        if git_secret(url):
            raise GitError(
                f"{doing}: the address holds a user name, password or token",
                hint="use an SSH key, or Git's credential helper, and an address without them",
            )
        current = self.remote(name)
        if current is None:
            self._git("remote", "add", name, url, doing=doing)
        elif current != url:
            self._git("remote", "set-url", name, url, doing=doing)

    def push(self, remote: str, branch: str, *, limit: float = REMOTE_LIMIT) -> None:
        """Send a branch to a remote, never by force.

        Args:
            remote: its name.
            branch: the branch here and there.
            limit: seconds that it may take.

        Raises:
            TimedOut: the remote took too long.
            Conflict: the remote has commits that this branch does not have.
            Unreachable: the remote does not answer.
            Refused: it does not let us in.
            GitError: anything else, for example there is no such remote.
        """
        doing = f"pushing the branch {branch} to {remote}"
        if self.remote(remote) is None:
            raise GitError(f"{doing}: {self.path} has no such remote", hint="set [flows] remote")
        found = self._git(
            "push",
            "--porcelain",
            remote,
            f"refs/heads/{branch}:refs/heads/{branch}",
            doing=doing,
            ok=None,
            limit=limit,
        )
        if found.code != 0:
            raise self._push_failure(doing, found, remote, branch)

    def _push_failure(self, doing: str, found: _Output, remote: str, branch: str) -> Exception:
        said = _clean(found.err)
        both = found.text + "\n" + said
        last = _last(said)
        if re.search(r"\[rejected\]|non-fast-forward|fetch first", both):
            return Conflict(
                f"{doing}: it has commits that are not here",
                hint=f"git -C {self.path} fetch {remote} && "
                f"git -C {self.path} log {branch}..{remote}/{branch}",
            )
        if re.search(r"Permission denied|Authentication failed|could not read Username", both):
            return Refused(f"{doing}: it does not let us in: {last}")
        if re.search(
            r"Could not read from remote|Could not resolve host|unable to access|not a git reposi"
            r"tory|Connection (refused|timed out|closed)|No route to host",
            both,
        ):
            return Unreachable(f"{doing}: it does not answer: {last}")
        return self._failure(doing, found)

    def _known(self, paths: Sequence[str]) -> list[str]:
        """Drop what neither is on the disk nor in the index: Git would fail on it."""
        gone = [path for path in paths if not os.path.lexists(self.path / path)]
        if not gone:
            return list(paths)
        tracked = {
            path
            for path in gone
            if self._git(
                "ls-files", "-z", "--", _literal(path), doing=f"listing files of {self.path}"
            ).out
        }
        return [path for path in paths if path not in gone or path in tracked]

    def _checked_out(self, branch: str) -> list[Path]:
        found = self._git("worktree", "list", "--porcelain", doing="listing worktrees")
        places: list[Path] = []
        for block in found.text.split("\n\n"):
            lines = block.splitlines()
            if f"branch refs/heads/{branch}" in lines:
                places.append(Path(lines[0].removeprefix("worktree ")))
        return places

    def _identity(self) -> list[str]:
        """Name the author, unless this very repository names one; ~/.gitconfig does not count."""
        found = self._git(
            "config",
            "--local",
            "--get-regexp",
            r"^user\.(name|email)$",
            doing="asking for the author",
            ok=(0, 1),
        )
        own = {line.partition(" ")[0] for line in found.text.splitlines()}
        ours = {"user.name": "iotops", "user.email": f"iotops@{socket.gethostname()}"}
        return [
            word
            for key, value in ours.items()
            if key not in own
            for word in ("-c", f"{key}={value}")
        ]

    # ---- running ---------------------------------------------------------------------------

    def _git(
        self,
        *words: str,
        doing: str,
        ok: Sequence[int] | None = (0,),
        stdin: bytes = b"",
        limit: float = LOCAL_LIMIT,
    ) -> _Output:
        program = process.find("git", hint=INSTALL)
        if not self.path.is_dir():
            raise GitError(f"{doing}: the folder {self.path} does not exist", code=128)
        settings = [word for setting in SETTINGS for word in ("-c", setting)]
        argv = [*self._without_inherited(), program, *settings, *words]
        found = self._execute(argv, stdin, doing, limit)
        if ok is not None and found.code not in ok:
            raise self._failure(doing, found)
        return found

    def _execute(self, argv: Sequence[str], stdin: bytes, doing: str, limit: float) -> _Output:
        """Run Git through GitPython, which passes what it does not know on to Popen."""
        try:
            import git
        except ImportError as error:  # GitPython runs `git version` when it is imported
            raise ProgramMissing(f"{doing}: GitPython finds no git", hint=INSTALL) from error

        with tempfile.TemporaryFile() as feed:
            feed.write(stdin)
            feed.seek(0)
            handle = git.Git(str(self.path)).execute(
                list(argv),
                istream=feed,
                as_process=True,
                env=self._environment(),
                start_new_session=True,  # no terminal to ask on, and a group that can be ended
                **self._as_owner(),
            )
        child = handle.proc
        assert child is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            process.end_group(child)

        clock = threading.Timer(limit, end)
        clock.daemon = True
        clock.start()
        try:
            out, err = child.communicate()
        except BaseException:
            process.end_group(child)
            raise
        finally:
            clock.cancel()
        if late.is_set():
            raise TimedOut(f"{doing}: Git took more than {limit:.0f} s and was ended", code=124)
        return _Output(child.returncode, out, err.decode("utf-8", "replace"))

    def _as_owner(self) -> dict[str, object]:
        if self.owner is None or os.geteuid() != 0 or self.owner[0] == 0:
            return {}
        return {"user": self.owner[0], "group": self.owner[1], "extra_groups": []}

    def _environment(self) -> dict[str, str]:
        """Set what Git may ask (nothing) and where it may look (nowhere above the folder)."""
        values = {
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "",
            "SSH_ASKPASS_REQUIRE": "never",
            "GIT_EDITOR": "false",
            "GIT_CEILING_DIRECTORIES": str(self.path.parent),
        }
        if self._as_owner() and self.owner is not None:
            try:
                who = pwd.getpwuid(self.owner[0])
            except KeyError:  # an id without an account, as in a container
                values["HOME"] = "/nonexistent"
            else:
                values.update(HOME=who.pw_dir, USER=who.pw_name, LOGNAME=who.pw_name)
        return values

    def _without_inherited(self) -> list[str]:
        """Drop the caller's GIT_* variables: GitPython adds to our environment, removes nothing."""
        ours = self._environment()
        names = [name for name in os.environ if name.startswith("GIT_") and name not in ours]
        if self._as_owner() and "XDG_CONFIG_HOME" in os.environ:
            names.append("XDG_CONFIG_HOME")  # root's own settings
        if not names:
            return []
        program = process.find("env", hint="apt-get install coreutils")
        return [program, *(word for name in sorted(names) for word in ("-u", name))]

    def _failure(self, doing: str, found: _Output) -> GitError:
        said = _clean(found.err)
        hint = ""
        if "dubious ownership" in said:
            hint = "run iotops as the hub's owner or as root, and check [hub] owner"
        elif "index.lock" in said:
            hint = "if no other Git is running there, delete the index.lock file named above"
        elif "not a git repository" in said and ".git/worktrees/" in said:
            hint = f"the hub folder was moved: run git worktree repair in {self.path.parent}"
        elif "not a git repository" in said:
            hint = f"git init {self.path}"
        tail = tuple(said.splitlines()[-process.TAIL_LINES :])
        return GitError(f"{doing}: {_last(said)}", code=found.code, tail=tail, hint=hint)


def init_repository(
    path: Path, owner: tuple[int, int] | None = None, branch: str = "main"
) -> Worktree:
    """Make a folder a Git repository, without a commit; an existing one is left as it is.

    Args:
        path: the folder, which exists and belongs to the owner.
        owner: numeric user and group, see `Worktree`.
        branch: what its first branch is called.

    Raises:
        GitError: the owner may not write there.
    """
    tree = Worktree(path, owner=owner)
    if not tree.exists():
        doing = f"making {path} a Git repository"
        tree._git("init", "--quiet", f"--initial-branch={branch}", doing=doing)
    return tree


def _literal(path: str) -> str:
    """Name one path: its stars and brackets are letters. By word and not by environment variable,
    which the commit hooks would inherit."""
    return f":(literal){path}"


def _plain(revision: str, doing: str) -> str:
    """Refuse a revision that Git would take for an option or for more than one."""
    if not revision or revision.startswith("-") or re.search(r"[\x00-\x20]|\.\.|:", revision):
        raise GitError(f"{doing}: that is not the name of one revision")
    return revision


def _commit(record: str) -> Commit:
    commit, seconds, author, subject, body = record.lstrip("\n").split(_UNIT, 4)
    return Commit(commit, datetime.fromtimestamp(int(seconds), UTC), author, subject, body.strip())


def _clean(text: str) -> str:
    """Take a user's name and password out of addresses that Git repeats."""
    return re.sub(r"://[^/@\s]+@", "://***@", text).strip()


def _last(text: str) -> str:
    """Pick the line that says why: Git's own fatal or error line, else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in lines:
        if line.startswith(("fatal:", "error:")):
            return line
    return lines[-1] if lines else "no reason given"
