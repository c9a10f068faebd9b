package aip.policy.baseline_test

agent := {"kind": "agent", "trust_domain": "aip.internal", "attestation": {"status": "valid"}}

bare := {"kind": "agent", "trust_domain": "aip.internal"}

stranger := {"kind": "agent", "trust_domain": "other.example", "attestation": {"status": "valid"}}

mesh := {"egress": [
	{"host": "api.example.com", "port": 443},
	{"host": "db.example.com", "port": 5432},
	{"host": "*.example.org", "port": 443},
	{"host": "*.example.net", "port": 8443},
]}

inbound(source) := {"direction": "inbound", "source": source, "destination": bare}

outbound(destination) := {"direction": "outbound", "source": agent, "destination": destination}

external(host, port) := outbound({"kind": "external", "name": host, "port": port})

cases contains {"note": "an attested agent of the mesh", "input": inbound(agent), "verdict": "allow", "rule": "baseline/attested-peer"}

cases contains {"note": "an agent that proved nothing", "input": inbound(bare), "verdict": "deny", "rule": "baseline/unattested"}

cases contains {"note": "a drifted agent", "input": inbound({"kind": "agent", "trust_domain": "aip.internal", "attestation": {"status": "drifted"}}), "verdict": "deny", "rule": "baseline/unattested"}

cases contains {"note": "an agent of another mesh", "input": inbound(stranger), "verdict": "deny", "rule": "baseline/unattested"}

cases contains {"note": "nobody", "input": {}, "verdict": "deny", "rule": "baseline/unattested"}

cases contains {"note": "ends without a trust domain have none in common", "input": {"source": {"kind": "agent", "attestation": {"status": "valid"}}, "destination": {"kind": "agent"}}, "verdict": "deny", "rule": "baseline/unattested"}

cases contains {"note": "attestation that could not be established", "input": object.union(inbound(agent), {"unestablished": ["source.attestation"]}), "verdict": "deny", "rule": "fact_unestablished"}

cases contains {"note": "a call to an agent of the mesh", "input": outbound(bare), "verdict": "allow", "rule": "baseline/mesh-call"}

cases contains {"note": "a call to another mesh", "input": outbound(stranger), "verdict": "none"}

cases contains {"note": "a listed host", "input": external("api.example.com", 443), "mesh": mesh, "verdict": "allow", "rule": "baseline/egress"}

cases contains {"note": "a listed host, another port", "input": external("api.example.com", 80), "mesh": mesh, "verdict": "deny", "rule": "baseline/unlisted-egress"}

cases contains {"note": "a listed host and port", "input": external("db.example.com", 5432), "mesh": mesh, "verdict": "allow"}

cases contains {"note": "a listed host with a port, on 443", "input": external("db.example.com", 443), "mesh": mesh, "verdict": "deny", "rule": "baseline/unlisted-egress"}

cases contains {"note": "below a listed domain", "input": external("a.b.example.org", 443), "mesh": mesh, "verdict": "allow"}

cases contains {"note": "the listed domain itself", "input": external("example.org", 443), "mesh": mesh, "verdict": "deny", "rule": "baseline/unlisted-egress"}

cases contains {"note": "a host that only ends like a listed domain", "input": external("badexample.org", 443), "mesh": mesh, "verdict": "deny", "rule": "baseline/unlisted-egress"}

cases contains {"note": "below a listed domain with a port", "input": external("x.example.net", 8443), "mesh": mesh, "verdict": "allow"}

cases contains {"note": "a host that isn't listed", "input": external("evil.example", 443), "mesh": mesh, "verdict": "deny", "rule": "baseline/unlisted-egress"}

cases contains {"note": "no list at all", "input": external("api.example.com", 443), "verdict": "deny", "rule": "baseline/unlisted-egress"}

cases contains {"note": "egress is never inbound", "input": object.union(external("api.example.com", 443), {"direction": "inbound"}), "mesh": mesh, "verdict": "deny"}
