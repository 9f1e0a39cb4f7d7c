"""The documents are honest: what they show exists, and what exists is shown."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path

import click
import pytest

from iotops import config, errors, model, services
from iotops.cli import iotops
from iotops.errors import EXIT_MEANING, Exit
from iotops.hub import options_of
from tests.support import reference

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
BY_NAME = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
WORDS = re.findall(
    r"\w+",
    """Hub Stack Service Kind Staging Artifact Manifest Repository Snapshot retention forget prune
    check Hot cold Plan Step Change Drift Revision Drill Facts counts Finding Run Outcome""",
)
MINIMAL = {"hub": {"id": "7c1f0a9be2d34c55", "name": "iot-hub", "owner": "iot"}}


def blocks(language: str) -> Iterator[tuple[str, str]]:
    for name, text in BY_NAME.items():
        for found in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            yield name, found[1]


def shown_commands() -> Iterator[tuple[str, str]]:
    """Every command line of iotops in a shell block or in backticks."""
    for name, text in blocks("sh"):
        for line in text.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\||;", line.partition("  #")[0]):
                if re.match(r"\s*(sudo )?iotops ", part):
                    yield name, part.strip().removeprefix("sudo ")
    for name, text in BY_NAME.items():
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        for found in re.finditer(r"`(?:sudo )?(iotops [^`]+)`", prose):
            yield name, " ".join(found[1].split())


def hints() -> Iterator[tuple[str, str]]:
    """Every command that the code tells people to type next."""
    for path, tree in trees().items():
        docs = docstrings(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if id(node) not in docs:
                    words = r"(?:^|: |, |or |sudo )(iotops(?: --?[a-z-]+| [a-z]+\b)+)"
                    for found in re.finditer(words, node.value):
                        yield path, found[1]


@cache
def trees() -> dict[str, ast.Module]:
    """The modules of the program, by path."""
    paths = sorted((ROOT / "iotops").rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in paths}


def docstrings(tree: ast.Module) -> set[int]:
    """Which nodes of a module are docstrings, also below assignments."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def templates() -> dict[str, str]:
    """What each module can print: its texts but for the docstrings, values left out."""
    found = {}
    for path, tree in trees().items():
        texts: list[str] = []
        docs = docstrings(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "\0" for v in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                if id(node) not in docs:
                    texts.append(node.value)
        found[path] = "\0\0".join(texts)
    return found


def quoted() -> Iterator[tuple[str, str]]:
    """Every message that a page quotes: in backticks, in the first column of "it says"."""
    for name, text in BY_NAME.items():
        for table in re.findall(r"(?m)^\| (?:what )?it says \|.*\n(?:\|.*\n?)+", text):
            for row in table.splitlines()[2:]:
                for found in re.findall(r"`([^`]+)`", row.split(" | ")[0]):
                    yield name, found


def command_of(words: list[str]) -> tuple[click.Command, list[str]]:
    """Find the command that a line names, and what is left of the line."""
    command: click.Command = iotops
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        inner = command.commands.get(words[0])
        assert inner is not None, f"there is no command {words[0]!r}"
        command, words = inner, words[1:]
    return command, words


def test_shown_git_commands_tell_the_branch_from_the_folder() -> None:
    """A hub has a branch `flows` and a folder `flows`: `git log flows` alone is ambiguous."""
    logs = [
        f"{name}: {line}"
        for name, text in BY_NAME.items()
        for line in re.findall(r"(?m)^(?:sudo )?git\b.* log .*\bflows\b.*$", text)
    ]
    assert logs  # the tutorial shows one
    assert not [one for one in logs if not one.endswith(" --")]


@pytest.mark.parametrize(("page", "line"), [*shown_commands()])
def test_shown_commands_parse(page: str, line: str) -> None:
    if "..." in line:
        pytest.skip("stands for any command")
    command, rest = command_of(shlex.split(line)[1:])
    if rest and not isinstance(command, click.Group):
        try:
            # Under the root's settings: click keeps a command's help option from its first use.
            command.make_context(
                command.name,
                rest,
                parent=click.Context(iotops, info_name="iotops", **iotops.context_settings),
            )
        except click.exceptions.Exit:
            pass  # --help
        except click.UsageError as error:
            pytest.fail(f"{page}: `{line}`: {error.format_message()}")


@pytest.mark.parametrize(("path", "line"), sorted({*hints()}))
def test_hints_name_commands_and_options_that_exist(path: str, line: str) -> None:
    command, rest = command_of(line.split()[1:])
    known = {name for parameter in command.params for name in parameter.opts}
    unknown = {word for word in rest if word.startswith("-")} - known - {"--help", "--version"}
    assert not unknown, f"{path}: `{line}`"


TEMPLATES = templates()
QUOTED = sorted({*quoted()})
ALSO = (errors.Interrupted,)


@pytest.mark.parametrize(("page", "message"), QUOTED)
def test_quoted_messages_are_what_the_program_prints(page: str, message: str) -> None:
    """Word for word, in one module; `...` stands for a value."""
    parts = [part.strip(" ") for part in message.split("...")]
    assert max(map(len, parts)) >= 8, f"{page}: too little of it is constant"
    wanted = [part for part in parts if re.search(r"\w", part)]
    assert any(all(part in text for part in wanted) for text in TEMPLATES.values()), (
        f"{page}: nothing prints `{message}`"
    )


def leaves(root: type[BaseException]) -> Iterator[type[BaseException]]:
    """Every kind of error that has no kinds of its own."""
    for kind in root.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from [*leaves(kind)] or [kind]


@cache
def raised() -> dict[str, str]:
    """What errors of each kind say, wherever one is made; values left out."""
    kinds = {kind.__name__: list[str]() for kind in [*leaves(errors.IotopsError), *ALSO]}
    for tree in trees().values():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            names = [one.id for one in (node.func, *node.args) if isinstance(one, ast.Name)]
            for name in kinds.keys() & {*names}:
                for one in ast.walk(node):
                    if isinstance(one, ast.Constant) and isinstance(one.value, str):
                        kinds[name].append(one.value)
    return {name: "\0".join(texts) for name, texts in kinds.items()}


@pytest.mark.parametrize("kind", [*leaves(errors.IotopsError), *ALSO])
def test_every_kind_of_error_is_on_a_page(kind: type[BaseException]) -> None:
    parts = [part.strip(" ") for _, message in QUOTED for part in message.split("...")]
    said = raised()[kind.__name__]
    assert any(part in said for part in parts if len(part) >= 12), said.split("\0")


@pytest.mark.parametrize("code", [1, 2, 3, 4, 10, 11, 12, 75, 130])
def test_every_failure_has_a_page(code: int) -> None:
    pages = [text for name, text in BY_NAME.items() if "/how-to/when-" in name]
    assert any(re.search(rf"\bexit {code}\b", text, re.IGNORECASE) for text in pages)


@pytest.mark.parametrize("name", reference.PAGES)
def test_generated_pages_are_fresh(name: str) -> None:
    # Blanks are not compared: versions of click break lines differently.
    written = (reference.FOLDER / name).read_text().split()
    assert written == reference.PAGES[name]().split(), f"{name} is stale: run `make docs`"


def test_every_command_has_purpose_example_and_exit_codes() -> None:
    page = BY_NAME["docs/reference/cli.md"]
    for name, command in reference.commands(iotops):
        assert f"## iotops {name}\n" in page
        assert command.help and re.search("Example: (sudo )?iotops", command.help), name
        assert isinstance(command, click.Group) or "Exit codes:" in (command.epilog or ""), name
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.help, f"iotops {name} {parameter.opts[0]} has no help"
                assert parameter.opts[0] in page


def listed(command: click.Command) -> set[Exit]:
    """The exit codes that a command's help lists."""
    numbers = re.findall(r"^  (\d+) ", command.epilog or "", re.MULTILINE)
    return {Exit(int(number)) for number in numbers}


@pytest.mark.parametrize(
    ("name", "command"),
    [one for one in reference.commands(iotops) if not isinstance(one[1], click.Group)],
)
def test_the_exit_codes_of_a_command_fit_what_it_does(name: str, command: click.Command) -> None:
    """Judged by its code: long work can be interrupted, and only a result can be partial."""
    assert command.callback is not None
    work = inspect.unwrap(command.callback)
    source = inspect.getsource(work)
    codes = listed(command)
    assert codes >= {Exit.DONE, Exit.FAILED, Exit.USAGE}
    assert ("out.report" not in source) or Exit.INTERRUPTED in codes, f"{name}: 130"
    if inspect.get_annotations(work, eval_str=True)["return"] is None:
        assert not codes & {Exit.PARTIAL, Exit.SKIPPED}, f"{name} returns no exit code"
    for code in (Exit.PARTIAL, Exit.SKIPPED):
        told = f"Exit.{code.name}" in source or "done.exit" in source
        assert told or code not in codes, f"{name}: {code}"
        assert f"Exit.{code.name}" not in source or code in codes, f"{name}: {code}"


def test_every_exit_code_is_documented() -> None:
    page = BY_NAME["docs/reference/exit-codes.md"]
    assert EXIT_MEANING.keys() == set(Exit)
    for code, meaning in EXIT_MEANING.items():
        assert f"| {code.value} | {meaning} |" in page, code


def test_every_settings_key_is_documented() -> None:
    page = BY_NAME["docs/reference/settings.md"]
    for key, meaning in config.keys().items():
        assert meaning and f"| `{key}` |" in page, key
    for later in config.LATER:
        assert f"- `{later}`:" in page, later


@pytest.mark.parametrize("kind", services.kinds())
def test_every_kind_is_documented(kind: str) -> None:
    options = services.kind(kind).Options
    said = {**reference.attributes(options.__mro__[1]), **reference.attributes(options)}
    assert not [field.name for field in fields(options) if not said.get(field.name)]
    assert f"### kind `{kind}`" in BY_NAME["docs/reference/settings.md"]
    assert f"## kind `{kind}`" in BY_NAME["docs/explanation/captures.md"]


def test_every_field_of_the_manifest_is_documented() -> None:
    page = BY_NAME["docs/reference/manifest.md"]
    described = (model.Manifest, model.ServiceRecord, model.PartRecord, model.Artifact)
    for one in described:
        for field in fields(one):
            assert f"`{field.name}`" in page, f"{one.__name__}.{field.name}"


@pytest.mark.parametrize("word", WORDS)
def test_every_word_is_in_the_glossary(word: str) -> None:
    heads = re.findall(r"^\| (.+?) \|", BY_NAME["docs/reference/glossary.md"], re.MULTILINE)
    assert word in {one for head in heads for one in re.split(r"[*, ]+", head)}


@pytest.mark.parametrize(("page", "block"), [*blocks("toml")])
def test_shown_settings_have_no_fault(page: str, block: str) -> None:
    document = {**MINIMAL, **tomllib.loads(block)}
    config.check(document, Path(page), options_of)


def anchors(text: str) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", BY_NAME)
def test_links_lead_somewhere(name: str) -> None:
    folder = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", BY_NAME[name]):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (folder / path).resolve() if path else ROOT / name
        assert there.exists(), f"{name}: {target}"
        assert there.is_relative_to(ROOT), f"{name}: {target}"
        if anchor:
            assert anchor in anchors(there.read_text()), f"{name}: {target}"


def test_every_page_is_reached_from_the_index() -> None:
    index = BY_NAME["docs/index.md"]
    for name in BY_NAME:
        if name.startswith("docs/") and "/unreleased/" not in name and name != "docs/index.md":
            assert name.removeprefix("docs/") in index, name
