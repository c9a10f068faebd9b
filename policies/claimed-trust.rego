# Denies agents at the other end whose manifest claims too little: the automatic trust score of what they say of themselves.
#
# data.user.claimed_trust: {"least": 5}
# Claims are not proof: an agent that claims the best passes. Attach it beside policies over attestation and reputation,
# for agents whose registration somebody reviews.
package aip.policy.claimed_trust

import data.aip.lib.trust

least := data.user.claimed_trust.least

rules contains {
	"rule": "claimed-trust/caller",
	"verdict": "deny",
	"reason": "what the caller claims of itself scores too low",
} if {
	input.direction == "inbound"
	not enough(input.source.manifest)
}

rules contains {
	"rule": "claimed-trust/callee",
	"verdict": "deny",
	"reason": "what the callee claims of itself scores too low",
} if {
	input.direction == "outbound"
	input.destination.kind == "agent"
	not enough(input.destination.manifest)
}

enough(manifest) if trust.score(manifest) >= least
