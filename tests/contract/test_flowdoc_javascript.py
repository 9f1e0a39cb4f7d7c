"""Our JSON against JavaScript's own: the revision stands or falls with it.

Node.js runs in Node-RED's image; it parses what Python wrote and writes it again.
"""

from __future__ import annotations

import json
import random
import struct
import subprocess

import pytest

from iotops.flowdoc import stringify
from tests.conftest import need
from tests.support.lab import lab

pytestmark = pytest.mark.contract

ECHO = """
let text = "";
process.stdin.on("data", (piece) => (text += piece)).on("end", () => {
    const value = JSON.parse(text);
    process.stdout.write(JSON.stringify(value) + "\\n" + JSON.stringify(value, null, 2));
});
"""


def test_numbers_texts_and_keys_are_written_as_javascript_writes_them() -> None:
    for part in ("docker", "image nodered"):
        need(part)
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    doubles = [struct.unpack("d", dice.randbytes(8))[0] for _ in range(20_000)]
    small = [dice.random() * 10 ** dice.randint(-12, 25) for _ in range(20_000)]
    odd = [1e-6, 1e-7, 1e20, 1e21, 123456789012345680000.0, 5e-324, -0.0, 1e400, 2**53, 2**63]
    numbers = [one for one in doubles if one == one and abs(one) != float("inf")]
    texts = ["".join(chr(_code(dice)) for _ in range(8)) for _ in range(3_000)]
    keys = [{_key(dice): number for number in range(6)} for _ in range(1_000)]
    document = json.dumps([numbers, small, texts, keys])[:-1] + ", " + _plain(odd) + "]"
    done = subprocess.run(
        [
            *("docker", "run", "--rm", "--interactive", "--network", "none"),
            *("--entrypoint", "node", lab().images["nodered"].reference, "-e", ECHO),
        ],
        input=document.encode(),
        capture_output=True,
        check=True,
    )
    compact, _, pretty = done.stdout.decode().partition("\n")
    value = json.loads(document)
    assert stringify(value) == compact, f"seed {seed}"
    assert stringify(value, 2) == pretty, f"seed {seed}"


def _plain(numbers: list[float]) -> str:
    return "[" + ", ".join("1e400" if n == float("inf") else repr(n) for n in numbers) + "]"


def _code(dice: random.Random) -> int:
    low, high = dice.choice([(0, 0x7F), (0, 0xFFFF), (0xD800, 0xDFFF), (0x10000, 0x10FFFF)])
    return dice.randint(low, high)


def _key(dice: random.Random) -> str:
    return str(dice.choice([dice.randint(0, 2**33), dice.randint(0, 20), "a", "01", "-1", "1.5"]))
