"""The kind `files` under test: a small program that keeps notes in files and hates to be copied.

Nobody knows the program, which is the point. It marks its folder as in use while it runs, so that
a copy made without stopping it is found out at its next start.
"""

from __future__ import annotations

import secrets
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from iotops.services.base import BaseOptions
from iotops.services.files import FilesOptions
from tests.contract.protocol import KindUnderTest

NOTEBOOK = r"""
use strict; use IO::Socket::INET;
sub slurp { open my $f, '<', $_[0] or return ''; local $/; return <$f>; }
sub spit { open my $f, '>', $_[0] or die $!; print $f $_[1]; close $f; }
mkdir '/data/notes';
my $found = slurp('/data/state') || 'new';
spit('/data/state', 'in use');
$SIG{TERM} = sub { spit('/data/state', 'closed'); exit 0; };
my $door = IO::Socket::INET->new(LocalPort => 8080, Listen => 9, ReuseAddr => 1) or die $!;
while (1) {
    my $client = $door->accept or next;
    my ($verb, $path) = split ' ', (<$client> // '');
    my $length = 0;
    while (my $line = <$client>) {
        last if $line =~ /^\r?$/;
        $length = $1 if $line =~ /^content-length:\s*(\d+)/i;
    }
    my $body = '';
    read $client, $body, $length if $length;
    my $answer = $found;
    if (($path // '') =~ m{^/notes/(\w+)$}) {
        spit("/data/notes/$1", $body) if $verb eq 'PUT';
        $answer = slurp("/data/notes/$1");
    }
    print $client "HTTP/1.0 200 OK\r\nContent-Length: ", length $answer, "\r\n\r\n$answer";
    close $client;
}
"""
PROBE = "exit !IO::Socket::INET->new('127.0.0.1:8080')"


@dataclass(frozen=True)
class Answers:
    """The notes as the program tells them, by name, and how it finds its folder at a start."""

    notes: Mapping[str, str]
    found: str


class Kind(KindUnderTest[Answers]):
    """A notebook with a health check."""

    kind = "files"
    lab_image = "base"

    def prepare(self) -> None:
        self.ground.folder.mkdir(parents=True)
        (self.ground.hub / "notebook").mkdir()
        (self.ground.hub / "notebook" / "notebook.pl").write_text(NOTEBOOK)

    def compose(self) -> Mapping[str, object]:
        places = {self.ground.folder: "/data", self.ground.hub / "notebook": "/program"}
        return {
            "image": self.ground.image,
            "command": ["perl", "/program/notebook.pl"],
            "ports": [f"127.0.0.1:{self.ground.port(8080)}:8080"],
            "healthcheck": {
                "test": ["CMD", "perl", "-MIO::Socket::INET", "-e", PROBE],
                "interval": "1s",
                "timeout": "5s",
                "retries": 30,
            },
            "volumes": [
                {
                    "type": "bind",
                    "source": str(source),
                    "target": target,
                    "bind": {"create_host_path": False},
                }
                for source, target in places.items()
            ],
        }

    def options(self) -> BaseOptions:
        return FilesOptions(container="files", folder="files")

    def seed(self) -> Answers:
        notes = {f"note{number}": secrets.token_hex(2000) for number in range(20)}
        for name, text in notes.items():
            assert self._ask("PUT", f"/notes/{name}", text) == text
        assert self._ask("GET", "/") == "new"
        return Answers(notes, "closed")

    def check(self, answers: Answers) -> list[str]:
        found = [
            f"{name} is another"
            for name, text in answers.notes.items()
            if self._ask("GET", f"/notes/{name}") != text
        ]
        # Only after the first start the folder is new, and so it is before the disaster.
        state = self._ask("GET", "/")
        return found + ([] if state in (answers.found, "new") else [f"the folder was {state}"])

    def sabotage(self) -> None:
        """Change one note."""
        self._ask("PUT", "/notes/note7", "changed")

    def _ask(self, verb: str, path: str, text: str = "") -> str:
        address = f"http://127.0.0.1:{self.ground.port(8080)}{path}"
        request = urllib.request.Request(address, data=text.encode() or None, method=verb)
        ends = time.monotonic() + 20
        while True:
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    return str(answer.read().decode())
            except OSError:  # nobody there yet
                assert time.monotonic() < ends, "the notebook does not answer"
                time.sleep(0.1)
