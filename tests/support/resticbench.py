"""restic for tests: repositories that open at once, fake programs, locks that a dead run left.

restic's key derivation takes most of a second per call by design. A test repository gets a key
file with the same content under a derivation that takes no time; everything else is as restic made
it. Format of a key file: restic's `doc/design.rst`, "Keys, Encryption and MAC".
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
import subprocess
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.poly1305 import Poly1305


def hurry(repository: Path, password: str) -> str:
    """Give a repository a key file that is opened at once by the same password.

    Returns:
        The id of the key, which is another one now.
    """
    for path in (repository / "keys").iterdir():
        key = json.loads(path.read_text())
        try:
            secret = _opened(_derived(key, password), base64.b64decode(key["data"]))
            break
        except AssertionError:
            continue
    else:
        raise AssertionError("no key file opens with this password")
    key["N"], key["r"], key["p"] = 2, 1, 1
    key["data"] = base64.b64encode(_closed(_derived(key, password), secret)).decode()
    text = json.dumps(key)
    path.chmod(0o600)
    path.unlink()
    name = hashlib.sha256(text.encode()).hexdigest()
    (path.parent / name).write_text(text)
    return name


def _derived(key: dict[str, object], password: str) -> bytes:
    return hashlib.scrypt(
        password.encode(),
        salt=base64.b64decode(str(key["salt"])),
        n=int(str(key["N"])),
        r=int(str(key["r"])),
        p=int(str(key["p"])),
        maxmem=1 << 30,
        dklen=64,
    )


def _mac(derived: bytes, nonce: bytes, data: bytes) -> Poly1305:
    """Poly1305-AES: 32 bytes for AES-256, then AES-128 key and r of the authenticator."""
    cipher = Cipher(algorithms.AES(derived[32:48]), modes.ECB()).encryptor()
    mac = Poly1305(derived[48:64] + cipher.update(nonce) + cipher.finalize())
    mac.update(data)
    return mac


def _stream(derived: bytes, nonce: bytes, data: bytes) -> bytes:
    cipher = Cipher(algorithms.AES(derived[:32]), modes.CTR(nonce)).encryptor()
    return cipher.update(data) + cipher.finalize()


def _opened(derived: bytes, data: bytes) -> bytes:
    nonce, body, tag = data[:16], data[16:-16], data[-16:]
    try:
        _mac(derived, nonce, body).verify(tag)
    except InvalidSignature as error:
        raise AssertionError("the key file does not open with this password") from error
    return _stream(derived, nonce, body)


def _closed(derived: bytes, secret: bytes) -> bytes:
    nonce = os.urandom(16)
    body = _stream(derived, nonce, secret)
    return nonce + body + _mac(derived, nonce, body).finalize()


def fake_restic(path: Path, body: str, *, version: str = "restic 0.18.0 compiled with go") -> Path:
    """Write an executable that says its version as restic does and otherwise does as told.

    Args:
        path: its file.
        body: shell lines for every other call; its arguments are "$@".
        version: what it answers to `version`.
    """
    answer = f'[ "$1" = version ] && {{ echo {shlex.quote(version)}; exit 0; }}'
    path.write_text(f"#!/bin/sh\n{answer}\n{body}\n")
    path.chmod(0o755)
    return path


def unprivileged(path: Path, program: Path) -> Path:
    """Write an executable that runs a program as a root that may not read everything."""
    drop = "--bounding-set=-dac_override,-dac_read_search --inh-caps=-all"
    path.write_text(f'#!/bin/sh\nexec setpriv {drop} {shlex.quote(str(program))} "$@"\n')
    path.chmod(0o755)
    return path


def environment(repository: Path, password_file: Path, home: Path) -> dict[str, str]:
    """Give what the bare restic needs, independent of the client under test."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "RESTIC_REPOSITORY": str(repository),
        "RESTIC_PASSWORD_FILE": str(password_file),
    }


def leave_exclusive_lock(program: Path, values: dict[str, str]) -> int:
    """Let a prune die with its lock: its first words meet a closed pipe.

    Returns:
        Its process number.
    """
    child = died_with_lock(program, values)
    child.wait(timeout=60)
    assert child.returncode < 0, "the prune should have died by a signal"
    return child.pid


def died_with_lock(program: Path, values: dict[str, str]) -> subprocess.Popen[bytes]:
    """Let a prune die with its lock, and leave it unreaped: its number is still taken."""
    reading, writing = os.pipe()
    os.close(reading)
    child = subprocess.Popen(
        [program, "prune"],
        env=values,
        stdin=subprocess.DEVNULL,
        stdout=writing,
        stderr=subprocess.DEVNULL,
    )
    os.close(writing)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    return child
