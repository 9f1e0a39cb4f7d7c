"""`flows pull` against a real Node-RED and the real Git, as the hub's owner.

One Node-RED of each line for all tests; each test has a hub folder and a branch of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from iotops import flowdoc
from iotops.actions import flows
from iotops.actions.flows import Pulled
from iotops.errors import (
    Exit,
    FlowsError,
    GitError,
    GuardError,
    Refused,
    SettingsError,
    Skipped,
    Unreachable,
)
from iotops.events import Event, Noted
from iotops.hub import Hub
from tests.conftest import need
from tests.support import nodered
from tests.support.disk import chown_tree
from tests.support.lab import lab, lines_of
from tests.support.nodered import PALETTE
from tests.support.noderedbench import Bench

pytestmark = pytest.mark.contract

OWNER = "nobody"
PASSWORD = "a-password-of-the-env-file"


@pytest.fixture(scope="module", params=("nodered", *lines_of("nodered")))
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    for part in ("docker", "compose", "root", f"image {request.param}", "git"):
        need(part)
    base = Path(tempfile.mkdtemp(prefix="iotops-pull-", dir="/var/tmp"))
    base.chmod(0o755)
    made = Bench(base, lab().images[request.param].reference)
    try:
        made.up()
        made.kind.seed()
        yield made
    finally:
        made.down()
        shutil.rmtree(base)


class Owned:
    """A hub folder of the owner's, with Git and without a disk: a pull needs none."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.base = Path(tempfile.mkdtemp(dir=bench.base))
        self.base.chmod(0o755)
        self.folder = self.base / "hub"
        self.folder.mkdir()
        for name in ("compose.yaml", ".env"):
            shutil.copy2(bench.ground.hub / name, self.folder / name)
        with (self.folder / ".env").open("a") as env:
            env.write(f"GRAFANA_ADMIN_PASSWORD={PASSWORD}\nTZ=Heating\n")
        (self.folder / ".gitignore").write_text(".env\nflows/\n")
        self.settings()
        chown_tree(self.folder, self.owner)
        self.git("init", "--quiet", "--initial-branch=main")
        self.git("add", ".gitignore", "compose.yaml")
        self.git("commit", "--quiet", "--message", "Begin")

    @property
    def owner(self) -> tuple[int, int]:
        entry = pwd.getpwnam(OWNER)
        return entry.pw_uid, entry.pw_gid

    def settings(self, url: str = "", flows: str = "") -> None:
        (self.folder / "iotops.toml").write_text(
            f'[hub]\nid = "0123456789ab"\nname = "test"\nowner = "{OWNER}"\n'
            f'[data]\nroot = "{self.base / "data"}"\nkind = "folder"\n'
            f'[paths]\nstate = "{self.base / "state"}"\nrun = "{self.base / "run"}"\n'
            f'[services.nodered]\nkind = "nodered"\nurl = "{url or self.bench.kind.url}"\n'
            f"[flows]\n{flows}\n"
        )

    @property
    def hub(self) -> Hub:
        return Hub.open(self.folder)

    @property
    def tree(self) -> Path:
        return self.folder / "flows"

    def git(self, *argv: str, where: Path | None = None) -> str:
        done = subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *argv],
            cwd=where or self.folder,
            capture_output=True,
            text=True,
            user=self.owner[0],
            group=self.owner[1],
            extra_groups=[],
            env={**os.environ, "HOME": "/nonexistent"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def commits(self) -> list[str]:
        return self.git("log", "--format=%s", "flows", "--").splitlines()

    def files(self) -> dict[str, bytes]:
        """The files of the branch, out of Git itself."""
        names = self.git("ls-tree", "-r", "--name-only", "flows").splitlines()
        return {
            name: subprocess.run(
                ["git", "-c", "safe.directory=*", "show", f"flows:{name}"],
                cwd=self.folder,
                capture_output=True,
                check=True,
            ).stdout
            for name in names
        }


@pytest.fixture
def owned(bench: Bench) -> Owned:
    bench.client.deploy(nodered.flows(bench.kind.pin, bench.kind.password))
    return Owned(bench)


def changed(bench: Bench, by_id: Mapping[str, Mapping[str, object]]) -> list[dict[str, object]]:
    """The running flows with keys of some nodes replaced."""
    return [{**node, **by_id.get(str(node["id"]), {})} for node in bench.client.nodes()]


def test_the_first_pull_makes_the_branch_and_a_second_no_commit(owned: Owned) -> None:
    first = flows.pull(owned.hub)
    assert first.changed and first.summary == "First record of the flows: 2 tabs, 14 nodes"
    assert first.revision == owned.bench.client.revision()
    assert first.commit == owned.git("rev-parse", "flows")
    again = flows.pull(owned.hub)
    assert (again.commit, again.changed, again.revision) == (None, False, first.revision)
    assert owned.commits() == [first.summary, "Begin the branch flows"]
    assert owned.git("status", "--porcelain", where=owned.tree) == ""
    assert owned.git("status", "--porcelain") == "?? iotops.toml"


def test_git_holds_all_of_the_flows_and_no_credential(owned: Owned) -> None:
    flows.pull(owned.hub)
    files = owned.files()
    nodes = flowdoc.join(files)
    served = json.loads(owned.bench.client.call("GET", "/flows"))
    assert list(nodes) == served
    raw = owned.bench.client.call("GET", "/flows")
    assert json.loads(files["index.json"])["rev"] == hashlib.sha256(raw).hexdigest()
    assert json.loads(files["palette.json"]) == {PALETTE: "1.2.3"}
    assert "tabs/garten--garden.json" in files and "code/probe-code.func.js" in files
    everything = b"".join(files.values())
    for secret in (owned.bench.kind.pin, owned.bench.kind.password, PASSWORD):
        assert secret.encode() not in everything


def test_everything_in_the_worktree_belongs_to_the_owner(owned: Owned) -> None:
    flows.pull(owned.hub)
    paths = [path for path in owned.tree.rglob("*")] + list((owned.folder / ".git").rglob("*"))
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in paths} == {owned.owner}


