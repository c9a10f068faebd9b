"""aiohttp's WebSocket client, with the one argument that makes it read the proxy variables: ws_aiohttp.py URL

A ws URL, for which it reads `ws_proxy`, or an http one.
"""

import asyncio
import sys

import aiohttp

from witness import report


async def main():
    async with aiohttp.ClientSession(trust_env=True) as session:
        try:
            async with session.ws_connect(sys.argv[1], protocols=["echo.v1"]) as socket:
                await socket.send_str("hello")
                heard = (await socket.receive()).data
                await socket.send_str("bye")
                end = await socket.receive()
                report(heard=[heard], protocol=socket.protocol, code=socket.close_code, reason=end.extra)
        except aiohttp.WSServerHandshakeError as e:
            report(status=e.status, message=e.message)


asyncio.run(main())
