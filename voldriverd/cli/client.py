"""`voldriver`: a client of the daemon's HTTP API; the commands stand in one module for each group.

Exit status: 0 done, 1 refused or failed (one line on standard error), 2 wrong usage.
"""

import errno
import importlib
from pathlib import Path
from typing import Any, Final

import click
from click import shell_completion

import voldriverd
from voldriverd.cli import completion, show
from voldriverd.cli.connection import Connection, place_of
from voldriverd.cli.session import Session
from voldriverd.errors import Error

_GROUPS: Final = (
    *("apikey", "backup", "doctor", "events", "export", "import", "info"),
    *("pool", "snapshot", "target", "trash", "volume"),
)
_MODULES: Final = {"import": "adopt"}
"""Of a group whose name no module can have."""
_OF_WRITING: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


class _Program(click.Group):
    """Imports a group's module when it is asked for, and says errors in one line."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run; the shell may ask what comes next."""
        shell_completion.add_completion_class(completion.Bash)
        return super().main(*args, **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the groups."""
        del ctx
        return list(_GROUPS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a group, or None if there is none of that name."""
        del ctx
        if cmd_name not in _GROUPS:
            return None
        found: click.Command = importlib.import_module(f"voldriverd.cli.{_MODULES.get(cmd_name, cmd_name)}").group
        return found

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what is refused ends with status 1."""
        try:
            return super().invoke(ctx)
        except click.NoSuchOption as err:
            if err.option_name not in {name for parameter in self.params for name in parameter.opts}:
                raise
            hint = f"{err.option_name} stands before the command, as in: voldriver --json volume ls"
            raise click.UsageError(hint, err.ctx) from err
        except Error as err:
            show.note(f"voldriver: {err}")
            raise click.exceptions.Exit(1) from err
        except OSError as err:  # of other files it is told where they are used
            if err.errno == errno.EPIPE:  # who reads has enough; click ends quietly then
                raise
            what = "write standard output" if err.errno in _OF_WRITING else "go on"
            show.note(f"voldriver: cannot {what}: {err.strerror or err}")
            raise click.exceptions.Exit(1) from err


@click.command(cls=_Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--socket", metavar="PATH", type=click.Path(path_type=Path), help="The daemon's API socket.")
@click.option("--url", help="A daemon on TCP instead, as in http://127.0.0.1:9580.")
@click.option("--access-key", metavar="KEY", help="The public half of an API key, for --url.")
@click.option("--secret-key", metavar="KEY", help="The secret half; others see it in ps, not so in the environment.")
@click.option(
    "--ca-cert", metavar="FILE", type=click.Path(path_type=Path), help="Who may have signed the certificate of --url."
)
@click.option("--json", "is_json", is_flag=True, help="Print the API's resources.")
@click.version_option(voldriverd.__version__, message="%(prog)s %(version)s")
@click.pass_context
def main(
    ctx: click.Context,
    *,
    socket: Path | None,
    url: str | None,
    access_key: str | None,
    secret_key: str | None,
    ca_cert: Path | None,
    is_json: bool,
) -> None:
    """Volumes, snapshots, backups and pools of voldriverd.

    The daemon is found by --socket or VOLDRIVER_SOCKET, or by --url, --access-key, --secret-key and --ca-cert
    (VOLDRIVER_URL, VOLDRIVER_ACCESS_KEY, VOLDRIVER_SECRET_KEY, VOLDRIVER_CA_CERT, or the same with CATTLE_).
    """
    if socket is not None and url is not None:
        raise click.UsageError("--socket and --url exclude each other")
    place = place_of(socket=socket, url=url, access_key=access_key, secret_key=secret_key, ca_cert=ca_cert)
    keys = {"--access-key": access_key, "--secret-key": secret_key, "--ca-cert": ca_cert}
    alone = [name for name, value in keys.items() if value is not None]
    if alone and place.url is None:  # over the socket it would be another daemon than the one that was meant
        raise click.UsageError(f"{' and '.join(alone)} without --url or VOLDRIVER_URL")
    connection = Connection(place)
    ctx.call_on_close(connection.close)
    ctx.obj = Session(connection, is_json)
