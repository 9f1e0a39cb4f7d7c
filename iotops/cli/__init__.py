"""The command line: the root group, the shared options, and the one error boundary.

Only this floor knows click and the screen. Commands import what they need when they run, so that
`--help` and `--version` load click and nothing else. Not here: any work.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import NoReturn

import click

from iotops import __version__, signals
from iotops.cli import (
    backups,
    demo,
    device,
    drill,
    env,
    export,
    gitops,
    hub,
    init,
    inside,
    kit,
    sync,
    upkeep,
)
from iotops.cli.common import EXIT_EPILOG
from iotops.errors import Exit, Interrupted, IotopsError


@click.group(
    epilog=EXIT_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="iotops", message="%(prog)s %(version)s")
def iotops() -> None:
    """Keep a Raspberry Pi IoT hub recoverable.

    \b
    Example: iotops backup
    """


for room in (
    init,
    hub,
    env,
    backups,
    inside,
    kit,
    drill,
    upkeep,
    export,
    gitops,
    sync,
    device,
    demo,
):
    for command in room.COMMANDS:
        iotops.add_command(command)


OBJECTS_BETWEEN_COLLECTIONS = 50_000
"""Python's 700 makes it look for garbage dozens of times while modules load, and find none."""


def main() -> NoReturn:
    """Run the command line and end the process with its exit code."""
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS)
    signals.install()
    _leave(_run(sys.argv[1:]))


def _leave(code: int) -> NoReturn:
    """End the process at once: taking the interpreter apart costs 50 ms and more on a Pi.

    Nothing is lost by it: what must be undone is undone where it was done, and what was printed
    is written here. An answer that could not be written is no success.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is None:  # the caller had closed it: nobody waits for an answer
            continue
        try:
            stream.flush()
        except OSError:
            code = code or Exit.FAILED
        except ValueError:
            pass  # closed already: whoever read it has gone
    os._exit(code)


def _run(arguments: list[str]) -> int:
    """Run one command; every expected failure becomes a few lines and its exit code."""
    json = "--json" in arguments
    try:
        code = iotops.main(args=arguments, prog_name="iotops", standalone_mode=False)
        return code if isinstance(code, int) else Exit.DONE
    except click.exceptions.Exit as asked:
        return asked.exit_code
    except click.ClickException as error:
        if json:
            _say(json, error.format_message(), "iotops --help", Exit.USAGE)
        else:
            error.show()
        return Exit.USAGE
    except (IotopsError, Interrupted) as error:
        _say(json, error.message, error.hint, error.exit)
        return error.exit
    except (click.Abort, KeyboardInterrupt):
        _say(json, "interrupted", "", Exit.INTERRUPTED)
        return Exit.INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone; nothing is left to say
        return Exit.FAILED
    except OSError as error:
        # What no action expected: a full disk, a folder that only root may read, a dying disk.
        where = f"{error.filename}: " if error.filename else ""
        rights = isinstance(error, PermissionError)
        hint = "run iotops as root: sudo" if rights else "look at the disk: df -h; iotops doctor"
        _say(json, f"{where}{error.strerror or error}", hint, Exit.FAILED)
        return Exit.FAILED


def _say(json: bool, message: str, hint: str, code: Exit) -> None:
    from iotops.cli.render import show_error

    show_error(message, hint, code, json=json)
