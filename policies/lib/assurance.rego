# Comparing what an attestation rests on, and whether an agent can go around its sidecar.
#
# The functions take the attestation, not the peer: a policy that hands over a whole peer reads its reputation and its
# manifest too, and is then not run while one of these can't be established.
package aip.lib.assurance

ranks := {"none": 0, "declared": 1, "observed": 2, "hardware": 3}

enforcements := {"none": 0, "cooperative": 1, "captured": 2}

# Whether the attestation is valid and rests on at least `least`. A word that isn't one of the ranks is never enough, on
# either side.
at_least(attestation, least) if {
	attestation.status == "valid"
	ranks[attestation.assurance] >= ranks[least]
}

# Whether the agent is held to its sidecar at least as firmly as `least`.
enforced(attestation, least) if enforcements[attestation.enforcement] >= enforcements[least]
