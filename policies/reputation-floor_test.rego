package aip.policy.reputation_floor_test

reputation(score, honesty) := {"status": "known", "score": score, "level": "some", "factors": {"honesty": honesty, "quality": 1}}

caller(of) := {"direction": "inbound", "source": {"kind": "agent", "reputation": of}}

callee(of) := {"direction": "outbound", "destination": {"kind": "agent", "reputation": of}}

cases contains {"note": "as much as asked for", "input": caller(reputation(6, 5)), "verdict": "none"}

cases contains {"note": "a lower score", "input": caller(reputation(5.99, 5)), "verdict": "deny", "rule": "reputation-floor/caller"}

cases contains {"note": "a lower factor", "input": caller(reputation(9, 4.9)), "verdict": "deny", "rule": "reputation-floor/caller"}

cases contains {"note": "nothing known", "input": caller({"status": "unknown"}), "verdict": "deny", "rule": "reputation-floor/caller"}

cases contains {"note": "a callee with enough", "input": callee(reputation(7, 7)), "verdict": "none"}

cases contains {"note": "a callee with less", "input": callee(reputation(5, 7)), "verdict": "deny", "rule": "reputation-floor/callee"}

cases contains {"note": "an outside host has none", "input": {"direction": "outbound", "destination": {"kind": "external"}}, "verdict": "none"}
