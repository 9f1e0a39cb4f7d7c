"""Config-sync on a hub with a real broker: applied, refused, returned from, and died in between."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import need
from tests.contract.kind_mosquitto import Connected
from tests.support.clients import publish, retained
from tests.support.desk import Desk, git
from tests.support.hubs import Ended, docker
from tests.support.killmatrix import RUNNING, Held, LightHub, Step, light_hub

pytestmark = pytest.mark.e2e

WATCH = 3
"""Seconds that services are watched here."""
GOOD = """  cold: &cold
    image: {image}
    restart: unless-stopped
    entrypoint: ["sleep", "infinity"]
"""
CRASHES = """  cold:
    image: {image}
    restart: unless-stopped
    entrypoint: ["sh", "-c", "echo no such option; exit 3"]
"""
REWRITES = """  cold:
    image: {image}
    restart: unless-stopped
    entrypoint:
      - sh
      - -c
      - |
        touch /ready
        sleep 1.5
        rm -r /state/deep
        echo rewritten > /state/word
        sleep 0.5
        rm /ready
        exec sleep infinity
    healthcheck: {{test: ["CMD", "test", "-e", "/ready"], interval: 200ms, retries: 1}}
"""


class SyncHub(Desk[LightHub]):
    """The light hub, and the clone at somebody's desk that it follows."""

    def __init__(self, hub: LightHub) -> None:
        super().__init__(hub, watch=WATCH)
        self.image = docker("inspect", "-f", "{{.Config.Image}}", hub.container("cold")).strip()

    def declare(self, cold: str) -> str:
        """Commit another declaration of `cold`."""
        if cold == REWRITES:  # it fails by itself; a busy machine may be slow to see it
            self.watch_long()
        path = self.desk / "docker-compose.yaml"
        text = path.read_text()
        start, rest = text.index("  cold:"), text.index("    init: true")
        body = cold.format(image=self.image).replace("  cold:\n", "  cold: &cold\n")
        return self.commit(path.name, text[:start] + body + text[rest:])

    def looks(self) -> dict[str, object]:
        """Everything that must be as it was after a return; no container's id."""
        data = {}
        for path in sorted((self.hub.root / "cold").rglob("*")):
            state = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            data[str(path)] = (content, state.st_mode, state.st_uid, state.st_gid)
        facts = "{{.Image}} {{.State.Status}} {{json .Config.Cmd}} {{json .Config.Entrypoint}}"
        return {
            "data": data,
            "files": self.edits(),
            "head": self.head(),
            "cold": docker("inspect", "-f", facts, self.hub.container("cold")),
            "running": self.hub.running(),
        }

    def broker(self) -> str:
        """The broker's container and since when it runs."""
        return docker(
            "inspect", "-f", "{{.Id}} {{.State.StartedAt}}", self.hub.container("mosquitto")
        )


@pytest.fixture(scope="module")
def shared() -> Iterator[SyncHub]:
    """One hub for all tests here."""
    for what in ("docker", "compose", "root", "restic", "image mosquitto", "git"):
        need(what)
    hub = light_hub()
    try:
        yield SyncHub(hub)
    finally:
        hub.remove()


@pytest.fixture
def hub(shared: SyncHub) -> Iterator[SyncHub]:
    """The shared hub; afterwards it is equal to the desk, runs, and no run is open."""
    shared.hub.write("before")
    yield shared
    shared.mend()
    assert shared.hub.running() == RUNNING
    records = [json.loads(path.read_text()) for path in shared.hub.own.glob("journal/*.json")]
    assert not [one for one in records if one["outcome"] == "running"]
    assert not [*(shared.hub.own / "tmp").iterdir()]


def test_new_rules_reach_the_broker_without_a_restart(hub: SyncHub) -> None:
    publish(hub.hub, "hidden/one", "seen")
    since, acl = hub.broker(), (hub.desk / "mosquitto/acl").read_text()
    rules = acl.replace("user iotops\n", "user iotops\ntopic deny hidden/#\n")
    made = hub.commit("mosquitto/acl", rules)
    done = hub.apply()
    assert done.code == 0, done.err + done.out
    result = done.result()
    assert (result["commit"], result["services"]) == (made, {"mosquitto": "reloaded"})
    assert result["files"] == ["mosquitto/acl"] and result["snapshot"]
    assert hub.head() == made and git(hub.folder, "status", "--short") == ""
    assert (hub.folder / "mosquitto/acl").read_text() == rules
    assert hub.broker() == since and retained(hub.hub, "hidden/one") == ""
    state = hub.sync_state()
    assert (state["commit"], state["drift"]) == (made, "")
    assert hub.hub.iotops("sync", "plan", "--exit-code").code == 0


