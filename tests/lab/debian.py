"""Debian packages: installed on the machine, or taken from another release and only unpacked.

Another release is never added to the machine: each gets a private apt configuration in the lab's
cache, with the mirror the machine itself uses. The mirror is asked of apt, never written down in
the repository.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.lab.places import cache
from tests.lab.shell import LabError, is_root, run, say, write_if_changed

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_updated = False


def install(packages: list[str]) -> None:
    """Install packages of the machine's own release."""
    global _updated
    names = ", ".join(packages)
    if not is_root():
        raise LabError(f"not root, so these packages cannot be installed: {names}")
    if shutil.which("apt-get") is None:
        raise LabError(f"no apt-get, so these packages cannot be installed: {names}")
    say(f"installing {names}")
    log = cache() / "logs" / "apt.log"
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    if _updated:
        run(command, env=quiet, log=log)
        return
    try:
        run(command, env=quiet, log=log)
    except LabError:
        run(["apt-get", "update"], env=quiet, log=log)
        _updated = True
        run(command, env=quiet, log=log)


def mirror() -> str:
    """The Debian mirror this machine's apt uses."""
    form = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)"
    listing = run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"])
    found = [line.split("|") for line in listing.splitlines() if line.count("|") == 3]
    for address, release, component, origin in found:
        own = origin == "Debian" or address.rstrip("/").endswith("/debian")
        if component == "main" and own and "-" not in release:
            return address
    raise LabError("apt on this machine knows no Debian mirror")


class Suite:
    """One Debian release behind a private apt configuration."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = cache() / "apt" / name
        self._ready = False

    def _options(self, status: Path | None) -> list[str]:
        state = self.folder / "state"
        if status is None:
            status = state / "status"
        settings = {
            "Dir::Etc::SourceList": self.folder / "sources.list",
            "Dir::Etc::SourceParts": "-",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "-",
            "Dir::State": state,
            "Dir::State::status": status,
            "Dir::Cache": self.folder / "cache",
            "APT::Sandbox::User": "root",
            "APT::Get::List-Cleanup": "true",
            "Acquire::Languages": "none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
        }
        return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]

    def prepare(self) -> None:
        """Write the configuration and read the release's package lists, once in a run."""
        if self._ready:
            return
        if not KEYRING.exists():
            install(["debian-archive-keyring"])
        for part in ("state/lists/partial", "cache/archives/partial", "packages"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        (self.folder / "state" / "status").touch()
        line = f"deb [signed-by={KEYRING}] {mirror()} {self.name} main\n"
        write_if_changed(self.folder / "sources.list", line)
        say(f"reading Debian's package lists of {self.name}")
        run(["apt-get", *self._options(None), "update"], log=cache() / "logs" / "apt.log")
        self._ready = True

    def unpack(self, package: str, target: Path) -> None:
        """Download one package and unpack its files below ``target``, installing nothing."""
        self.prepare()
        folder = self.folder / "packages"
        for old in folder.glob(f"{package}_*.deb"):
            old.unlink()
        run(["apt-get", *self._options(None), "download", package], cwd=folder)
        (archive,) = folder.glob(f"{package}_*.deb")
        target.mkdir(parents=True, exist_ok=True)
        run(["dpkg", "-x", archive, target])
        archive.unlink()

    def download(self, packages: list[str], status: Path, target: Path) -> None:
        """Download packages, and what a root folder with that dpkg status lacks for them."""
        self.prepare()
        archives = self.folder / "cache" / "archives"
        for old in archives.glob("*.deb"):
            old.unlink()
        own_status = self.folder / "state" / "target-status"
        shutil.copyfile(status, own_status)
        run(
            [
                "apt-get",
                *self._options(own_status),
                "--yes",
                "--no-install-recommends",
                "--download-only",
                "install",
                *packages,
            ],
            log=cache() / "logs" / "apt.log",
        )
        target.mkdir(parents=True, exist_ok=True)
        for archive in archives.glob("*.deb"):
            archive.replace(target / archive.name)


def package_version(folder: Path, package: str) -> str:
    """The upstream version of a downloaded package (no epoch, no Debian revision)."""
    (archive,) = folder.glob(f"{package}_*.deb")
    version = run(["dpkg-deb", "-f", archive, "Version"]).strip()
    return version.rpartition(":")[2].rpartition("-")[0].partition("+")[0] or version
