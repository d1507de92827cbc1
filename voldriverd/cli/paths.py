"""Paths that are typed, for both programs: relative ones begin where one stands."""

import os
from pathlib import Path

import click


def absolute(context: click.Context, option: click.Parameter, path: str | None) -> Path | None:
    """Return the path of an option, None if it is not given. Raises click's usage error for an empty one."""
    if path == "":  # of a variable that is not set; it would be where one stands
        raise click.BadParameter("it is empty", context, option)
    return None if path is None else Path(os.path.abspath(path))
