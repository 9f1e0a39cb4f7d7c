"""The kit's page: read by a shell, by a camera, by a printer, and by a person who types it in."""

from __future__ import annotations

import os
import re
import subprocess
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from iotops import config
from iotops.actions import kitpage
from iotops.actions.kitpage import Access, Ground, Sheet
from tests.conftest import need

pytestmark = pytest.mark.clients

WORD = "4E98D-W885Z-QSU4R-AZCTD-6F4ZM-DCF2J"
HOSTILE = {
    "PLAIN": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY=",
    "SPACES": " two words ",
    "DOLLAR": "$HOME and $$ and `id`",
    "HASH": "a #b",
    "QUOTES": '"double" \\ back',
    "SINGLE": "it's",
    "BOTH": 'it\'s "both" \\ `id` $HOME',
    "MARKUP": "</pre><script>alert(1)</script>&amp;",
    "EMPTY": "",
}


def sheet(url: str = "/mnt/backup/iot-hub", credentials: dict[str, str] | None = None) -> Sheet:
    values = {"RESTIC_REPOSITORY": url, "RESTIC_PASSWORD": WORD, **(credentials or {})}
    access = Access(
        "The repository",
        "a08456abc282b32f",
        values,
        kitpage.elsewhere(url, values),
        credentials_file=Path("/etc/iotops/credentials") if credentials else None,
    )
    ground = Ground(
        "7c1f0a9be2d34c557c1f0a9be2d34c55",
        "iot",
        Path("/srv/iot-hub"),
        Path("/mnt/iot-data"),
        True,
    )
    made = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    return Sheet("<hub> & co", ground.hub_id, made, (access,), kitpage.steps(ground, [access]))


S3 = sheet(
    "s3:https://s3.eu-central-1.amazonaws.com/a-bucket-with-a-long-name/iot-hub",
    {"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY": HOSTILE["PLAIN"]},
)


class Reader(HTMLParser):
    """Collects what a page shows and what it would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = ""
        self.tags: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        self.shown += " "

    def handle_data(self, data: str) -> None:
        self.shown += data


def test_a_shell_and_the_credentials_file_read_the_same_values(tmp_path: Path) -> None:
    lines = [kitpage.line(name, value) for name, value in HOSTILE.items()]
    box = tmp_path / "kit.env"
    box.write_text("\n".join(lines) + "\n")
    read = {name: value.reveal() for name, value in config.read_env(box).items()}
    assert read == HOSTILE
    script = f"set -a; . {box}; exec env -0"
    done = subprocess.run(
        ["sh", "-c", script], env={"PATH": os.environ["PATH"]}, capture_output=True
    )
    seen = dict(one.split("=", 1) for one in done.stdout.decode().split("\0") if "=" in one)
    assert {name: seen[name] for name in HOSTILE} == HOSTILE


def test_the_page_shows_everything_and_fetches_nothing() -> None:
    page = Reader()
    page.feed(kitpage.html(sheet(credentials=HOSTILE)))
    assert not {"script", "img", "link", "iframe"} & page.tags and page.links == []
    text = kitpage.text(sheet(credentials=HOSTILE))
    for name, value in {"RESTIC_PASSWORD": WORD, **HOSTILE}.items():
        assert kitpage.line(name, value) in page.shown and kitpage.line(name, value) in text
    for one in ("<hub> & co", "2026-03-01", "a08456ab", "last proven", "7c1f0a9be2d34c55"):
        assert one.casefold() in page.shown.casefold() and one.casefold() in text.casefold()
    for step in sheet(credentials=HOSTILE).steps:
        for command in step.commands:
            assert command in page.shown
            assert all(line in text for line in command.splitlines())


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("/mnt/backup/iot-hub", "/mnt/backup/iot-hub"),
        ("sftp:user@nas:/hub", "SSH"),
        ("rclone:box:hub", "rclone.conf"),
        ("gs:bucket:/", "/etc/key.json"),
    ],
)
def test_what_cannot_stand_on_paper_is_named(url: str, told: str) -> None:
    (found,) = kitpage.elsewhere(url, {"NAME": "/etc/key.json"} if url.startswith("gs") else {})
    assert told in found


def test_sshs_configuration_is_named_where_the_settings_look_for_it() -> None:
    """Elsewhere, as root's own, the first command would find it and the next one would not."""
    path = Path("/etc/iotops/ssh_config")
    (found,) = kitpage.elsewhere("sftp:nas:/hub", {}, path)
    assert str(path) in found and ".ssh/config" not in found
    ground = Ground("7c1f0a9b", "iot", Path("/srv/hub"), Path("/mnt/iot-data"), True)
    one = Access("", "", {}, copy="nas", ssh_config=path)
    for accesses in ([one], [Access("", "", {}), one]):
        typed = [line for step in kitpage.steps(ground, accesses) for line in step.commands]
        assert [f"--ssh-config {path}" in line for line in typed].count(True) == 1


