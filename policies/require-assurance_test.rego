package aip.policy.require_assurance_test

caller(status, assurance, enforcement) := {"direction": "inbound", "source": {"attestation": {
	"status": status,
	"assurance": assurance,
	"enforcement": enforcement,
}}}

cases contains {"note": "as asked for", "input": caller("valid", "observed", "captured"), "verdict": "none"}

cases contains {"note": "more than asked for", "input": caller("valid", "hardware", "captured"), "verdict": "none"}

cases contains {"note": "only declared", "input": caller("valid", "declared", "captured"), "verdict": "deny", "rule": "require-assurance/assurance"}

cases contains {"note": "drifted", "input": caller("drifted", "hardware", "captured"), "verdict": "deny", "rule": "require-assurance/assurance"}

cases contains {"note": "only cooperative", "input": caller("valid", "observed", "cooperative"), "verdict": "deny", "rule": "require-assurance/enforcement"}

cases contains {"note": "nothing known", "input": {}, "verdict": "deny", "rule": "require-assurance/assurance"}

cases contains {"note": "calls that go out", "input": {"direction": "outbound"}, "verdict": "none"}

test_without_data_nobody_comes_in if {
	count(data.aip.policy.require_assurance.rules) == 2 with input as caller("valid", "hardware", "captured")
		with data.user.require_assurance as {}
}
