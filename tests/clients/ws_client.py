"""A WebSocket client: ws_client.py URL [frames]. Sends text, bytes and a large message, each after the answer to the
last; with `frames`, what the protocol has besides: fragments, pings of both ends, codes and reasons of a close.

A handshake that is refused is an observation: {"status": …, "body": …}.
"""

import asyncio
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidProxyStatus, InvalidStatus

from witness import report

# More than one frame, one TLS record and one HTTP/2 window.
LARGE = 300_000
# More than a window of a whole connection between sidecars.
HUGE = 5_000_000


async def messages(url):
    async with connect(url, subprotocols=["echo.v1"], open_timeout=30) as socket:
        await socket.send("hello")
        text = await socket.recv()
        await socket.send(b"\x00\xff")
        binary = (await socket.recv()).hex()
        await socket.send(b"x" * LARGE)
        large = len(await socket.recv())
        pong = await socket.ping()
        await asyncio.wait_for(pong, 30)
    report(text=text, binary=binary, large=large, subprotocol=socket.subprotocol, close=socket.close_code)


async def frames(url):
    async with connect(url, subprotocols=["echo.v1"], open_timeout=30, max_size=2 * HUGE, compression=None) as socket:
        await socket.send(["in ", "three ", "frames"])
        joined = await socket.recv()
        await socket.send("fragments")
        fragments = [frame async for frame in socket.recv_streaming()]
        await socket.send("ping me")
        pinged = await socket.recv()
        await asyncio.wait_for(await socket.ping(b"from the client"), 30)
        await socket.send(b"y" * HUGE)
        huge = await socket.recv() == b"y" * HUGE
        await socket.close(4002, "the client is done")
    async with connect(url, subprotocols=["echo.v1"], open_timeout=30) as socket:
        await socket.send("close 4001 as the server likes")
        try:
            await socket.recv()
        except ConnectionClosed:
            closed = [socket.close_code, socket.close_reason]
    report(joined=joined, fragments=fragments, pinged=pinged, huge=huge, closed=closed)


async def main():
    try:
        await (frames if "frames" in sys.argv[2:] else messages)(sys.argv[1])
    except (InvalidStatus, InvalidProxyStatus) as e:
        body = (e.response.body or b"").decode(errors="replace")
        report(status=e.response.status_code, body=body, headers=dict(e.response.headers))


asyncio.run(main())
