"""The verbs and recovery: blocking functions, read from top to bottom, testable without asyncio.

A verb that makes something: (1) commit the tree's row, (2) the driver makes the tree, (3) commit the
pointer, (4) remove the tree that lost its pointer, (5) drop its row. A verb that takes away begins
at 3. Steps 4 and 5 are `trees.discard` and the worker's `trees.collect`. A crash anywhere leaves
trees that a row knows and nothing points to; recovery is a set difference.

The caller (service) holds the lock of every volume that a verb is given, except for the verbs of
`upkeep`, which say themselves what they may touch.
"""
