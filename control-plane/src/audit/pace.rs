//! How fast checkpoints are taken, and segments closed. A checkpoint costs signatures to verify and, where it is new, 1.5 KB of
//! the control plane's disk for as long as records are kept; a segment costs files, and flushes of the disk. Who sends more is
//! answered later.

use std::time::Duration;

use aip_api::AgentName;

use crate::rate::{Rate, Rates};

/// New checkpoints of one log: a sidecar signs every four seconds, and what it signed in half an hour without a control plane
/// goes up at once.
const LOG: Rate = Rate {
    burst: 512.0,
    per_second: 5.0,
};
/// New checkpoints of all sidecars of one agent, of which there may be 256. A day of it is 10 GB.
const AGENT: Rate = Rate {
    burst: 4_096.0,
    per_second: 80.0,
};
/// Checkpoints of one agent that are looked at, also those that were taken before or are refused: a restored control plane is
/// told all of a log again.
const LOOKED_AT: Rate = Rate {
    burst: 8_192.0,
    per_second: 512.0,
};

/// Segments of one log that are closed: a sidecar closes one at 16 MiB or after an hour, and has sixty-four where it keeps a GiB
/// of records for a control plane that comes back.
const CLOSED: Rate = Rate {
    burst: 64.0,
    per_second: 1.0,
};
/// And of all sidecars of one agent.
const CLOSED_OF_AGENT: Rate = Rate {
    burst: 2_048.0,
    per_second: 8.0,
};
/// Longest wait for it: half of what a sidecar waits for an answer before it comes anew.
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// What is left of these rates.
#[derive(Debug)]
pub(super) struct Pace {
    closed: Rates,
    closed_of_agents: Rates,
    logs: Rates,
    agents: Rates,
    looked_at: Rates,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            closed: Rates::new(CLOSED),
            closed_of_agents: Rates::new(CLOSED_OF_AGENT),
            logs: Rates::new(LOG),
            agents: Rates::new(AGENT),
            looked_at: Rates::new(LOOKED_AT),
        }
    }
}

impl Pace {
    /// A checkpoint was looked at, and `kept` where it is new: how long its answer waits.
    pub(super) fn after(&self, agent: &AgentName, log: &str, kept: bool) -> Duration {
        let looked_at = self.looked_at.owe(agent.as_str());
        if !kept {
            return looked_at;
        }
        let of_log = self.logs.owe(&format!("{agent}/{log}"));
        looked_at.max(of_log).max(self.agents.owe(agent.as_str()))
    }

    /// A segment was closed: how long its answer waits.
    pub(super) fn after_closing(&self, agent: &AgentName, log: &str) -> Duration {
        let of_log = self.closed.owe(&format!("{agent}/{log}"));
        of_log.max(self.closed_of_agents.owe(agent.as_str())).min(LONGEST_WAIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tiny_segments_are_closed_at_their_rate_in_however_many_logs() {
        let (pace, began) = (Pace::default(), tokio::time::Instant::now());
        let (liar, honest): (AgentName, AgentName) = ("liar".parse().unwrap(), "honest".parse().unwrap());
        for _ in 0..200 {
            tokio::time::sleep(pace.after_closing(&liar, "one")).await;
        }
        assert!(began.elapsed().as_secs() >= 135, "{:?}", began.elapsed());
        for n in 0..2_048 {
            let _ = pace.after_closing(&liar, &n.to_string());
        }
        for n in 0..2_048 {
            let _ = pace.after_closing(&liar, &n.to_string());
        }
        assert_eq!(pace.after_closing(&liar, "another"), LONGEST_WAIT);
        // What was owed is made up for, however much there was of it.
        tokio::time::sleep(Duration::from_secs(2_048 / 8)).await;
        assert!(pace.after_closing(&liar, "yet another") < Duration::from_secs(1));
        assert!(pace.after_closing(&honest, "one").is_zero());
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_checkpoints_is_taken_at_its_rate_and_others_wait_for_nothing() {
        let (pace, began) = (Pace::default(), tokio::time::Instant::now());
        let (liar, honest): (AgentName, AgentName) = ("liar".parse().unwrap(), "honest".parse().unwrap());
        for n in 0..1_024 {
            tokio::time::sleep(pace.after(&liar, "one", true)).await;
            assert_eq!(pace.after(&honest, "one", false), Duration::ZERO, "{n}");
        }
        let least = (1_024.0 - LOG.burst) / LOG.per_second;
        assert!(began.elapsed().as_secs_f64() > least - 1.0, "{:?}", began.elapsed());
        // As many logs as it likes are no way around it.
        let began = tokio::time::Instant::now();
        for n in 0..10_000 {
            tokio::time::sleep(pace.after(&liar, &n.to_string(), true)).await;
        }
        let least = (10_000.0 - AGENT.burst) / AGENT.per_second;
        assert!(began.elapsed().as_secs_f64() > least - 1.0, "{:?}", began.elapsed());
    }
}
