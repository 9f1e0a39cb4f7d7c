"""The recovery kit against the real restic in its versions: a key for paper, and its proof.

The hub is settings, a state file and a repository with one snapshot; no container is needed for
it. What the page says is read by this file's own eyes, and tried by the bare restic.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from iotops import manifest
from iotops.actions import kit
from iotops.clients.restic import Repository, RepositoryAccess
from iotops.hub import Hub
from iotops.model import HostRecord, Manifest, Outcome
from tests.conftest import need
from tests.support.lab import lab
from tests.support.resticbench import environment, hurry

pytestmark = pytest.mark.clients

VERSIONS = sorted(lab().restic, key=lambda text: [int(n) for n in text.split(".")]) or ["none"]
PASSWORD = "correct horse"
HUB = "7c1f0a9be2d34c557c1f0a9be2d34c55"
SECRET = "wJalr$XUtn FEMI"
MISTYPED = "4E98D-W885Z-QSU4R-AZCTD-6F4ZM-DCF2K"


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    def result(self) -> dict[str, object]:
        document = json.loads(self.out.splitlines()[-1])
        assert isinstance(document, dict)
        return document


@dataclass(frozen=True)
class House:
    """A hub's settings, records and repository in one folder.

    Attributes:
        program: restic. calls: what restic was asked, one line each, with its key hint.
    """

    base: Path
    program: Path

    @property
    def hub(self) -> Hub:
        return Hub.open(self.base / "hub")

    @property
    def repository(self) -> Path:
        return self.base / "repository"

    @property
    def calls(self) -> Path:
        return self.base / "calls"

    @property
    def page(self) -> Path:
        return self.base / "paper"

    def iotops(self, *argv: str, stdin: str = "", path: Path | None = None) -> Ended:
        words = [sys.executable, "-m", "iotops", *argv, "--hub", str(self.base / "hub")]
        path = path or self.base / "bin"
        values = {
            **os.environ,
            "PATH": f"{path}:{os.environ['PATH']}",
            "PYTHONPATH": str(Path.cwd()),
        }
        done = subprocess.run(words, env=values, input=stdin, capture_output=True, text=True)
        return Ended(done.returncode, done.stdout, done.stderr)

    def bare(self, password: str, *argv: str) -> tuple[int, str]:
        """Run restic as a person would, independent of the code under test."""
        file = self.base / "typed"
        file.write_text(password + "\n")
        values = environment(self.repository, file, self.base)
        done = subprocess.run([self.program, *argv], env=values, capture_output=True, text=True)
        return done.returncode, done.stdout

    def list_keys(self, password: str = PASSWORD) -> list[dict[str, object]]:
        code, out = self.bare(password, "key", "list", "--json")
        assert code == 0
        found = json.loads(out[out.index("[") :])
        assert isinstance(found, list)
        return found

    def word(self) -> str:
        """Read the password off the page, as a person would."""
        found = re.search(r"^ *RESTIC_PASSWORD=(\S+)$", (self.page / "kit.txt").read_text(), re.M)
        assert found is not None
        return found[1]

    def codes(self) -> set[str]:
        """Give what `iotops status` finds about the kit."""
        found = json.loads(self.iotops("status", "--json").out)["findings"]
        return {one["code"] for one in found if one["subject"] == "kit"}


def program_in(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def template(base: Path, version: str) -> tuple[str, str]:
    """Make a repository of one version with a snapshot in it; gives the ids of both."""
    (base / "source/hub").mkdir(parents=True)
    (base / "password").write_text(PASSWORD + "\n")
    now = datetime.now(UTC)
    made = Manifest(
        format=1,
        hub_id=HUB,
        hub_name="home",
        run="run",
        host=HostRecord("pi", "aarch64", "test"),
        versions={},
        started=now,
        ended=now,
        outcome=Outcome.COMPLETE,
    )
    (base / "source/manifest.json").write_bytes(manifest.encode(made))
    (base / "source/hub/iotops.toml").write_text("# the hub's own file\n")
    url, program = str(base / "repository"), str(lab().restic[version])
    access = RepositoryAccess(url, base / "password", base / "cache", base, {}, program)
    repository = Repository(access)
    repository_id = repository.init()
    hurry(base / "repository", PASSWORD)
    saved = repository.save(base / "source", host="home", tags=("iotops", HUB, "complete"))
    return repository_id, saved.snapshot


@pytest.fixture(scope="module")
def templates() -> dict[str, tuple[Path, str, str]]:
    """Repositories by version, as they were needed."""
    return {}


Make = Callable[[str], "House"]


@pytest.fixture
def make(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    templates: dict[str, tuple[Path, str, str]],
) -> Make:
    """Make a hub with a copy of the repository that was made once per version of restic."""

    def house_of(version: str) -> House:
        need(f"restic {version}")
        if version not in templates:
            folder = tmp_path_factory.mktemp(f"kit-{version}")
            templates[version] = (folder / "repository", *template(folder, version))
        made, repository_id, snapshot = templates[version]
        base = tmp_path / "house"
        for name in ("hub", "data", "bin"):
            (base / name).mkdir(parents=True)
        shutil.copytree(made, base / "repository")
        (base / "password").write_text(PASSWORD + "\n")
        (base / "credentials").write_text(
            f"AWS_ACCESS_KEY_ID=id\nAWS_SECRET_ACCESS_KEY='{SECRET}'\n"
        )
        (base / "hub/iotops.toml").write_text(
            f'[hub]\nid = "{HUB}"\nname = "home"\nowner = "root"\n'
            f'[data]\nroot = "{base}/data"\nkind = "folder"\n'
            f'[repository]\nurl = "{base}/repository"\npassword_file = "{base}/password"\n'
            f'credentials_file = "{base}/credentials"\n'
            f'[paths]\nstate = "{base}/state"\nrun = "{base}/run"\n'
        )
        for name in ("password", "credentials"):
            (base / name).chmod(0o600)
        house = House(base, lab().restic[version])
        house.hub.state.update(repository=repository_id, snapshot=snapshot)
        log = f'echo "$RESTIC_KEY_HINT|$*" >> {house.calls}'
        program_in(base / "bin" / "restic", f'{log}\nexec {house.program} "$@"')
        return house

    return house_of


@pytest.fixture
def house(make: Make) -> House:
    """For what is no matter of restic's version."""
    return make(VERSIONS[-1])


