"""The door to restic, against the real restic in every version of the lab.

Failures that cannot be brought about with the real one are told by fake executables; the recorded
words of each version are in `tests/unit/test_restic_answers.py`.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from iotops import signals
from iotops.clients.restic import Entry, Repository, RepositoryAccess, Saved
from iotops.clients.resticprogram import ResticProgram
from iotops.errors import (
    Exit,
    GuardError,
    Interrupted,
    IotopsError,
    Locked,
    NoSpace,
    ProgramFailed,
    ProgramMissing,
    Refused,
    RepositoryDamaged,
    RepositoryMissing,
    SnapshotUnknown,
    TimedOut,
    Unreachable,
    WrongPassword,
)
from tests.conftest import need
from tests.support.lab import lab
from tests.support.resticbench import (
    environment,
    fake_restic,
    hurry,
    leave_exclusive_lock,
    unprivileged,
)

pytestmark = pytest.mark.clients

MATRIX = ("0.14.0", "0.18.0", "0.19.1")
"""Debian 12, Debian 13 and sid: what must be had; others the lab has are tested as well."""

VERSIONS = sorted({*MATRIX, *lab().restic}, key=lambda text: [int(n) for n in text.split(".")])
ENDS = pytest.mark.parametrize("version", sorted({VERSIONS[0], VERSIONS[-1]}), indirect=True)
LAST = pytest.mark.parametrize("version", VERSIONS[-1:], indirect=True)
"""For what takes long, and for what is no matter of restic's version."""

PASSWORD = "correct horse"
TAGS = ("iotops", "hub-1", "complete")


