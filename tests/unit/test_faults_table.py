"""Every fault that iotops promises to meet has a test: the table `tests/faults.toml` says which.

The faults are spelled out here, so that a row cannot quietly go missing with its test.
"""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]

BAD_INPUT = """
no iotops.toml; broken TOML; unknown key;
data root missing; data root not mounted; another hub's disk;
repository missing; repository not ours; wrong password; repository locked;
InfluxDB token without operator rights; InfluxDB server down;
Mosquitto's users made anew; Mosquitto's dynamic security broken; Mosquitto's persistence off;
Mosquitto's passwords too new for its image; a malformed Mosquitto password file;
Mosquitto's SQLite database damaged or lost;
Node-RED refusing the token; Node-RED answering HTML; Node-RED serving the empty revision;
a container that crash-loops;
restic missing; restic too old; Docker missing; Docker too old;
Compose v2 missing; Compose v2 too old;
snapshot id unknown; snapshot id ambiguous;
manifest missing; manifest damaged; manifest of a newer format;
no space for the extraction; restore into a hub with another id;
SIGINT in a backup; SIGTERM in a backup;
SIGINT in a restore before the swap; SIGTERM in a restore before the swap;
a dead run's stopped containers
"""
ALONG_THE_WAY = """
all faults of iotops.toml at once; a setting that nothing acts on; an empty disk nobody claimed;
another iotops is running; missing palette; bad credentials; anonymous login accepted;
another image would run;
a restore whose second service does not come up; a restore onto a new disk that fails;
restored data that is not as recorded; a partial snapshot restored;
a service that the snapshot does not know; a snapshot that does not count and is not forgotten;
an undo that fails; an undo of an old or an earlier restore; an undo after a restore that died;
old data that nobody discards; a token rotated since the snapshot;
flows are null; flows shrank; a credential in the flows;
.env or runtime state committed; demo without root;
one TSM file removed while influxd is stopped; a loss in one week behind a gain in another;
links that may not be made; a bind mount between data and staging; staging on another file system;
InfluxDB's folder not readable; InfluxDB's folder not on this machine;
a shard that InfluxDB did not open; InfluxDB's answer cut short; a TSM block that rotted;
folders that InfluxDB left behind;
a bucket or user made during a capture; shards deleted and compacted during a capture;
more buckets than a page of the API, more than a thousand shards;
an export into a folder with something in it; an export of damaged files;
one password changed after the restore;
every step ended by SIGKILL, SIGTERM and SIGINT; a full disk at every step;
a power cut; a drill that was killed; a container removed while its run was dead;
a process number used again;
a restore onto a new disk that died; up while a restore is open; a dead restic's lock;
another machine's lock; a forged snapshot; restored by hand, without iotops;
a restic that hangs after it has failed
"""
SETTINGS_AND_STACK = """
a secret in an address; a port or address that cannot be; a secret file that others can read;
a state file with odd values; a container that goes down after it came up;
a looping container without data; a reader's token that InfluxDB does not know;
the terminal goes away
"""
DEVICES = """
a device's name or topic that cannot be; a device's name that belongs to somebody;
topics of two devices that overlap; faults of devices.toml;
devices' rights edited by hand; a line of the ACL below the devices' block;
a password file out of order; a password file with comments;
users kept elsewhere than in one password file;
a broker that is not well before its users change; a stopped broker whose users change;
a configuration with which the broker would not start again;
a broker that does not come up with its new users; a broker that refuses a new password;
mosquitto_passwd failing; two changes of users at once; a change of users killed in the middle;
a change of users that Git does not take; devices and passwords that drifted apart
"""
KIT = """
a password mistyped from paper; a paper whose key was removed; a paper of another repository;
a kit written to where it would spread; a kit that cannot be written;
a key that may not be removed; access that changed since the kit was made;
a kit that was broken off before its page; a hub that itself uses the paper's password;
nothing left but the paper and a copy
"""
UPKEEP = """
a partial snapshot in a complete one's place;
a repaired snapshot in a complete one's place;
retention after a partial run;
retention after a run that was not verified;
the last drilled snapshot forgotten;
a snapshot of the future;
a flipped byte in the repository;
a pack missing;
an index missing;
a truncated config;
prune after a check that failed;
a copy's server away;
a copy's server that never answers;
a copy that was never made;
a copy with another password, not ours, full, or not readable;
a copy locked;
a copy that lets nothing be removed;
an unknown host key of a copy;
a login that a copy's server refuses;
a run killed while it copies;
the first repository lost
"""
GUARDS = """
an older copy of the disk; two machines under one hub id;
an emptied folder;
a source under half;
empty flows;
a clock gone back;
no space for staging;
no space in the repository;
a service that is down;
a dump cut short;
files vanishing and growing;
hostile names;
sparse files;
huge files;
sockets, pipes and devices;
hard links;
extended attributes;
a planted link;
folders nested without an end;
volumes beside the data root
"""
PITFALLS = """
pitfall 1: the disk is not mounted, and a virgin stack would start;
pitfall 2: the stack was started once before the restore;
pitfall 3: wrong owners;
pitfall 4: a tag means another version;
pitfall 5: .env missing or mangled;
pitfall 6: Node-RED's credentials cannot be decrypted;
pitfall 7: Node-RED's palette is missing, and its health green;
pitfall 8: an empty flow file, or one of another name;
pitfall 9: Mosquitto's password file as the broker cannot read it;
pitfall 10: Mosquitto's database torn or old;
pitfall 11: Mosquitto's passwords under an older broker, or an open one;
pitfall 12: InfluxDB's engine without its store;
pitfall 13: Grafana's secret key or password is another one;
pitfall 14: Grafana's database with foreign side files or an old index;
pitfall 15: another network;
a version that went down;
another data root than recorded;
another processor;
another number of the owner, or no owner; access that the old machine had in a file
"""
SYNC = """
a bad configuration out of Git; an edit made on the hub; a secret or a link in a commit;
a secret adopted; a unit of another version; a data root that nothing mounts at boot;
a Git remote away; a rewritten history; a commit that nobody allowed has signed;
a configuration that crash-loops; a version that rewrites its data and fails later;
a server that starts, spoils its data and only then falls over;
a service that falls over when it is restarted with another;
a service that Compose makes anew along with others;
a run killed while it applies; a commit that was returned from, by a timer;
a commit that was refused, by a timer;
a bad commit on top of one that is checked out and bad;
something in the way of a commit's files; a folder that becomes a file;
a file that cannot be written, by a timer;
a bad configuration of a service that stands still; drift that an apply leaves alone;
something changed since it was looked at; a snapshot that lacks what would be touched;
Compose ended between a stop and its exchange; files of an apply adopted;
an image's registry gone when it is applied;
a secret in a diff; a large file adopted; a new folder under a timer's umask;
a server that runs under another name;
a commit without a file that its Compose file names; a file of variables that changes alone
"""
ADOPT = """
a project that is a hub already; a project without the values that it needs;
a project that Compose cannot read; a project without data below the data root;
a data root that an adopted hub cannot have; data of another hub or disk claimed;
a part of the project outside of its folder; data of a project that no snapshot would hold;
a profile that is not active; containers made from other files, or under another name;
a server of a project that cannot be asked
"""
CANDIDATE = """
a candidate's mosquitto.conf broken; a candidate that opens the broker;
a candidate whose broker knows no user;
a candidate's settings.js broken; a candidate with another credentialSecret;
a candidate's provisioning broken; a candidate's Compose file broken;
a candidate's image not to be had; a candidate's image for other machines;
a candidate's port taken; a candidate's folder missing;
a candidate that is another hub's; a candidate with another state file or lock;
a candidate's service without a container or a folder;
a secret in a candidate; a look at a candidate killed;
a variable missing in .env; a variable of .env that nothing uses; an unquoted dollar in .env;
a name twice in .env; a line of .env that is none; .env in Git or not ignored;
a secret of the settings missing in .env
"""
GROUPS = (
    DEVICES,
    *(BAD_INPUT, SETTINGS_AND_STACK, KIT, GUARDS, ALONG_THE_WAY, UPKEEP),
    *(PITFALLS, SYNC, ADOPT, CANDIDATE),
)
FAULTS = [" ".join(one.split()) for one in ";".join(GROUPS).split(";")]

