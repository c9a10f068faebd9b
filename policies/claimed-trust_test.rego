package aip.policy.claimed_trust_test

import data.aip.lib.trust

manifest(level, idempotent, reversible, retention, review) := {
	"trust_level": level,
	"capabilities": {"idempotency": idempotent, "reversibility": reversible},
	"privacy_contract": {"retention": retention, "human_review": review},
}

caller(claims) := {"direction": "inbound", "source": {"kind": "agent", "manifest": claims}}

callee(claims) := {"direction": "outbound", "destination": {"kind": "agent", "manifest": claims}}

# a bank that promises all
test_score_10_a_bank_that_promises_all if trust.score(manifest("verified_partner", true, "full", "ephemeral", false)) == 10

# a standard agent
test_score_8_a_standard_agent if trust.score(manifest("standard", true, "partial", "temporary", false)) == 8

# a coder
test_score_10_a_coder if trust.score(manifest("trusted", true, "full", "ephemeral", false)) == 10

# a reviewer
test_score_7_a_reviewer if trust.score(manifest("standard", true, "none", "temporary", false)) == 7

# the shortest start
test_score_8_the_shortest_start if trust.score(manifest("standard", false, "none", "ephemeral", false)) == 8

# one that keeps everything and shows it to people
test_score_0_one_that_keeps_everything_and_shows_it_to_people if trust.score(manifest("untrusted", false, "none", "permanent", true)) == 0

# untrusted that promises all
test_score_5_untrusted_that_promises_all if trust.score(manifest("untrusted", true, "full", "ephemeral", false)) == 5

# nothing promised
test_score_5_nothing_promised if trust.score(manifest("standard", false, "none", "temporary", true)) == 5

# unknown, nothing promised
test_score_3_unknown_nothing_promised if trust.score(manifest("unknown", false, "none", "temporary", true)) == 3

# kept for ever
test_score_3_kept_for_ever if trust.score(manifest("standard", false, "none", "forever", true)) == 3

# trusted, nothing promised
test_score_7_trusted_nothing_promised if trust.score(manifest("trusted", false, "none", "temporary", true)) == 7

# verified, nothing promised
test_score_8_verified_nothing_promised if trust.score(manifest("verified_partner", false, "none", "temporary", true)) == 8

cases contains {"note": "claims enough", "input": caller(manifest("standard", true, "none", "temporary", false)), "verdict": "none"}

cases contains {"note": "claims just enough", "input": caller(manifest("standard", false, "none", "temporary", true)), "verdict": "none"}

cases contains {"note": "claims too little", "input": caller(manifest("unknown", false, "none", "temporary", true)), "verdict": "deny", "rule": "claimed-trust/caller"}

cases contains {"note": "a word of its own", "input": caller(manifest("best", true, "full", "ephemeral", false)), "verdict": "deny", "rule": "claimed-trust/caller"}

cases contains {"note": "claims nothing", "input": caller({}), "verdict": "deny", "rule": "claimed-trust/caller"}

cases contains {"note": "a callee that claims too little", "input": callee(manifest("untrusted", false, "none", "permanent", true)), "verdict": "deny", "rule": "claimed-trust/callee"}

cases contains {"note": "a callee that claims enough", "input": callee(manifest("trusted", false, "none", "temporary", true)), "verdict": "none"}

cases contains {"note": "an outside host claims nothing", "input": {"direction": "outbound", "destination": {"kind": "external"}}, "verdict": "none"}
