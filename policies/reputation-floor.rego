# Asks for more than the mesh's floor: denies agents at the other end whose score, or one of whose factors, is too low.
#
# data.user.reputation_floor: {"score": 6, "factors": {"honesty": 5}}
# The mesh's own floor (MeshConfig, reputation.floor) holds whether this is attached or not.
package aip.policy.reputation_floor

wanted := data.user.reputation_floor

rules contains {
	"rule": "reputation-floor/caller",
	"verdict": "deny",
	"reason": sprintf("the caller's reputation is %s", [input.source.reputation.level]),
} if {
	input.direction == "inbound"
	not enough(input.source.reputation)
}

rules contains {
	"rule": "reputation-floor/callee",
	"verdict": "deny",
	"reason": sprintf("the callee's reputation is %s", [input.destination.reputation.level]),
} if {
	input.direction == "outbound"
	input.destination.kind == "agent"
	not enough(input.destination.reputation)
}

enough(reputation) if {
	reputation.status == "known"
	reputation.score >= wanted.score
	every factor, least in wanted.factors {
		reaches(reputation, factor, least)
	}
}

reaches(reputation, factor, least) if reputation.factors[factor] >= least
