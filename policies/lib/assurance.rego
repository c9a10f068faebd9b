# Comparing what an attestation rests on, and whether an agent can go around its sidecar.
package aip.lib.assurance

ranks := {"none": 0, "declared": 1, "observed": 2, "hardware": 3}

enforcements := {"none": 0, "cooperative": 1, "captured": 2}

# Whether the peer's attestation is valid and rests on at least `least`. A word that isn't one of the ranks is never
# enough, on either side.
at_least(peer, least) if {
	peer.attestation.status == "valid"
	ranks[peer.attestation.assurance] >= ranks[least]
}

# Whether the peer is held to its sidecar at least as firmly as `least`.
enforced(peer, least) if {
	enforcements[peer.attestation.enforcement] >= enforcements[least]
}
