"""Devices as text and values: what may be declared, and what the broker is told of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotops import devices
from iotops.actions.deviceplan import (
    Present,
    plan_add,
    plan_listing,
    plan_remove,
    plan_rotate,
    refuse_claimed,
)
from iotops.clients import mosquittousers
from iotops.clients.mosquittofolder import Conf, configuration
from iotops.devices import Device
from iotops.errors import Conflict, GuardError, IotopsError, SettingsError, UsageError

pytestmark = pytest.mark.unit

PATH = Path("acl")
HAND = "# mine\nuser iotops\ntopic readwrite #\n\npattern readwrite devices/%u/#\n"
KITCHEN = devices.device("kitchen")
CELLAR = devices.device("cellar.pump", "home/cellar", "cmnd/cellar")


def hashed(*names: str) -> mosquittousers.Passwords:
    return mosquittousers.passwords("".join(f"{one}:$7$101$abcd$efgh\n" for one in names).encode())


def present(*declared: Device, text: str = "", acl: str = HAND, users: str = "") -> Present:
    for one in declared:
        text = devices.added(text, one)
    block = mosquittousers.acl(acl, PATH)
    acl = block.with_devices(declared)
    names = users.split() if users else ["iotops", *(one.name for one in declared)]
    return Present(
        "iotops", text, devices.parse(text), hashed(*names), mosquittousers.acl(acl, PATH)
    )


# -- what may be declared --------------------------------------------------------------------------


ODD = ["", "a:b", "a#", "a+b", "a/b", "a b", " a", "a\n", "a\x00", "a\x7f", "-b", ".a", "ä", "%u"]


@pytest.mark.parametrize("name", [*ODD, "$a", "x" * 64, 'a"b', "a\\b", "a\tb"])
def test_an_odd_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a device") as raised:
        devices.device(name)
    assert "\x00" not in raised.value.message and "\n" not in raised.value.message


@pytest.mark.parametrize(
    "topic", ["#", "a/#", "+/a", "a/+", "$SYS", "/a", "a/", "a//b", "a b", "a\nb", "%u", "x" * 201]
)
def test_a_topic_that_is_not_its_own_is_refused(topic: str) -> None:
    for which in ("prefix", "commands"):
        with pytest.raises(UsageError, match=f"cannot be its {which}"):
            devices.device("kitchen", **{which: topic})


def test_all_faults_of_the_declaration_are_told_at_once() -> None:
    text = (
        'colour = 1\n[devices.kitchen]\nprefix = "a/#"\n[devices."b c"]\n[devices.cellar]\n'
        'prefix = 3\nsecret = "x"\n[devices.one]\n[devices.two]\ncommands = "devices/one/x"\n'
    )
    with pytest.raises(SettingsError) as raised:
        devices.parse(text)
    told = "\n".join(raised.value.faults)
    for words in (
        "colour: unknown key",
        "devices.kitchen: 'a/#' cannot be its prefix",
        "devices.\"b c\": 'b c' cannot name a device",
        "devices.cellar.secret: unknown key",
        "devices.cellar.prefix: must be text",
        "'devices/one' of one and 'devices/one/x' of two overlap",
    ):
        assert words in told
    assert len(raised.value.faults) == 6


@pytest.mark.parametrize(
    "text", ["[devices", "devices = 3", "[devices]\nkitchen = 3\n", "[[devices]]"]
)
def test_what_is_no_table_of_devices(text: str) -> None:
    with pytest.raises(SettingsError, match=r"devices\.toml has 1 fault"):
        devices.parse(text)


def test_topics_of_two_devices_never_overlap() -> None:
    def told(one: Device) -> list[str]:
        return [*devices.overlaps([KITCHEN, one])]

    assert not told(CELLAR)
    assert not told(devices.device("b", "devices/kitchens"))
    for prefix in ("devices", "devices/kitchen", "devices/kitchen/a", "commands/kitchen"):
        assert told(devices.device("b", prefix)), prefix
    # The template of a hub gives every user devices/NAME, whatever its prefix is.
    moved = devices.device("kitchen", "home/kitchen")
    assert [*devices.overlaps([moved, devices.device("b", "devices/kitchen")])]
    assert not [*devices.overlaps([devices.device("b", "b/x", "b/x/commands")])]


NAMES = st.from_regex(devices.NAME, fullmatch=True)


@given(st.lists(NAMES, unique=True, max_size=6), st.integers(0, 5))
def test_every_name_makes_the_round_trip(names: list[str], which: int) -> None:
    text = "# by hand\n"
    for name in names:
        text = devices.added(text, devices.device(name))
    assert [*devices.parse(text)] == names
    rights = mosquittousers.acl(HAND, PATH).with_devices(devices.parse(text).values())
    assert re.findall(r"(?m)^user (.*)$", rights) == ["iotops", *sorted(names)]
    again = mosquittousers.acl(rights, PATH)
    assert not again.edited and again.users == {"iotops"}
    if names:
        gone = names[which % len(names)]
        less = devices.without(text, gone)
        assert [*devices.parse(less)] == [one for one in names if one != gone]
    for name in names:
        text = devices.without(text, name)
    assert text == "# by hand\n"
    assert again.with_devices([]) == HAND


def test_what_people_wrote_into_the_declaration_stays() -> None:
    text = """\
