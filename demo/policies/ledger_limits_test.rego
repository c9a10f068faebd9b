package aip.policy.ledger_limits_test

import data.aip.policy.ledger_limits

ids(facts) := {fired.rule | some fired in ledger_limits.rules with input as facts}

transfer(direction, amount) := {
	"direction": direction,
	"protocol": {"tool": "transfer", "arguments": {"amount": amount}},
}

test_nobody_closes_the_books if {
	ids({"direction": "outbound", "protocol": {"tool": "close_books"}}) == {"ledger-limits/people-close-the-books"}
}

test_large_transfers_end_at_the_ledger if {
	ids(transfer("inbound", 1001)) == {"ledger-limits/largest-transfer"}
	ids(transfer("inbound", 1000)) == set()
	ids(transfer("outbound", 1001)) == set()
}

test_balances_are_open if {
	ids({"direction": "inbound", "protocol": {"tool": "balance", "arguments": {}}}) == set()
}
