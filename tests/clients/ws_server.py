"""A WebSocket server that echoes text and bytes, whatever the path. Three texts are orders: "fragments" is answered in
three frames, "ping me" once a ping of the server's was answered, "close CODE REASON" by closing so.
"""

import asyncio

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from witness import port, seen

MAX = 8 * 1024 * 1024


async def answer(socket, message):
    if message == "fragments":
        await socket.send(["one ", "two ", "three"])
    elif message == "ping me":
        await (await socket.ping("from the server"))
        await socket.send("you answered")
    elif isinstance(message, str) and message.startswith("close "):
        _, code, reason = message.split(" ", 2)
        await socket.close(int(code), reason)
    else:
        await socket.send(message if isinstance(message, bytes) else f"echo: {message}")


async def handle(socket):
    seen("websocket", path=socket.request.path, origin=socket.request.headers.get("Origin"))
    try:
        while True:
            frames = [frame async for frame in socket.recv_streaming()]
            if len(frames) > 1:
                seen("frames", frames=len(frames))
            await answer(socket, (b"" if isinstance(frames[0], bytes) else "").join(frames))
    except ConnectionClosed:
        seen("closed", code=socket.close_code, reason=socket.close_reason)


async def main():
    async with serve(handle, "127.0.0.1", port(), subprotocols=["echo.v1"], max_size=MAX) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
