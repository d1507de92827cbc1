"""The two programs: `voldriverd` (daemon.py) and `voldriver` (client.py, one module per group of commands)."""
