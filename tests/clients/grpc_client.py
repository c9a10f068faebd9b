"""A gRPC client of grpc_server.py.

    grpc_client.py HOST:PORT unary|forbidden|fail|download|upload|chat|metadata|large|deadline|cancel [--stream NAME]

Chat and download are in lockstep. A status other than OK is an observation: {"code": …, "details": …}.
"""

import argparse
import asyncio

import grpc

from witness import heard, report

STEPS = 3
# For one message of 16 MiB; the default is 4.
ROOM = [("grpc.max_receive_message_length", 17 << 20)]


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


async def metadata(channel):
    sent = (("x-word", "one"), ("x-word", "two"), ("x-bytes-bin", b"\x00\xff"))
    call = channel.unary_unary("/test.Echo/Metadata")(b"", metadata=sent, timeout=30)
    await call
    found = [await call.initial_metadata(), await call.trailing_metadata()]
    own = [[(k, v) for k, v in some if k.startswith("x-") and k in dict(sent)] for some in found]
    return {"arrived": [sorted(some, key=str) == sorted(sent, key=str) for some in own]}


async def large(channel):
    message = bytes(range(256)) * (64 * 1024)
    plain = await channel.unary_unary("/test.Echo/Metadata")(message, timeout=30)
    unary = channel.unary_unary("/test.Echo/Metadata")
    zipped = await unary(message, compression=grpc.Compression.Gzip, timeout=30)
    return {"bytes": len(message), "same": [plain == message, zipped == message]}


async def deadline(channel):
    return {"answer": (await channel.unary_unary("/test.Echo/Wait")(b"", timeout=2)).decode()}


async def cancel(channel, stream):
    """Hears one message of a stream, and wants no more."""
    call = channel.unary_stream("/test.Echo/Download")(f"{stream} {STEPS}".encode(), timeout=30)
    first = (await call.read()).decode()
    call.cancel()
    return {"first": first, "cancelled": call.cancelled()}


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("kind")
    parser.add_argument("--stream", default="download")
    args = parser.parse_args()
    async with grpc.aio.insecure_channel(args.target, options=ROOM) as channel:
        calls = {
            "download": lambda: download(channel, args.stream),
            "upload": lambda: upload(channel),
            "chat": lambda: chat(channel),
            "metadata": lambda: metadata(channel),
            "large": lambda: large(channel),
            "deadline": lambda: deadline(channel),
            "cancel": lambda: cancel(channel, args.stream),
        }
        try:
            observed = await calls.get(args.kind, lambda: unary(channel, args.kind.capitalize()))()
            report(code="OK", **observed)
        except grpc.aio.AioRpcError as e:
            report(code=e.code().name, details=e.details())


asyncio.run(main())
