//! Proofs, verified without the tree (RFC 9162 sections 2.1.3.2 and 2.1.4.2).

use aip_api::Digest;

use super::{ProofError, node};

/// Whether `leaf` (its hash) stands at `index` in the tree of `size` leaves with this root.
///
/// # Errors
/// It does not, or the proof does not show it.
pub fn verify_inclusion(
    leaf: &Digest,
    index: u64,
    size: u64,
    proof: &[Digest],
    root: &Digest,
) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError::Range);
    }
    let (mut at, mut last, mut hash) = (index, size - 1, *leaf);
    for sibling in proof {
        if last == 0 {
            return Err(ProofError::Length);
        }
        if at % 2 == 1 || at == last {
            hash = node(sibling, &hash);
            // A node without a right sibling moves up as it is.
            while at % 2 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            hash = node(&hash, sibling);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    if last != 0 {
        return Err(ProofError::Length);
    }
    if hash == *root { Ok(()) } else { Err(ProofError::Root) }
}

/// Whether the tree of `old` leaves with `old_root` is a beginning of the tree of `new` leaves with `new_root`.
///
/// # Errors
/// It is not, or the proof does not show it.
pub fn verify_consistency(
    old: u64,
    new: u64,
    old_root: &Digest,
    new_root: &Digest,
    proof: &[Digest],
) -> Result<(), ProofError> {
    match (old, new) {
        (old, new) if old > new => return Err(ProofError::Range),
        (0, _) if *old_root != Digest::sha256(b"") => return Err(ProofError::Root),
        (0, _) if proof.is_empty() => return Ok(()),
        (old, new) if old == new && old_root != new_root => return Err(ProofError::Root),
        (old, new) if old == new && proof.is_empty() => return Ok(()),
        (old, new) if old == new || old == 0 => return Err(ProofError::Length),
        _ => {}
    }
    // A complete old tree is itself the first hash, and is not repeated in the proof.
    let (first, rest) = if old.is_power_of_two() {
        (*old_root, proof)
    } else {
        proof
            .split_first()
            .map(|(first, rest)| (*first, rest))
            .ok_or(ProofError::Length)?
    };
    let (mut at, mut last) = (old - 1, new - 1);
    while at % 2 == 1 {
        (at, last) = (at >> 1, last >> 1);
    }
    let (mut old_hash, mut new_hash) = (first, first);
    for sibling in rest {
        if last == 0 {
            return Err(ProofError::Length);
        }
        if at % 2 == 1 || at == last {
            old_hash = node(sibling, &old_hash);
            new_hash = node(sibling, &new_hash);
            while at % 2 == 0 && at != 0 {
                (at, last) = (at >> 1, last >> 1);
            }
        } else {
            new_hash = node(&new_hash, sibling);
        }
        (at, last) = (at >> 1, last >> 1);
    }
    if last != 0 {
        return Err(ProofError::Length);
    }
    if old_hash == *old_root && new_hash == *new_root {
        Ok(())
    } else {
        Err(ProofError::Root)
    }
}