TABLE: dict[str, list[str]] = {
    fault: tests
    for group in tomllib.loads((ROOT / "tests" / "faults.toml").read_text()).values()
    for fault, tests in group.items()
}


@cache
def functions(path: str) -> frozenset[str]:
    """The names of a test file's functions, without importing it."""
    tree = ast.parse((ROOT / path).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_a_test_that_exists(fault: str) -> None:
    assert TABLE.get(fault), f"no row for {fault!r} in tests/faults.toml"
    for test in TABLE[fault]:
        path, _, named = test.partition("::")
        name, _, case = named.rstrip("]").partition("[")
        assert path.split("/")[1] in ("unit", "clients", "contract", "e2e"), test
        assert (ROOT / path).is_file(), f"{test}: there is no such file"
        assert name.startswith("test_") and name in functions(path), f"{test} does not exist"
        if name == "test_plan":
            assert (ROOT / "tests" / "unit" / "plans" / f"{case}.toml").is_file(), test


def test_the_table_has_no_row_that_nobody_asked_for() -> None:
    assert set(TABLE) == set(FAULTS) and len(FAULTS) == len(set(FAULTS))


GROUPS_OF_FAULTS = [*tomllib.loads((ROOT / "tests" / "faults.toml").read_text())]
PAGES = {
    path.name: re.findall(r"<!-- faults: (.+?) -->", path.read_text())
    for path in sorted((ROOT / "docs" / "how-to").glob("*.md"))
}
"""Which groups of faults a page is for; the comment stands at its end."""


@pytest.mark.parametrize("group", GROUPS_OF_FAULTS)
def test_every_group_of_faults_has_a_page(group: str) -> None:
    named = {one for lists in PAGES.values() for line in lists for one in line.split(", ")}
    assert group in named, f"no page of docs/how-to says <!-- faults: {group} -->"
    assert named <= {*GROUPS_OF_FAULTS}, "a page is for a group that is not there"