def test_a_change_is_told_by_node_and_a_tab_that_is_gone_leaves_no_file(owned: Owned) -> None:
    flows.pull(owned.hub)
    bench = owned.bench
    bench.client.deploy(
        changed(bench, {"set-code": {"func": "return null;"}, "use": {"x": 400, "y": 1}})
    )
    assert flows.pull(owned.hub).summary == "Heating: 1 function changed; layout only in Gärten 🌱"
    nodes = [node for node in bench.client.nodes() if "garden" not in (node["id"], node.get("z"))]
    bench.client.deploy(nodes)
    assert flows.pull(owned.hub).summary == "Gärten 🌱 removed (1 node)"
    assert not any("garden" in name for name in owned.files())
    assert not (owned.tree / "tabs" / "garten--garden.json").exists()
    body = owned.git("log", "-1", "--format=%b", "flows", "--")
    assert f"rev {bench.client.revision()}" in body and f"Node-RED {bench.version()}" in body


def test_a_renamed_tab_is_a_rename_for_git(owned: Owned) -> None:
    flows.pull(owned.hub)
    owned.bench.client.deploy(changed(owned.bench, {"heating": {"label": "Boiler room"}}))
    assert flows.pull(owned.hub).summary == "Boiler room: renamed from Heating"
    shown = owned.git("show", "--find-renames=50", "--name-status", "--format=", "flows", "--")
    assert "tabs/heating--heating.json\ttabs/boiler-room--heating.json" in shown


def test_other_files_of_the_branch_stay_and_edits_by_hand_are_told(owned: Owned) -> None:
    flows.pull(owned.hub)
    (owned.tree / "README.md").write_text("mine")
    (owned.tree / "global.json").write_text("[]\n")
    heard: list[Event] = []
    assert not flows.pull(owned.hub, report=heard.append).changed
    assert (owned.tree / "README.md").read_text() == "mine"
    assert (owned.tree / "global.json").read_bytes() == owned.files()["global.json"]
    told = [event.text for event in heard if isinstance(event, Noted)]
    assert told == ["edits by hand were replaced: global.json"]


