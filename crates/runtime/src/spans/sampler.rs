//! Which traces are sent: OpenTelemetry's own samplers, by their own names.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// Decides of a trace. By default as whoever began it did, and all of those that begin here.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// A trace that comes in goes on as it is.
    parent_based: bool,
    /// Of traces that begin here, or of all.
    share: Share,
}

/// How many.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Share {
    All,
    None,
    /// This part of all, from 0 to 1.
    Ratio(f64),
}

/// Bits of a trace id that are random (W3C Trace Context level 2, section 3.2.2.3), and by which a share is chosen: so
/// every process that samples the same share chooses the same traces.
const RANDOM_BITS: u32 = 56;

impl Default for Sampler {
    fn default() -> Self {
        Self {
            parent_based: true,
            share: Share::All,
        }
    }
}

impl Sampler {
    /// What a sampler may be called.
    pub const NAMES: &'static str =
        "always_on, always_off, traceidratio, or one of these after parentbased_ (the ratios with an argument)";

    /// The sampler of this name (`OTEL_TRACES_SAMPLER`); `argument` is a ratio's, from 0 to 1, by default 1.
    pub fn named(name: &str, argument: Option<f64>) -> Option<Self> {
        let (parent_based, name) = match name.strip_prefix("parentbased_") {
            Some(rest) => (true, rest),
            None => (false, name),
        };
        let share = match name {
            "always_on" => Share::All,
            "always_off" => Share::None,
            "traceidratio" => Share::Ratio(argument.unwrap_or(1.0)),
            _ => return None,
        };
        Some(Self { parent_based, share })
    }

    /// Whether spans of the trace `id` are sent, given whether those of its caller are.
    pub fn samples(&self, id: u128, parent: Option<bool>) -> bool {
        match (parent, self.share) {
            (Some(sampled), _) if self.parent_based => sampled,
            (_, Share::All) => true,
            (_, Share::None) => false,
            (_, Share::Ratio(ratio)) => {
                let all = 1_u64 << RANDOM_BITS;
                // Both are below 2^53 parts or powers of two: nothing is lost that a ratio could mean.
                #[expect(
                    clippy::cast_precision_loss,
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss
                )]
                let refused = ((1.0 - ratio) * all as f64) as u64;
                let random = u64::try_from(id & u128::from(all - 1)).unwrap_or(u64::MAX);
                random >= refused
            }
        }
    }
}

impl FromStr for Sampler {
    type Err = ();
    fn from_str(name: &str) -> Result<Self, ()> {
        Self::named(name, None).ok_or(())
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = if self.parent_based { "parentbased_" } else { "" };
        match self.share {
            Share::All => write!(f, "{prefix}always_on"),
            Share::None => write!(f, "{prefix}always_off"),
            Share::Ratio(ratio) => write!(f, "{prefix}traceidratio={ratio}"),
        }
    }
}

impl Serialize for Sampler {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Trace ids whose random part is spread evenly, under a prefix that is always the same.
    fn ids() -> impl Iterator<Item = u128> {
        (0..1_024_u128).map(|n| (0xabcd << 112) | (n << 46))
    }

    #[test]
    fn a_trace_that_comes_in_goes_on_as_its_caller_decided() {
        for name in [
            "parentbased_always_on",
            "parentbased_always_off",
            "parentbased_traceidratio",
        ] {
            let sampler = Sampler::named(name, Some(0.5)).unwrap();
            assert!(ids().all(|id| sampler.samples(id, Some(true))), "{name}");
            assert!(!ids().any(|id| sampler.samples(id, Some(false))), "{name}");
        }
        assert_eq!(Sampler::default().to_string(), "parentbased_always_on");
        assert!(Sampler::default().samples(1, None) && !Sampler::default().samples(1, Some(false)));
        assert!(Sampler::named("always_on", None).unwrap().samples(1, Some(false)));
        assert!(!Sampler::named("always_off", None).unwrap().samples(1, Some(true)));
        assert!(Sampler::named("sometimes", None).is_none());
    }

    #[test]
    fn a_ratio_is_that_part_of_all_traces_and_a_larger_one_has_all_of_a_smaller_ones() {
        let of = |ratio| Sampler::named("traceidratio", Some(ratio)).unwrap();
        let count = |ratio| ids().filter(|id| of(ratio).samples(*id, None)).count();
        assert_eq!((count(0.0), count(1.0)), (0, 1_024));
        for ratio in [0.1, 0.25, 0.5] {
            #[expect(clippy::cast_precision_loss)]
            let share = count(ratio) as f64 / 1_024.0;
            assert!((share - ratio).abs() < 0.02, "{share} of {ratio}");
            assert!(ids().all(|id| !of(ratio).samples(id, None) || of(ratio + 0.1).samples(id, None)));
        }
    }
}
