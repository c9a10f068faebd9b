# What may be asked of the ledger.
package aip.policy.ledger_limits

# Closing the books is for people. Both ends refuse it, so the caller's sidecar does so before anything leaves.
rules contains {"rule": "books_are_closed_by_people", "verdict": "deny", "reason": "only people close the books"} if {
	input.request.path == ["tools", "close_books"]
}

# Only the ledger's own sidecar judges transfers: it refuses what the caller's let through.
rules contains {"rule": "no_transfers", "verdict": "deny", "reason": "transfers are closed for today"} if {
	input.direction == "inbound"
	input.request.path == ["tools", "transfer"]
}