@dataclass(frozen=True)
class Paper:
    """A kit that was made once: its page, and a repository that opens at once with it."""

    repository: Path
    page: Path
    key: str


@pytest.fixture(scope="module")
def papers() -> dict[str, Paper]:
    return {}


@pytest.fixture
def printed(
    house: House, papers: dict[str, Paper], tmp_path_factory: pytest.TempPathFactory
) -> House:
    """A hub with a kit that nobody has proven yet."""
    if not papers:
        assert house.iotops("kit", "--output", str(house.page)).code == 0
        folder = tmp_path_factory.mktemp("paper")
        key = hurry(house.repository, house.word())
        shutil.copytree(house.repository, folder / "repository")
        shutil.copytree(house.page, folder / "page")
        papers[""] = Paper(folder / "repository", folder / "page", key)
    made = papers[""]
    for there, here in ((made.repository, house.repository), (made.page, house.page)):
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(there, here)
    house.hub.state.update(kit={"key": made.key, "made": datetime.now(UTC).isoformat()})
    return house


def only(found: object) -> str:
    assert isinstance(found, list) and len(found) == 1
    return str(found[0])


@pytest.mark.parametrize("version", VERSIONS)
def test_a_paper_is_made_and_proven(version: str, make: Make) -> None:
    house = make(version)
    first = house.iotops("kit", "--output", str(house.page), "--json")
    assert first.code == 0, first.err
    made, word = first.result(), house.word()
    for name in ("kit.txt", "kit.html"):
        assert stat.S_IMODE((house.page / name).stat().st_mode) == 0o600
        page = (house.page / name).read_text()
        assert word in page and "AWS_SECRET_ACCESS_KEY=" in page
    keys = house.list_keys(word)
    (opened,) = (one for one in keys if one["current"])
    (own,) = (one["id"] for one in keys if not one["current"])
    assert opened["id"] == made["key"]
    assert (opened["userName"], opened["hostName"]) == ("iotops-kit", f"home-{HUB[:8]}")

    # As people type: in small letters, with blanks.
    typed = word.lower().replace("-", " ") + "\n"
    proven = house.iotops("kit", "--verify", "--json", stdin=typed)
    assert proven.code == 0, proven.err
    assert proven.result()["key"] == made["key"] and proven.result()["newest"] is True
    told = house.iotops("status")
    assert re.search(r"recovery kit: made \d+ (s|min) ago, last proven \d+ (s|min) ago", told.out)

    # The hub's own calls name their own key: restic does not try the paper's first.
    assert house.iotops("snapshots").code == 0
    hints = [line.split("|")[0] for line in house.calls.read_text().splitlines()]
    assert hints[0] == "" and len(hints[-1]) >= 8 and str(own).startswith(hints[-1])

    # Nothing of it is anywhere but on the page.
    state = (house.base / "state" / f"{HUB}.json").read_text()
    assert len(state) < 4096
    seen = state + house.calls.read_text()
    seen += "".join(one.out + one.err for one in (first, proven, told))
    for secret in (word, word.replace("-", ""), PASSWORD, SECRET, typed.strip()):
        assert secret not in seen


