# Guards the arguments of one MCP tool: a path must stay below a directory, and a number must not exceed a limit.
#
# data.user.argument_guard: {"tool": "…", "path": "<argument>", "below": "/dir/", "amount": "<argument>", "limit": N}
# Leave out `path` or `amount` for a tool that has no such argument. An argument that is missing, or is of another type,
# is refused: a text is no way around a number.
package aip.policy.argument_guard

guard := data.user.argument_guard

arguments := input.protocol.arguments

guarded if {
	input.protocol.name == "mcp"
	input.protocol.tool == guard.tool
}

rules contains {
	"rule": "argument-guard/path",
	"verdict": "deny",
	"reason": sprintf("%s must be a path below %s", [guard.path, guard.below]),
} if {
	guarded
	guard.path
	not path_inside
}

path_inside if {
	path := arguments[guard.path]
	is_string(path)
	startswith(path, guard.below)
	not contains(path, "..")
	not contains(path, "\\")
	not contains(path, "//")
	not contains(path, "%")
}

rules contains {
	"rule": "argument-guard/amount-type",
	"verdict": "deny",
	"reason": sprintf("%s must be a number that isn't negative", [guard.amount]),
} if {
	guarded
	guard.amount
	not amount_given
}

amount_given if {
	is_number(arguments[guard.amount])
	arguments[guard.amount] >= 0
}

rules contains {
	"rule": "argument-guard/amount",
	"verdict": "deny",
	"reason": sprintf("%s is over %v", [guard.amount, guard.limit]),
} if {
	guarded
	amount_given
	arguments[guard.amount] > guard.limit
}
