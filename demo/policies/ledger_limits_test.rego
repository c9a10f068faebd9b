package aip.policy.ledger_limits_test

import data.aip.policy.ledger_limits

test_nobody_closes_the_books if {
	some fired in ledger_limits.rules with input as {"request": {"path": ["tools", "close_books"]}}
	fired.rule == "books_are_closed_by_people"
}

test_balances_are_open if {
	count(ledger_limits.rules) == 0 with input as {"direction": "inbound", "request": {"path": ["tools", "balance"]}}
}
