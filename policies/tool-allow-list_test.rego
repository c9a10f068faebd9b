package aip.policy.tool_allow_list_test

call(caller, tool) := {"source": {"name": caller}, "protocol": {"name": "mcp", "method": "tools/call", "tool": tool}}

cases contains {"note": "listed for the caller", "input": call("researcher", "search"), "verdict": "none"}

cases contains {"note": "listed for everyone", "input": call("stranger", "ping"), "verdict": "none"}

cases contains {"note": "listed for another caller", "input": call("stranger", "search"), "verdict": "deny", "rule": "tool-allow-list/not-listed"}

cases contains {"note": "listed for nobody", "input": call("researcher", "delete"), "verdict": "deny"}

cases contains {"note": "no tool", "input": {"source": {"name": "stranger"}}, "verdict": "none"}

cases contains {"note": "a tool that could not be read", "input": {"unestablished": ["protocol.tool"]}, "verdict": "deny", "rule": "fact_unestablished"}

test_the_reason_names_the_tool if {
	some rule in data.aip.policy.tool_allow_list.rules with input as call("stranger", "delete")
	rule.reason == "tool delete is not listed for stranger"
}
