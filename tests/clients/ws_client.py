"""A WebSocket client: ws_client.py URL. Sends text, bytes and a large message, each after the answer to the last.

A handshake that is refused is an observation: {"status": …, "body": …}.
"""

import asyncio
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import InvalidProxyStatus, InvalidStatus

from witness import report

# More than one frame, one TLS record and one HTTP/2 window.
LARGE = 300_000


async def main():
    try:
        async with connect(sys.argv[1], subprotocols=["echo.v1"], open_timeout=30) as socket:
            await socket.send("hello")
            text = await socket.recv()
            await socket.send(b"\x00\xff")
            binary = (await socket.recv()).hex()
            await socket.send(b"x" * LARGE)
            large = len(await socket.recv())
            pong = await socket.ping()
            await asyncio.wait_for(pong, 30)
        report(text=text, binary=binary, large=large, subprotocol=socket.subprotocol, close=socket.close_code)
    except (InvalidStatus, InvalidProxyStatus) as e:
        body = (e.response.body or b"").decode(errors="replace")
        report(status=e.response.status_code, body=body, headers=dict(e.response.headers))


asyncio.run(main())
