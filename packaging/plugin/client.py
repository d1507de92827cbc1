"""`voldriver` in the managed plugin."""

import sys

sys.path.insert(0, "/usr/lib/voldriver")

from voldriverd.cli.client import main

main(prog_name="voldriver")
