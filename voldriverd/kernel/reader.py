"""Exact numbers of bytes out of pieces of any size."""

from collections.abc import Iterator


class Reader:
    """Reads what an iterator gives; keeps one piece of it."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        """Take nothing yet."""
        self._pieces = pieces
        self._rest = memoryview(b"")
        self.position = 0
        self.failure: BaseException | None = None
        """What the iterator has raised, to be told from the errors of who reads."""

    def read(self, size_bytes: int) -> bytes:
        """Return exactly so many bytes, none at the end. Raises EOFError if fewer are left."""
        found = b"".join(self._take(size_bytes))
        if 0 < len(found) < size_bytes:
            raise EOFError(f"{size_bytes - len(found)} bytes are missing at byte {self.position}")
        return found

    def pieces(self, size_bytes: int) -> Iterator[memoryview]:
        """Yield so many bytes as they come. Raises EOFError if fewer are left."""
        end = self.position + size_bytes
        yield from self._take(size_bytes)
        if self.position < end:
            raise EOFError(f"{end - self.position} bytes are missing at byte {self.position}")

    def blocks(self, end: int, *, block_bytes: int) -> Iterator[bytes]:
        """Yield block after block up to a position. Raises EOFError."""
        while self.position < end and (block := self.read(block_bytes)):
            yield block

    def skip(self, size_bytes: int) -> None:
        """Leave out so many bytes. Raises EOFError if fewer are left."""
        for _ in self.pieces(size_bytes):
            pass

    def _take(self, size_bytes: int) -> Iterator[memoryview]:
        while size_bytes and self._fill():
            piece = self._rest[:size_bytes]
            self._rest = self._rest[len(piece) :]
            self.position += len(piece)
            size_bytes -= len(piece)
            yield piece

    def _fill(self) -> bool:
        """See to it that there is a rest; False at the end."""
        while not self._rest:
            try:
                piece = next(self._pieces, None)
            except BaseException as err:  # whatever a generator raises is not ours to change
                self.failure = err
                raise
            if piece is None:
                return False
            self._rest = memoryview(piece)
        return True
