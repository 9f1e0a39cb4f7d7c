"""The page of the recovery kit: what it says, as HTML for a printer and as plain text.

The door to segno (QR codes). What a person does on a fresh machine stands in one place, `steps`.
Pure: it writes no file and asks no program. Not here: keys, files and records
(`kit.py`), the form of the password (`paper.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from shlex import quote

from iotops.actions.newcard import CREDENTIALS_FILE, PASSWORD_FILE

BREAK = "\\\n    "
QR_BYTES = 400
"""Of text in one code: more makes its squares too small for a phone that looks at paper."""


@dataclass(frozen=True)
class Access:
    """What opens one repository.

    Attributes:
        title: what it is to the hub. key: id of the key that the password opens.
        variables: restic's own names and their values: address, password, credentials.
        elsewhere: what is needed besides and cannot stand on paper.
        copy: name of the copy that it is; empty = the hub's repository.
        password_file, credentials_file, ssh_config: where the hub's settings look for them.
    """

    title: str
    key: str
    variables: Mapping[str, str]
    elsewhere: tuple[str, ...] = ()
    copy: str = ""
    password_file: Path = PASSWORD_FILE
    credentials_file: Path | None = None
    ssh_config: Path | None = None


@dataclass(frozen=True)
class Step:
    """One step on a fresh machine: what to do, and the lines to type."""

    text: str
    commands: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ground:
    """What the steps must know of the hub.

    Attributes:
        owner: the user that the hub folder belongs to.
        folder: the hub folder. root: the data root; a mount point if `mounted`.
        link: leads to the hub folder. scratch: a folder that only root reads.
    """

    hub_id: str
    owner: str
    folder: Path
    root: Path
    mounted: bool
    link: Path = Path("/etc/iotops/hub")
    scratch: Path = Path("/root")


@dataclass(frozen=True)
class Sheet:
    """Everything that the page says; `made` is UTC."""

    hub: str
    hub_id: str
    made: datetime
    accesses: tuple[Access, ...]
    steps: tuple[Step, ...]


# -- what a person does ---------------------------------------------------------------------------


def steps(ground: Ground, accesses: Sequence[Access]) -> tuple[Step, ...]:
    """Give the steps from an empty machine to a hub that runs, in their order.

    Args:
        accesses: the boxes of the page; the first one is the hub's repository.
    """
    values = ground.scratch / "kit.env"
    disk = Step(f"Have the folder {ground.root} ready; it may be empty.")
    if ground.mounted:
        disk = Step(
            f"Mount the data disk at {ground.root}: the old one, or a new one with an empty ext4"
            " file system. Line in /etc/fstab:",
            (f"UUID=...  {ground.root}  ext4  defaults,noatime,nofail  0  2",),
        )
    box = "the box above" if len(accesses) == 1 else "one box above, of what is still there,"
    restore = Step(
        "Put the data back. Exit 0 means that every service runs and is as recorded. (The old"
        " data disk is still good? Then instead: sudo iotops up)",
        ("sudo iotops restore latest --claim-disk",),
    )
    others = [
        Step(
            f"Did you write the box of the copy {one.copy}? Then these instead of the last two:",
            (
                *_bring_back(ground, one, values),
                f"sudo iotops restore latest --claim-disk --from {one.copy}",
            ),
        )
        for one in accesses[1:]
    ]
    return (
        Step(
            "A Raspberry Pi with Raspberry Pi OS (64 bit), Docker with Compose v2, and iotops;"
            " the file README.md of iotops has the lines. And:",
            ("sudo apt-get install restic git python3-venv",),
        ),
        disk,
        Step(
            f"Write the lines of {box} into a file, as they stand there (the QR code holds"
            " the same lines), and have the hub's user:",
            (
                f"sudo install -m 600 /dev/null {quote(str(values))}",
                f"sudo nano {quote(str(values))}",
                f"id {ground.owner} || sudo useradd -m {ground.owner}",
            ),
        ),
        Step(
            "Bring the hub's own files back; what this machine still lacks is listed, each with"
            " its command:",
            _bring_back(ground, accesses[0], values),
        ),
        restore,
        *others,
        Step(
            "See that all is well, make a backup, remove what was typed here:",
            ("sudo iotops doctor", "sudo iotops backup", f"sudo rm {quote(str(values))}"),
        ),
    )


def _bring_back(ground: Ground, access: Access, values: Path) -> tuple[str, ...]:
    """Have iotops bring the hub folder back, with the secrets where its settings look for them."""
    folder = quote(str(ground.folder))
    words = [f"iotops init --from-repository - {folder} --name {ground.hub_id[:8]}"]
    if access.password_file != PASSWORD_FILE:
        words.append(f"--password-file {quote(str(access.password_file))}")
    if access.credentials_file not in (None, CREDENTIALS_FILE):
        words.append(f"--credentials-file {quote(str(access.credentials_file))}")
    if access.ssh_config is not None:
        words.append(f"--ssh-config {quote(str(access.ssh_config))}")
    script = f"{f' {BREAK}'.join(words)} < {quote(str(values))}"
    return (
        f"sudo mkdir -p {quote(str(ground.folder.parent))}",
        f"sudo sh -c {quote(script)}",
        f"sudo mkdir -p -m 711 {quote(str(ground.link.parent))}",
        f"sudo ln -sfn {folder} {quote(str(ground.link))}",
    )


def elsewhere(
    url: str, credentials: Mapping[str, str], ssh_config: Path | None = None
) -> tuple[str, ...]:
    """Name what a repository needs besides address, password and credentials."""
    found = []
    if url.startswith("/"):
        found.append(f"the disk with the repository, mounted so that it is at {url}")
    if ssh_config is not None:
        found.append(f"the file {ssh_config}, and the files that it names")
    elif url.startswith("sftp:"):
        found.append("a key that the server accepts for SSH (of root, in /root/.ssh)")
    if url.startswith("rclone:"):
        found.append("the program rclone and its rclone.conf (of root)")
    for name, value in credentials.items():
        if value.startswith("/"):
            found.append(f"the file {value}, which {name} names")
    return tuple(found)


# -- forms ----------------------------------------------------------------------------------------


def line(name: str, value: str) -> str:
    """Write one variable so that a shell and a credentials file read the same value."""
    if re.fullmatch(r"[A-Za-z0-9_@%+=:,./-]+", value):
        return f"{name}={value}"
    if "'" not in value:
        return f"{name}='{value}'"
    return f'{name}="' + re.sub(r'([\\"$`])', r"\\\1", value) + '"'


def codes(lines: Iterable[str]) -> tuple[str, ...]:
    """Spread lines over as many QR codes as it takes, none in two of them."""
    texts: list[str] = []
    for one in lines:
        if texts and len((texts[-1] + one).encode()) < QR_BYTES:
            texts[-1] += "\n" + one
        else:
            texts.append(one)
    return tuple(texts)


def matrix(text: str) -> tuple[tuple[bool, ...], ...]:
    """Give the squares of a QR code with its quiet border of four; True is black."""
    import segno

    code = segno.make_qr(text, error="m")
    return tuple(tuple(bool(square) for square in row) for row in code.matrix_iter(border=4))


def svg(text: str) -> str:
    """Draw a QR code as inline SVG: one path of horizontal runs, sharp at every size."""
    rows = matrix(text)
    runs = []
    for y, row in enumerate(rows):
        drawn = "".join("#" if square else " " for square in row)
        runs += [
            f"M{run.start()} {y}h{len(run[0])}v1h-{len(run[0])}z"
            for run in re.finditer("#+", drawn)
        ]
    return (
        f'<svg viewBox="0 0 {len(rows)} {len(rows)}" shape-rendering="crispEdges" role="img"'
        f' aria-label="QR code of the lines in the box"><path d="{"".join(runs)}"/></svg>'
    )


def blocks(text: str) -> list[str]:
    """Draw a QR code in letters: two rows of squares in one line, black is ink."""
    rows = [*matrix(text)]
    if len(rows) % 2:
        rows.append((False,) * len(rows[0]))
    shape = {(False, False): " ", (True, False): "▀", (False, True): "▄", (True, True): "█"}
    return [
        "".join(shape[pair] for pair in zip(upper, lower, strict=True))
        for upper, lower in zip(rows[::2], rows[1::2], strict=True)
    ]


def _lines(access: Access) -> list[str]:
    return [line(name, value) for name, value in access.variables.items()]


def _groups(access: Access) -> Sequence[str]:
    return access.variables["RESTIC_PASSWORD"].split("-")


PURPOSE = (
    "With this page, the repository and a new Raspberry Pi the hub comes back, whatever else is"
    " lost. Whoever has it can read every backup: keep it as you keep your passport, not beside the"
    " hub. In the password no letter is 0, O, 1, I or L."
)
PROVING = (
    "A kit counts when it has been proven: sudo iotops kit --verify asks for the password as it"
    " stands here and opens the repository with it. Do it today, and then twice a year."
)


def text(sheet: Sheet) -> str:
    """Give the page as plain text."""
    out = [f"RECOVERY KIT of the hub {sheet.hub}", f"made {sheet.made:%Y-%m-%d %H:%M} UTC", ""]
    out += [*_wrapped(PURPOSE), ""]
    for access in sheet.accesses:
        out += [f"{access.title} (key {access.key[:8]})", ""]
        out += [f"    {one}" for one in _lines(access)]
        out += ["", f"    password in groups:  {'  '.join(_groups(access))}", ""]
        out += [f"needed besides: {one}" for one in access.elsewhere]
        for code in codes(_lines(access)):
            out += [*blocks(code)]
    out += ["On a fresh machine:", ""]
    for number, step in enumerate(sheet.steps, 1):
        first, *more = _wrapped(step.text, 90)
        out += [f"{number:>2}. {first}", *(f"    {one}" for one in more)]
        out += [f"        {one}" for command in step.commands for one in command.splitlines()]
    out += ["", *_wrapped(PROVING), "", f"last proven: not yet (made {sheet.made:%Y-%m-%d})"]
    out += ["proven on:   ______________  ______________  ______________", ""]
    out += [f"hub id {sheet.hub_id}", ""]
    return "\n".join(out)


def _wrapped(words: str, width: int = 94) -> list[str]:
    import textwrap

    return textwrap.wrap(words, width, break_long_words=False, break_on_hyphens=False)


STYLE = """
@page { size: A4; margin: 11mm 13mm }
* { box-sizing: border-box }
body { font: 9.5pt/1.32 "DejaVu Sans", "Liberation Sans", Arial, sans-serif; color: #000;
  background: #fff; max-width: 184mm; margin: 0 auto }
h1 { font-size: 17pt; margin: 0 } h1 small { font-size: 9.5pt; font-weight: normal }
h2 { font-size: 11pt; margin: 3.2mm 0 1mm }
p { margin: 1.2mm 0 }
section { display: flex; gap: 5mm; align-items: flex-start; border: .5mm solid #000;
  border-radius: 1.5mm; padding: 2.5mm 3mm; margin-top: 2mm; break-inside: avoid }
section > div { flex: 1; min-width: 0 }
.codes { flex: none; display: flex; flex-wrap: wrap; gap: 1mm; max-width: 92mm }
.codes svg { width: 45mm; height: 45mm; display: block }
code, pre { font-family: "DejaVu Sans Mono", "Liberation Mono", monospace }
pre { font-size: 8pt; line-height: 1.35; margin: .6mm 0; white-space: pre-wrap;
  overflow-wrap: anywhere }
pre span { display: block; padding-left: 6mm; text-indent: -6mm; word-break: break-all }
.password { font-size: 13pt; line-height: 1.45; margin: 1.5mm 0 }
.password b { display: inline-block; margin-right: 3.5mm; font-weight: bold }
ol { margin: 0; padding-left: 6mm } li { margin-bottom: 1.1mm; break-inside: avoid }
.proof { border-top: .3mm solid #000; margin-top: 2mm; padding-top: 1mm }
.proof u { display: inline-block; width: 30mm; height: 5mm; border-bottom: .3mm solid #000;
  text-decoration: none }
"""


def html(sheet: Sheet) -> str:
    """Give the page as HTML: one file, nothing fetched, black on white, A4."""
    boxes = "".join(_box(access) for access in sheet.accesses)
    rows = "".join(_step(step) for step in sheet.steps)
    day = f"{sheet.made:%Y-%m-%d}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>Recovery kit of {escape(sheet.hub)}</title><style>{STYLE}</style></head><body>\n"
        f"<h1>Recovery kit <small>of the hub <b>{escape(sheet.hub)}</b>, made"
        f" {sheet.made:%Y-%m-%d %H:%M} UTC</small></h1>\n<p>{escape(PURPOSE)}</p>\n{boxes}"
        f"<h2>On a fresh machine</h2>\n<ol>\n{rows}</ol>\n"
        f'<div class="proof"><p>{escape(PROVING)}</p>'
        f"<p>Last proven: not yet (made {day}). Proven on: <u></u> <u></u>"
        f" <u></u></p><p>hub id <code>{escape(sheet.hub_id)}</code></p></div>\n"
        "</body></html>\n"
    )


def _box(access: Access) -> str:
    # A line that is too long goes on with an indent, so that nobody types a break into it.
    lines = "".join(f"<span>{escape(one)}</span>" for one in _lines(access))
    groups = " ".join(f"<b>{escape(group)}</b>" for group in _groups(access))
    besides = "".join(f"<p>Needed besides: {escape(one)}.</p>" for one in access.elsewhere)
    drawn = "".join(svg(code) for code in codes(_lines(access)))
    return (
        f"<section><div><b>{escape(access.title)}</b> (key {escape(access.key[:8])})"
        f"<pre>{lines}</pre>The password in groups:"
        f'<div class="password"><code>{groups}</code></div>{besides}</div>'
        f'<div class="codes">{drawn}</div></section>\n'
    )


def _step(step: Step) -> str:
    commands = escape("\n".join(step.commands))
    return f"<li>{escape(step.text)}" + (f"<pre>{commands}</pre>" if commands else "") + "</li>\n"
