"""Man pages of the commands and of the configuration, made from what `--help` says and from the commented example.

`manual.py DIRECTORY EXAMPLE DATE` writes voldriverd(8), voldriver(1), a page for each of its groups and
voldriver.toml(5). It runs in the environment that has the programs.

(click-man makes a page for each command from its options alone: 60 pages without exit status, files or a way from one
to the next.)
"""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import click

import voldriverd
from voldriverd import config
from voldriverd.cli import client, daemon

_STATUS: Final = (
    ("0", "Done."),
    ("1", "Refused or failed; one line on standard error says why. With several names it goes on after a failure."),
    ("2", "Wrong usage."),
)
_FILES: Final = (
    (str(config.DEFAULT_FILE), "The configuration, voldriver.toml(5)."),
    (str(config.DEFAULT_ROOT), "The database, the embedded image, the mounts, and by-name/VOLUME."),
    (str(config.Config().api_socket), "Where voldriver(1) speaks to voldriverd(8)."),
    (str(config.PLUGIN_SOCKET), "Where docker(1) and podman(1) do."),
)
_ENVIRONMENT: Final = (
    ("VOLDRIVER_SOCKET", "As --socket."),
    ("VOLDRIVER_URL, VOLDRIVER_ACCESS_KEY, VOLDRIVER_SECRET_KEY, VOLDRIVER_CA_CERT", "As --url and what goes with it."),
    ("CATTLE_URL, CATTLE_ACCESS_KEY, CATTLE_SECRET_KEY", "The same, where those are not set."),
)
_SERVES: Final = "Without a command it serves in the foreground until SIGTERM. Mounts stay when it ends."
_RETURNS: Final = (
    "A command returns when the work is final, prints what it made on standard output and the rest on standard error. "
    "The options below stand before the command."
)
_ESCAPED: Final = {"\\": r"\e", "-": r"\-", "'": r"\(aq", '"': r"\(dq", "^": r"\(ha", "~": r"\(ti"}
_SETTING: Final = re.compile(r"#(?P<key>\w+) = .+")
_TABLE: Final = re.compile(r"#\[(?P<name>[\w.]+)\]")


def main() -> None:
    """Write every page."""
    directory, example, date = sys.argv[1:]
    for name, text in pages(Path(example).read_text(), date).items():
        (Path(directory) / name).write_text(text)


def pages(example: str, date: str) -> dict[str, str]:
    """Return every page by the name of its file."""
    root = _context(client.main, "voldriver")
    groups = {name: client.main.get_command(root, name) for name in client.main.list_commands(root)}
    made = {
        "voldriverd.8": [*_head("voldriverd", 8, date), *_daemon()],
        "voldriver.1": [*_head("voldriver", 1, date), *_client(root, groups)],
        "voldriver.toml.5": [*_head("voldriver.toml", 5, date), *_configuration(example)],
    }
    for name, group in groups.items():
        assert group is not None
        made[f"voldriver-{name}.1"] = [*_head(f"voldriver-{name}", 1, date), *_group(group, name, root)]
    return {name: "\n".join(lines) + "\n" for name, lines in made.items()}


def _daemon() -> Iterator[str]:
    context = _context(daemon.main, "voldriverd")
    yield from _name("voldriverd", "volumes on real file systems for containers")
    yield from _synopsis((daemon.main, context))
    yield ".SH DESCRIPTION"
    yield from _prose(f"{daemon.main.help}\n\n{_SERVES}")
    yield from _options(daemon.main, context, ".SH OPTIONS")
    yield ".SH COMMANDS"
    for name, command in sorted(daemon.main.commands.items()):
        yield from _command(command, _context(command, name, context))
    yield from _list("EXIT STATUS", _STATUS)
    yield from _list("FILES", _FILES)
    yield from _see_also("voldriver(1)", "voldriver.toml(5)", "docker-volume-create(1)", "podman-volume-create(1)")


def _client(context: click.Context, groups: dict[str, click.Command | None]) -> Iterator[str]:
    yield from _name("voldriver", "make, snapshot, back up and look at volumes of voldriverd")
    yield from _synopsis((client.main, context))
    yield ".SH DESCRIPTION"
    yield from _prose(f"{client.main.help}\n\n{_RETURNS}")
    yield from _options(client.main, context, ".SH OPTIONS")
    yield from _list("COMMANDS", [(f"voldriver-{name}(1)", _first(group)) for name, group in groups.items()])
    yield from _list("EXIT STATUS", _STATUS)
    yield from _list("ENVIRONMENT", _ENVIRONMENT)
    yield from _list("FILES", _FILES)
    yield from _see_also("voldriverd(8)", "voldriver.toml(5)", *(f"voldriver-{name}(1)" for name in groups))


