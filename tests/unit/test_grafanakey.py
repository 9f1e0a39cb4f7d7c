"""Grafana's secret key: found where the container has it from, known again by its print only."""

from __future__ import annotations

from pathlib import Path

import pytest

from iotops.clients.grafanakey import BUILT_IN, DEFAULT, fingerprint, same, secret_key
from iotops.config import Secret

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("environment", "ini", "key"),
    [
        ({"GF_SECURITY_SECRET_KEY": "k1"}, "[security]\nsecret_key = k2\n", "k1"),
        ({"GF_SECURITY_SECRET_KEY": ""}, "[security]\nsecret_key = k2\n", "k2"),
        ({"GF_SECURITY_SECRET_KEY__FILE": "/run/key"}, "", "k3"),
        ({"GF_SECURITY_SECRET_KEY__FILE": "/run/gone"}, "", None),
        (
            {},
            '[paths]\nsecret_key = no\n[security]\n;secret_key = no\nsecret_key="k2"\n[x]\n',
            "k2",
        ),
        ({}, "[security]\n[x]\nsecret_key = no\n", BUILT_IN),
        ({}, "[security]\nsecret_key = $__env{KEY}\n", None),
        ({}, "", BUILT_IN),
        ({"GF_PATHS_CONFIG": "/etc/other.ini"}, "[security]\nsecret_key = no\n", BUILT_IN),
    ],
)
def test_the_key_is_found_in_grafanas_own_order(
    tmp_path: Path, environment: dict[str, str], ini: str, key: str | None
) -> None:
    (tmp_path / "grafana.ini").write_text(ini)
    (tmp_path / "key").write_text("k3\n")
    places = {"/run/key": tmp_path / "key", "/run/gone": tmp_path / "gone"}
    places |= {"/etc/grafana/grafana.ini": tmp_path / "grafana.ini"} if ini else {}
    found = secret_key(environment, places.get)
    assert (found.reveal() if found is not None else None) == key


def test_a_print_knows_its_key_and_keeps_it() -> None:
    key, other = Secret("grafana"), Secret("grafanb")
    print_ = fingerprint(key)
    assert "grafana" not in print_ and print_ != fingerprint(key), "each has a salt of its own"
    assert same(print_, key) and not same(print_, other)
    assert fingerprint(key, print_) == print_, "so that equal captures stay equal"
    assert fingerprint(other, print_) != print_
    assert len(print_.rpartition(":")[2]) == 4, "too short to guess a key by"


def test_the_built_in_key_is_called_so() -> None:
    built_in = Secret(BUILT_IN)
    assert fingerprint(built_in) == DEFAULT and same(DEFAULT, built_in)
    assert not same(DEFAULT, Secret("x")) and not same(fingerprint(Secret("x")), built_in)


@pytest.mark.parametrize("known", ["scrypt2:00:00", "scrypt1:zz:1234", "scrypt1::", "x" * 1000])
def test_a_print_of_a_form_not_known_accuses_nobody(known: str) -> None:
    assert same(known, Secret("x"))
    assert same(fingerprint(Secret("x"), known), Secret("x"))
    assert fingerprint(Secret("x"), known) != known
