//! Whether a kill set is taken: validly signed, and higher than the one that is held. Nothing else ever lifts an order.
//! Pure.

use aip_api::kill::KillSet;
use aip_api::kill::sets::{Standing, standing};
use aip_api::wire::SignedKillSet;
use aip_runtime::kill::{KillError, open_set};
use aip_runtime::trust::TrustState;

/// A set that was taken, as it came.
#[derive(Debug, Clone)]
pub struct Held {
    /// What it says.
    pub set: KillSet,
    /// How it was signed.
    pub signed: SignedKillSet,
}

/// The set that is held, if any.
#[derive(Debug, Clone, Default)]
pub struct Hold(Option<Held>);

/// What becomes of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Considered {
    /// It is higher: take it.
    Higher(KillSet),
    /// It is the one that is held.
    Same,
}

/// Why a set is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// Not a set of this mesh.
    #[error(transparent)]
    Invalid(#[from] KillError),
    /// Lower than what is held.
    #[error("it is ({0}, {1}), and ({2}, {3}) is held")]
    Stale(u64, u64, u64, u64),
    /// Of the same term and epoch as what is held, and it says something else.
    #[error("another set of term {0} and epoch {1} is held")]
    Fork(u64, u64),
}

impl NotTaken {
    /// The stable reason.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(error) => error.reason(),
            Self::Stale(..) => "stale",
            Self::Fork(..) => "fork",
        }
    }

    /// Whether the control plane should see what is held: it may have been restored from a copy.
    pub const fn shows_held(&self) -> bool {
        matches!(self, Self::Stale(..) | Self::Fork(..))
    }
}

impl Hold {
    /// Holds this one.
    pub fn of(held: Held) -> Self {
        Self(Some(held))
    }

    /// What is held.
    pub fn held(&self) -> Option<&Held> {
        self.0.as_ref()
    }

    /// (term, epoch) of what is held.
    pub fn version(&self) -> Option<(u64, u64)> {
        self.0.as_ref().map(|held| held.set.version())
    }

    /// Whether `signed` is to be taken.
    ///
    /// # Errors
    /// It is not.
    pub fn consider(&self, trust: &TrustState, signed: &SignedKillSet) -> Result<Considered, NotTaken> {
        let set = open_set(trust, signed)?;
        let Some(held) = &self.0 else {
            return Ok(Considered::Higher(set));
        };
        let (new, old) = (set.version(), held.set.version());
        match standing(Some(&held.set), &set) {
            Standing::Higher => Ok(Considered::Higher(set)),
            Standing::Same => Ok(Considered::Same),
            Standing::Lower => Err(NotTaken::Stale(new.0, new.1, old.0, old.1)),
            Standing::Fork => Err(NotTaken::Fork(new.0, new.1)),
        }
    }
}

#[cfg(test)]
mod tests;
