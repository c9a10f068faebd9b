package aip.policy.read_only_test

http(method) := {"request": {"method": method}}

mcp(method, tool) := {"request": {"method": "POST"}, "protocol": {"name": "mcp", "method": method, "tool": tool}}

cases contains {"note": "GET", "input": http("GET"), "verdict": "none"}

cases contains {"note": "DELETE", "input": http("DELETE"), "verdict": "deny", "rule": "read-only/http-method"}

cases contains {"note": "methods are case-sensitive", "input": http("get"), "verdict": "deny"}

cases contains {"note": "a method that reads", "input": mcp("tools/list", ""), "verdict": "none"}

cases contains {"note": "a tool that reads", "input": mcp("tools/call", "search"), "verdict": "none"}

cases contains {"note": "a tool that isn't listed", "input": mcp("tools/call", "write_file"), "verdict": "deny", "rule": "read-only/tool"}

cases contains {"note": "a method that isn't listed", "input": mcp("logging/setLevel", ""), "verdict": "deny", "rule": "read-only/protocol-method"}

cases contains {"note": "a tool call that names no tool", "input": mcp("tools/call", ""), "verdict": "deny", "rule": "read-only/protocol-method"}
