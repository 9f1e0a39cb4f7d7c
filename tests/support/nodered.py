"""An independent client and judge of a real Node-RED: plain HTTP, and Node's own crypto.

Nothing here is shared with the product: it is what tests seed, wreck and judge with. The palette
module that tests install comes from a registry of their own (`npm_registry.py`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.support.npm_registry import Registry

PALETTE = "node-red-node-stamp"
PALETTE_VERSION = "1.2.3"
EMPTY = hashlib.sha256(b"[]").hexdigest()

SETTINGS = """\
module.exports = {
    uiPort: 1880,
    flowFile: "flows.json",
    flowFilePretty: true,
    credentialSecret: process.env.NODERED_CREDENTIAL_SECRET,
    adminAuth: {
        type: "credentials",
        users: [
            { username: "iotops", password: "no login", permissions: "read" },
            { username: "seed", password: "no login", permissions: "*" },
        ],
        tokens: [
            {
                token: process.env.NODERED_TOKEN,
                user: "iotops",
                scope: ["flows.read", "status.read", "nodes.read", "settings.read"],
            },
            { token: process.env.SEED_TOKEN, user: "seed", scope: ["*"] },
            { token: process.env.NARROW_TOKEN, user: "iotops", scope: ["flows.read"] },
        ],
    },
    contextStorage: { default: { module: "localfilesystem", config: { flushInterval: 1 } } },
    telemetry: { enabled: false, updateNotification: false },
    logging: { console: { level: "info" } },
};
"""

DECRYPT = """\
const crypto = require("crypto"), fs = require("fs");
const text = JSON.parse(fs.readFileSync(process.argv[1]))["$"];
const key = crypto.createHash("sha256").update(process.env.NODERED_CREDENTIAL_SECRET).digest();
const cipher = crypto.createDecipheriv("aes-256-ctr", key, Buffer.from(text.slice(0, 32), "hex"));
process.stdout.write(cipher.update(text.slice(32), "base64", "utf8") + cipher.final("utf8"));
"""

HEALTH = [
    "CMD",
    "node",
    "-e",
    "require('http').get({host:'127.0.0.1',port:1880,path:'/auth/login'},"
    "(a)=>process.exit(a.statusCode===200?0:1)).on('error',()=>process.exit(1))",
]


def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait for a condition; fail with what was waited for."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.1)


class Client:
    """Plain HTTP to one Node-RED; raises `urllib.error.HTTPError` for every refusal."""

    def __init__(self, url: str, token: str = "") -> None:
        self.url = url
        self.token = token

    def call(self, method: str, path: str, body: object | None = None, **headers: str) -> bytes:
        """Make one request and give the body of its answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method)
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        if data is not None:
            request.add_header("Content-Type", "application/json")
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: bytes = answer.read()
        return found

    def up(self) -> bool:
        """Whether the admin API answers."""
        try:
            self.call("GET", "/auth/login")
        except (OSError, urllib.error.URLError):
            return False
        return True

    def revision(self) -> str:
        """The revision, from the raw body of API version 1, which is exactly what is hashed."""
        return hashlib.sha256(self.call("GET", "/flows")).hexdigest()

    def nodes(self) -> list[dict[str, object]]:
        """The running flows."""
        found: list[dict[str, object]] = json.loads(self.call("GET", "/flows"))
        return found

    def deploy(self, nodes: list[dict[str, object]]) -> str:
        """Deploy flows whatever the revision was; gives the new one."""
        headers = {"Node_RED_API_Version": "v2"}
        answer = json.loads(self.call("POST", "/flows", {"flows": nodes}, **headers))
        return str(answer["rev"])

    def modules(self) -> Mapping[str, str]:
        """Loaded modules beside Node-RED's own, with their versions."""
        sets = json.loads(self.call("GET", "/nodes", Accept="application/json"))
        return {
            str(one["module"]): str(one["version"])
            for one in sets
            if one["module"] != "node-red" and one["enabled"] and not one.get("err")
        }


def publish_palette(registry: Registry, version: str = PALETTE_VERSION) -> None:
    """Publish a module with one node type, `stamp`, which writes its version into a message."""
    registry.add(
        PALETTE,
        version,
        {
            "stamp.js": "module.exports = function (RED) {\n"
            "  RED.nodes.registerType('stamp', function (config) {\n"
            "    RED.nodes.createNode(this, config);\n"
            f"    this.on('input', (msg) => {{ msg.stamp = '{version}'; this.send(msg); }});\n"
            "  });\n};\n",
            "stamp.html": "<script type='text/javascript'>\n"
            "RED.nodes.registerType('stamp', {category: 'function', defaults: {}, inputs: 1,"
            " outputs: 1, label: 'stamp'});\n</script>\n",
        },
        **{"node-red": {"nodes": {"stamp": "stamp.js"}}},
    )


