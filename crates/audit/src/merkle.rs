//! Merkle trees as RFC 6962 section 2.1 has them (and RFC 9162 section 2.1, which verifies proofs the same way).
//!
//! [`Tree`] grows leaf by leaf in O(log n) memory and knows only its head; [`Levels`] keeps every complete subtree and
//! answers proofs in O(log n) time. Whoever verifies needs neither.

mod levels;
mod proof;
mod subtrees;

pub use levels::Levels;
pub use proof::{verify_consistency, verify_inclusion};
pub use subtrees::Subtrees;

use aip_api::Digest;

/// A proof that can't be made or does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// A place or size outside the tree.
    #[error("outside the tree")]
    Range,
    /// More or fewer hashes than a proof of these sizes has.
    #[error("not as many hashes as such a proof has")]
    Length,
    /// The hashes lead to another root.
    #[error("the proof leads to another root")]
    Root,
}

/// The hash of a leaf: SHA-256(0x00 || bytes).
pub fn leaf(bytes: &[u8]) -> Digest {
    Digest::of_parts(&[&[0], bytes])
}

/// The hash of a node: SHA-256(0x01 || left || right).
pub fn node(left: &Digest, right: &Digest) -> Digest {
    Digest::of_parts(&[&[1], left.as_bytes(), right.as_bytes()])
}

/// The root over leaf hashes.
pub fn root(leaves: &[Digest]) -> Digest {
    let mut tree = Tree::default();
    leaves.iter().for_each(|leaf| tree.append(*leaf));
    tree.root()
}

/// The proof that the leaf at `index` is among the first `size` of `leaves`.
///
/// # Errors
/// Outside the tree.
pub fn inclusion(leaves: &[Digest], index: u64, size: u64) -> Result<Vec<Digest>, ProofError> {
    leaves.iter().copied().collect::<Levels>().inclusion(index, size)
}

/// The proof that the first `old` of `leaves` are a beginning of the first `new`.
///
/// # Errors
/// Outside the tree.
pub fn consistency(leaves: &[Digest], old: u64, new: u64) -> Result<Vec<Digest>, ProofError> {
    leaves.iter().copied().collect::<Levels>().consistency(old, new)
}

/// A tree that only grows, of which only the complete subtrees on its right edge are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    size: u64,
    /// One for each bit that is set in `size`, the largest first.
    peaks: Vec<Digest>,
}

impl Tree {
    /// The tree of `size` leaves whose complete subtrees are `peaks`; none where their number does not fit the size.
    pub fn from_peaks(size: u64, peaks: Vec<Digest>) -> Option<Self> {
        (peaks.len() == size.count_ones() as usize).then_some(Self { size, peaks })
    }

    /// How many leaves.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The complete subtrees, the largest first: what [`Tree::from_peaks`] takes.
    pub fn peaks(&self) -> &[Digest] {
        &self.peaks
    }

    /// Adds the hash of a leaf.
    pub fn append(&mut self, leaf: Digest) {
        let mut carry = leaf;
        // As in counting: each 1 bit at the end is a complete subtree that the new one completes further.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.peaks.pop() {
                carry = node(&left, &carry);
            }
        }
        self.peaks.push(carry);
        self.size = self.size.saturating_add(1);
    }

    /// The root over all leaves so far.
    pub fn root(&self) -> Digest {
        let mut peaks = self.peaks.iter().rev();
        let Some(last) = peaks.next() else {
            return Digest::sha256(b"");
        };
        peaks.fold(*last, |right, left| node(left, &right))
    }
}

#[cfg(test)]
mod tests;