def _group(group: click.Command, name: str, root: click.Context) -> Iterator[str]:
    context = _context(group, name, root)
    yield from _name(f"voldriver-{name}", _first(group).rstrip("."))
    each = [(group, context)]
    if isinstance(group, click.Group):
        each = [(sub, _context(sub, key, context)) for key, sub in group.commands.items()]
    yield from _synopsis(*each)
    yield ".SH DESCRIPTION"
    yield from _prose(group.help or "")
    if isinstance(group, click.Group):
        yield ".SH COMMANDS"
        for sub, inner in each:
            yield from _command(sub, inner)
    else:
        yield from _options(group, context, ".SH OPTIONS")
    yield from _list("EXIT STATUS", _STATUS)
    yield from _see_also("voldriver(1)", "voldriverd(8)")


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield a command within the page of its group."""
    yield f".SS {_text(' '.join([context.info_name or '', *command.collect_usage_pieces(context)]))}"
    yield from _prose(command.help or "")
    yield from _options(command, context)


def _configuration(example: str) -> Iterator[str]:
    """Yield the page of the configuration: prose above a setting is about it, or about those under one prose."""
    yield from _name("voldriver.toml", "the configuration of voldriverd")
    yield ".SH SYNOPSIS"
    yield f".I {_text(str(config.DEFAULT_FILE))}"
    yield ".SH DESCRIPTION"
    blocks = example.strip().split("\n\n")
    begin = next(at for at, block in enumerate(blocks) if _SETTING.search(block))
    yield from _prose("\n\n".join(_about(block.splitlines()) for block in blocks[:begin]))
    yield ".SH KEYS"
    for block in blocks[begin:]:
        yield from _block(block.splitlines())
    yield from _see_also("voldriverd(8)", "voldriver(1)")


def _block(lines: list[str]) -> Iterator[str]:
    prose = [line for line in lines if not (_SETTING.match(line) or _TABLE.match(line))]
    tables = [found["name"] for found in map(_TABLE.match, lines) if found]
    settings = [line[1:] for line in lines if _SETTING.match(line)]
    for table in tables:
        yield f".SS [{_text(table)}]"
    for at, setting in enumerate(settings):
        yield ".TQ" if at else ".TP"
        yield f".B {_text(setting)}"
    if prose:
        yield _text(_about(prose))


def _about(lines: list[str]) -> str:
    return " ".join(line.removeprefix("#").strip() for line in lines)


def _head(name: str, section: int, date: str) -> Iterator[str]:
    yield f'.TH "{_text(name.upper())}" {section} {date} "voldriverd {voldriverd.__version__}"'
    yield ".ad l"
    yield ".nh"


def _name(name: str, what: str) -> Iterator[str]:
    yield ".SH NAME"
    yield _text(f"{name} - {what[:1].lower()}{what[1:]}")


def _synopsis(*each: tuple[click.Command, click.Context]) -> Iterator[str]:
    yield ".SH SYNOPSIS"
    for at, (command, context) in enumerate(each):
        if at:
            yield ".br"
        yield f".B {_text(context.command_path.split(' [', 1)[0])}"
        yield _text(" ".join(command.collect_usage_pieces(context)))


def _options(command: click.Command, context: click.Context, heading: str | None = None) -> Iterator[str]:
    """Yield the options, and arguments that have a text of their own; --help only where there is a heading."""
    shown = [each for each in command.get_params(context) if heading or "--help" not in each.opts]
    records = [record for each in shown if (record := each.get_help_record(context)) and record[1]]
    if heading and records:
        yield heading
    for term, about in records:
        yield ".TP"
        yield f".B {_text(term)}"
        yield _text(about)


def _list(heading: str, entries: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield f".SH {heading}"
    for term, about in entries:
        yield ".TP"
        yield f".B {_text(term)}"
        yield _text(about)


def _see_also(*names: str) -> Iterator[str]:
    yield ".SH SEE ALSO"
    yield _text(", ".join(names))


def _first(command: click.Command | None) -> str:
    """Return the first sentence of what a command says of itself."""
    assert command is not None
    return (command.help or "").strip().split("\n\n")[0].replace("\n", " ")


def _prose(text: str) -> Iterator[str]:
    """Yield paragraphs; one after click's mark is kept line by line."""
    for at, paragraph in enumerate(text.strip().split("\n\n")):
        lines = [line.strip() for line in paragraph.strip().splitlines()]
        if at:
            yield ".PP"
        if lines[:1] == ["\b"]:
            yield ".nf"
            yield from (_text(line) for line in lines[1:])
            yield ".fi"
        else:
            yield _text(" ".join(lines))


def _text(text: str) -> str:
    """Return text that roff prints as it is (groff_man_style(7)); what stands between backquotes is bold."""
    plain = text
    for character, escaped in _ESCAPED.items():
        plain = plain.replace(character, escaped)
    plain = re.sub(r"`([^`]+)`", r"\\fB\1\\fP", plain)
    return rf"\&{plain}" if plain.startswith(".") else plain


def _context(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    return click.Context(command, info_name=name, parent=parent, **command.context_settings)


if __name__ == "__main__":
    main()
