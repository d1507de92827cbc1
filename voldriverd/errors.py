"""The six kinds of error; a caller acts on the kind, a person reads the text.

    Error
    ├── Invalid      the request is wrong and stays wrong; `field` names the argument at fault
    ├── NotFound     the thing named is not there
    ├── Exists       the name or key is taken
    ├── InUse        somebody holds it; the same request may succeed later
    ├── Unsupported  this driver, pool or kernel cannot do it; another may
    └── Unusable     the pool, database or device does not work now; an operator must look

The text is one line: "cannot" + verb + thing + name + cause, lower case, no full stop.
Every edge turns a kind into its dialect (HTTP status, Docker `Err`, exit code) in one place.
"""


class Error(Exception):
    """Base of the six kinds; never raised itself."""


class Invalid(Error):
    """The request is wrong; `field` is the option or argument at fault, None if it is the whole."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        """Keep the name of the faulty field beside the text."""
        super().__init__(message)
        self.field = field


class NotFound(Error):
    """The thing named does not exist."""


class Exists(Error):
    """The name or key is already taken."""


class InUse(Error):
    """Somebody holds the thing; the text says who."""


class Unsupported(Error):
    """This driver, pool or kernel cannot do it; the text says what can."""


class Unusable(Error):
    """A pool, database or device does not work now; the text says what an operator should look at."""
