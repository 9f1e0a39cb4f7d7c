"""The terminal picture of the README, made from a real run: `make picture`.

Runs `iotops demo` in the lab with a terminal as its standard output, and draws what it wrote. Long
rows of finished steps are shortened, and the picture says so; nothing else is changed.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from tests.support.lab import lab

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "demo.svg"
WIDTH = 100
SHOWN = 3
"""Finished steps of one part that are shown; the others are counted."""


def run_demo() -> str:
    """Run the demo and give what a terminal would have got, colours included."""
    override = lab().override
    argv = [str(Path(sys.executable).with_name("iotops")), "demo"]
    argv += ["--override", str(override)] if override is not None else []
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=theirs, stderr=subprocess.PIPE, text=True
    )
    os.close(theirs)
    pieces = []
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # how a terminal says that its last writer has gone
            break
        if not piece:
            break
        pieces.append(piece)
    os.close(ours)
    _, errors = child.communicate()
    if child.returncode != 0:
        raise SystemExit(f"the demo ended with {child.returncode}: {errors}")
    return b"".join(pieces).decode().replace("\r\n", "\n")


def shortened(text: str) -> Iterator[str]:
    """Leave out all but the first finished steps of each part."""
    steps: list[str] = []
    for line in [*text.strip().splitlines(), ""]:
        if "✓" in line:
            steps.append(line)
            continue
        yield from steps[:SHOWN]
        if len(steps) > SHOWN:
            yield f"\x1b[2m  ... {len(steps) - SHOWN} more steps\x1b[0m"
        steps = []
        yield line


def draw(lines: list[str]) -> str:
    """Draw lines with terminal colours as SVG, with no font from elsewhere."""
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True)
    for line in lines:
        console.print(Text.from_ansi(line), overflow="crop", no_wrap=True)
    svg = console.export_svg(title="sudo make demo", theme=MONOKAI, unique_id="demo")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("Fira Code", "ui-monospace, DejaVu Sans Mono, Menlo")
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def main() -> None:
    """Run, draw, write."""
    PICTURE.write_text(draw(["$ sudo make demo", *shortened(run_demo())]))
    print(f"written: {PICTURE}")


if __name__ == "__main__":
    main()
