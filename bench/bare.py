"""The bare handler: the least that an aiohttp server can do for a request. Run as a process of its own."""

import asyncio
import sys

from aiohttp import web

ANSWER = b'{"Volume": {"Name": "v", "Mountpoint": "", "Status": {}}, "Err": ""}'


async def _handle(request: web.BaseRequest) -> web.StreamResponse:
    await request.read()
    return web.Response(body=ANSWER, content_type="application/json")


async def _serve(path: str) -> None:
    runner = web.ServerRunner(web.Server(_handle, access_log=None))
    await runner.setup()
    await web.UnixSite(runner, path).start()
    await asyncio.Event().wait()


asyncio.run(_serve(sys.argv[1]))
