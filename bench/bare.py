"""The bare handler: the least that an aiohttp server can do for a request. Run as a process of its own.

Takes a socket, and a file of what to answer if that is not to be ANSWER.
"""

import asyncio
import sys
from pathlib import Path

from aiohttp import web

ANSWER = b'{"Volume": {"Name": "v", "Mountpoint": "", "Status": {}}, "Err": ""}'


async def _handle(request: web.BaseRequest) -> web.StreamResponse:
    await request.read()
    return web.Response(body=_answer, content_type="application/json")


async def _serve(path: str) -> None:
    runner = web.ServerRunner(web.Server(_handle, access_log=None))
    await runner.setup()
    await web.UnixSite(runner, path).start()
    await asyncio.Event().wait()


_answer = Path(sys.argv[2]).read_bytes() if len(sys.argv) > 2 else ANSWER
asyncio.run(_serve(sys.argv[1]))
