"""Runs the measurements and prints one table; `--only WORD` picks those whose title has the word."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

from bench import api, backups, peers, scale, verbs


@dataclass(frozen=True, slots=True)
class Section:
    """One group of figures that share a daemon."""

    title: str
    run: Callable[[int], list[tuple[str, str, str]]]


SECTIONS = (
    Section("verbs against the bare handler and the raw calls", verbs.run),
    Section("scale: 10,000 volumes, eight clients, 10,000 snapshots", scale.run),
    Section("api: one volume, 100,000 snapshots", api.run),
    Section("backups: restic, a large image, memory", backups.run),
    Section("peers: buttervolume", peers.run),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a word of the title of the sections to run")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds; the figures are their medians")
    arguments = parser.parse_args()
    for section in SECTIONS:
        if arguments.only not in section.title:
            continue
        _say(f"\n## {section.title}\n\n| {'figure':48} | {'measured':>34} | {'target':>12} |")
        _say(f"|{'-' * 50}|{'-' * 36}|{'-' * 14}|")
        for figure, measured, target in section.run(arguments.rounds):
            _say(f"| {figure:48} | {measured:>34} | {target:>12} |")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