def test_an_older_paper_is_retired(printed: House) -> None:
    older = printed.word()
    assert printed.codes() == {"kit.unproven"}
    assert printed.iotops("kit", "--verify", stdin=older).code == 0
    assert printed.codes() == set()
    made = printed.iotops("kit", "--output", str(printed.page), "--replace", "--yes", "--json")
    assert made.code == 0
    assert only(made.result()["removed"]).startswith(printed.hub.state.read().kit["proven_key"])
    assert printed.word() != older and len(printed.list_keys()) == 2
    assert printed.bare(older, "cat", "config")[0] == 12
    assert printed.bare(printed.word(), "cat", "config")[0] == 0
    again = printed.iotops("kit", "--verify", stdin=older)
    assert again.code == 12 and "iotops kit" in again.err
    assert printed.codes() == {"kit.unproven"}


def test_the_paper_of_another_hub_of_that_name_stays(printed: House) -> None:
    """Two hubs may share a repository, and both may have the name that `init` gave them."""
    theirs = printed.word()
    settings = printed.base / "hub" / "iotops.toml"
    other = HUB[::-1]
    assert other[:8] != HUB[:8]
    settings.write_text(settings.read_text().replace(HUB, other))
    made = printed.iotops("kit", "--output", str(printed.page), "--replace", "--yes", "--json")
    assert made.code == 0, made.err
    assert printed.word() != theirs
    assert printed.bare(theirs, "cat", "config")[0] == 0
    again = printed.iotops("kit", "--output", str(printed.page), "--replace", "--yes", "--json")
    assert again.code == 0 and only(again.result()["removed"])
    assert printed.bare(theirs, "cat", "config")[0] == 0


def test_a_slip_is_told_before_restic_is_asked(house: House) -> None:
    house.calls.unlink(missing_ok=True)
    done = house.iotops("kit", "--verify", stdin=MISTYPED + "\n")
    assert done.code == 2 and "group 6 of the password is mistyped" in done.err
    assert MISTYPED not in done.out + done.err
    assert not house.calls.exists()
    assert house.codes() == {"kit.missing"}


def test_a_paper_of_another_repository_proves_nothing(printed: House) -> None:
    state = printed.hub.state
    state.update(kit={**state.read().kit, "repository": state.read().repository})
    state.update(repository="0" * 64)
    done = printed.iotops("kit", "--verify", stdin=printed.word())
    assert done.code == 1 and "0000000000" in done.err
    assert printed.codes() == {"kit.outdated", "kit.unproven"}


def test_an_empty_repository_proves_nothing(printed: House) -> None:
    printed.bare(PASSWORD, "forget", printed.hub.state.read().snapshot)
    done = printed.iotops("kit", "--verify", stdin=printed.word())
    assert done.code == 1 and "no snapshot" in done.err
    assert printed.codes() == {"kit.unproven"}


def test_a_paper_proves_itself_on_a_machine_that_never_made_one(printed: House) -> None:
    printed.hub.state.update(kit={})
    done = printed.iotops("kit", "--verify", "--json", stdin=printed.word())
    assert done.code == 0 and done.result()["newest"] is True
    assert printed.codes() == set()


