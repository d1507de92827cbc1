"""Where data lies in an image or a body."""

from array import array
from collections.abc import Iterable, Iterator


class Ranges:
    """Ascending ranges of bytes, adjacent ones merged: 16 bytes of memory for each."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """Begin with (offset, length) of some. Raises ValueError, as `add`."""
        self._flat = array("Q")
        for offset, length in ranges:
            self.add(offset, length)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        flat = iter(self._flat)
        return zip(flat, flat, strict=True)

    def __len__(self) -> int:
        return len(self._flat) // 2

    @property
    def end(self) -> int:
        """Where the last one ends; 0 if there is none."""
        return self._flat[-2] + self._flat[-1] if self._flat else 0

    @property
    def total_bytes(self) -> int:
        """All lengths together."""
        return sum(self._flat[1::2])

    def add(self, offset: int, length: int) -> None:
        """Add one behind the others. Raises ValueError if it is not there, or empty, or beyond 2**63."""
        if not self.end <= offset < offset + length < 1 << 63:
            raise ValueError(f"range {offset}+{length} is not behind {self.end}")
        if self._flat and self.end == offset:
            self._flat[-1] += length
        else:
            self._flat.extend((offset, length))

    def within(self, start: int, length: int) -> "Ranges":
        """Return what lies from `start` on for `length` bytes if the ranges are put one after the other."""
        found = Ranges()
        end = start + length
        position = 0
        for offset, size in self:
            first, last = max(start, position), min(end, position + size)
            if first < last:
                found.add(offset + first - position, last - first)
            position += size
            if position >= end:
                break
        return found
