"""What restic says, as recorded from its versions, and whatever else might stand in its place."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotops.clients import resticanswers as answers
from iotops.clients.resticanswers import Forget, Progress, SnapshotInfo, find_snapshot
from iotops.clients.resticerrors import MEANINGS, classify, cleaner, said, unreachable
from iotops.errors import (
    GuardError,
    IotopsError,
    Locked,
    NoSpace,
    ProgramFailed,
    Refused,
    RepositoryDamaged,
    RepositoryMissing,
    SnapshotUnknown,
    Unreachable,
    WrongPassword,
)

pytestmark = pytest.mark.unit

LOCKED = """unable to create lock in backend: repository is already locked exclusively by PID 4711 \
on pi by root (UID 0, GID 0)
lock was created at 2026-11-23 23:46:42 (1.520876416s ago)
storage ID 505d78ef
the `unlock` command can be used to remove stale locks"""

NO_CONFIG = (
    "Fatal: unable to open config file: {}\nIs there a repository at the following location?\n/r"
)

READ_ONLY_0_14 = """open /r/locks/505d78ef: operation not permitted
github.com/restic/restic/internal/restic.newLock
\tgithub.com/restic/restic/internal/restic/lock.go:66
main.glob..func2
\tgithub.com/restic/restic/cmd/restic/cmd_backup.go:74
runtime.goexit
\truntime/asm_amd64.s:1594
unable to create lock in backend"""

PANIC = """panic: runtime error: slice bounds out of range [16:3]

