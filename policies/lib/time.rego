# The time of the request, in a zone.
package aip.lib.time

# Nanoseconds, as the time builtins take them.
ns := input.time * 1000000000

# Day of the week in the zone, "Monday" to "Sunday".
weekday(zone) := time.weekday([ns, zone])

# Minutes since midnight in the zone.
minutes(zone) := (clock[0] * 60) + clock[1] if clock := time.clock([ns, zone])
