//! How much of a search each agent's logs may take.

use std::collections::{BTreeMap, BTreeSet};

use super::Part;
use crate::log::LogError;

/// Rows that are left to each agent.
#[derive(Debug)]
pub(super) struct Shares<'a> {
    left: BTreeMap<&'a str, u64>,
    left_out: BTreeSet<&'a str>,
}

impl<'a> Shares<'a> {
    /// So many rows for all: who has few has all of them looked through, and those who have more have equal shares of the rest.
    pub(super) fn of(rows: u64, parts: &[Part<'a>]) -> Self {
        let mut wants = BTreeMap::<&str, u64>::new();
        for part in parts {
            let wanted = wants.entry(part.log.agent.as_str()).or_default();
            *wanted = wanted.saturating_add(part.rows);
        }
        let mut fewest_first: Vec<_> = wants.into_iter().collect();
        fewest_first.sort_by_key(|(_, wanted)| *wanted);
        let (mut left, mut rest, mut waiting) = (BTreeMap::new(), rows, fewest_first.len() as u64);
        for (agent, wanted) in fewest_first {
            let share = wanted.min(rest / waiting);
            left.insert(agent, share);
            (rest, waiting) = (rest - share, waiting - 1);
        }
        let left_out = BTreeSet::new();
        Self { left, left_out }
    }

    /// Takes the rows of this part, of an agent whose newer parts were taken; whether there is that much left to it. Of who
    /// had not enough once, nothing older is looked through.
    ///
    /// # Errors
    /// There is not, and there is no other agent whose records could be answered.
    pub(super) fn take(&mut self, part: &Part<'a>) -> Result<bool, LogError> {
        let agent = part.log.agent.as_str();
        if self.left_out.contains(agent) {
            return Ok(false);
        }
        let left = self.left.get(agent).copied().unwrap_or_default();
        match left.checked_sub(part.rows) {
            Some(left) => {
                self.left.insert(agent, left);
                Ok(true)
            }
            None if self.left.len() == 1 => Err(LogError::Search),
            None => {
                self.left_out.insert(agent);
                Ok(false)
            }
        }
    }

    /// Whose older records were not looked through.
    pub(super) fn left_out(self) -> BTreeSet<String> {
        self.left_out.into_iter().map(str::to_owned).collect()
    }
}
