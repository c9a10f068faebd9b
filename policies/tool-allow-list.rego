# Only listed tools may be called.
#
# data.user.tool_allow_list: {"callers": {"<agent>": ["<tool>", …]}, "everyone": ["<tool>", …]}
# A caller may call the tools listed for it and those listed for everyone. Calls that name no tool are not this policy's
# business.
package aip.policy.tool_allow_list

rules contains {
	"rule": "tool-allow-list/not-listed",
	"verdict": "deny",
	"reason": sprintf("tool %s is not listed for %s", [input.protocol.tool, input.source.name]),
} if {
	input.protocol.tool != ""
	not listed
}

listed if input.protocol.tool in data.user.tool_allow_list.everyone

listed if input.protocol.tool in data.user.tool_allow_list.callers[input.source.name]
