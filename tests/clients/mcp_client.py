"""An MCP client on the official SDK.

    mcp_client.py URL [--mode auto|legacy|2026-07-28] [--tool NAME --args JSON] [--stream NAME]

Lists the tools, calls one, and prints what came back. --stream marks each progress notification it hears. The SDK's
error of a call is an observation: {"error": …, "error_code": …}. An error of the connection fails the program.
"""

import argparse
import asyncio
import json

from mcp import Client
from mcp.shared.exceptions import MCPError

from witness import heard, report


async def call(client, args):
    progress = []

    async def on_progress(step, total, message):
        progress.append(step)
        if args.stream:
            heard(args.stream, int(step))

    try:
        result = await client.call_tool(args.tool, json.loads(args.args), progress_callback=on_progress)
    except MCPError as e:
        return {"error": e.error.message, "error_code": e.error.code, "error_data": e.error.data}
    text = [c.text for c in result.content if c.type == "text"]
    return {"text": text, "is_error": result.is_error, "progress": progress}


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--mode", default="auto")
    parser.add_argument("--tool", default="add")
    parser.add_argument("--args", default='{"a": 2, "b": 3}')
    parser.add_argument("--stream")
    args = parser.parse_args()
    async with Client(args.url, mode=args.mode, read_timeout_seconds=30) as client:
        tools = [t.name for t in (await client.list_tools()).tools]
        observed = await call(client, args)
        report(version=client.protocol_version, tools=tools, **observed)


asyncio.run(main())
