//! What sidecars recorded, as it arrives: checkpoints, segments, and the two ends of each hop held against each other.
//!
//! | module | what |
//! |---|---|
//! | [`hops`] | hops whose both ends have been heard |

pub mod hops;