def flows(pin: str, password: str) -> list[dict[str, object]]:
    """Flows with everything that can get lost: tabs, subflow, group, code, credentials.

    `GET /probe` answers what only a hub that is whole can know: a credential of the tab, the
    version of the palette module, and the value in the file context that `GET /set` put there.
    """
    code = (
        "// what only a whole hub knows\n"
        "msg.payload = {\n"
        '    pin: env.get("PIN"),\n'
        "    stamp: msg.stamp,\n"
        '    setpoint: flow.get("setpoint"),\n'
        "};\n"
        "return msg;"
    )
    return [
        {
            "id": "heating",
            "type": "tab",
            "label": "Heating",
            "disabled": False,
            "info": "Boiler\nand radiators",
            "env": [{"name": "PIN", "type": "cred"}],
            "credentials": {"PIN": pin},
        },
        {"id": "garden", "type": "tab", "label": "Gärten 🌱", "disabled": False, "info": ""},
        {
            "id": "mean",
            "type": "subflow",
            "name": "Mean",
            "info": "",
            "in": [{"x": 40, "y": 40, "wires": [{"id": "mean-inner"}]}],
            "out": [{"x": 300, "y": 40, "wires": [{"id": "mean-inner", "port": 0}]}],
        },
        {
            "id": "broker",
            "type": "mqtt-broker",
            "name": "hub",
            "broker": "127.0.0.1",
            "port": "1",
            "autoConnect": False,
            "credentials": {"user": "nodered", "password": password},
        },
        {
            "id": "mean-inner",
            "type": "function",
            "z": "mean",
            "name": "mean",
            "func": "return msg;",
            "outputs": 1,
            "x": 170,
            "y": 40,
            "wires": [[]],
        },
        {
            "id": "group",
            "type": "group",
            "z": "heating",
            "name": "probe",
            "nodes": ["probe-in", "probe-stamp", "probe-code", "probe-out"],
            "x": 14,
            "y": 19,
            "w": 812.5,
            "h": 82,
        },
        _node("probe-in", "http in", 100, ["probe-stamp"], g="group", url="/probe", method="get"),
        _node("probe-stamp", "stamp", 250, ["probe-code"], g="group"),
        _node("probe-code", "function", 400, ["probe-out"], g="group", func=code, outputs=1),
        _node("probe-out", "http response", 600, None, g="group"),
        _node("set-in", "http in", 100, ["set-code"], url="/set", method="get"),
        _node(
            "set-code",
            "function",
            400,
            ["set-out"],
            func='flow.set("setpoint", msg.req.query.value);\nmsg.payload = "ok";\nreturn msg;',
            outputs=1,
        ),
        _node("set-out", "http response", 600, None),
        {
            "id": "use",
            "type": "subflow:mean",
            "z": "garden",
            "name": "",
            "x": 0.000001,
            "y": 60,
            "wires": [[]],
        },
    ]


def _node(
    name: str, kind: str, x: int, wires: list[str] | None, **more: object
) -> dict[str, object]:
    node: dict[str, object] = {"id": name, "type": kind, "z": "heating", "name": name, **more}
    return node | {"x": x, "y": 60, "wires": [] if wires is None else [wires]}


def decrypted(container: str, file: str = "/data/flows_cred.json") -> object:
    """The credentials of a container's folder, opened by Node's crypto inside the container.

    Returns:
        Credentials by node id; None = the file is not there or the key does not open it.
    """
    done = subprocess.run(
        ["docker", "exec", container, "node", "-e", DECRYPT, file],
        capture_output=True,
        check=False,
    )
    try:
        found: object = json.loads(done.stdout)
    except ValueError:
        return None
    return found


def sealed(credentials: Mapping[str, object], secret: str) -> str:
    """Encrypt credentials as Node-RED does, for the key "$" of its file."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    counter = secrets.token_bytes(16)
    key = hashlib.sha256(secret.encode()).digest()
    cipher = Cipher(algorithms.AES(key), modes.CTR(counter)).encryptor()
    return (
        counter.hex() + base64.b64encode(cipher.update(json.dumps(credentials).encode())).decode()
    )


def npm_install(container: str, registry: Registry, *modules: str) -> None:
    """Install modules into a container's user directory, as the palette manager does."""
    subprocess.run(
        [
            *("docker", "exec", "-w", "/data", "-e", f"npm_config_registry={registry.url}"),
            *("-e", "npm_config_cache=/tmp/npm-seed", container, "npm", "install", "--save"),
            *("--save-prefix=~", "--no-audit", "--no-fund", "--no-update-notifier", *modules),
        ],
        check=True,
        capture_output=True,
    )


def settings_folder(folder: Path) -> Path:
    """Write `settings.js` into a folder to be mounted at `/config`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.js").write_text(SETTINGS)
    return folder