def test_an_edit_on_the_hub_is_refused_and_adopted(hub: SyncHub) -> None:
    conf = hub.folder / "mosquitto" / "mosquitto.conf"
    edited = conf.read_text() + "max_inflight_messages 30\n"
    conf.write_text(edited)
    hub.commit("note.md", "from the desk\n")
    refused = hub.apply()
    assert refused.code == 4
    assert "was edited on the hub" in refused.err and "sync adopt" in refused.err
    assert conf.read_text() == edited and not (hub.folder / "note.md").exists()
    plan = refused.lines()[-1]
    assert "+max_inflight_messages 30" in str(plan["changes"])

    adopted = hub.hub.iotops("sync", "adopt")
    assert adopted.code == 0, adopted.err
    grown = hub.apply()
    assert grown.code == 4 and "grown apart" in grown.err
    git(hub.desk, "pull", "-q", "--no-edit", "--no-rebase", str(hub.folder), "main")
    since = hub.broker()
    done = hub.apply()
    assert done.code == 0, done.err
    assert done.result()["services"] == {"mosquitto": "restarted"}
    assert hub.broker() != since and (hub.folder / "note.md").exists()


def test_a_device_and_a_commit_from_elsewhere_come_together(hub: SyncHub, tmp_path: Path) -> None:
    """The remote is a bare repository, the hint is followed, the device keeps its rights."""
    work, bare = hub.desk.with_name("work"), tmp_path / "bare"
    git(tmp_path, "clone", "-q", "--bare", str(hub.desk), str(bare))
    hub.desk.rename(work)
    shutil.move(bare, hub.desk)
    git(work, "remote", "set-url", "origin", str(hub.desk))
    try:
        added = hub.hub.iotops("device", "add", "kitchen")
        assert added.code == 0 and f"git -C {hub.folder} push sync main" in added.out, added.err
        local = f"{hub.head()[:8]} Give a login to the device kitchen"
        (work / "elsewhere.md").write_text("x\n")
        git(work, "add", "-A")
        git(work, "commit", "-qm", "Elsewhere")
        git(work, "push", "-q")
        refused = hub.apply("--auto")
        told = json.loads(refused.err)
        assert refused.code == 4 and f"grown apart (only here: {local})" in told["message"]
        command = told["hint"].partition("in the clone that you work in: ")[2]
        who = f"{pwd.getpwuid(hub.folder.stat().st_uid).pw_name}@{os.uname().nodename}:"
        assert who in command
        names = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")
        argv = ["sh", "-c", command.replace(who, "")]  # no SSH server here
        subprocess.run(argv, cwd=work, check=True, env=os.environ | dict.fromkeys(names, "a"))

        done = hub.apply("--auto")
        assert done.code == 0, done.err
        assert (hub.folder / "elsewhere.md").exists()
        password = added.out.splitlines()[-1]
        with Connected(hub.hub.ports["mosquitto"], "kitchen", password) as kitchen:
            assert kitchen.code == 0
        assert hub.hub.iotops("device", "list", "--exit-code").code == 0
        assert "kitchen" in (hub.folder / "mosquitto" / "acl").read_text()
        assert hub.hub.iotops("sync", "plan", "--json").result()["changes"] == []
    finally:
        assert hub.hub.iotops("device", "remove", "kitchen", "--yes").code == 0
        git(work, "pull", "-q", "--no-edit", "--no-rebase", str(hub.folder), "main")
        shutil.rmtree(hub.desk)
        work.rename(hub.desk)
        assert hub.apply().code == 0


