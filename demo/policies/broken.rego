# A policy with a mistake: it must be refused, with its line, and change nothing.
package aip.policy.research_hours

rules contains {"rule": "oops", "verdict": "deny", "reason": "never"} if {
	input.request.path == no_such_function(input.request.raw_path)
}