def test_a_shell_takes_the_lines_with_any_folder(tmp_path: Path) -> None:
    folder = tmp_path / "it's my $hub" / "the hub"
    scratch = tmp_path / "a & b"
    (tmp_path / "bin").mkdir()
    scratch.mkdir()
    (scratch / "kit.env").write_text("RESTIC_PASSWORD=x\n")
    for name, body in {
        "sudo": 'exec "$@"',
        "iotops": f'printf "%s\\n" "$@" > "{tmp_path}/told"; cat > "{tmp_path}/values"',
    }.items():
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    link = tmp_path / "etc of $it" / "hub"
    ground = Ground("7c1f0a9b", "iot", folder, Path("/mnt/data"), True, link, scratch)
    access = Access("it", "a08456ab", {}, (), password_file=Path("/etc/pass word"))
    back = next(
        one
        for one in kitpage.steps(ground, [access])
        if any("--from-repository" in line for line in one.commands)
    )
    subprocess.run(
        ["/bin/sh", "-e"],
        input="\n".join(back.commands),
        text=True,
        check=True,
        env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"},
    )
    told = (tmp_path / "told").read_text().splitlines()
    assert told[:3] == ["init", "--from-repository", "-"]
    assert told[3:] == [str(folder), "--name", "7c1f0a9b", "--password-file", "/etc/pass word"]
    assert (tmp_path / "values").read_text() == "RESTIC_PASSWORD=x\n"
    assert link.readlink() == folder and folder.parent.is_dir()


def test_a_camera_reads_what_the_page_says(tmp_path: Path) -> None:
    need("zbarimg")
    for number, one in enumerate((sheet(), S3, sheet(credentials=HOSTILE))):
        lines = [kitpage.line(n, v) for n, v in one.accesses[0].variables.items()]
        read = []
        for code in kitpage.codes(lines):
            picture = tmp_path / f"{number}.pgm"
            picture.write_bytes(pgm(kitpage.matrix(code)))
            read += decoded(picture)
        assert read == lines


def test_a_long_secret_gets_a_code_of_its_own(tmp_path: Path) -> None:
    need("zbarimg")
    lines = ["A=" + "a" * 300, "B=" + "b" * 300, "C=c"]
    assert kitpage.codes(lines) == (lines[0], f"{lines[1]}\n{lines[2]}")
    blocks = kitpage.blocks(lines[0])
    letters = {" ": (0, 0), "▀": (1, 0), "▄": (0, 1), "█": (1, 1)}
    rows = [tuple(bool(letters[one][half]) for one in line) for line in blocks for half in (0, 1)]
    picture = tmp_path / "text.pgm"
    picture.write_bytes(pgm(tuple(rows)))
    assert decoded(picture) == lines[:1]


def pgm(rows: tuple[tuple[bool, ...], ...], size: int = 4) -> bytes:
    """Make a grey picture of squares."""
    lines = [b"".join(b"\0" * size if one else b"\xff" * size for one in row) for row in rows]
    head = f"P5 {len(rows[0]) * size} {len(rows) * size} 255\n".encode()
    return head + b"".join(line * size for line in lines)


def decoded(picture: Path) -> list[str]:
    done = subprocess.run(["zbarimg", "-q", "--raw", picture], capture_output=True, text=True)
    return done.stdout.removesuffix("\n").split("\n")


@pytest.mark.parametrize("one", [sheet(), S3], ids=["disk", "s3"])
def test_it_is_one_page_of_paper_that_can_be_read(one: Sheet, tmp_path: Path) -> None:
    """Printed by a real browser; then the paper is looked at, not the HTML."""
    for program in ("chromium", "pdftoppm", "zbarimg"):
        need(program)
    page, pdf = tmp_path / "kit.html", tmp_path / "kit.pdf"
    page.write_text(kitpage.html(one))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update"]
    flags += [f"--user-data-dir={tmp_path / 'browser'}", "--no-pdf-header-footer"]
    argv = ["chromium", *flags, f"--print-to-pdf={pdf}", page.as_uri()]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert pdf.is_file(), done.stderr
    about = subprocess.run(["pdfinfo", pdf], capture_output=True, text=True).stdout
    assert re.search(r"Pages:\s+1\n", about) and "(A4)" in about
    words = subprocess.run(
        ["pdftotext", "-layout", pdf, "-"], capture_output=True, text=True
    ).stdout
    assert "  ".join(WORD.split("-")) in re.sub(r" {2,}", "  ", words)
    for line in (
        line for step in one.steps for shown in step.commands for line in shown.split("\n")
    ):
        # Whole lines: nobody shall type a break that the printer made.
        assert " ".join(line.split()) in re.sub(r" +", " ", words)
    assert f"hub id {one.hub_id}" in re.sub(r" +", " ", words)
    subprocess.run(["pdftoppm", "-r", "150", "-png", "-singlefile", pdf, tmp_path / "paper"])
    assert decoded(tmp_path / "paper.png") == [
        kitpage.line(name, value) for name, value in one.accesses[0].variables.items()
    ]