def test_what_an_apply_leaves_alone_is_still_told(hub: SyncHub) -> None:
    labels = {"project": hub.hub.project, "service": "ghost", "oneoff": "False"}
    labels |= {"container-number": "1", "config-hash": "x"}
    pairs = [("--label", f"com.docker.compose.{key}={value}") for key, value in labels.items()]
    words = [word for pair in pairs for word in pair]
    name = f"{hub.hub.project}-ghost-1"
    sleep = ("--entrypoint", "sleep", hub.image, "1000")
    docker("run", "-d", "--network", "none", "--name", name, *words, *sleep)
    try:
        for change in (False, True):
            if change:
                hub.commit("note.md", "again\n")
            done = hub.apply()
            assert done.code == 0 and bool(done.result()["run"]) is change, done.err
            assert hub.sync_state()["drift"] == "ghost: 1"
            assert "ghost: 1" in hub.hub.iotops("status").out
    finally:
        docker("rm", "-f", name)
    assert hub.hub.iotops("sync", "plan").code == 0
    assert hub.sync_state()["drift"] == ""


def test_a_bad_configuration_never_reaches_the_broker(hub: SyncHub) -> None:
    before, since = hub.looks(), hub.broker()
    conf = hub.desk / "mosquitto" / "mosquitto.conf"
    bad = hub.commit("mosquitto/mosquitto.conf", conf.read_text() + "no_such_option true\n")
    done = hub.apply()
    assert done.code == 1
    assert f"the commit {bad[:8]} is refused, nothing was touched: mosquitto" in done.err
    assert "no_such_option" in done.out + done.err
    assert hub.looks() == before and hub.broker() == since
    assert "returned" not in hub.sync_state()


def test_a_timer_does_not_try_a_refused_commit_again(hub: SyncHub) -> None:
    def tried(*more: str) -> bool:
        done = hub.apply(*more)
        assert done.code == 1 and said(done).startswith(said(first)), done.err
        assert told(done) == told(first)
        steps = [one.get("step") for one in done.lines()]
        assert ("again at once, by hand" in done.err) == ("examine" not in steps)
        return "examine" in steps

    def said(done: Ended) -> str:
        return str(json.loads(done.err)["message"])

    def told(done: Ended) -> list[object]:
        return [one for one in done.lines() if one["message_type"] == "noted"]

    conf, env = hub.desk / "mosquitto" / "mosquitto.conf", hub.folder / ".env"
    good, values, since = conf.read_text(), env.read_text(), hub.broker()
    hub.commit("mosquitto/mosquitto.conf", good + "no_such_option true\n")
    first = hub.apply("--auto")
    assert first.code == 1 and told(first)
    assert not tried("--auto") and not tried("--auto")
    assert tried()  # by hand
    assert not tried("--auto")
    env.write_text(values + "# seen\n")
    try:
        assert tried("--auto") and not tried("--auto")
    finally:
        env.write_text(values)
    assert tried("--auto")
    known = hub.hub.own / "refused.json"
    document = json.loads(known.read_text())
    for looked in ("2020-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00", "no time"):
        known.write_text(json.dumps({**document, "looked": looked}))
        assert tried("--auto")
    assert not tried("--auto")
    hub.commit("mosquitto/mosquitto.conf", good + "no_such_option false\n")
    again = hub.apply("--auto")
    assert again.code == 1 and "examine" in [one.get("step") for one in again.lines()]
    assert hub.broker() == since
    hub.mend()
    hub.commit("mosquitto/mosquitto.conf", good + "max_inflight_messages 30\n")
    done = hub.apply("--auto")
    assert done.code == 0, done.err
    assert not known.exists()


def test_a_broker_under_another_name_is_not_taken_for_one_that_is_down(hub: SyncHub) -> None:
    settings = hub.desk / "iotops.toml"
    wrong = settings.read_text().replace("[services.mosquitto]", "[services.broker]")
    hub.commit("iotops.toml", wrong)
    refused = hub.apply()
    assert refused.code == 1 and "belongs to no service" in refused.err, refused.err
    assert "below [services.broker]" in refused.err

    own = hub.folder / "iotops.toml"
    good = own.read_text()
    own.write_text(wrong)
    done = hub.hub.iotops("backup")
    doctor = hub.hub.iotops("doctor", "--json")
    docker("stop", "-t", "0", hub.hub.container("mosquitto"))
    down = hub.hub.iotops("backup")  # its files are its state then
    docker("start", hub.hub.container("mosquitto"))
    own.write_text(good)
    assert done.code == 3 and 'container = "mosquitto"' in done.out, done.out + done.err
    assert "service.container" in doctor.out
    assert down.code == 0, down.out + down.err


