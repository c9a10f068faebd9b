# What may be asked of the ledger.
package aip.policy.ledger_limits

# Closing the books is for people. Both ends refuse it, so the caller's sidecar does so before anything leaves.
rules contains {
	"rule": "ledger-limits/people-close-the-books",
	"verdict": "deny",
	"reason": "only people close the books",
} if {
	input.protocol.tool == "close_books"
}

# Judged by the ledger's own sidecar alone: it refuses what the caller's let through.
rules contains {
	"rule": "ledger-limits/largest-transfer",
	"verdict": "deny",
	"reason": sprintf("%v is more than one transfer may move", [input.protocol.arguments.amount]),
} if {
	input.direction == "inbound"
	input.protocol.tool == "transfer"
	input.protocol.arguments.amount > data.user.ledger_limits.largest_transfer
}
