package aip.policy.argument_guard_test

call(arguments) := {"protocol": {"name": "mcp", "method": "tools/call", "tool": "transfer", "arguments": arguments}}

with_path(path) := call({"receipt": path, "amount": 10})

with_amount(amount) := call({"receipt": "/srv/receipts/a", "amount": amount})

cases contains {"note": "a small amount", "input": with_amount(10), "verdict": "none"}

cases contains {"note": "the limit itself", "input": with_amount(1000), "verdict": "none"}

cases contains {"note": "over the limit", "input": with_amount(1000.01), "verdict": "deny", "rule": "argument-guard/amount"}

cases contains {"note": "an amount as a text", "input": with_amount("1"), "verdict": "deny", "rule": "argument-guard/amount-type"}

cases contains {"note": "a negative amount", "input": with_amount(-1), "verdict": "deny", "rule": "argument-guard/amount-type"}

cases contains {"note": "an amount that is null", "input": with_amount(null), "verdict": "deny", "rule": "argument-guard/amount-type"}

cases contains {"note": "no amount", "input": call({"receipt": "/srv/receipts/a"}), "verdict": "deny", "rule": "argument-guard/amount-type"}

cases contains {"note": "a path elsewhere", "input": with_path("/etc/passwd"), "verdict": "deny", "rule": "argument-guard/path"}

cases contains {"note": "a path that climbs out", "input": with_path("/srv/receipts/../../etc/passwd"), "verdict": "deny", "rule": "argument-guard/path"}

cases contains {"note": "a path that climbs out in disguise", "input": with_path("/srv/receipts/%2e%2e/x"), "verdict": "deny", "rule": "argument-guard/path"}

cases contains {"note": "a list of paths", "input": with_path(["/srv/receipts/a"]), "verdict": "deny", "rule": "argument-guard/path"}

cases contains {"note": "no path", "input": call({"amount": 1}), "verdict": "deny", "rule": "argument-guard/path"}

cases contains {"note": "another tool", "input": {"protocol": {"name": "mcp", "tool": "balance"}}, "verdict": "none"}

cases contains {"note": "arguments that could not be read", "input": {"unestablished": ["protocol.arguments"]}, "verdict": "deny", "rule": "fact_unestablished"}
