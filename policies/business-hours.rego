# Denies outside of business hours.
#
# data.user.business_hours: {"zone": "Europe/Berlin", "days": ["Monday", …], "from": 8, "to": 18}
# Hours may have fractions (8.5 is half past eight); `from` is included, `to` is not. What can't be computed, such as an unknown zone, denies.
package aip.policy.business_hours

import data.aip.lib.time as clock

hours := data.user.business_hours

rules contains {
	"rule": "business-hours/closed",
	"verdict": "deny",
	"reason": sprintf("outside of business hours (%s)", [hours.zone]),
} if {
	not open
}

open if {
	clock.weekday(input.time, hours.zone) in hours.days
	now := clock.hours(input.time, hours.zone)
	now >= hours.from
	now < hours.to
}
