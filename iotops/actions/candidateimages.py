"""Tell whether the images of a candidate can run on this machine, and fetch those that can.

An image is here, or its registry offers it for this machine's platform; to ask loads nothing of it.
Not here: which services are made anew (`syncplan.py`), and trying files on an image
(`candidate.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress

from iotops.clients import enginelook
from iotops.clients.compose import ComposeStack
from iotops.errors import GuardError, StackError
from iotops.events import Report, silent, step
from iotops.hub import Hub
from iotops.model import Finding, Severity

ANOTHER = "choose an image for this machine"
RUNS_TOO = {"linux/arm64": "linux/arm"}
"""What an engine takes where its own platform is not offered: a 64-bit Pi runs 32-bit images."""


def look(hub: Hub) -> Iterator[Finding]:
    """Find images that are not here, cannot be had, or are for another kind of machine.

    Args:
        hub: the candidate's.
    """
    wanted = {one.image for one in hub.model.services.values() if one.image and not one.built}
    here = enginelook.images_here(wanted)
    own = enginelook.platform()
    for name, model in sorted(hub.model.services.items()):
        if model.built:
            continue
        if not model.image:
            text, hint = "it names no image", "write: image: NAME:VERSION"
            yield Finding("image.none", Severity.ERROR, name, text, hint)
        elif (there := here.get(model.image)) is None:
            yield _absent(hub, name, model.image, own)
        elif not _runs(there, own) and there.count("/") == 1:
            yield Finding(
                "image.platform",
                Severity.WARNING,
                name,
                f"the image {model.image} on this machine is for {there}, the machine is {own}",
                f"docker pull {model.image}",
            )


def fetch(stack: ComposeStack, images: Collection[str], report: Report = silent) -> None:
    """Fetch the images that are not here.

    Docker fetches one of another platform too, where nothing else is offered: it would be found
    out by a service that does not start.

    Raises:
        GuardError: one is for another kind of machine. StackError: one cannot be had.
    """
    absent = sorted({*images} - {*stack.image_ids(sorted(images))})
    own = enginelook.platform() if absent else ""
    for image in absent:
        offered: tuple[str, ...] = ()
        with suppress(StackError):  # what keeps it from being had, the pull says
            offered = stack.platforms(image)
        if text := _foreign(image, offered, own):
            raise GuardError(f"{text}; nothing was touched", hint=ANOTHER)
    for image in absent:
        with step(report, "pull", image):
            stack.pull(image)


def _absent(hub: Hub, name: str, image: str, own: str) -> Finding:
    pull = f"docker pull {image}"
    try:
        offered = hub.stack.platforms(image)
    except StackError as error:
        why = error.message.partition(": ")[2]
        text = f"the image {image} is not here, and its registry does not give it: {why}"
        hint = f"correct its name, or get it here: {pull}"
        return Finding("image.missing", Severity.ERROR, name, text, hint)
    if text := _foreign(image, offered, own):
        return Finding("image.platform", Severity.ERROR, name, text, ANOTHER)
    return Finding(
        "image.pull",
        Severity.WARNING,
        name,
        f"the image {image} is not here yet; it can be pulled, but nothing was tried with it",
        f"{pull}; then look again",
    )


def _foreign(image: str, offered: Collection[str], own: str) -> str:
    """Say that an image is offered for other platforms only; empty = it is not, or nobody says."""
    if not offered or any(_runs(one, own) for one in offered):
        return ""
    return f"the image {image} exists for {', '.join(offered)}; this machine is {own}"


def _runs(platform: str, own: str) -> bool:
    return platform in (own, RUNS_TOO.get(own))
