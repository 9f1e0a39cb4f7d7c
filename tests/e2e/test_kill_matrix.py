"""Whatever ends a run, at whatever step: the hub is as before, and no success is told falsely.

The steps come from the program (an undisturbed run of each command), so a new one joins by itself.
Each is ended by SIGKILL, SIGTERM, SIGINT and by a full disk. Afterwards: the containers that ran
run, the one that its owner had stopped is stopped; the folders are all old or all new; no record
and no state tells of a success that did not happen; no lock and no rest of the dead run is left;
the same command then succeeds.
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from tests.support.disk import filled
from tests.support.hubs import docker
from tests.support.killmatrix import (
    RUNNING,
    STOPPED,
    Held,
    LightHub,
    Step,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

COMMANDS = {
    "backup": ("backup",),
    "retention": ("retention", "--apply", "--yes"),
    "prune": ("prune", "--yes", "--max-unused", "0"),
    "restore": ("restore", "latest", "--yes"),
    "undo": ("undo", "--yes"),
}
GROUPS = {"saving": ("backup", "retention", "prune"), "restoring": ("restore", "undo")}
SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT}
FULL, FULL_FAR = "disk full", "repository full"
WAYS = (*SIGNALS, FULL, FULL_FAR)
FAR = ("backup", "retention", "prune")
"""Commands that write into the repository: it has a disk of its own that can be full."""
GOOD = ("complete", "partial")


@dataclass(frozen=True, order=True)
class Cell:
    """One step of one command, and how it is ended there."""

    command: str
    step: Step
    way: str

    def __str__(self) -> str:
        return f"{self.command}: {self.step} x {self.way}"


@dataclass
class Matrix:
    """The hubs, the steps as the program tells them, and what became of each cell."""

    hubs: list[LightHub]
    steps: dict[str, list[Step]] = field(default_factory=dict)
    ran: dict[Cell, str] = field(default_factory=dict)

    def cells(self, group: str, way: str) -> list[Cell]:
        """Give the cells of a group of commands, for one way of ending."""
        chosen = [name for name in GROUPS[group] if way != FULL_FAR or name in FAR]
        return [Cell(name, step, way) for name in chosen for step in self.steps[name]]

    def run(self, cells: list[Cell]) -> dict[str, str]:
        """Run cells on all hubs; give what went wrong, by cell."""
        left, lock = [*cells], threading.Lock()

        def work(hub: LightHub) -> None:
            while True:
                with lock:
                    if not left:
                        return
                    fitting = [one for one in left if is_ready(hub, one.command)]
                    cell = (fitting or left)[0]
                    left.remove(cell)
                try:
                    ready(hub, cell.command)
                    happen(hub, cell)
                    verdict = ""
                except Exception as error:  # noqa: BLE001 - told for all cells together
                    verdict = f"{type(error).__name__}: {error}"
                    mend(hub)
                with lock:
                    self.ran[cell] = verdict

        with ThreadPoolExecutor(len(self.hubs)) as pool:
            for done in [pool.submit(work, hub) for hub in self.hubs]:
                done.result()
        return {str(cell): self.ran[cell] for cell in cells if self.ran.get(cell, "did not run")}

    def table(self) -> list[str]:
        """Lay out steps x ways: how each cell ended."""
        lines = []
        for name, steps in self.steps.items():
            lines.append(f"{name:<28}" + "".join(f"{way:>17}" for way in WAYS))
            for step in steps:
                row = "".join(f"{self._mark(Cell(name, step, way)):>17}" for way in WAYS)
                lines.append(f"  {step!s:<26}{row}")
        return lines

    def _mark(self, cell: Cell) -> str:
        if cell.way == FULL_FAR and cell.command not in FAR:
            return "-"
        if cell not in self.ran:
            return "NOT RUN"
        return "FAILED" if self.ran[cell] else "ok"


@pytest.fixture(scope="module")
def matrix(light_hubs: list[LightHub]) -> Matrix:
    """The hubs, and the steps of an undisturbed run of every command."""
    found = Matrix(light_hubs)
    for name, argv in COMMANDS.items():
        ready(light_hubs[0], name)
        run = Held(light_hubs[0], *argv)
        found.steps[name] = [*run.steps()]
        assert run.end() == 0, run.errors()
    return found


# -- a cell ---------------------------------------------------------------------------------------


def is_ready(hub: LightHub, command: str) -> bool:
    """Tell whether a hub needs no work to be ready for a command."""
    restored = any((hub.own / "replaced").glob("*-restore-*"))
    return restored == (command == "undo")


def ready(hub: LightHub, command: str) -> None:
    """Bring a hub into the state that a command's cell begins with."""
    if command == "undo":
        if not is_ready(hub, "undo"):
            hub.write("today")
            must(hub, *COMMANDS["restore"])
        assert hub.words() == {"snapshot"}
    else:
        for path in (hub.own / "replaced").iterdir():
            shutil.rmtree(path)
        hub.write("today" if command == "restore" else "snapshot")
    if command == "backup":
        hub.a_day_passes()
    docker("stop", hub.container(STOPPED))
    assert hub.running() == RUNNING


