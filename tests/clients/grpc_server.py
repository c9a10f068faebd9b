"""A gRPC server with all four kinds of calls, on bytes: no generated code, so no protoc.

Unary echoes; Download answers with N messages in lockstep; Upload joins what it is sent; Chat echoes each message.
Metadata answers with what it was sent; Wait answers never. A caller who goes is
written down.
"""

import asyncio

import grpc

from witness import port, seen, until_heard


async def unary(request, context):
    seen("Unary", text=request.decode())
    meta = dict(context.invocation_metadata())
    await context.send_initial_metadata((("x-initial", "yes"),))
    context.set_trailing_metadata((("x-trailing", meta.get("x-request", "none")),))
    return b"echo: " + request


async def metadata(request, context):
    sent = [(k, v) for k, v in context.invocation_metadata() if k.startswith("x-")]
    await context.send_initial_metadata(sent)
    context.set_trailing_metadata(sent)
    return request


async def wait(request, context):
    seen("Wait", seconds=round(context.time_remaining() or 0))
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        seen("Gone")
        raise


async def forbidden(request, context):
    seen("Forbidden")
    return b"did it"


async def fail(request, context):
    seen("Fail")
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not in this state")


async def download(request, context):
    stream, steps = request.decode().split()
    seen("Download", stream=stream)
    try:
        for step in range(1, int(steps) + 1):
            yield f"step {step}".encode()
            await until_heard(stream, step)
    except asyncio.CancelledError:
        seen("Gone")
        raise


async def upload(requests, context):
    seen("Upload")
    return b" ".join([part async for part in requests])


async def chat(requests, context):
    seen("Chat")
    async for part in requests:
        yield b"echo: " + part


async def main():
    # Room for one message of 16 MiB; the default is 4.
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 17 << 20)])
    kinds = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Metadata": grpc.unary_unary_rpc_method_handler(metadata),
        "Wait": grpc.unary_unary_rpc_method_handler(wait),
        "Forbidden": grpc.unary_unary_rpc_method_handler(forbidden),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "Download": grpc.unary_stream_rpc_method_handler(download),
        "Upload": grpc.stream_unary_rpc_method_handler(upload),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", kinds),))
    server.add_insecure_port(f"127.0.0.1:{port()}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
