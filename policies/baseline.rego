# The mesh baseline: what may happen where no other policy says otherwise.
#
# Everything that isn't allowed here is denied. Other policies are attached beside it and add what they refuse: of the
# verdicts of all rules that fire the strictest wins, so a deny of theirs beats an allow of this one, and nothing that
# they allow undoes a deny.
#
# data.mesh.egress lists outside hosts: "host" for port 443, "host:port", "*.domain" or "*.domain:port" for all hosts
# below a domain (not the domain itself).
package aip.policy.baseline

# A call between two agents of one mesh, at the callee: the caller has proved what it runs, on this very connection.
rules contains {
	"rule": "baseline/attested-peer",
	"verdict": "allow",
	"reason": "attested agent of this mesh",
} if {
	input.direction == "inbound"
	agents_of_one_mesh
	input.source.attestation.status == "valid"
}

# The same call at the caller. The callee proves itself in the handshake that follows, and is checked there.
rules contains {
	"rule": "baseline/mesh-call",
	"verdict": "allow",
	"reason": "agent of this mesh",
} if {
	input.direction == "outbound"
	agents_of_one_mesh
}

rules contains {
	"rule": "baseline/egress",
	"verdict": "allow",
	"reason": "the mesh lists this host",
} if {
	input.direction == "outbound"
	input.destination.kind == "external"
	egress_listed
}

# The agent of this sidecar is one of the two ends, so a trust domain that both share is the mesh's own.
agents_of_one_mesh if {
	input.source.kind == "agent"
	input.destination.kind == "agent"
	input.source.trust_domain == input.destination.trust_domain
	input.source.trust_domain != ""
}

port := sprintf(":%d", [input.destination.port])

egress_listed if {
	some entry in data.mesh.egress
	covers(entry)
}

covers(entry) if input.destination.name == host_of(entry)

covers(entry) if {
	startswith(entry, "*.")
	endswith(input.destination.name, trim_prefix(host_of(entry), "*"))
}

# The entry without its port, if the port is the one that is called.
host_of(entry) := trim_suffix(entry, port) if {
	endswith(entry, port)
} else := entry if {
	not contains(entry, ":")
	input.destination.port == 443
}