def test_an_older_paper_opens_but_does_not_prove_the_newest(printed: House) -> None:
    older = printed.word()
    again = printed.iotops("kit", "--output", str(printed.page), "--json")
    assert again.code == 0 and len(only(again.result()["older"])) == 64
    done = printed.iotops("kit", "--verify", "--json", stdin=older)
    assert done.code == 0 and done.result()["newest"] is False
    assert printed.codes() == {"kit.unproven"}


def test_it_lies_in_memory_and_other_access_than_on_the_page_is_told(house: House) -> None:
    done = house.iotops("kit", "--json")
    assert done.code == 0 and done.result()["html"] == str(house.base / "run/kit/kit.html")
    assert stat.S_IMODE((house.base / "run/kit").stat().st_mode) == 0o700
    assert house.codes() == {"kit.unproven"}
    (house.base / "credentials").write_text("AWS_ACCESS_KEY_ID=another\n")  # it stays 0600
    assert house.codes() == {"kit.unproven", "kit.outdated"}
    (house.base / "credentials").unlink()
    assert house.codes() == {"kit.unproven"}  # nothing can be said


def test_a_proof_grows_old(house: House) -> None:
    hub, now = house.hub, datetime.now(UTC)
    record = {"key": "a" * 64, "proven_key": "a" * 8, "proven": now.isoformat()}
    hub.state.update(kit=record)

    def after(days: int) -> list[str]:
        later = now + timedelta(days=days)
        return [one.code for one in kit.findings(hub, hub.state.read(), later)]

    assert after(0) == after(180) == []
    assert after(181) == ["kit.stale"]
    hub.state.update(repository="")
    assert after(181) == []  # nothing is there that it could open


def test_the_page_goes_nowhere_from_where_it_would_spread(house: House) -> None:
    (house.base / "work/.git").mkdir(parents=True)
    (house.base / "link").symlink_to(house.base / "data")
    for place in ("hub/kit", "data", "repository/kit", "work/deep/er", "link/kit"):
        done = house.iotops("kit", "--output", str(house.base / place))
        assert done.code == 1 and "would be written into" in done.err, place
        assert not (house.base / place / "kit.txt").exists()
    assert len(house.list_keys()) == 1


def test_a_page_that_cannot_be_written_leaves_no_key(house: House) -> None:
    (house.page / "kit.txt").mkdir(parents=True)
    done = house.iotops("kit", "--output", str(house.page))
    assert done.code == 1 and "kit.txt cannot be written" in done.err
    assert len(house.list_keys()) == 1
    assert house.codes() == {"kit.missing"}


def test_a_key_that_may_not_be_removed_is_told(printed: House) -> None:
    """As an append-only server has it: adding works, removing does not."""
    older = printed.word()
    refusing = printed.base / "refusing"
    refusing.mkdir()
    body = '[ "$1 $2" = "key remove" ] && { echo "Fatal: blocked" >&2; exit 1; }'
    program_in(refusing / "restic", f'{body}\nexec {printed.program} "$@"')
    done = printed.iotops("kit", "--output", str(printed.page), "--replace", "--yes", path=refusing)
    assert done.code == 1 and "still opens the repository" in done.err
    assert printed.word() != older
    assert {one["userName"] for one in printed.list_keys(printed.word())} >= {"iotops-kit"}
    assert printed.codes() == {"kit.unproven"}


def test_one_password_opens_the_copies_too(printed: House) -> None:
    house = printed
    nas = house.base / "nas"
    shutil.copytree(house.repository, nas)
    settings = house.base / "hub/iotops.toml"
    copy = f'name = "nas"\nurl = "{nas}"\npassword_file = "{house.base}/password"\n'
    head, _, paths = settings.read_text().partition("[paths]")
    settings.write_text(f"{head}[[repository.copies]]\n{copy}[paths]{paths}")
    assert house.codes() == {"kit.outdated", "kit.unproven"}  # the copy came after the page

    made = house.iotops("kit", "--output", str(house.page), "--json")
    assert made.code == 0, made.err
    copies = made.result()["copies"]
    assert isinstance(copies, dict) and set(copies) == {"nas"}
    page = (house.page / "kit.txt").read_text()
    assert page.count(f"RESTIC_PASSWORD={house.word()}") == 2
    assert f"RESTIC_REPOSITORY={nas}\n" in page and "--claim-disk --from nas" in page
    proven = house.iotops("kit", "--verify", "--json", stdin=house.word())
    assert proven.code == 0 and proven.result()["copies"] == {"nas": ""}
    assert house.codes() == set()

    shutil.rmtree(nas)
    proven = house.iotops("kit", "--verify", stdin=house.word())
    assert proven.code == 1 and "nas was NOT opened" in proven.out
    left = house.iotops("kit", "--output", str(house.page), "--json")
    assert left.code == 3 and "nas" in left.result()["left_out"]  # type: ignore[operator]
    assert str(nas) not in (house.page / "kit.txt").read_text()
    assert house.codes() == {"kit.outdated", "kit.unproven"}