goroutine 1 [running]:
github.com/restic/restic/internal/repository.(*Repository).LoadUnpacked(0xc0001d2b40)
\tgithub.com/restic/restic/internal/repository/repository.go:206 +0x674
github.com/restic/restic/internal/restic.LoadConfig({0x1046868, 0xc0001d2b40})
\tgithub.com/restic/restic/internal/restic/config.go:84 +0x99"""

S3_DENIED = NO_CONFIG.format("Stat: Access Denied.")
REST_401 = NO_CONFIG.format("unexpected HTTP response (401): 401 Unauthorized")
REST_404 = NO_CONFIG.format("<config/> does not exist")
S3_404 = NO_CONFIG.format("Stat: The specified key does not exist.")
B2_404 = NO_CONFIG.format("b2_download_file_by_name: 404: ")
NO_DNS = NO_CONFIG.format("Head https://nas/: dial tcp: lookup nas: no such host")
REFUSED = NO_CONFIG.format("client.Head: dial tcp 127.0.0.1:9: connect: connection refused")
LOST = NO_CONFIG.format("stat /r/config: permission denied")

RECORDED: list[tuple[int, str, type[IotopsError], str]] = [
    # 0.14
    (1, "Fatal: wrong password or no key found", WrongPassword, ""),
    (1, "Fatal: an empty password is not a password", WrongPassword, ""),
    (1, LOCKED, Locked, "exclusively by PID 4711 on pi by root"),
    (
        1,
        NO_CONFIG.format("stat /r/config: no such file or directory"),
        RepositoryMissing,
        "there is no repository",
    ),
    (1, REST_404, RepositoryMissing, ""),
    (1, S3_404, RepositoryMissing, ""),
    (1, B2_404, RepositoryMissing, ""),
    (1, REFUSED, Unreachable, "connection refused"),
    (1, NO_DNS, Unreachable, "no such host"),
    (1, "subprocess ssh: ssh: connect to host nas port 22: Connection timed out", Unreachable, ""),
    (1, "subprocess ssh: root@nas: Permission denied (publickey).", Refused, ""),
    (1, S3_DENIED, Refused, ""),
    (1, REST_401, Refused, ""),
    (1, LOST, ProgramFailed, "permission denied"),
    (1, READ_ONLY_0_14, ProgramFailed, "operation not permitted; unable to create lock"),
    (2, "cannot dump file: decrypting blob c3a6 failed: ciphertext verification failed",
        RepositoryDamaged, "decrypting blob"),
    (2, PANIC, RepositoryDamaged, ""),
    (2, "panic: out of memory\n\ngoroutine 1 [running]:\nmain.main()", ProgramFailed,
        "out of memory"),
    (1, 'invalid id "aabbccdd": no matching ID found for prefix "aabbccdd"', SnapshotUnknown, ""),
    (2, 'cannot dump file: path "/nope" not found in snapshot', ProgramFailed, '"/nope" not found'),
    (1, "Fatal: create repository at /r failed: config file already exists", GuardError, ""),
    (1, "pack 49e4018c: does not exist\nFatal: repository contains errors", RepositoryDamaged, ""),
    (1, "Save(<data/49e4>) returned error: write /r/data: no space left on device", NoSpace, ""),
    # 0.17 and newer
    (12, "Fatal: wrong password or no key found", WrongPassword, ""),
    (11, "repo already locked, waiting up to 0s for the lock\n" + LOCKED, Locked, "PID 4711 on pi"),
    (11, json.dumps({"message_type": "exit_error", "code": 11, "message": LOCKED}), Locked,
        "PID 4711 on pi"),
    (11, "some new words", Locked, ""),
    (10, "some new words", RepositoryMissing, ""),
    (12, "some new words", WrongPassword, ""),
    (1, '{"message_type":"exit_error","code":1,"message":"Fatal: unable to save snapshot: snapshot'
        ' is empty"}', ProgramFailed, "): unable to save snapshot: snapshot is empty"),
    (1, "Save(<lock/5350>) failed: open /r/locks/5350: operation not permitted\n"
        '{"message_type":"exit_error","code":1,"message":"unable to create lock in backend: open'
        ' /r/locks/5350: operation not permitted"}', ProgramFailed, "operation not permitted"),
    (1, "Fatal: failed to find snapshot: failed to load snapshot aaaaaaaa: open /r/snapshots/aa: no"
        " such file or directory", SnapshotUnknown, ""),
    (1, '{"message_type":"error","error":{"message":"decrypting blob failed: ciphertext'
        ' verification failed"},"item":"/big"}\n'
        '{"message_type":"exit_error","code":1,"message":"Fatal: There were 1 errors\\n"}',
        RepositoryDamaged, ""),
    (3, "failed to remove one or more snapshots\nmain.init\n\tgithub.com/x/cmd_forget.go:67",
        ProgramFailed, "failed to remove one or more snapshots"),
    # any
    (1, "", ProgramFailed, "restic failed (exit code 1)"),
    (-9, "", ProgramFailed, "restic failed (ended by signal 9)"),
    (130, "\x1b[2Ksignal interrupt received, cleaning up", ProgramFailed, "exit code 130"),
    (1, "Load(<data/1>) returned error, retrying after 1s: connection reset\nFatal: broken",
        ProgramFailed, ": broken"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "text", "wanted", "shown"), RECORDED)
def test_recorded_failures(code: int, text: str, wanted: type[IotopsError], shown: str) -> None:
    error = classify(code, text.splitlines(), "saving the snapshot")
    assert type(error) is wanted
    assert error.message.startswith("saving the snapshot: ")
    assert shown in error.message
    assert "\n" not in error.message
    assert "goroutine" not in error.message
    if isinstance(error, ProgramFailed):
        assert error.code == code
        assert error.tail == tuple(text.splitlines())
    else:
        assert error.hint


def test_each_code_has_one_meaning() -> None:
    codes = [meaning.code for meaning in MEANINGS if meaning.code]
    assert sorted(codes) == [10, 11, 12]
    assert all(meaning.error.exit == meaning.code for meaning in MEANINGS if meaning.code)


def test_a_time_that_ran_out_over_retries() -> None:
    retry = "Stat(<config/>) returned error, retrying after 1s: dial tcp: connection refused"
    assert isinstance(unreachable([retry], "opening"), Unreachable)
    assert unreachable(["Load(<data/1>) returned error, retrying after 1s: EOF"], "x") is None
    assert unreachable([], "opening") is None


@given(st.integers(-64, 300), st.lists(st.text()))
def test_every_failure_is_an_error_of_ours(code: int, tail: list[str]) -> None:
    error = classify(code, tail, "x")
    assert error.message.startswith("x: ")


@given(st.text(min_size=6), st.text(), st.text())
def test_secrets_become_stars(secret: str, before: str, after: str) -> None:
    assert secret not in cleaner([secret])(before + secret + after) or secret in "***"


def test_secrets_inside_of_addresses() -> None:
    clean = cleaner(["ab", "longer-one", "longer-one-still"])
    assert clean("rest:https://me:ab@nas/ and cab") == "rest:https://me:***@nas/ and cab"
    assert clean("longer-one-still, longer-one") == "***, ***"


# -- values --------------------------------------------------------------------------------------

ID = "0123456789abcdef" * 4
ROW_0_14 = (
    '{"time":"2026-11-23T23:44:26.005695516Z","parent":"cb","tree":"38","paths":["/s"],'
    f'"hostname":"hub","username":"root","tags":["a","b"],"id":"{ID}","short_id":"01234567"}}'
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
FIELDS = """
    id time tags paths hostname message_type struct_type error message item keep remove size
    path type pid exclusive bytes_done
