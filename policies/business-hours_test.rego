package aip.policy.business_hours_test

seconds(text) := time.parse_rfc3339_ns(text) / 1000000000

cases contains {"note": "Wednesday noon", "input": {"time": seconds("2026-07-01T12:00:00+02:00")}, "verdict": "none"}

cases contains {"note": "the first minute", "input": {"time": seconds("2026-07-01T08:00:00+02:00")}, "verdict": "none"}

cases contains {"note": "the minute before", "input": {"time": seconds("2026-07-01T07:59:59+02:00")}, "verdict": "deny", "rule": "business-hours/closed"}

cases contains {"note": "the last minute", "input": {"time": seconds("2026-07-01T17:59:59+02:00")}, "verdict": "none"}

cases contains {"note": "closing time", "input": {"time": seconds("2026-07-01T18:00:00+02:00")}, "verdict": "deny"}

cases contains {"note": "the same hour in winter is another in UTC", "input": {"time": seconds("2026-01-07T07:30:00Z")}, "verdict": "none"}

cases contains {"note": "the same hour in summer", "input": {"time": seconds("2026-07-01T05:30:00Z")}, "verdict": "deny"}

cases contains {"note": "Saturday noon", "input": {"time": seconds("2026-07-04T12:00:00+02:00")}, "verdict": "deny"}
