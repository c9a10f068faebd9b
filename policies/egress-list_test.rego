package aip.policy.egress_list_test

call(agent, host, port) := {
	"direction": "outbound",
	"source": {"name": agent},
	"destination": {"kind": "external", "name": host, "port": port},
}

cases contains {"note": "listed", "input": call("researcher", "api.example.com", 443), "verdict": "none"}

cases contains {"note": "another port", "input": call("researcher", "api.example.com", 80), "verdict": "deny", "rule": "egress-list/not-listed"}

cases contains {"note": "another host", "input": call("researcher", "evil.example", 443), "verdict": "deny"}

cases contains {"note": "an agent that isn't listed", "input": call("writer", "api.example.com", 443), "verdict": "deny"}

cases contains {"note": "agents of the mesh", "input": {"direction": "outbound", "source": {"name": "writer"}, "destination": {"kind": "agent"}}, "verdict": "none"}
