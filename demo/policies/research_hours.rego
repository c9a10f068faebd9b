# Closes the researcher's stream of events.
package aip.policy.research_hours

rules contains {"rule": "research-hours/stream-closed", "verdict": "deny", "reason": "the stream is closed for maintenance"} if {
	input.request.path == ["events"]
}