# ours

# the kitchen, since March
[devices.kitchen] # warm
prefix = "devices/kitchen"
# another place
commands = 'c/kitchen'

# under the stairs
[ devices . 'cellar.pump' ]
prefix = "home/cellar"
"""
    more = devices.added(text, devices.device("garden"))
    assert more.startswith(text) and [*devices.parse(more)] == ["kitchen", "cellar.pump", "garden"]
    less = devices.without(more, "kitchen")
    assert "# ours" in less and "# under the stairs" in less and "warm" not in less
    assert "under the stairs" in devices.without(more, "cellar.pump")


@pytest.mark.parametrize(
    "text",
    ["devices = {kitchen = {}}\n", '[devices]\nkitchen.prefix = "a"\n', "[devices.kitchen.x]\n"],
)
def test_a_declaration_that_cannot_be_edited_is_left_alone(text: str) -> None:
    with pytest.raises(SettingsError) as raised:
        devices.without(text, "kitchen")
    assert "cannot be changed for you" in raised.value.message or raised.value.faults


# -- rights ----------------------------------------------------------------------------------------


def test_rights_are_a_block_of_their_own_at_the_end() -> None:
    made = mosquittousers.acl(HAND, PATH).with_devices([KITCHEN, CELLAR])
    assert made.startswith(HAND + "\n# >>> iotops devices")
    assert made.splitlines()[-7:] == [
        "user cellar.pump",
        "topic readwrite home/cellar/#",
        "topic read cmnd/cellar/#",
        "user kitchen",
        "topic readwrite devices/kitchen/#",
        "topic read commands/kitchen/#",
        "# <<< iotops devices",
    ]


def test_lines_after_the_block_stay_where_they_are() -> None:
    made = mosquittousers.acl(HAND, PATH).with_devices([KITCHEN]) + "\nuser late\ntopic read x\n"
    found = mosquittousers.acl(made, PATH)
    assert found.users == {"iotops", "late"}
    found.refuse_edited(PATH, {})
    more = found.with_devices([KITCHEN, CELLAR])
    assert more.startswith(HAND) and more.endswith(
        "# <<< iotops devices\n\nuser late\ntopic read x\n"
    )


def test_an_edit_inside_the_block_is_refused_with_the_difference() -> None:
    made = mosquittousers.acl(HAND, PATH).with_devices([KITCHEN])
    edited = made.replace("topic read commands", "topic readwrite commands")
    with pytest.raises(Conflict) as raised:
        mosquittousers.acl(edited, PATH).refuse_edited(PATH, {"kitchen": KITCHEN})
    assert "| -topic read commands/kitchen/#" in raised.value.message
    assert "| +topic readwrite commands/kitchen/#" in raised.value.message
    assert raised.value.exit == 4


def test_a_line_that_would_be_the_last_devices_is_refused() -> None:
    made = mosquittousers.acl(HAND, PATH).with_devices([KITCHEN])
    mosquittousers.acl(f"{made}# words\npattern read all/#\n", PATH).refuse_edited(PATH, {})
    with pytest.raises(Conflict, match="last device"):
        mosquittousers.acl(f"{made}pattern read all/#\n topic read x\n", PATH).refuse_edited(
            PATH, {}
        )


@pytest.mark.parametrize("cut", ["# <<<.*\n", "# >>>.*\n"])
def test_half_a_block_is_refused(cut: str) -> None:
    made = mosquittousers.acl(HAND, PATH).with_devices([KITCHEN])
    for broken in (re.sub(cut, "", made), made + made):
        with pytest.raises(Conflict, match="not one pair"):
            mosquittousers.acl(broken, PATH)


def test_bytes_that_are_no_text_stay() -> None:
    raw = b"# caf\xe9\nuser iotops\ntopic readwrite #"
    text = raw.decode("utf-8", "surrogateescape")
    made = mosquittousers.acl(text, PATH).with_devices([KITCHEN])
    assert made.encode("utf-8", "surrogateescape").startswith(raw + b"\n\n# >>>")


# -- passwords -------------------------------------------------------------------------------------


def test_other_lines_of_the_password_file_stay_as_they_are() -> None:
    data = b"# mine\n\niotops:$7$101$a$b\nkitchen:$6$c$d\n"
    found = mosquittousers.passwords(data)
    assert found.names == ("iotops", "kitchen") and found.content() == data
    assert found.with_line(b"kitchen:$7$1$x$y").content() == data.replace(b"$6$c$d", b"$7$1$x$y")
    assert found.with_line(b"cellar:$7$1$x$y").content() == data + b"cellar:$7$1$x$y\n"
    assert found.without("kitchen").content() == b"# mine\n\niotops:$7$101$a$b\n"
    assert "$7$" not in repr(found)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"iotops:$7$1$a$b\nkitchen:secret\n", "line 2 is no `user:hash`"),
        (b"secret\n", "line 1 is no"),
        (b"a:$7$1$a$b\na:$7$1$a$b\n", "line 2 names a user again"),
        (b"secret:\n", "line 1 is no"),
    ],
)
def test_a_password_file_out_of_order_is_refused_unseen(data: bytes, words: str) -> None:
    with pytest.raises(GuardError, match=words) as raised:
        mosquittousers.passwords(data)
    assert "secret" not in raised.value.message


# -- where they lie --------------------------------------------------------------------------------


def test_the_configuration_must_name_one_file_of_each(tmp_path: Path) -> None:
    for name in ("passwd", "acl", "other"):
        (tmp_path / name).write_text("")
    (tmp_path / "link").symlink_to("passwd")

    def found(conf: Conf | None) -> mosquittousers.UserFiles:
        return mosquittousers.places(conf, lambda inside: tmp_path / inside, "mosquitto")

    good = Conf(password_files=("passwd", "passwd"), acl_files=("acl",))
    assert found(good) == mosquittousers.UserFiles(tmp_path / "passwd", tmp_path / "acl")
    for conf, words in (
        (None, "cannot be read"),
        (Conf(acl_files=("acl",)), "one password_file .* it names none"),
        (Conf(password_files=("passwd", "other"), acl_files=("acl",)), "names passwd, other"),
        (Conf(password_files=("passwd",)), "one acl_file"),
        (Conf(password_files=("link",), acl_files=("acl",)), "no file of its own"),
        (Conf(password_files=("passwd",), acl_files=("gone",)), "is not there"),
        (Conf(dynamic_security="x"), "kept by dynamic security"),
    ):
        with pytest.raises(GuardError, match=words) as raised:
            found(conf)
        assert raised.value.hint
    (tmp_path / "conf").write_text(
        "acl_file /a\nplugin /usr/lib/mosquitto_acl_file.so\nplugin_opt_acl_file /b\n"
    )
    conf = configuration(tmp_path / "conf", lambda inside: None)
    assert conf is not None and conf.acl_files == ("/a", "/b")


def test_the_hint_names_a_folder_that_the_container_has(tmp_path: Path) -> None:
    (tmp_path / "users").write_text("")

    def hint(conf: Conf, mounted: str) -> str:
        def here(inside: str) -> Path | None:
            return (
                tmp_path / inside.removeprefix(mounted).lstrip("/") if mounted in inside else None
            )

        with pytest.raises(GuardError) as raised:
            mosquittousers.places(conf, here, "mosquitto")
        return raised.value.hint

    named = Conf(password_files=("/pwfile/users",))
    told = hint(named, "/pwfile")  # no folder is mounted at /mosquitto/config
    assert "acl_file /pwfile/acl" in told and f"{tmp_path}/acl" in told
    assert "today's" in told, "an ACL takes the rights of everybody whom it does not name"
    assert "password_file /data/passwd" in hint(Conf(location="/data"), "/data")
    assert "password_file /mosquitto/config/passwd" in hint(Conf(), "/mosquitto/config")
    assert "password_file /mosquitto/secrets/passwd" in hint(Conf(), "/other")


# -- decisions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "name", "words"),
    [
        (present(), "iotops", "the hub's own user"),
        (present(KITCHEN), "kitchen", "a device kitchen already"),
        (present(acl=HAND + "user nodered\ntopic read x\n"), "nodered", "rights of its own"),
        (present(users="iotops stove"), "stove", "has a password already"),
    ],
)
def test_a_name_that_belongs_to_somebody_is_refused(now: Present, name: str, words: str) -> None:
    with pytest.raises(GuardError, match=words):
        plan_add(now, devices.device(name))


def test_what_is_no_device_is_neither_rotated_nor_removed() -> None:
    now = present(
        KITCHEN, acl=HAND + "user nodered\ntopic read x\n", users="iotops kitchen nodered"
    )
    for name in ("iotops", "nodered", "nobody", "a:b"):
        for plan in (plan_rotate, plan_remove):
            with pytest.raises(IotopsError) as raised:
                plan(now, name)
            assert raised.value.exit == 1


def test_a_declaration_of_somebody_who_is_no_device_is_refused() -> None:
    """Else `rotate` would change the password that iotops itself logs in with."""
    for name in ("iotops", "nodered"):
        hand = HAND.replace("user iotops\n", "user nodered\n")
        claimed = present(KITCHEN, devices.device(name), acl=hand, users="iotops nodered kitchen")
        with pytest.raises(SettingsError, match=f"devices.{name}: is the hub's own user"):
            refuse_claimed(claimed)
    refuse_claimed(present(KITCHEN, CELLAR))


def test_a_device_of_overlapping_topics_is_not_added() -> None:
    with pytest.raises(UsageError, match="overlap"):
        plan_add(present(KITCHEN), devices.device("b", "devices/kitchen/b"))


def test_a_change_touches_nothing_else() -> None:
    now = present(KITCHEN)
    wanted = plan_add(now, CELLAR)
    assert wanted.fresh and devices.parse(wanted.text) == {"kitchen": KITCHEN, CELLAR.name: CELLAR}
    back = plan_remove(present(KITCHEN, CELLAR), CELLAR.name)
    assert not back.fresh
    assert (back.text, back.acl) == (
        now.text,
        mosquittousers.acl(HAND, PATH).with_devices([KITCHEN]),
    )
    same = plan_rotate(now, "kitchen")
    assert same.fresh and same.text == now.text
    assert mosquittousers.acl(same.acl, PATH) == now.acl


def test_drift_is_told_in_both_directions() -> None:
    acl = HAND + "user nodered\ntopic read x\n"
    now = present(KITCHEN, CELLAR, acl=acl, users="iotops kitchen nodered stove")
    found = plan_listing(now)
    assert {one.name: one.state for one in found.devices} == {
        "cellar.pump": "no password",
        "iotops": "by hand",
        "kitchen": "ok",
        "nodered": "by hand",
        "stove": "not declared",
    }
    assert found.rights == "ok" and found.drifted
    assert not plan_listing(present(KITCHEN)).drifted
    assert plan_remove(now, "stove").acl == now.acl.with_devices([KITCHEN, CELLAR])


def test_rights_that_are_not_those_declared_are_told() -> None:
    text = devices.added("", KITCHEN)
    stale = Present(
        "iotops",
        text,
        devices.parse(text),
        hashed("iotops", "kitchen"),
        mosquittousers.acl(HAND, PATH),
    )
    assert plan_listing(stale).rights == "stale" and plan_listing(stale).drifted
    assert "user kitchen" in plan_rotate(stale, "kitchen").acl
    edited = (
        mosquittousers.acl(HAND, PATH).with_devices([KITCHEN]).replace("devices/k", "devices/K")
    )
    assert mosquittousers.acl(edited, PATH).edited
