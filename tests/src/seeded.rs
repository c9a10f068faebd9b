//! Random numbers whose whole state is a seed that is printed: a run can be had again.

/// The variable that gives the seed.
const SEED: &str = "AIP_SEED";

/// A generator.
#[derive(Debug, Clone)]
pub struct Seeded(u64);

impl Seeded {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number from 0 to below `below`.
    pub fn below(&mut self, below: u64) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }

    /// A place in something that long.
    pub fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap()
    }

    /// So many different places in something that long, or all of them.
    pub fn some(&mut self, count: usize, length: usize) -> Vec<usize> {
        let mut all: Vec<_> = (0..length).collect();
        (0..count.min(length))
            .map(|_| all.swap_remove(self.index(all.len())))
            .collect()
    }
}

/// The seed of `AIP_SEED`, or this one; printed.
pub fn seed(otherwise: u64) -> u64 {
    let seed = number(SEED).unwrap_or(otherwise);
    eprintln!("{SEED}={seed}");
    seed
}

/// The number in a variable; none where there is no such variable.
///
/// # Panics
/// There is, and it has something else: a run that was asked for otherwise is none.
pub fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same() {
        let drawn = |seed| {
            let mut random = Seeded::new(seed);
            (random.below(1_000), random.index(50), random.some(5, 50))
        };
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
        let mut all = Seeded::new(7).some(60, 50);
        all.sort_unstable();
        assert_eq!(all, (0..50).collect::<Vec<_>>());
    }
}