def test_a_changed_value_of_env_is_shown_by_name_and_applied(hub: SyncHub) -> None:
    env = hub.folder / ".env"
    before = env.read_text()

    def values() -> str:
        return docker("inspect", "-f", "{{json .Config.Env}}", hub.hub.container("cold"))

    try:
        env.write_text(before + "WORD_TOKEN=first-hunter2\n")
        hub.declare(GOOD + '    environment: {{WORD_TOKEN: "${{WORD_TOKEN}}"}}\n')
        done = hub.apply()
        assert done.code == 0, done.err + done.out
        assert "WORD_TOKEN=first-hunter2" in values()
        env.write_text(before + "WORD_TOKEN=second-hunter2\n")
        plan = hub.hub.iotops("sync", "plan", "--exit-code")
        assert plan.code == 4 and "WORD_TOKEN" in plan.out, plan.out
        since = hub.broker()
        again = hub.apply()
        assert again.code == 0, again.err + again.out
        assert again.result()["services"] == {"cold": "made anew"} and hub.broker() == since
        assert "WORD_TOKEN=second-hunter2" in values()
        assert hub.hub.iotops("sync", "plan", "--exit-code").code == 0
        for one in (done, plan, again):
            assert "hunter2" not in one.out + one.err
    finally:
        hub.declare(GOOD)
        assert hub.apply().code == 0
        env.write_text(before)


def test_a_version_that_rewrites_its_data_and_fails_later(hub: SyncHub) -> None:
    before = hub.looks()
    hub.declare(REWRITES)
    done = hub.apply()
    assert done.code == 1
    assert "cold did not come up: is unhealthy" in done.err
    assert "the data of cold is that of the snapshot" in done.err
    assert hub.looks() == before
    aside = max(hub.hub.own.glob("replaced/*-sync-*/cold/word"))  # nothing is thrown away
    assert aside.read_text() == "rewritten\n"
    told = hub.hub.iotops("status").out
    assert f"see {hub.hub.own / 'replaced'}; remove it now: iotops undo --discard" in told


def test_data_that_cannot_be_had_keeps_nothing_down(hub: SyncHub, tmp_path: Path) -> None:
    """The old containers run again, it is told, and a later run puts the data back."""
    before = hub.looks()
    hub.declare(REWRITES)
    (tmp_path / "restic").write_text(
        '#!/bin/sh\ncase " $* " in *" restore "*) exit 1;; esac\n'
        f'exec {shutil.which("restic")} "$@"\n'
    )
    (tmp_path / "restic").chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = hub.hub.iotops("sync", "apply", "--yes", env=path)
    assert done.code == 1 and "on the data that the commit left behind" in done.err, done.err
    assert "iotops resume" in done.err
    now = hub.looks()
    assert {**now, "data": ""} == {**before, "data": ""} and now["data"] != before["data"]
    done = hub.hub.iotops("resume")
    assert done.code == 0, done.err + done.out
    assert "the data of cold is that of the snapshot taken before" in done.err + done.out
    assert hub.looks() == before


def test_a_tag_that_was_moved_to_a_bad_image_is_moved_back(hub: SyncHub) -> None:
    plain, name = hub.image, f"{hub.hub.project}-moving:1"
    good = docker("image", "inspect", "-f", "{{.Id}}", plain).strip()
    docker("image", "tag", good, name)
    bad = ""
    try:
        hub.image = name
        hub.declare(GOOD)
        done = hub.apply()
        assert done.code == 0, done.err + done.out
        before = hub.looks()
        bad = docker("image", "import", "--message", "empty", "/dev/null", name).strip()
        hub.declare(GOOD.replace('["sleep"', '["env", "NEW=4", "sleep"'))
        done = hub.apply()
        assert done.code == 1 and "was returned from" in done.err
        assert hub.looks() == before
        assert docker("image", "inspect", "-f", "{{.Id}}", name).strip() == good
        hub.image = plain
        hub.declare(GOOD)
        assert hub.apply().code == 0
    finally:
        hub.image = plain
        for one in filter(None, (name, bad)):
            subprocess.run(["docker", "image", "rm", one], capture_output=True, check=False)