def dying(house: House, name: str, after: str) -> Path:
    """Give a folder with a restic after whose call iotops is killed."""
    folder = house.base / name
    folder.mkdir()
    body = f'{house.program} "$@"; code=$?\ncase "$*" in *"{after}"*) kill -9 $PPID ;; esac'
    program_in(folder / "restic", f"{body}\nexit $code")
    return folder


@pytest.mark.parametrize("version", sorted({VERSIONS[0], VERSIONS[-1]}))
def test_a_key_without_a_paper_is_removed_by_the_next_kit(version: str, make: Make) -> None:
    """Killed when the key is in the repository, and before the page is written."""
    house = make(version)
    hurry(house.repository, PASSWORD)
    killed = house.iotops("kit", "--output", str(house.page), path=dying(house, "dying", "key add"))
    assert killed.code == -9
    assert not (house.page / "kit.txt").exists() and len(house.list_keys()) == 2
    assert house.codes() == {"kit.missing", "kit.unfinished"}
    made = house.iotops("kit", "--output", str(house.page), "--json")
    assert made.code == 0, made.err
    assert len(only(made.result()["orphans"])) >= 8 and made.result()["older"] == []
    keys = house.list_keys(house.word())
    assert len(keys) == 2 and sum(one["userName"] == "iotops-kit" for one in keys) == 1
    assert house.codes() == {"kit.unproven"}


def test_an_older_paper_is_no_orphan(printed: House) -> None:
    older = printed.word()
    killed = printed.iotops(
        "kit", "--output", str(printed.page), path=dying(printed, "dying", "key add")
    )
    assert killed.code == -9 and printed.word() == older
    assert "kit.unfinished" in printed.codes()
    refusing = printed.base / "refusing"
    refusing.mkdir()
    body = '[ "$1 $2" = "key remove" ] && { echo "Fatal: blocked" >&2; exit 1; }'
    program_in(refusing / "restic", f'{body}\nexec {printed.program} "$@"')
    kept = printed.iotops("kit", "--output", str(printed.page), "--json", path=refusing)
    assert kept.code == 0 and "could not be removed" in kept.out
    older_ones = kept.result()["older"]
    assert isinstance(older_ones, list) and len(older_ones) == 2  # the paper, and the orphan
    assert printed.bare(older, "cat", "config")[0] == 0


def test_a_paper_that_was_printed_before_the_end_counts_when_it_is_proven(house: House) -> None:
    """Killed after the page was written: what is on paper opens, so it is no orphan."""
    made = house.iotops("kit", "--output", str(house.page), "--json")
    assert made.code == 0
    house.hub.state.update(kit={"begun": "none"})  # as it stood before the last record
    proven = house.iotops("kit", "--verify", "--json", stdin=house.word())
    assert proven.code == 0 and proven.result()["newest"] is True
    assert house.codes() == set()
    again = house.iotops("kit", "--output", str(house.page), "--json")
    assert again.code == 0 and again.result()["orphans"] == []


def test_the_paper_that_the_hub_itself_uses_stays(printed: House) -> None:
    """As after a new card, where what was typed from paper became the hub's own password."""
    (printed.base / "password").write_text(printed.word() + "\n")
    made = printed.iotops("kit", "--output", str(printed.page), "--replace", "--yes")
    assert made.code == 0, made.err
    assert "the hub itself opens the repository with a password from paper" in made.out
    assert printed.iotops("snapshots").code == 0
