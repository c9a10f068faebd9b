# Nothing that changes anything: safe HTTP methods, and methods of agent protocols that only look.
#
# data.user.read_only: {"methods": ["<protocol method>", …], "tools": ["<tool>", …]}
# HTTP carries the agent protocols in POST requests, so for these the method of the protocol counts, and of tool calls
# the tool.
package aip.policy.read_only

import data.aip.lib.http

rules contains {
	"rule": "read-only/http-method",
	"verdict": "deny",
	"reason": sprintf("%s is not a safe method", [input.request.method]),
} if {
	input.protocol.name == "http"
	not http.safe(input.request.method)
}

rules contains {
	"rule": "read-only/protocol-method",
	"verdict": "deny",
	"reason": sprintf("%s is not listed as reading only", [input.protocol.method]),
} if {
	input.protocol.name != "http"
	input.protocol.tool == ""
	not input.protocol.method in data.user.read_only.methods
}

rules contains {
	"rule": "read-only/tool",
	"verdict": "deny",
	"reason": sprintf("tool %s is not listed as reading only", [input.protocol.tool]),
} if {
	input.protocol.tool != ""
	not input.protocol.tool in data.user.read_only.tools
}
