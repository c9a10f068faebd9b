# Which agent may call which outside hosts: narrower than the list of the mesh, never wider.
#
# data.user.egress_list: {"<agent>": ["host:port", …]}
# An agent that isn't listed calls no outside host at all.
package aip.policy.egress_list

rules contains {
	"rule": "egress-list/not-listed",
	"verdict": "deny",
	"reason": sprintf("%s may not call %s", [input.source.name, target]),
} if {
	input.direction == "outbound"
	input.destination.kind == "external"
	not target in data.user.egress_list[input.source.name]
}

target := sprintf("%s:%d", [input.destination.name, input.destination.port])
