//! A tree with all its complete subtrees at hand: 64 bytes a leaf, proofs in O(log n).

use aip_api::Digest;

use super::{ProofError, Subtrees, node};

/// Every complete subtree, by height.
#[derive(Debug, Clone, Default)]
pub struct Levels(Vec<Vec<Digest>>);

impl FromIterator<Digest> for Levels {
    fn from_iter<I: IntoIterator<Item = Digest>>(leaves: I) -> Self {
        let mut levels = Self::default();
        leaves.into_iter().for_each(|leaf| levels.append(leaf));
        levels
    }
}

impl Levels {
    /// How many leaves.
    pub fn size(&self) -> u64 {
        self.0.first().map_or(0, |leaves| leaves.len() as u64)
    }

    /// The hash of the leaf at `index`.
    pub fn leaf(&self, index: u64) -> Option<Digest> {
        self.0.first()?.get(usize::try_from(index).ok()?).copied()
    }

    /// Adds the hash of a leaf.
    pub fn append(&mut self, leaf: Digest) {
        let mut carry = leaf;
        for height in 0.. {
            if self.0.len() == height {
                self.0.push(Vec::new());
            }
            let level = &mut self.0[height];
            level.push(carry);
            if level.len() % 2 == 1 {
                return;
            }
            carry = node(&level[level.len() - 2], &carry);
        }
    }

    /// The root over the first `size` leaves.
    ///
    /// # Errors
    /// There are fewer.
    pub fn root(&self, size: u64) -> Result<Digest, ProofError> {
        self.root_of(size)
    }

    /// The proof that the leaf at `index` is among the first `size`.
    ///
    /// # Errors
    /// Outside the tree.
    pub fn inclusion(&self, index: u64, size: u64) -> Result<Vec<Digest>, ProofError> {
        match size <= self.size() {
            true => self.inclusion_of(index, size),
            false => Err(ProofError::Range),
        }
    }

    /// The proof that the first `old` leaves are a beginning of the first `new`.
    ///
    /// # Errors
    /// Outside the tree.
    pub fn consistency(&self, old: u64, new: u64) -> Result<Vec<Digest>, ProofError> {
        match new <= self.size() {
            true => self.consistency_of(old, new),
            false => Err(ProofError::Range),
        }
    }
}

impl Subtrees for Levels {
    fn subtree(&self, height: u32, at: u64) -> Option<Digest> {
        self.0.get(height as usize)?.get(usize::try_from(at).ok()?).copied()
    }
}
