# Closes the researcher's stream of events.
package aip.policy.research_hours

rules contains {"rule": "stream_closed", "verdict": "deny", "reason": "the stream is closed for maintenance"} if {
	input.request.path == ["events"]
}