def must(hub: LightHub, *argv: str) -> dict[str, object]:
    """Run a command that must succeed, to its end."""
    done = hub.iotops(*argv, "--json", limit=180)
    assert done.code == 0, f"{argv[0]} ended with {done.code}: {done.err or done.out}"
    return done.result()


def happen(hub: LightHub, cell: Cell) -> None:
    """End a command in a step, look at what is left, and see that it succeeds afterwards."""
    good_before = hub.known()["good"]
    run = Held(hub, *COMMANDS[cell.command])
    assert run.until(cell.step), f"it ended without this step: {run.end()} {run.errors()}"
    if cell.way in SIGNALS:
        run.signal(SIGNALS[cell.way])
        code = run.end()
        wanted = -signal.SIGKILL if cell.way == "KILL" else 130
        assert code == wanted, f"exit {code}: {run.errors()}"
    else:
        folder = hub.root if cell.way == FULL else hub.repository_disk.mount
        with run.stopped():
            filler = filled(folder)
            filler.__enter__()
        try:
            code = run.end()
            assert code in (0, 1, 3), f"exit {code}: {run.errors()}"
            assert code == 0 or cell.way == FULL_FAR or looks_meant(run), run.errors()
            assert hub.running() == RUNNING or not_back(hub, cell)
        finally:
            filler.__exit__(None, None, None)
    assert "Traceback" not in run.errors(), run.errors()
    no_false_success(hub, run, good_before, code)
    settled(hub, cell, run)
    succeeds(hub, cell)


def looks_meant(run: Held) -> bool:
    """A failure is told in a line that says what to do."""
    text = run.errors()
    return run.result().get("outcome") == "partial" or '"message_type": "error"' in text


def not_back(hub: LightHub, cell: Cell) -> bool:
    """On a full disk the containers run all the same, but for a restore that was done."""
    return cell.command == "restore" and hub.running() == RUNNING | {STOPPED}


def no_false_success(
    hub: LightHub, run: Held, good_before: dict[str, dict[str, str]], code: int
) -> None:
    """No record and no state says more than what is true."""
    for action, name in run.runs:
        record = hub.record(name)
        outcome = str(record["outcome"])
        if outcome in GOOD:
            true_success(hub, action, record)
            continue
        assert outcome in ("running", "failed", "interrupted"), record
        # The retention after a backup is a run of its own: the backup is good without it.
        after = (action, run.runs[0][0]) == ("retention", "backup")
        assert code != 0 or after, f"exit 0, but the record of the {action} says {outcome}"
        if code == 130:
            assert outcome == "interrupted", record
        good = hub.known()["good"]
        assert good.get(action) == good_before.get(action), f"{action} counts as good: {good}"
        last = hub.known()["last"].get(action, {})
        assert outcome == "running" or last.get("outcome") == outcome, (last, record)


def true_success(hub: LightHub, action: str, record: dict[str, object]) -> None:
    """What a record calls a success is one."""
    if action == "backup":
        snapshot = str(record["snapshot"])
        manifest = json.loads(hub.restic("dump", snapshot, "/manifest.json"))
        assert manifest["outcome"] == record["outcome"] and manifest["run"] == record["id"]
    elif action == "restore":
        assert hub.words() == {"snapshot"}, hub.words()
    elif action == "undo":
        assert hub.words() == {"today"}, hub.words()


