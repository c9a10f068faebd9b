# The mesh baseline: it takes part in every hop, and nothing overrides it.
#
# It allows calls between attested agents of this mesh, and calls to the outside hosts that the mesh lists. What must
# never happen it denies, rather than leaving it unsaid: of the verdicts of all rules that fire the strictest wins, so no
# policy that is attached beside it can allow what is denied here. Other policies add what they refuse.
#
# data.mesh.egress lists outside hosts: {"host": "api.example.com", "port": 443}, or "*.example.com" for all hosts below
# a domain (not the domain itself).
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

# A caller that is no attested agent of this mesh, whoever else would let it in.
rules contains {
	"rule": "baseline/unattested",
	"verdict": "deny",
	"reason": "the caller is not an attested agent of this mesh",
} if {
	input.direction == "inbound"
	not attested_caller
}

# An outside host that the mesh does not list.
rules contains {
	"rule": "baseline/unlisted-egress",
	"verdict": "deny",
	"reason": "the mesh does not list this outside host",
} if {
	input.destination.kind == "external"
	not egress_listed
}

attested_caller if {
	agents_of_one_mesh
	input.source.attestation.status == "valid"
}

# The agent of this sidecar is one of the two ends, so a trust domain that both share is the mesh's own.
agents_of_one_mesh if {
	input.source.kind == "agent"
	input.destination.kind == "agent"
	input.source.trust_domain == input.destination.trust_domain
	input.source.trust_domain != ""
}

egress_listed if {
	some entry in data.mesh.egress
	entry.port == input.destination.port
	covers(entry.host)
}

covers(host) if input.destination.name == host

covers(host) if {
	startswith(host, "*.")
	endswith(input.destination.name, trim_prefix(host, "*"))
}
