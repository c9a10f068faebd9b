//! Roots and proofs from complete subtrees, wherever those are kept.

use aip_api::Digest;

use super::{ProofError, node};

/// Where complete subtrees are kept: in memory ([`super::Levels`]), or on disk.
pub trait Subtrees {
    /// The root of the complete subtree of 2^`height` leaves that begins at leaf `at` · 2^`height`; none where it is not
    /// complete.
    fn subtree(&self, height: u32, at: u64) -> Option<Digest>;

    /// The root over the first `size` leaves.
    ///
    /// # Errors
    /// There are fewer.
    fn root_of(&self, size: u64) -> Result<Digest, ProofError> {
        match size {
            0 => Ok(Digest::sha256(b"")),
            size => over(self, 0, size),
        }
    }

    /// The proof that the leaf at `index` is among the first `size` (RFC 6962 section 2.1.1).
    ///
    /// # Errors
    /// Outside the tree.
    fn inclusion_of(&self, index: u64, size: u64) -> Result<Vec<Digest>, ProofError> {
        if index >= size {
            return Err(ProofError::Range);
        }
        let (mut from, mut to, mut path) = (0, size, Vec::new());
        while to - from > 1 {
            let split = from + split(to - from);
            if index < split {
                path.push(over(self, split, to)?);
                to = split;
            } else {
                path.push(over(self, from, split)?);
                from = split;
            }
        }
        path.reverse();
        Ok(path)
    }

    /// The proof that the first `old` leaves are a beginning of the first `new` (RFC 6962 section 2.1.2); empty where
    /// either says nothing: from no leaves, or to the same.
    ///
    /// # Errors
    /// Outside the tree.
    fn consistency_of(&self, old: u64, new: u64) -> Result<Vec<Digest>, ProofError> {
        if old > new {
            return Err(ProofError::Range);
        }
        if old == 0 || old == new {
            return Ok(Vec::new());
        }
        let (mut from, mut to, mut path, mut whole) = (0, new, Vec::new(), true);
        while old != to {
            let split = from + split(to - from);
            if old <= split {
                path.push(over(self, split, to)?);
                to = split;
            } else {
                path.push(over(self, from, split)?);
                from = split;
                whole = false;
            }
        }
        if !whole {
            path.push(over(self, from, to)?);
        }
        path.reverse();
        Ok(path)
    }
}

/// The root over the leaves `from..to`, where `from` is where a subtree of that size begins.
fn over<S: Subtrees + ?Sized>(subtrees: &S, from: u64, to: u64) -> Result<Digest, ProofError> {
    let length = to - from;
    if length.is_power_of_two() {
        let height = length.trailing_zeros();
        return subtrees.subtree(height, from >> height).ok_or(ProofError::Range);
    }
    let split = from + split(length);
    Ok(node(&over(subtrees, from, split)?, &over(subtrees, split, to)?))
}

/// The largest power of two below `length`, which is at least 2.
const fn split(length: u64) -> u64 {
    1 << (u64::BITS - 1 - (length - 1).leading_zeros())
}