def settled(hub: LightHub, cell: Cell, run: Held) -> None:
    """`status` tells of a dead run, `resume` puts it right; after a signal nothing is left."""
    dead = [name for _, name in run.runs if hub.record(name)["outcome"] == "running"]
    if cell.way in ("TERM", "INT"):
        assert not dead, dead
    if dead or cell.way == "KILL":
        status = hub.iotops("status", "--json")
        assert ("run.dead" in status.out) == bool(dead), status.out
        assert status.code == (1 if dead else 0), status.out + status.err
    if dead:
        done = must(hub, "resume")
        assert done["settled"] == dead, done
    for name in dead:
        record = hub.record(name)
        assert record["outcome"] != "running" and not record["stopped"], record
        if record["outcome"] in GOOD:
            true_success(hub, str(record["action"]), record)
    whole(hub, cell)


def whole(hub: LightHub, cell: Cell) -> None:
    """Containers as before, folders all old or all new, and nothing left over."""
    words = hub.words()
    assert len(words) == 1, f"neither old nor new: {words}"
    restored = words == {"snapshot"} and cell.command in ("restore", "undo")
    running = hub.running()
    if cell.command == "restore" and restored:
        running -= {STOPPED}  # a restore that came to its end starts everything
    assert running == RUNNING, f"running: {sorted(running)}"
    assert not any((hub.own / "tmp").iterdir()), [*(hub.own / "tmp").iterdir()]
    aside = {path.name.split("-")[1] for path in (hub.own / "replaced").iterdir()}
    wanted = {
        "restore": {"restore"} if restored else set(),
        "undo": {"restore"} if restored else {"undo"},
    }
    assert aside == wanted.get(cell.command, set()), f"put aside: {aside}"
    left = [
        path for name in ("journal", "memory") for path in (hub.own / name).glob(".iotops-new-*")
    ]
    assert not left, left


def succeeds(hub: LightHub, cell: Cell) -> None:
    """The same command succeeds, and no lock is left in its way."""
    done = {"restore": {"snapshot"}, "undo": {"today"}}.get(cell.command)
    if hub.words() == done:
        return  # it had come to its end; done again, it would put aside what it has brought
    must(hub, *COMMANDS[cell.command])
    assert done is None or hub.words() == done
    assert hub.running() - {STOPPED} == RUNNING
    # One that restic was only writing when it was killed is none to it.
    locks = [one for one in (hub.repository / "locks").iterdir() if "-tmp-" not in one.name]
    assert not locks, locks
    if cell.command == "backup":
        snapshots = json.loads(hub.restic("snapshots", "--json"))
        assert hub.known()["snapshot"] in [one["id"] for one in snapshots]


def mend(hub: LightHub) -> None:
    """Put a hub right after a cell that failed, so that the others can be judged."""
    hub.iotops("resume")
    for name in sorted(RUNNING):
        docker("start", hub.container(name))
    for lock in (hub.repository / "locks").iterdir():
        lock.unlink()


# -- the matrix -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "way"),
    [(group, way) for group in GROUPS for way in WAYS if (group, way) != ("restoring", FULL_FAR)],
)
def test_every_step_can_be_ended(matrix: Matrix, group: str, way: str) -> None:
    cells = matrix.cells(group, way)
    assert cells
    wrong = matrix.run(cells)
    told = "\n".join(f"{cell}\n    {why}" for cell, why in wrong.items())
    assert not wrong, f"{len(wrong)} cells failed:\n{told}"


def test_every_cell_ran(matrix: Matrix, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole of steps x ways, shown; a cell that did not run fails here."""
    with capsys.disabled():
        print("\n" + "\n".join(matrix.table()))
    cells = [cell for group in GROUPS for way in WAYS for cell in matrix.cells(group, way)]
    missing = [str(cell) for cell in cells if cell not in matrix.ran]
    assert not missing, f"{len(missing)} of {len(cells)} cells did not run: {missing[:5]}"