"""
names = st.sampled_from(FIELDS.split())
documents = st.dictionaries(names, json_values | st.just(ID) | st.just("node") | st.just("error"))


def test_a_snapshot_is_read() -> None:
    read = answers.snapshot(answers.document(ROW_0_14), "x")
    when = datetime(2026, 11, 23, 23, 44, 26, 5695, UTC)
    assert read == SnapshotInfo(ID, when, "hub", ("a", "b"), ("/s",))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2026-03-01T10:00:00Z", datetime(2026, 3, 1, 10, tzinfo=UTC)),
        ("2026-03-01T10:00:00.5Z", datetime(2026, 3, 1, 10, 0, 0, 500000, UTC)),
        ("2026-03-01T10:00:00.123456789+02:00", datetime(2026, 3, 1, 8, 0, 0, 123456, UTC)),
        ("2026-03-01T00:30:00-01:30", datetime(2026, 3, 1, 2, tzinfo=UTC)),
    ],
)
def test_times_are_utc(text: str, wanted: datetime) -> None:
    read = answers.moment({"time": text}, "x")
    assert (read, read.utcoffset()) == (wanted, timedelta(0))


@given(st.text() | st.binary().map(lambda data: data.decode("utf-8", "surrogateescape")))
def test_any_line_may_come(line: str) -> None:
    found = answers.document(line)
    assert isinstance(found, dict)
    answers.entry(found)
    said([line])
    answers.unread([line])
    Progress().made(line, found)
    find_no_value(line)


def find_no_value(text: str) -> None:
    """Read a text in every way; only one kind of error may come."""
    for read in (
        lambda: answers.rows(text, "x"),
        lambda: answers.plan(text, "x"),
        lambda: answers.lock(text, ID, "x"),
    ):
        try:
            read()
        except ProgramFailed as error:
            assert error.message.startswith("x: ")


@given(documents)
def test_any_document_may_come(document: answers.Document) -> None:
    line = json.dumps(document)
    answers.entry(document)
    answers.unread([line])
    said([line])
    for name in document:
        assert isinstance(answers.number(document, name), int)
        assert isinstance(answers.words(document, name), str)
    find_no_value(line)
    find_no_value(f"[{line}]")
    try:
        read = answers.snapshot(document, "x")
    except ProgramFailed:
        return
    assert read.id == ID
    assert read.time.utcoffset() == timedelta(0)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, '{"a":' * 100_000, "NaN", "1e999"])
def test_json_that_python_stumbles_over(text: str) -> None:
    assert answers.document(text) == {}
    find_no_value(text)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), "7", None, [7]])
def test_numbers_that_are_none(value: object) -> None:
    assert answers.number({"size": value}, "size") == 0


def test_lists_are_found_between_other_lines() -> None:
    for text in (f"[{ROW_0_14}]", f"some notice\n[{ROW_0_14}]\n\n", f"[{ROW_0_14}]\nbye"):
        assert [row["id"] for row in answers.rows(text, "x")] == [ID]
    assert answers.rows("null", "x") == answers.rows("[]", "x") == []
    for text in ("", "\n", "{}", "[1]", "[[]]", '"text"'):
        with pytest.raises(ProgramFailed):
            answers.rows(text, "x")
    assert answers.plan("", "x") == Forget((), ())
    with pytest.raises(ProgramFailed):
        answers.plan("no plan", "x")


def test_a_plan_of_several_groups() -> None:
    a, b, c = ("a" * 64, "b" * 64, "c" * 64)
    groups = [
        {"keep": [{"id": a}], "remove": [{"id": b}], "reasons": []},
        {"keep": [{"id": b}], "remove": None},
        {"keep": None, "remove": [{"id": c}]},
    ]
    assert answers.plan(json.dumps(groups), "x") == Forget((a, b), (c,)), "kept beats removed"
    with pytest.raises(ProgramFailed):
        answers.plan(json.dumps([{"remove": [{"short_id": "abc"}]}]), "x")


def test_a_lock_is_read() -> None:
    text = '{\n  "time": "2026-11-23T23:46:42.98Z",\n  "exclusive": true,\n  "hostname": "pi",\n'
    text += '  "username": "root",\n  "pid": 9298\n}'
    read = answers.lock(text, ID, "x")
    assert (read.host, read.pid, read.user, read.exclusive) == ("pi", 9298, "root", True)


def test_progress_is_more_than_the_clock() -> None:
    progress = Progress()

    def made(line: str) -> bool:
        return progress.made(line, answers.document(line))

    assert made('{"message_type":"status","bytes_done":1,"seconds_elapsed":1}')
    assert not made('{"message_type":"status","bytes_done":1,"seconds_elapsed":2}')
    assert not made('{"message_type":"status","bytes_done":1,"current_files":["/a"]}')
    assert made('{"message_type":"status","bytes_done":2,"seconds_elapsed":2}')
    assert made("[0:01] 3.00%  2 / 60 packs")
    assert not made("[1:00:02] 3.00%  2 / 60 packs")
    assert made("[1:00:03] 5.00%  3 / 60 packs")


def test_an_ambiguous_beginning_names_the_candidates() -> None:
    when = datetime(2026, 3, 1, 10, tzinfo=UTC)
    some = [SnapshotInfo(f"ab{n}" + "0" * 61, when, "hub", (), ()) for n in range(5)]
    with pytest.raises(SnapshotUnknown, match="5 snapshots begin with 'ab'") as caught:
        find_snapshot("ab", some)
    assert "ab000000 of 2026-03-01 10:00, " in caught.value.message
    assert caught.value.message.endswith(", ...)")
    assert "iotops snapshots" in caught.value.hint
    assert find_snapshot("ab3", some) == some[3]
