# A score for what an agent says of itself in its manifest, 0 to 10. Claims, and nothing else: nobody has checked them.
# What the agent did is input.source.reputation.
#
# The function takes the manifest, not the peer.
package aip.lib.trust

levels := {"verified_partner": 3, "trusted": 2, "standard": 0, "unknown": -2, "untrusted": -5}

retentions := {"ephemeral": 2, "temporary": 0, "permanent": -2, "forever": -2}

# A manifest with a word that isn't one of these has no score: what compares it must not hold then.
score(manifest) := max([0, min([10, ((((5 + level) + idempotent) + reversible) + retention) + unseen])]) if {
	level := levels[manifest.trust_level]
	idempotent := {true: 1, false: 0}[manifest.capabilities.idempotency]
	reversible := {"full": 1, "partial": 1, "none": 0}[manifest.capabilities.reversibility]
	retention := retentions[manifest.privacy_contract.retention]
	unseen := {true: 0, false: 1}[manifest.privacy_contract.human_review]
}
