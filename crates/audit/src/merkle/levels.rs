//! A tree with all its complete subtrees at hand: 64 bytes a leaf, proofs in O(log n).

use aip_api::Digest;

use super::{ProofError, node};

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
        match size {
            0 => Ok(Digest::sha256(b"")),
            size if size <= self.size() => self.over(0, size),
            _ => Err(ProofError::Range),
        }
    }

    /// The proof that the leaf at `index` is among the first `size` (RFC 6962 section 2.1.1).
    ///
    /// # Errors
    /// Outside the tree.
    pub fn inclusion(&self, index: u64, size: u64) -> Result<Vec<Digest>, ProofError> {
        if index >= size || size > self.size() {
            return Err(ProofError::Range);
        }
        let (mut from, mut to, mut path) = (0, size, Vec::new());
        while to - from > 1 {
            let split = from + split(to - from);
            if index < split {
                path.push(self.over(split, to)?);
                to = split;
            } else {
                path.push(self.over(from, split)?);
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
    pub fn consistency(&self, old: u64, new: u64) -> Result<Vec<Digest>, ProofError> {
        if old > new || new > self.size() {
            return Err(ProofError::Range);
        }
        if old == 0 || old == new {
            return Ok(Vec::new());
        }
        let (mut from, mut to, mut path, mut whole) = (0, new, Vec::new(), true);
        while old != to {
            let split = from + split(to - from);
            if old <= split {
                path.push(self.over(split, to)?);
                to = split;
            } else {
                path.push(self.over(from, split)?);
                from = split;
                whole = false;
            }
        }
        if !whole {
            path.push(self.over(from, to)?);
        }
        path.reverse();
        Ok(path)
    }

    /// The root over the leaves `from..to`, where `from` is where a subtree of that size begins.
    fn over(&self, from: u64, to: u64) -> Result<Digest, ProofError> {
        let length = to - from;
        if length.is_power_of_two() {
            let height = length.trailing_zeros();
            let level = self.0.get(height as usize).ok_or(ProofError::Range)?;
            let at = usize::try_from(from >> height).map_err(|_| ProofError::Range)?;
            return level.get(at).copied().ok_or(ProofError::Range);
        }
        let split = from + split(length);
        Ok(node(&self.over(from, split)?, &self.over(split, to)?))
    }
}

/// The largest power of two below `length`, which is at least 2.
const fn split(length: u64) -> u64 {
    1 << (u64::BITS - 1 - (length - 1).leading_zeros())
}
