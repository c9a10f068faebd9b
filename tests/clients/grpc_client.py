"""A gRPC client of grpc_server.py.

    grpc_client.py HOST:PORT unary|forbidden|fail|download|upload|chat [--stream NAME]

Chat and download are in lockstep. A status other than OK is an observation: {"code": …, "details": …}.
"""

import argparse
import asyncio

import grpc

from witness import heard, report

STEPS = 3


async def unary(channel, method):
    call = channel.unary_unary(f"/test.Echo/{method}")(b"hello", metadata=(("x-request", "tagged"),), timeout=30)
    answer = (await call).decode()
    initial = dict(await call.initial_metadata()).get("x-initial")
    trailing = dict(await call.trailing_metadata()).get("x-trailing")
    return {"answer": answer, "initial": initial, "trailing": trailing}


async def download(channel, stream):
    got = []
    call = channel.unary_stream("/test.Echo/Download")(f"{stream} {STEPS}".encode(), timeout=30)
    async for message in call:
        got.append(message.decode())
        heard(stream, len(got))
    return {"messages": got}


async def upload(channel):
    async def parts():
        for part in (b"one", b"two", b"three"):
            yield part

    return {"answer": (await channel.stream_unary("/test.Echo/Upload")(parts(), timeout=30)).decode()}


async def chat(channel):
    """Says the next thing only when the answer to the last has come: needs both directions live at once."""
    got = []
    call = channel.stream_stream("/test.Echo/Chat")(timeout=30)
    for part in (b"one", b"two", b"three"):
        await call.write(part)
        got.append((await call.read()).decode())
    await call.done_writing()
    ended = await call.read() is grpc.aio.EOF
    return {"messages": got, "ended": ended}


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("kind", choices=["unary", "forbidden", "fail", "download", "upload", "chat"])
    parser.add_argument("--stream", default="download")
    args = parser.parse_args()
    async with grpc.aio.insecure_channel(args.target) as channel:
        calls = {
            "download": lambda: download(channel, args.stream),
            "upload": lambda: upload(channel),
            "chat": lambda: chat(channel),
        }
        try:
            observed = await calls.get(args.kind, lambda: unary(channel, args.kind.capitalize()))()
            report(code="OK", **observed)
        except grpc.aio.AioRpcError as e:
            report(code=e.code().name, details=e.details())


asyncio.run(main())
