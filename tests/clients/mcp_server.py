"""An MCP server on the official SDK, streamable HTTP at /mcp, both eras; bound to localhost, so it checks Host."""

from mcp.server.mcpserver import Context, MCPServer

from witness import port, seen, until_heard

server = MCPServer("tools")


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    seen("add", a=a, b=b)
    return a + b


@server.tool()
async def count(stream: str, steps: int, ctx: Context) -> str:
    """Counts, reporting progress at each step, in lockstep with the caller."""
    seen("count", stream=stream)
    for step in range(1, steps + 1):
        await ctx.report_progress(step, steps)
        await until_heard(stream, step)
    return f"counted to {steps}"


@server.tool()
def forbidden(what: str) -> str:
    """A tool that the tests' policies deny."""
    seen("forbidden", what=what)
    return f"did {what}"


@server.resource("note://greeting")
def greeting() -> str:
    """A resource."""
    seen("greeting")
    return "good morning"


if __name__ == "__main__":
    server.run("streamable-http", host="127.0.0.1", port=port())