def test_it_returns_to_what_ran_well_and_not_to_what_is_checked_out(hub: SyncHub) -> None:
    compose = hub.folder / "docker-compose.yaml"
    before, good = hub.looks(), compose.read_text()
    bad = hub.declare(CRASHES)
    git(hub.folder, "pull", "-q", "--ff-only", str(hub.desk), "main")  # by hand, and not tried
    done = hub.apply()
    assert done.code == 1 and f"the commit {bad[:8]} was returned from" in done.err
    assert (hub.head(), compose.read_text()) == (bad, good)
    worse = hub.declare(CRASHES.replace("exit 3", "exit 4"))
    done = hub.apply()
    assert done.code == 1 and f"the commit {worse[:8]} was returned from" in done.err
    assert "not well either" not in done.err
    assert (hub.head(), compose.read_text()) == (bad, good)
    now = hub.looks()
    assert all(now[what] == before[what] for what in ("data", "cold", "running"))
    hub.declare(GOOD)
    done = hub.apply()
    assert done.code == 0, done.err + done.out


def test_a_broker_that_empties_its_database_gets_it_back(hub: SyncHub) -> None:
    """Of a known kind the return also counts what the server holds."""
    publish(hub.hub, "kept/one", "here")
    before, compose = hub.looks(), hub.desk / "docker-compose.yaml"
    line = '    entrypoint: ["sh", "-c", "rm -rf /mosquitto/data/*; exit 3"]\n'
    text = compose.read_text().replace("  mosquitto:\n", "  mosquitto:\n" + line, 1)
    hub.commit(compose.name, text)
    done = hub.apply()
    assert done.code == 1
    assert "mosquitto did not come up" in done.err and "not well either" not in done.err, done.err
    assert "the data of mosquitto is that of the snapshot" in done.err
    assert any(one.get("step") == "verify" for one in done.lines())
    assert retained(hub.hub, "kept/one") == "here" and hub.looks() == before


@pytest.mark.parametrize(("where", "service"), [("write", ""), ("swap", "cold")])
def test_killed_in_between_it_is_returned(hub: SyncHub, where: str, service: str) -> None:
    """The second time while it returns by itself, and puts data back."""
    before = hub.looks()
    hub.declare(REWRITES)
    held = Held(hub.hub, "sync", "apply", "--yes")
    assert held.until(Step("sync", where, service, 1))
    held.signal(signal.SIGKILL)
    held.end()
    (hub.folder / "mosquitto" / ".iotops-new-0123456789abcdef").write_text("half a fi")
    up = hub.hub.iotops("up")
    assert up.code != 0 and "iotops resume" in up.err
    done = hub.hub.iotops("resume")
    assert done.code == 0, done.err + done.out
    assert hub.looks() == before


def test_a_container_that_compose_stopped_and_did_not_exchange(hub: SyncHub) -> None:
    """Compose stops the old container first, and may end right there."""
    before, container = hub.looks(), hub.hub.container("cold")
    hub.declare(GOOD.replace('["sleep"', '["env", "NEW=4", "sleep"'))
    fake, real = hub.hub.base / "fake", shutil.which("docker")
    fake.mkdir()
    (fake / "docker").write_text(
        "#!/bin/sh\n"
        f'case " $* " in *" compose "*" up "*) {real} stop -t 0 {container}; exit 1;; esac\n'
        f'exec {real} "$@"\n'
    )
    (fake / "docker").chmod(0o755)
    path = {"PATH": f"{fake}:{os.environ['PATH']}"}
    done = hub.hub.iotops("sync", "apply", "--yes", env=path)
    assert done.code == 1 and "was returned from" in done.err, done.err
    assert hub.looks() == before and hub.hub.container("cold") == container


def test_killed_after_it_was_proven_it_is_finished(hub: SyncHub) -> None:
    before, since = hub.hub.container("cold"), hub.broker()
    made = hub.declare(GOOD.replace('["sleep"', '["env", "NEW=2", "sleep"'))
    held = Held(hub.hub, "sync", "apply", "--yes")
    assert held.until(Step("sync", "settle", "", 1))
    held.signal(signal.SIGKILL)
    held.end()
    done = hub.hub.iotops("resume")
    assert done.code == 0, done.err + done.out
    assert hub.head() == made and hub.sync_state()["commit"] == made
    assert hub.hub.container("cold") != before and hub.broker() == since
    quiet = hub.hub.container("quiet")
    state = docker("inspect", "-f", "{{.State.Status}}", quiet)
    assert state.strip() == "exited"  # its owner stopped it
    plan = hub.hub.iotops("sync", "plan", "--exit-code")
    assert plan.code == 0 and "quiet is exited, was made of an older declaration" in plan.out
    docker("start", quiet)
    try:
        plan = hub.hub.iotops("sync", "plan", "--exit-code")
        assert plan.code == 4 and "another part of its declaration" in plan.out, plan.out
    finally:
        docker("stop", "-t", "0", quiet)


