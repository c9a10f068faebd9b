# Callers must have proved what they run, at least as firmly as asked for.
#
# data.user.require_assurance: {"assurance": "declared|observed|hardware", "enforcement": "none|cooperative|captured"}
# A word that isn't one of these, or none, lets nobody in.
package aip.policy.require_assurance

import data.aip.lib.assurance

wanted := data.user.require_assurance

rules contains {
	"rule": "require-assurance/assurance",
	"verdict": "deny",
	"reason": sprintf("attestation is %s, assurance %s", [
		input.source.attestation.status,
		input.source.attestation.assurance,
	]),
} if {
	input.direction == "inbound"
	not assurance.at_least(input.source.attestation, wanted.assurance)
}

rules contains {
	"rule": "require-assurance/enforcement",
	"verdict": "deny",
	"reason": sprintf("enforcement is %s", [input.source.attestation.enforcement]),
} if {
	input.direction == "inbound"
	not assurance.enforced(input.source.attestation, wanted.enforcement)
}
