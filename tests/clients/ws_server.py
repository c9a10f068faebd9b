"""A WebSocket server that echoes text and bytes, whatever the path."""

import asyncio

from websockets.asyncio.server import serve

from witness import port, seen


async def handle(socket):
    seen("websocket", path=socket.request.path, origin=socket.request.headers.get("Origin"))
    async for message in socket:
        await socket.send(message if isinstance(message, bytes) else f"echo: {message}")


async def main():
    async with serve(handle, "127.0.0.1", port(), subprotocols=["echo.v1"]) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