# --- guards ---------------------------------------------------------------------------------------


def refused(owned: Owned, told: str) -> GuardError:
    before = owned.git("rev-parse", "flows")
    with pytest.raises(GuardError, match=told) as caught:
        flows.pull(owned.hub)
    assert owned.git("rev-parse", "flows") == before
    assert owned.git("status", "--porcelain", where=owned.tree) == ""
    return caught.value


def test_the_empty_revision_is_refused_unless_it_is_meant(owned: Owned) -> None:
    flows.pull(owned.hub)
    owned.bench.client.deploy([])
    refused(owned, "empty flow set")
    assert flows.pull(owned.hub, allow_empty=True).changed
    assert flowdoc.join(owned.files()) == ()
    assert not flows.pull(owned.hub).changed  # known to be empty now


def test_a_new_hub_has_nothing_to_commit_yet(owned: Owned) -> None:
    """Its timer must not fail until somebody draws the first flow."""
    owned.bench.client.deploy([])
    with pytest.raises(Skipped, match="none was ever committed") as caught:
        flows.pull(owned.hub)
    assert caught.value.exit == 75 and "deploy a flow" in caught.value.hint
    assert owned.hub.state.read().last["flows-pull"]["outcome"] == "skipped"
    assert flows.pull(owned.hub, allow_empty=True).changed


def test_flows_that_fell_under_half_are_refused_unless_it_is_meant(owned: Owned) -> None:
    flows.pull(owned.hub)
    owned.bench.client.deploy(owned.bench.client.nodes()[:3])
    refused(owned, "fell from 14 to 3 nodes")
    assert flows.pull(owned.hub, allow_shrink=True).changed


def test_a_secret_in_the_flows_is_refused_with_its_place(owned: Owned) -> None:
    flows.pull(owned.hub)
    code = f"// in the\nmsg.password = '{PASSWORD}';\nreturn msg;"
    owned.bench.client.deploy(changed(owned.bench, {"set-code": {"func": code}}))
    error = refused(owned, "the value of GRAFANA_ADMIN_PASSWORD stands in tab 'Heating'")
    assert "function node 'set-code', key func" in error.message
    assert PASSWORD not in error.message + error.hint
    assert flows.pull(owned.hub, accepted=["set-code.func"]).changed


def test_a_damaged_branch_is_told_and_recorded_anew_under_the_same_guards(owned: Owned) -> None:
    flows.pull(owned.hub)
    (owned.tree / "global.json").write_text("[]\n")
    owned.git("commit", "--quiet", "--all", "--message", "Break it", where=owned.tree)
    owned.bench.client.deploy(owned.bench.client.nodes()[:3])
    refused(owned, "fell from 14 to 3 nodes")
    owned.bench.client.deploy(nodered.flows("1", "2"))
    heard: list[Event] = []
    assert flows.pull(owned.hub, report=heard.append).changed
    assert any(isinstance(one, Noted) and "not whole" in one.text for one in heard)
    assert len(flowdoc.join(owned.files())) == 14


# --- a Node-RED that does not serve ---------------------------------------------------------------


class Odd(BaseHTTPRequestHandler):
    """A server that is not quite Node-RED; `answer` is what it gives for `/flows`."""

    answer: object = None

    def do_GET(self) -> None:
        body = json.dumps(self.answer if self.path == "/flows" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (None, "no active flow configuration"),
        ({"flows": [{"id": "a"}], "rev": "0" * 64}, "revision told is not the one"),
        ({"flows": [{"id": "a"}, {"id": "a"}], "rev": ""}, "there twice"),
        ({"flows": {}, "rev": ""}, "not an array"),
        ([], "not an answer of API version 2"),
    ],
)
def test_an_answer_that_is_not_whole_changes_nothing(
    owned: Owned, answer: object, told: str
) -> None:
    flows.pull(owned.hub)
    before = owned.git("rev-parse", "flows")
    handler = type("Answering", (Odd,), {"answer": answer})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        owned.settings(url=f"http://127.0.0.1:{server.server_address[1]}")
        with pytest.raises(FlowsError, match=told):
            flows.pull(owned.hub)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert owned.git("rev-parse", "flows") == before