def test_a_snapshot_that_lacks_the_service(hub: SyncHub) -> None:
    """Nothing is touched whose data could not come back."""
    cold, aside = hub.hub.root / "cold", hub.hub.root / "aside"
    before, container = hub.looks(), hub.hub.container("cold")
    hub.declare(GOOD.replace('["sleep"', '["env", "NEW=3", "sleep"'))
    aside.mkdir()
    for path in [*cold.iterdir()]:
        path.rename(aside / path.name)
    done = hub.apply()
    for path in [*aside.iterdir()]:
        path.rename(cold / path.name)
    aside.rmdir()
    assert done.code == 1
    assert "the snapshot before the change lacks cold" in done.err
    assert "--without-backup" in done.err
    assert hub.looks() == before and hub.hub.container("cold") == container


@pytest.fixture
def alone(shared: SyncHub) -> SyncHub:
    """The shared hub in local mode, from here on."""
    toml = shared.folder / "iotops.toml"
    lines = [line for line in toml.read_text().splitlines() if not line.startswith("remote")]
    toml.write_text("\n".join(lines) + "\n")
    if git(shared.folder, "status", "--short"):
        git(shared.folder, "commit", "-qam", "Follow nobody")
    done = shared.apply()
    assert done.code == 0, done.err + done.out
    return shared


def test_in_local_mode_a_file_of_a_stopped_service_is_tried_too(alone: SyncHub) -> None:
    """Its service needs nothing, and the commit would be the last good one."""
    conf = alone.folder / "mosquitto" / "mosquitto.conf"
    good, text = alone.head(), conf.read_text()
    docker("stop", alone.hub.container("mosquitto"))
    try:
        conf.write_text(text + "no_such_option true\n")
        git(alone.folder, "commit", "-qam", "Bad")
        done = alone.apply()
        assert done.code == 1
        assert f"the commit {alone.head()[:8]} is refused" in done.err
        assert "no_such_option" in done.out + done.err
        assert alone.sync_state()["commit"] == good
    finally:
        conf.write_text(text)
        git(alone.folder, "commit", "-qam", "Mend it")
        docker("start", alone.hub.container("mosquitto"))
    done = alone.apply()
    assert done.code == 0, done.err + done.out
    assert alone.sync_state()["commit"] == alone.head()


def test_in_local_mode_a_crash_loop_is_returned_from(alone: SyncHub) -> None:
    """Without a remote the commits of the hub folder count; nobody's commit is taken back."""
    hub = alone
    compose = hub.folder / "docker-compose.yaml"
    good, cold, running = compose.read_text(), hub.looks()["data"], hub.hub.running()
    start, rest = good.index("  cold:"), good.index("    init: true")
    body = CRASHES.format(image=hub.image).replace("  cold:\n", "  cold: &cold\n")
    compose.write_text(good[:start] + body + good[rest:])
    git(hub.folder, "commit", "-qam", "Crash")
    bad, since = hub.head(), hub.broker()
    done = hub.apply()
    assert done.code == 1
    assert f"the commit {bad[:8]} was returned from: cold did not come up" in done.err
    assert "no such option" in done.err  # the last lines of its log
    assert hub.broker() == since
    assert compose.read_text() == good and hub.head() == bad
    assert hub.looks()["data"] == cold and hub.hub.running() == running
    again = hub.hub.iotops("sync", "plan", "--exit-code", "--json")
    assert again.code == 4 and "sync.local" not in again.out
    assert f"the commit {bad[:8]} was returned from" in hub.hub.iotops("status").out
    timer = hub.hub.iotops("sync", "apply", "--auto")
    assert timer.code == 4 and f"{bad[:8]} was returned from before" in timer.err
    git(hub.folder, "commit", "-qam", "Mend it")
    done = hub.apply()
    assert done.code == 0, done.err + done.out
    assert hub.hub.iotops("sync", "plan", "--exit-code").code == 0
