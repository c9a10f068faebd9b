# The time of a request, in a zone. `seconds` is input.time.
package aip.lib.time

# Nanoseconds, as the time builtins take them.
ns(seconds) := seconds * 1000000000

# Day of the week in the zone, "Monday" to "Sunday".
weekday(seconds, zone) := time.weekday([ns(seconds), zone])

# Hours since midnight in the zone, with their fraction.
hours(seconds, zone) := clock[0] + (clock[1] / 60) if clock := time.clock([ns(seconds), zone])
