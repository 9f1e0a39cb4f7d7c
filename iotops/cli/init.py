"""The command that makes a hub folder, claims its disk, and makes its repository."""

from __future__ import annotations

from pathlib import Path

import click

from iotops.cli.adopt import Adopting, adopt_project, claim_data_root
from iotops.cli.common import (
    REPOSITORY,
    USUAL,
    exits,
    hub_option,
    open_hub,
    output_options,
    screen,
)
from iotops.errors import Exit, UsageError

PASSWORD_FILE = Path("/etc/iotops/restic-password")
FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command(epilog=exits(*USUAL, Exit.PARTIAL, *REPOSITORY, Exit.INTERRUPTED))
@click.argument("folder", required=False, type=FOLDER)
@click.option("--name", default="iot-hub", show_default=True, help="The hub's name.")
@click.option(
    "--owner",
    help="The user that the hub folder belongs to; default: who calls sudo; --adopt: its owner.",
)
@click.option(
    "--data-root",
    type=FOLDER,
    default=Path("/mnt/iot-data"),
    show_default=True,
    help="Where the services' data lies.",
)
@click.option(
    "--data-kind",
    type=click.Choice(["mount", "folder"]),
    default="mount",
    show_default=True,
    help="Whether the data root is a mount point or a plain folder.",
)
@click.option("--claim-disk", is_flag=True, help="The empty disk at the data root may be taken.")
@click.option(
    "--adopt",
    is_flag=True,
    help="Make a hub of the Compose project in DIR; writes iotops.toml only.",
)
@click.option(
    "--claim-data",
    is_flag=True,
    help="The data root of an adopted hub is its own, with what lies on it.",
)
@click.option("--dry-run", is_flag=True, help="With --adopt: show iotops.toml, write nothing.")
@click.option("--yes", is_flag=True, help="With --claim-data: do not ask.")
@click.option("--repository", metavar="URL", help="Make the restic repository there.")
@click.option("--copy", metavar="NAME", help="Make the repository of this copy, not the first one.")
@click.option(
    "--password-file",
    type=FILE,
    help="The repository's password; made when it does not exist. Default:"
    " /etc/iotops/restic-password, for a copy /etc/iotops/restic-password-NAME.",
)
@click.option("--credentials-file", type=FILE, help="NAME=value lines for a remote's access.")
@click.option("--ssh-config", type=FILE, help="ssh's configuration file for an sftp: address.")
@click.option(
    "--append-only", is_flag=True, help="With --copy: its server lets nothing be removed."
)
@click.option(
    "--accept-repository",
    is_flag=True,
    help="Take an existing repository for this hub, instead of refusing it.",
)
@click.option(
    "--new-history",
    is_flag=True,
    help="The repository that was at this address is gone for good: make an empty one.",
)
@click.option(
    "--from-repository",
    metavar="URL",
    help="Bring a hub folder back on a new machine; URL may be - when the kit's lines hold it.",
)
@click.option("--snapshot", default="latest", help="With --from-repository: another snapshot.")
@click.option("--port", "ports", multiple=True, metavar="NAME=N", help="Another published port.")
@click.option("--project", help="The Compose project's name; default: the hub's name.")
@click.option("--override", type=FILE, help="Becomes docker-compose.override.yaml of the hub.")
@click.option("--state", type=FOLDER, help="Another folder for the state file.")
@click.option("--run", "run_folder", type=FOLDER, help="Another folder for the lock.")
@hub_option
@output_options
def init(
    folder: Path | None,
    name: str,
    owner: str | None,
    data_root: Path,
    data_kind: str,
    claim_disk: bool,
    adopt: bool,
    claim_data: bool,
    dry_run: bool,
    yes: bool,
    repository: str | None,
    copy: str | None,
    password_file: Path | None,
    credentials_file: Path | None,
    ssh_config: Path | None,
    append_only: bool,
    accept_repository: bool,
    new_history: bool,
    from_repository: str | None,
    snapshot: str,
    ports: tuple[str, ...],
    project: str | None,
    override: Path | None,
    state: Path | None,
    run_folder: Path | None,
    hub_folder: Path | None,
    as_json: bool,
    quiet: bool,
) -> int | None:
    """Make a hub in DIR from the built-in template, or the repository of a hub that is there.

    \b
    Example: iotops init /srv/iot-hub --claim-disk
    Example: iotops init --repository /mnt/backup/iot-hub
    Example: iotops init --repository sftp:nas:/backup/iot-hub --copy nas
    Example: iotops init --from-repository /mnt/backup/iot-hub /srv/iot-hub
    Example: iotops init --adopt /srv/my-project --claim-data
    """
    from iotops.actions import setup

    out = screen(as_json, quiet)
    given = click.get_current_context().get_parameter_source("name")
    named = name if given is click.core.ParameterSource.COMMANDLINE else ""
    if from_repository is not None:
        from iotops.cli.newcard import new_card

        secrets = (password_file, credentials_file, ssh_config)
        new_card(out, from_repository, folder, named, snapshot, *secrets, state)
        return None
    if adopt:
        if repository is not None or copy is not None or claim_disk or password_file is not None:
            raise UsageError(
                "--adopt makes no repository and takes no empty disk",
                hint="first iotops init --adopt, then: iotops init --repository URL",
            )
        if ports or project is not None or override is not None:
            raise UsageError(
                "--adopt takes ports, project and files as the Compose file has them",
                hint="leave --port, --project and --override out",
            )
        wanted = Adopting(named, owner, data_root, data_kind, state, run_folder)
        where = folder or hub_folder or Path()
        return adopt_project(out, where, wanted, claim=claim_data, dry_run=dry_run, yes=yes)
    if dry_run:
        raise UsageError("--dry-run shows what --adopt would write", hint="add --adopt")
    if claim_data and folder is None and repository is None:
        return claim_data_root(out, open_hub(hub_folder), yes=yes)
    if claim_data:
        raise UsageError(
            "--claim-data is for a hub that is there, or with --adopt",
            hint="a new hub takes an empty disk: iotops init DIR --claim-disk",
        )
    lines: list[str] = []
    made: object = None
    if copy is not None:
        if folder is not None:
            raise UsageError(
                "a copy is made for a hub that has a repository",
                hint=f"first the hub, then: iotops init --repository URL --copy {copy}",
            )
        done = setup.init_copy(
            open_hub(hub_folder),
            copy,
            url=repository or "",
            password_file=password_file,
            credentials_file=credentials_file,
            ssh_config=ssh_config,
            append_only=append_only,
            accept=accept_repository,
            new_history=new_history,
            report=out.report,
        )
        out.result({"hub": None, "repository": done}, setup.told(done))
        return None
    if append_only:
        raise UsageError("--append-only says something of a copy", hint="add --copy NAME")
    if folder is not None:
        choices = setup.Choices(
            name=name,
            owner=owner or "",
            data_root=data_root,
            data_kind="folder" if data_kind == "folder" else "mount",
            claim_disk=claim_disk,
            repository=repository or "",
            password_file=password_file or PASSWORD_FILE,
            credentials_file=credentials_file,
            ports=_ports(ports),
            project=project or "",
            override=override,
            state=state,
            run=run_folder,
        )
        made = setup.init(folder.absolute(), choices, out.report)
        lines += setup.told(made)
    elif repository is None:
        raise UsageError(
            "say what to make: a hub folder, or a repository",
            hint="iotops init DIR, or iotops init --repository URL",
        )
    if repository is not None:
        hub = open_hub(folder.absolute() if folder is not None else hub_folder)
        done = setup.init_repository(
            hub,
            url=repository,
            password_file=password_file or PASSWORD_FILE,
            credentials_file=credentials_file,
            ssh_config=ssh_config,
            accept=accept_repository,
            new_history=new_history,
            report=out.report,
        )
        lines += setup.told(done)
        out.result({"hub": made, "repository": done}, lines)
        return None
    out.result({"hub": made}, lines)
    return None


def _ports(given: tuple[str, ...]) -> dict[str, int]:
    found: dict[str, int] = {}
    for text in given:
        name, _, number = text.partition("=")
        if not number.isdigit() or not 0 < int(number) < 65536:
            raise UsageError(f"--port {text}: not NAME=NUMBER", hint="--port mosquitto=1884")
        found[name] = int(number)
    return found


COMMANDS = (init,)
