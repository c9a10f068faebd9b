//! Drift: what the agent runs is no longer what was measured. This sidecar then suspends itself first, and tells the
//! control plane second; with the control plane away it stays suspended all the same, over restarts too.
//!
//! | module | what |
//! |---|---|
//! | [`suspension`] | whether this sidecar serves, and the marker that outlives the process |
//! | [`alarm`] | from what was seen to a suspension |
//! | `interest` | which directories, names and files decide what is measured |
//! | `notices` | the kernel's notices (inotify) of changes to those |
//! | [`stamps`] | what tells that a file was touched, where no notice did |
//! | [`watcher`] | waits for notices, measures again, falls back to looking over and over |
//! | [`report`] | tells the control plane until it answers |

pub mod alarm;
mod interest;
mod notices;
#[cfg(test)]
mod renewals;
pub mod report;
pub mod stamps;
pub mod suspension;
pub mod watcher;

pub use alarm::Alarm;
pub use suspension::{Marker, Suspension};
