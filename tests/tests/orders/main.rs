//! Orders to stop reach whoever drifted or was revoked, and that way in leads to nothing else.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod port;
mod reach;
mod renewed;