@dataclass(frozen=True)
class Bench:
    """A repository of one version and something to save."""

    base: Path
    program: Path
    access: RepositoryAccess
    source: Path

    @property
    def repository(self) -> Repository:
        return Repository(self.access)

    @property
    def url(self) -> Path:
        return Path(self.access.url)

    def bare(self, *argv: str, stdin: int | None = subprocess.DEVNULL) -> str:
        """Run restic as a person would, independent of the client."""
        values = environment(self.url, self.access.password_file, self.base)
        done = subprocess.run(
            [self.program, *argv], env=values, stdin=stdin, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def save(self, **more: str) -> Saved:
        return self.repository.save(self.source, host="hub", tags=TAGS)

    def elsewhere(self, name: str) -> RepositoryAccess:
        """Give access to another repository beside this one."""
        return replace(self.access, url=str(self.base / name))


def bench_in(base: Path, program: Path) -> Bench:
    password = base / "password"
    password.write_text(PASSWORD + "\n")
    source = base / "source"
    source.mkdir()
    access = RepositoryAccess(
        url=str(base / "repository"),
        password_file=password,
        cache=base / "cache",
        tmp=base,
        program=str(program),
    )
    return Bench(base, program, access, source)


@pytest.fixture(scope="session", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    text = str(request.param)
    need(f"restic {text}")
    return text


@pytest.fixture(scope="session")
def templates() -> dict[str, Path]:
    """Repositories by version, as they were needed."""
    return {}


@pytest.fixture
def bench(
    version: str,
    templates: dict[str, Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bench:
    """A copy of the repository that `init` made once per version, and that opens at once."""
    if version not in templates:
        base = tmp_path_factory.mktemp(f"restic-{version}")
        first = bench_in(base, lab().restic[version])
        with pytest.raises(RepositoryMissing):
            first.repository.id()
        repository_id = first.repository.init()
        hurry(first.url, PASSWORD)
        assert repository_id == first.repository.id()
        templates[version] = first.url
    made = bench_in(tmp_path, lab().restic[version])
    shutil.copytree(templates[version], made.url)
    return made


@pytest.fixture
def newest(tmp_path: Path) -> Bench:
    """For what is no matter of restic's version, and for fake ones."""
    need("restic")
    return bench_in(tmp_path, lab().restic[max(lab().restic)])


def fill(folder: Path) -> dict[str, bytes]:
    """Make files with all sorts of names and contents."""
    content = {
        "manifest.json": b'{"format": 1}\n',
        "empty": b"",
        "deep/er/bytes.bin": bytes(range(256)) * 2000,
        "st*r [1]?.txt": b"glob",
        "star [1]x.txt": b"no glob",
        "back\\slash": b"backslash",
        "Wärme und Kälte.json": b"umlaut",
        "-rf": b"option",
        " spaces ": b"spaces",
        "deep/er/new\nline": b"newline",
    }
    for name, data in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "link").symlink_to("manifest.json")
    return content


def tree(folder: Path) -> dict[str, bytes]:
    """Read all plain files below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# -- the whole way -------------------------------------------------------------------------------


def test_saved_and_brought_back(bench: Bench) -> None:
    content = fill(bench.source)
    repository = bench.repository
    saved = bench.save()
    assert len(saved.snapshot) == 64
    assert (saved.files_new, saved.files_changed, saved.files_unmodified) == (len(content), 0, 0)
    assert saved.bytes == sum(map(len, content.values()))
    assert saved.data_added > 0
    assert not saved.incomplete
    assert saved.unread == ()

    (info,) = repository.snapshots(TAGS, "hub")
    assert (info.id, info.host, info.tags) == (saved.snapshot, "hub", TAGS)
    assert info.paths == (str(bench.source),)
    assert abs(datetime.now(UTC) - info.time) < timedelta(minutes=5)

    for name in ("deep/er/bytes.bin", "empty", "st*r [1]?.txt", "Wärme und Kälte.json"):
        assert repository.dump(saved.snapshot, f"/{name}") == content[name]
    text = content["manifest.json"]
    for other in (text, text + b"more\n", text[:-2] + b"x\n", b"more\n" + text, b""):
        (bench.base / "beside").write_bytes(other)
        same = repository.holds(saved.snapshot, "/manifest.json", bench.base / "beside")
        assert same is (other == text)

    entries = repository.ls(saved.snapshot)
    assert Entry("/deep/er/bytes.bin", "file", 512_000) in entries
    assert Entry("/deep", "dir", 0) in entries
    assert [one.type for one in entries if one.path == "/link"] == ["symlink"]
    assert {one.path[1:] for one in entries if one.type == "file"} == set(content)

    repository.restore(saved.snapshot, bench.base / "all")
    assert tree(bench.base / "all") == content
    assert (bench.base / "all/link").readlink() == Path("manifest.json")


def test_parts_are_taken_by_their_names_alone(bench: Bench) -> None:
    content = fill(bench.source)
    saved = bench.save()
    names = ("st*r [1]?.txt", "back\\slash", "-rf", " spaces ", "deep/er", "no/such/name")
    target = bench.base / "part"
    bench.repository.restore(saved.snapshot, target, includes=[f"/{name}" for name in names])
    wanted = {key for key in content if key in names or key.startswith("deep/er/")}
    assert len(wanted) == 6
    assert set(tree(target)) == wanted


def test_a_key_is_added_named_hinted_at_and_removed(bench: Bench) -> None:
    repository, word = bench.repository, bench.base / "word"
    word.write_text("another password")
    (own,) = repository.list_keys()
    assert own.current and own.user == pwd.getpwuid(os.geteuid()).pw_name
    repository.add_key(word, user="iotops-kit", host="home")
    (added,) = (one for one in repository.list_keys() if not one.named(own.id))
    assert (added.user, added.host, added.current) == ("iotops-kit", "home", False)
    with pytest.raises(ProgramFailed):
        Repository(replace(bench.access, password_file=word)).remove_key(added.id)
    hints = (own.id, own.id[:8], added.id, "0" * 64, "0" * 8)
    # A wrong hint, also of a key that is there, does no harm.
    assert len({Repository(replace(bench.access, key=hint)).id() for hint in hints}) == 1
    repository.remove_key(added.id)
    repository.remove_key(added.id)
    assert [one.id for one in repository.list_keys()] == [own.id]
    with pytest.raises(WrongPassword):
        Repository(replace(bench.access, password_file=word)).id()


def test_an_unchanged_second_run_finds_its_parent(bench: Bench) -> None:
    content = fill(bench.source)
    first = bench.save()
    # The same file under another inode, as a link is after it was removed and made again.
    kept = bench.base / "kept"
    os.link(bench.source / "manifest.json", kept)
    (bench.source / "manifest.json").unlink()
    os.link(kept, bench.source / "manifest.json")
    second = bench.save()
    assert second.files_unmodified == len(content)
    assert (second.files_new, second.files_changed) == (0, 0)
    assert second.snapshot != first.snapshot
    listed = json.loads(bench.bare("snapshots", "--json"))
    assert [one.get("parent") for one in listed] == [None, first.snapshot]
    assert bench.save().data_added == 0


def test_snapshots_are_chosen_and_sorted(bench: Bench) -> None:
    (bench.source / "file").write_text("x")
    repository = bench.repository
    assert repository.snapshots() == ()
    times = ["2026-03-01 10:00:00", "2026-01-01 10:00:00", "2026-02-01 10:00:00"]
    for number, when in enumerate(times):
        tags = ("--tag", "iotops", "--tag", f"n{number}")
        path = str(bench.source)
        bench.bare("backup", path, "--time", when, "--host", f"host{number % 2}", *tags)
    found = repository.snapshots(["iotops"])
    assert [one.tags[1] for one in found] == ["n1", "n2", "n0"]
    assert all(one.time.utcoffset() == timedelta(0) for one in found)
    assert [one.tags[1] for one in repository.snapshots(["iotops", "n2"])] == ["n2"]
    assert [one.tags[1] for one in repository.snapshots(host="host0")] == ["n2", "n0"]
    assert repository.snapshots(["n1", "n2"]) == ()


# -- creating ------------------------------------------------------------------------------------


def test_init_never_overwrites(bench: Bench) -> None:
    made = bench.repository.id()
    assert made == json.loads(bench.bare("cat", "config"))["id"]
    before = tree(bench.url)
    with pytest.raises(GuardError, match="there is a repository at the address already"):
        bench.repository.init()
    assert tree(bench.url) == before
    assert bench.repository.id() == made


@ENDS
def test_copies_share_their_chunks(bench: Bench) -> None:
    fill(bench.source)
    saved, unwanted = bench.save(), bench.save()
    access = bench.elsewhere("copy")
    copy = Repository(access)
    copy.init(bench.access)
    hurry(Path(access.url), PASSWORD)
    ours = json.loads(bench.bare("cat", "config"))["chunker_polynomial"]
    theirs = json.loads(replace(bench, access=access).bare("cat", "config"))["chunker_polynomial"]
    assert ours == theirs
    assert copy.id() != bench.repository.id()

    arrived = copy.copy_from(bench.access, [saved.snapshot])
    (there,) = copy.snapshots()
    assert arrived == {saved.snapshot: there.id}
    assert there.original == saved.snapshot != there.id
    assert there.tags == TAGS
    assert copy.copy_from(bench.access, [saved.snapshot]) == arrived
    assert len(copy.snapshots()) == 1
    assert copy.dump(there.id, "/manifest.json") == b'{"format": 1}\n'
    assert unwanted.snapshot not in arrived


@LAST
def test_a_copy_that_does_not_arrive_is_no_success(bench: Bench) -> None:
    access = bench.elsewhere("copy")
    shutil.copytree(bench.url, access.url)
    with pytest.raises(IotopsError, match="cc"):
        Repository(access).copy_from(bench.access, ["c" * 64])


def test_two_values_of_one_credential_are_refused(newest: Bench) -> None:
    one = replace(newest.access, environment={"AWS_ACCESS_KEY_ID": "first-key"})
    two = replace(newest.access, environment={"AWS_ACCESS_KEY_ID": "second-key"})
    with pytest.raises(IotopsError, match="different values of AWS_ACCESS_KEY_ID") as caught:
        Repository(one).init(two)
    assert "-key" not in caught.value.message


# -- repositories that do not open ---------------------------------------------------------------


def calls(bench: Bench) -> dict[str, Callable[[Repository], object]]:
    return {
        "id": lambda repository: repository.id(),
        "snapshots": lambda repository: repository.snapshots(),
        "save": lambda repository: repository.save(bench.source, host="hub", tags=TAGS),
        "dump": lambda repository: repository.dump("a" * 64, "/file"),
        "restore": lambda repository: repository.restore("a" * 64, bench.base / "out"),
        "ls": lambda repository: repository.ls("a" * 64),
        "forget": lambda repository: repository.forget(["a" * 64]),
        "prune": lambda repository: repository.prune(),
        "check": lambda repository: repository.check(),
        "locks": lambda repository: repository.locks(),
        "unlock": lambda repository: repository.unlock(),
    }


@pytest.mark.parametrize("folder", ["absent", "empty"])
def test_a_missing_repository_is_told_and_never_made(bench: Bench, folder: str) -> None:
    access = bench.elsewhere("nothing")
    if folder == "empty":
        Path(access.url).mkdir()
    for name, call in calls(bench).items():
        with pytest.raises(RepositoryMissing) as caught:
            call(Repository(access))
        assert caught.value.exit == Exit.NO_REPOSITORY, name
        assert "iotops init --repository URL" in caught.value.hint
        assert Path(access.url).is_dir() == (folder == "empty"), name
        assert tree(bench.base / "nothing") == {}, name


@pytest.mark.parametrize("content", ["something else\n", "", "\n"])
def test_a_wrong_password(bench: Bench, content: str) -> None:
    bench.access.password_file.write_text(content)
    for name in ("id", "snapshots", "save", "check"):
        with pytest.raises(WrongPassword) as caught:
            calls(bench)[name](bench.repository)
        assert caught.value.exit == Exit.WRONG_PASSWORD


def test_a_password_file_that_is_not_there(newest: Bench) -> None:
    newest.access.password_file.unlink()
    with pytest.raises(WrongPassword, match="cannot be read: No such file"):
        newest.repository.id()


def test_a_server_that_does_not_answer_is_no_missing_repository(bench: Bench) -> None:
    access = replace(bench.access, url="rest:http://someone:geheim@127.0.0.1:9/")
    with pytest.raises(Unreachable) as caught:  # restic 0.17 and newer would try for 15 minutes
        ResticProgram(access).run(["cat", "config"], doing="opening", limit=2.5)
    assert "geheim" not in str(caught.value)


def test_damage_is_told(bench: Bench) -> None:
    (bench.source / "noise").write_bytes(os.urandom(400_000))
    saved = bench.save()
    bench.repository.check()
    bench.repository.check("100%")
    packs = [path for path in (bench.url / "data").rglob("*") if path.is_file()]
    pack = max(packs, key=lambda path: path.stat().st_size)
    pack.chmod(0o600)
    with pack.open("r+b") as file:
        file.seek(1000)
        file.write(b"sabotage")
    shutil.rmtree(bench.access.cache, ignore_errors=True)
    # Parts are told apart by the first byte of a pack's name.
    empty = set(range(256)) - {int(path.name[:2], 16) for path in packs}
    bench.repository.check(f"{min(empty) + 1}/256")
    for call in (
        lambda: bench.repository.check("100%"),
        lambda: bench.repository.dump(saved.snapshot, "/noise"),
        lambda: bench.repository.restore(saved.snapshot, bench.base / "out"),
    ):
        with pytest.raises(RepositoryDamaged, match="the repository is damaged"):
            call()


def test_a_cut_off_config_is_damage(bench: Bench) -> None:
    config = bench.url / "config"
    config.chmod(0o600)
    config.write_bytes(config.read_bytes()[:3])
    with pytest.raises(RepositoryDamaged):
        bench.repository.id()


# -- snapshots that are not there ----------------------------------------------------------------


def test_unknown_snapshots(bench: Bench) -> None:
    (bench.source / "file").write_text("x")
    saved = bench.save()
    repository = bench.repository
    for call in (
        lambda: repository.dump("a" * 64, "/file"),
        lambda: repository.dump("abcdef01", "/file"),
        lambda: repository.ls("abcdef01"),
        lambda: repository.restore("abcdef01", bench.base / "out"),
    ):
        with pytest.raises(SnapshotUnknown):
            call()
    with pytest.raises(ProgramFailed, match="not found in snapshot") as caught:
        repository.dump(saved.snapshot, "/no/such/file")
    assert not isinstance(caught.value, TimedOut)


@pytest.mark.parametrize("text", ["latest", "", "--help", "abcdef01:/sub", "ABCDEF01", "abc"])
def test_only_ids_reach_restic(newest: Bench, text: str) -> None:
    repository = newest.repository
    for call in (
        lambda: repository.dump(text, "/file"),
        lambda: repository.restore(text, newest.base / "out"),
        lambda: repository.ls(text),
        lambda: repository.forget([text]),
    ):
        with pytest.raises(SnapshotUnknown, match="is no snapshot id"):
            call()


# -- saving that fails ---------------------------------------------------------------------------


def test_an_unreadable_file_makes_it_incomplete(bench: Bench, tmp_path: Path) -> None:
    program = bench.program
    if os.geteuid() == 0:
        need("setpriv")
        program = unprivileged(tmp_path / "restic", bench.program)
    fill(bench.source)
    (bench.source / "deep" / "secret").write_text("x")
    (bench.source / "deep" / "secret").chmod(0)
    repository = Repository(replace(bench.access, program=str(program)))
    saved = repository.save(bench.source, host="hub", tags=TAGS)
    assert saved.incomplete
    assert [Path(item).name for item in saved.unread] == ["secret"]
    assert [one.id for one in repository.snapshots()] == [saved.snapshot]
    assert "/deep/secret" not in {one.path for one in repository.ls(saved.snapshot)}


@LAST
def test_nothing_to_save(bench: Bench) -> None:
    with pytest.raises(ProgramFailed, match="snapshot is empty"):
        bench.save()
    with pytest.raises(ProgramFailed, match="is no folder that can be entered"):
        bench.repository.save(bench.base / "gone", host="hub", tags=TAGS)
    assert bench.repository.snapshots() == ()


def test_an_interruption_leaves_no_lock(bench: Bench) -> None:
    with (bench.source / "big").open("wb") as file:
        file.truncate(1 << 40)
    before = [signal.getsignal(number) for number in signals.HEARD]
    heard: list[tuple[int, int]] = []
    seen: list[int] = []

    def moved(done: int, total: int) -> None:
        heard.append((done, total))
        if done and not seen:
            seen.append(len(bench.repository.locks()))
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        signals.install()
        with pytest.raises(Interrupted):
            bench.repository.save(bench.source, host="hub", tags=TAGS, moved=moved)
    finally:
        for number, handler in zip(signals.HEARD, before, strict=True):
            signal.signal(number, handler)
    assert seen == [1]
    assert heard == sorted(heard)
    assert heard[-1][1] == 1 << 40
    assert bench.repository.locks() == ()
    assert bench.repository.snapshots() == ()


# -- locks ---------------------------------------------------------------------------------------


def test_a_lock_that_a_dead_run_left(bench: Bench) -> None:
    (bench.source / "file").write_text("x")
    repository = bench.repository
    assert repository.locks() == ()
    values = environment(bench.url, bench.access.password_file, bench.base)
    pid = leave_exclusive_lock(bench.program, values)
    (found,) = repository.locks()
    assert (found.pid, found.exclusive) == (pid, True)
    assert found.host == os.uname().nodename
    assert found.user
    assert abs(datetime.now(UTC) - found.time) < timedelta(minutes=5)
    for name in ("save", "prune", "check", "snapshots"):
        with pytest.raises(Locked, match=f"PID {pid} on ") as caught:
            calls(bench)[name](repository)
        assert caught.value.exit == Exit.LOCKED
    assert [one.id for one in repository.locks()] == [found.id]
    repository.unlock()
    assert repository.locks() == ()
    bench.save()


@pytest.fixture
def busy(bench: Bench) -> Iterator[subprocess.Popen[bytes]]:
    """A restic that is at work and holds a shared lock."""
    child = subprocess.Popen(
        [bench.program, "backup", "--stdin", "--host", "other"],
        env=environment(bench.url, bench.access.password_file, bench.base),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 30
        while not any((bench.url / "locks").iterdir()):
            assert time.monotonic() < until
            time.sleep(0.02)
        yield child
    finally:
        child.kill()
        child.wait()


def test_a_lock_of_one_at_work(bench: Bench, busy: subprocess.Popen[bytes]) -> None:
    (bench.source / "file").write_text("x")
    (found,) = bench.repository.locks()
    assert (found.pid, found.exclusive) == (busy.pid, False)
    bench.save()  # a shared lock is no obstacle
    with pytest.raises(Locked, match=f"PID {busy.pid} on "):
        bench.repository.prune()
    busy.send_signal(signal.SIGSTOP)  # it cannot answer, but lives: its lock must stay
    bench.repository.unlock()
    assert [one.id for one in bench.repository.locks()] == [found.id]
    bench.repository.unlock(every=True)
    assert bench.repository.locks() == ()


# -- retention -----------------------------------------------------------------------------------


def test_retention_is_planned_and_done(bench: Bench) -> None:
    (bench.source / "file").write_text("x")
    for day, host, tags in (
        ("01", "hub", "complete"),
        ("02", "hub", "complete"),
        ("03", "old-name", "complete"),
        ("04", "hub", "complete"),
        ("04", "hub", "partial"),
    ):
        path = str(bench.source)
        when = f"2026-05-{day} 03:10:00"
        bench.bare("backup", path, "--time", when, "--host", host, "--tag", f"iotops,{tags}")
    repository = bench.repository
    listed = [one.id for one in repository.snapshots(["complete"])]
    complete = set(listed)
    assert len(complete) == 4

    def plan(*, daily: int = 0, least: int = 1) -> tuple[set[str], set[str]]:
        found = repository.plan_forget(
            tags=("iotops", "complete"),
            keep_daily=daily,
            keep_weekly=0,
            keep_monthly=0,
            keep_at_least=least,
        )
        return set(found.keep), set(found.remove)

    keep, remove = plan(daily=2)
    assert len(keep) == 2
    assert keep | remove == complete
    assert not keep & remove
    assert keep == set(listed[-2:])
    assert plan(least=9) == (complete, set())
    assert len(repository.snapshots()) == 5, "a plan removes nothing"
    none = repository.plan_forget(
        tags=("nobody",), keep_daily=1, keep_weekly=1, keep_monthly=1, keep_at_least=1
    )
    assert (none.keep, none.remove) == ((), ())

    repository.forget(sorted(remove))
    assert {one.id for one in repository.snapshots(["complete"])} == keep
    assert len(repository.snapshots(["partial"])) == 1
    repository.forget(sorted(remove))  # gone already
    repository.forget([])
    repository.prune("0")
    repository.check("100%")


@pytest.mark.parametrize("arguments", [((), 1), (("iotops",), 0)])
def test_a_plan_without_bounds_is_refused(
    newest: Bench, arguments: tuple[tuple[str, ...], int]
) -> None:
    tags, least = arguments
    with pytest.raises(ValueError, match="keeps at least one"):
        newest.repository.plan_forget(
            tags=tags, keep_daily=1, keep_weekly=1, keep_monthly=1, keep_at_least=least
        )


def test_a_removal_that_failed_is_no_success(bench: Bench, tmp_path: Path, version: str) -> None:
    if version.startswith("0.14."):
        pytest.skip("restic 0.14 tries for 45 s, and then fails by itself")
    (bench.source / "file").write_text("x")
    saved = bench.save()
    program = bench.program
    if os.geteuid() == 0:
        need("setpriv")
        program = unprivileged(tmp_path / "restic", bench.program)
    (bench.url / "snapshots").chmod(0o500)
    try:
        with pytest.raises(ProgramFailed, match="remove"):
            Repository(replace(bench.access, program=str(program))).forget([saved.snapshot])
    finally:
        (bench.url / "snapshots").chmod(0o700)
    assert [one.id for one in bench.repository.snapshots()] == [saved.snapshot]


# -- the environment -----------------------------------------------------------------------------


@LAST
def test_the_owners_own_restic_settings_do_not_matter(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (bench.source / "file").write_text("x")
    for name, value in {
        "RESTIC_REPOSITORY": "/no/such/repository",
        "RESTIC_REPOSITORY_FILE": "/no/such/file",
        "RESTIC_PASSWORD": "wrong",
        "RESTIC_PASSWORD_COMMAND": "echo wrong",
        "RESTIC_PASSWORD_FILE": "/no/such/file",
        "RESTIC_HOST": "stranger",
        "RESTIC_CACHE_DIR": str(tmp_path / "stray-cache"),
        "RESTIC_COMPRESSION": "nonsense",
        "RESTIC_PACK_SIZE": "nonsense",
        "RESTIC_KEY_HINT": "nonsense",
        "RESTIC_PROGRESS_FPS": "nonsense",
        "XDG_CACHE_HOME": str(tmp_path / "stray-xdg"),
        "TMPDIR": "/no/such/folder",
    }.items():
        monkeypatch.setenv(name, value)
    saved = bench.save()
    assert [one.id for one in bench.repository.snapshots(host="hub")] == [saved.snapshot]
    assert bench.access.cache.is_dir()
    assert not list(tmp_path.glob("stray-*"))


@LAST
def test_a_second_kind_of_password_among_the_credentials_does_not_matter(bench: Bench) -> None:
    stray = {
        "RESTIC_PASSWORD": "wrong",
        "RESTIC_PASSWORD_COMMAND": "echo wrong",
        "RESTIC_REPOSITORY_FILE": "/no/such/file",
    }
    assert Repository(replace(bench.access, environment=stray)).id() == bench.repository.id()


def test_secrets_are_in_the_environment_only(
    newest: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the owner")
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("UNRELATED", "1")
    note = tmp_path / "note"
    body = f'printf "%s\\n" "$@" > {note}.argv; env > {note}.env\n'
    body += 'echo "login of $RESTIC_REPOSITORY with $B2_ACCOUNT_KEY failed" >&2; exit 1'
    access = replace(
        newest.access,
        url="rest:https://hub:ge%24heim@backup.example/hub",
        environment={"B2_ACCOUNT_KEY": "K0001-very-secret"},
        program=str(fake_restic(tmp_path / "fake", body)),
    )
    with pytest.raises(ProgramFailed) as caught:
        Repository(access).save(newest.source, host="hub", tags=TAGS)
    told = " ".join([str(caught.value), *caught.value.tail, repr(access), repr(caught.value)])
    assert "login of rest:https://hub:***@backup.example/hub with *** failed" in told
    argv = Path(f"{note}.argv").read_text()
    for secret in ("ge%24heim", "ge$heim", "K0001-very-secret"):
        assert secret not in told
        assert secret not in argv
    values = dict(
        line.split("=", 1) for line in Path(f"{note}.env").read_text().splitlines() if "=" in line
    )
    assert values["RESTIC_REPOSITORY"] == access.url
    assert values["RESTIC_PASSWORD_FILE"] == str(access.password_file)
    assert values["B2_ACCOUNT_KEY"] == "K0001-very-secret"
    assert values["https_proxy"] == "http://proxy:3128"
    assert values["TMPDIR"] == str(access.tmp)
    assert {"AWS_SECRET_ACCESS_KEY", "UNRELATED", "RESTIC_PASSWORD"}.isdisjoint(values)


@ENDS
def test_small_memory_changes_nothing_but_the_pace(bench: Bench, tmp_path: Path) -> None:
    fill(bench.source)
    saved = bench.save()
    small = replace(bench.access, small_memory=True)
    again = Repository(small).save(bench.source, host="hub", tags=TAGS)
    assert (again.files, again.bytes, again.data_added) == (saved.files, saved.bytes, 0)

    note = tmp_path / "note"
    fake = fake_restic(tmp_path / "fake", f"env > {note}; exit 1")
    for access, wanted in ((small, "20"), (bench.access, None)):
        with pytest.raises(ProgramFailed):
            Repository(replace(access, program=str(fake))).snapshots()
        values = dict(line.split("=", 1) for line in note.read_text().splitlines() if "=" in line)
        assert (values.get("GOGC"), values.get("GOMAXPROCS")) == (wanted, wanted and "1")


@LAST
def test_no_cache_is_made_on_a_disk_that_is_not_there(bench: Bench) -> None:
    lost = bench.base / "mount" / ".iotops" / "cache"
    access = replace(bench.access, cache=lost, tmp=lost.with_name("tmp"))
    assert Repository(access).snapshots() == ()
    assert not (bench.base / "mount").exists()
    lost.parent.mkdir(parents=True)
    assert Repository(access).snapshots() == ()
    assert lost.is_dir()


@LAST
def test_a_relative_address(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (bench.source / "file").write_text("x")
    monkeypatch.chdir(bench.base)
    access = replace(
        bench.access,
        url="repository",
        password_file=Path("password"),
        cache=Path("cache"),
        tmp=Path(),
    )
    saved = Repository(access).save(Path("source"), host="hub", tags=TAGS)
    assert [one.id for one in bench.repository.snapshots()] == [saved.snapshot]
    assert sorted(path.name for path in bench.source.iterdir()) == ["file"]


# -- fake programs -------------------------------------------------------------------------------


def test_restic_is_missing(newest: Bench) -> None:
    for program in ("no-such-restic", str(newest.base / "restic")):
        with pytest.raises(ProgramMissing, match="not installed") as caught:
            Repository(replace(newest.access, program=program)).version()
        assert "apt-get install restic" in caught.value.hint


@pytest.mark.parametrize(
    "answer",
    [
        "restic 0.13.1 compiled with go1.18 on linux/arm64",
        "restic 0.9.6 (debian)",
        "something else entirely",
        "",
    ],
)
def test_restic_is_too_old_or_none(newest: Bench, answer: str) -> None:
    program = fake_restic(newest.base / "old", "echo called >> called", version=answer)
    repository = Repository(replace(newest.access, program=str(program)))
    for call in (repository.version, repository.id, repository.init):
        with pytest.raises(ProgramMissing) as caught:
            call()
        assert "apt-get install restic" in caught.value.hint
    assert not (newest.base / "called").exists()


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("restic 0.14.0 compiled with go1.19.8 on linux/amd64", (0, 14, 0)),
        ("restic 0.16.4-dev (compiled manually) compiled with go1.22", (0, 16, 4)),
        ("restic 1.0", (1, 0, 0)),
    ],
)
def test_versions_are_read(newest: Bench, answer: str, wanted: tuple[int, int, int]) -> None:
    program = fake_restic(newest.base / "some", "exit 1", version=answer)
    repository = Repository(replace(newest.access, program=str(program)))
    assert repository.version() == wanted
    program.unlink()
    assert repository.version() == wanted, "it is asked once"


def test_the_real_version(bench: Bench, version: str) -> None:
    assert ".".join(map(str, bench.repository.version())) == version


ID = "0123456789abcdef" * 4
SUMMARY = (
    '{"message_type":"summary","files_new":1,"data_added":7,"total_bytes_processed":9,'
    f'"total_duration":1.5,"snapshot_id":"{ID}"}}'
)


def faked(newest: Bench, body: str, *, stall_limit: float = 60) -> Repository:
    program = fake_restic(newest.base / "fake", body)
    return Repository(replace(newest.access, program=str(program)), stall_limit=stall_limit)


def test_junk_around_the_answer_does_no_harm(newest: Bench) -> None:
    junk = newest.base / "junk"
    lines = [
        "debug log file restic.log",
        '{"message_type":"status","bytes_done":3,"total_bytes":"many"}',
        '{"message_type":"status","bytes_done":1e400}',
        '{"message_type":"news","payload":[1,2,3]}',
        '{"message_type":"summary"',
        "[" * 100_000,
        '{"message_type":"status","current_files":["' + "x" * 3_000_000 + '"]}',
        "\x1b[2Ksignal interrupt received, cleaning up",
        "[1, 2]",
        "null",
        "\udcff\udcfe",
        SUMMARY,
        "a last word",
    ]
    junk.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    heard: list[tuple[int, int]] = []
    saved = faked(newest, f"cat {junk}").save(
        newest.source, host="hub", tags=TAGS, moved=lambda *both: heard.append(both)
    )
    assert saved == Saved(ID, 1, 0, 0, 7, 0, 9, 1.5)
    assert heard == [(3, 0), (0, 0), (0, 0)]


@pytest.mark.parametrize(
    "out",
    [
        "",
        '{"message_type":"status","percent_done":1}',
        SUMMARY.replace(f'"snapshot_id":"{ID}"', '"files_new":0'),
        SUMMARY.replace(ID, "latest"),
        SUMMARY[:-2],
    ],
)
def test_a_good_end_without_a_snapshot_is_no_success(newest: Bench, out: str) -> None:
    (newest.base / "out").write_text(out)
    with pytest.raises(ProgramFailed, match="saving the snapshot"):
        faked(newest, f"cat {newest.base}/out").save(newest.source, host="hub", tags=TAGS)


@pytest.mark.parametrize("code", [1, 2, 4, 130])
def test_a_summary_with_a_bad_end_is_no_success(newest: Bench, code: int) -> None:
    (newest.base / "out").write_text(SUMMARY)
    body = f"cat {newest.base}/out; echo 'Fatal: too bad' >&2; exit {code}"
    with pytest.raises(ProgramFailed, match=rf"\(exit code {code}\): too bad") as caught:
        faked(newest, body).save(newest.source, host="hub", tags=TAGS)
    assert caught.value.code == code


def test_a_short_id_that_nobody_knows_is_no_success(newest: Bench) -> None:
    (newest.base / "out").write_text(SUMMARY.replace(ID, ID[:8]))
    body = f'[ "$1" = backup ] && exec cat {newest.base}/out; echo "[]"'
    with pytest.raises(ProgramFailed, match="does not list the snapshot 01234567"):
        faked(newest, body).save(newest.source, host="hub", tags=TAGS)


def test_an_incomplete_save_names_what_was_not_read(newest: Bench) -> None:
    errors = newest.base / "errors"
    errors.write_text(
        '{"message_type":"error","error":{"Op":"open","Path":"a","Err":13},"item":"/s/a"}\n'
        '{"message_type":"error","error":{"message":"b: denied"},"during":"scan","item":"/s/b"}\n'
        '{"message_type":"error","error":{"message":"b"},"during":"archival","item":"/s/b"}\n'
        '{"message_type":"exit_error","code":3,"message":"Warning: at least one ..."}\n'
    )
    (newest.base / "out").write_text(SUMMARY)
    saved = faked(newest, f"cat {newest.base}/out; cat {errors} >&2; exit 3").save(
        newest.source, host="hub", tags=TAGS
    )
    assert saved.incomplete
    assert saved.unread == ("/s/a", "/s/b")


@pytest.mark.parametrize(
    "out", ["", "no list\n", "{}", "[1]", '[{"id":"x"}]', f'[{{"id":"{ID}"}}]']
)
def test_a_listing_that_cannot_be_read_is_no_empty_repository(newest: Bench, out: str) -> None:
    (newest.base / "out").write_text(out)
    with pytest.raises(ProgramFailed, match="listing the snapshots"):
        faked(newest, f"cat {newest.base}/out").snapshots()


def test_a_removal_that_failed_in_silence(newest: Bench) -> None:
    body = f"echo 'unable to remove snapshot/{ID} from the repository' >&2; exit 0"
    with pytest.raises(ProgramFailed, match="unable to remove"):
        faked(newest, body).forget([ID])


def test_a_lock_that_vanishes_while_it_is_read(newest: Bench) -> None:
    body = (
        f'case "$*" in *list*) [ -e {newest.base}/read ] || echo {ID};;'
        f" *cat*) touch {newest.base}/read; echo gone >&2; exit 1;; esac"
    )
    assert faked(newest, body).locks() == ()
    (newest.base / "read").unlink()
    with pytest.raises(ProgramFailed, match="broken"):
        faked(newest, f'case "$*" in *list*) echo {ID};; *) echo broken >&2; exit 1;; esac').locks()


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("Host key verification failed.", Refused),
        ("ssh: connect to host nas port 22: Connection refused", Unreachable),
        ("", Unreachable),
    ],
)
def test_an_ssh_that_was_not_heard_is_asked_again(
    newest: Bench, said: str, error: type[IotopsError]
) -> None:
    """restic may end before the words of its ssh reach it: only a refusal tells what to mend."""
    times = newest.base / "times"
    fake = fake_restic(
        newest.base / "fake",
        f"echo once >> {times}\n"
        f'[ $(wc -l < {times}) = 2 ] && [ -n "{said}" ] && echo "subprocess ssh: {said}" >&2\n'
        'echo "Fatal: unable to start the sftp session, error: EOF" >&2\n'
        "exit 1",
    )
    with pytest.raises(error):
        Repository(replace(newest.access, program=str(fake))).id()
    assert len(times.read_text().split()) == (2 if said else 4)


@pytest.mark.parametrize(
    "line",
    [
        '{"message_type":"status","seconds_elapsed":$n,"bytes_done":5,"current_files":["$n"]}',
        "[0:$n] 3.00%  2 / 60 packs",
    ],
)
def test_a_standstill_is_ended(newest: Bench, line: str) -> None:
    (newest.base / "line").write_text(line)
    escaped = line.replace('"', '\\"')
    body = f'n=0; while :; do n=$((n+1)); echo "{escaped}"; sleep 0.1; done'
    began = time.monotonic()
    repository = faked(newest, body, stall_limit=0.8)
    with pytest.raises(TimedOut, match="made no progress"):
        repository.prune()
    assert time.monotonic() - began < 10


def test_slow_progress_is_no_standstill(newest: Bench) -> None:
    (newest.base / "out").write_text(SUMMARY)
    status = '{\\"message_type\\":\\"status\\",\\"bytes_done\\":$n}'
    body = f'for n in 1 2 3 4 5 6; do echo "{status}"; sleep 0.3; done; cat {newest.base}/out'
    assert faked(newest, body, stall_limit=1).save(newest.source, host="h", tags=()).files_new == 1


def test_a_silent_old_restore_is_no_standstill(newest: Bench) -> None:
    program = fake_restic(newest.base / "fake", "sleep 1.5", version="restic 0.14.0")
    access = replace(newest.access, program=str(program))
    Repository(access, stall_limit=0.3).restore(ID, newest.base / "out")
    fake_restic(program, "sleep 60")
    with pytest.raises(TimedOut):
        Repository(access, stall_limit=0.3).restore(ID, newest.base / "out")


def test_a_restic_that_hangs_on_a_full_disk_is_told_as_such(newest: Bench) -> None:
    """As 0.18.0 was seen to do: it gives up on a pack, and then waits for ever."""
    said = "Save(<data/3d68df372b>) failed: write /far/data/3d/3d68-tmp-3: no space left on device"
    status = '{"message_type":"status","bytes_done":%d}'
    program = fake_restic(
        newest.base / "fake",
        f"echo '{said}' >&2; while :; do echo '{status % 3}'; sleep 0.1; done",
    )
    access = replace(newest.access, program=str(program))
    with pytest.raises(NoSpace, match="no space left for the repository"):
        Repository(access, end_limit=0.3).save(newest.source, host="hub", tags=TAGS)


def test_a_restic_that_could_not_renew_its_lock_goes_on(newest: Bench) -> None:
    """It tries that again, until the lock is nearly stale."""
    said = "Save(<lock/3d68df372b>) failed: connection reset by peer"
    program = fake_restic(newest.base / "fake", f"echo '{said}' >&2; sleep 1.5; echo '{SUMMARY}'")
    access = replace(newest.access, program=str(program))
    saved = Repository(access, end_limit=0.3).save(newest.source, host="hub", tags=TAGS)
    assert saved.snapshot == ID


def test_the_progress_of_a_restore(newest: Bench) -> None:
    status = '{"message_type":"status","total_bytes":9,"bytes_restored":%d}'
    (newest.base / "out").write_text("\n".join(status % done for done in (0, 4, 9)))
    heard: list[tuple[int, int]] = []
    repository = faked(newest, f"cat {newest.base}/out")
    repository.restore(ID, newest.base / "to", moved=lambda *both: heard.append(both))
    assert heard == [(0, 9), (4, 9), (9, 9)]


def test_what_hears_progress_may_raise(newest: Bench) -> None:
    body = "trap 'echo interrupted > $0.note; exit 130' INT\n"
    body += 'echo "{\\"message_type\\":\\"status\\"}"; n=0; while :; do sleep 0.05; done'

    def moved(done: int, total: int) -> None:
        raise GuardError("enough")

    with pytest.raises(GuardError, match="enough"):
        faked(newest, body).save(newest.source, host="hub", tags=TAGS, moved=moved)
    assert (newest.base / "fake.note").read_text() == "interrupted\n"