def test_a_server_that_is_away_or_refuses_is_named_and_kept_in_the_state(owned: Owned) -> None:
    owned.settings(url="http://127.0.0.1:1")
    with pytest.raises(Unreachable, match="nothing answers"):
        flows.pull(owned.hub)
    last = owned.hub.state.read().last["flows-pull"]
    assert last["outcome"] == "failed" and "nothing answers" in last["message"]
    owned.settings()
    (owned.folder / ".env").write_text("NODERED_TOKEN=wrong\n")
    with pytest.raises(Refused, match="does not accept the token"):
        flows.pull(owned.hub)


def test_a_hub_without_git_or_without_node_red_is_named(owned: Owned) -> None:
    shutil.rmtree(owned.folder / ".git")
    with pytest.raises(GitError, match="no Git repository") as caught:
        flows.pull(owned.hub)
    assert "git" in caught.value.hint
    owned.settings(flows='service = "other"')
    with pytest.raises(SettingsError, match="no Node-RED service 'other'"):
        flows.pull(owned.hub)


def test_a_hub_folder_that_was_moved_is_repaired(owned: Owned) -> None:
    flows.pull(owned.hub)
    moved = owned.base / "moved"
    owned.folder.rename(moved)
    owned.folder = moved
    owned.bench.client.deploy(changed(owned.bench, {"heating": {"disabled": True}}))
    assert flows.pull(owned.hub).summary == "Heating: settings changed"


# --- push -----------------------------------------------------------------------------------------


def remote(owned: Owned) -> Path:
    bare = owned.base / "remote.git"
    bare.mkdir()
    chown_tree(bare, owned.owner)
    owned.git("init", "--quiet", "--bare", where=bare)
    return bare


def head(bare: Path, owned: Owned) -> str:
    return owned.git("rev-parse", "flows", where=bare)


def test_a_pull_is_pushed_when_asked_and_caught_up_later(owned: Owned) -> None:
    bare = remote(owned)
    owned.settings(flows=f'remote = "{bare}"\npush = true')
    assert not flows.pull(owned.hub, push=False).pushed
    late: Pulled = flows.pull(owned.hub)
    assert late.pushed and not late.changed and late.exit is Exit.DONE
    assert head(bare, owned) == owned.git("rev-parse", "flows")


def test_a_remote_that_is_away_is_its_own_outcome_and_the_commit_stands(owned: Owned) -> None:
    owned.settings(flows=f'remote = "{owned.base / "nowhere.git"}"\npush = true')
    pulled = flows.pull(owned.hub)
    assert pulled.changed and not pulled.pushed and pulled.exit is Exit.SKIPPED
    assert pulled.push_failure and pulled.hint
    assert owned.git("rev-parse", "flows") == pulled.commit
    state = owned.hub.state.read()
    assert state.last["flows-pull"]["outcome"] == "partial"
    assert "flows-pull" not in state.good


def test_a_remote_with_other_commits_is_a_conflict_and_never_forced(owned: Owned) -> None:
    bare = remote(owned)
    owned.settings(flows=f'remote = "{bare}"\npush = true')
    flows.pull(owned.hub)
    other = owned.base / "other"
    other.mkdir()
    chown_tree(other, owned.owner)
    owned.git("clone", "--quiet", "--branch=flows", str(bare), ".", where=other)
    owned.git("commit", "--quiet", "--allow-empty", "--message", "Theirs", where=other)
    owned.git("push", "--quiet", where=other)
    theirs = head(bare, owned)
    owned.bench.client.deploy(changed(owned.bench, {"heating": {"disabled": True}}))
    pulled = flows.pull(owned.hub)
    assert pulled.changed and pulled.exit is Exit.DIFFERENT and not pulled.pushed
    assert head(bare, owned) == theirs
