//! The protocol's numbers. Defaults are for production; tests shrink them.

use crate::time::{MS, Micros, SECOND};

/// All durations are in microseconds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Config {
    /// How long a lease lasts after its grant or its last renewal, as the holder counts it.
    pub ttl_us: Micros,
    /// How much earlier than the ttl the holder stops using a lease.
    pub margin_us: Micros,
    /// How much longer than the ttl the owner accepts runs on it.
    pub grace_us: Micros,
    /// The bound promised on how much clock rates differ, in parts per million.
    pub clock_rate_ppm: u64,
    /// A lease older than this is not renewed.
    pub max_lease_age_us: Micros,
    /// How long peers may veto.
    pub window_us: Micros,
    /// The same when memory is needed now.
    pub urgent_window_us: Micros,
    /// The longest that one veto holds.
    pub max_hold_us: Micros,
    /// Idle this long, a container is to be paused.
    pub pause_grace_us: Micros,
    /// The same for containers with more than one slot.
    pub concurrent_grace_us: Micros,
    /// Paused this long, a container is to be removed.
    pub idle_timeout_us: Micros,
    /// A window noticed later than this after its end is opened anew.
    pub gossip_interval_us: Micros,
    /// Most own activations that wait for one action.
    pub queue_per_action: usize,
    /// Most bytes of parameters that wait on this node.
    pub queue_bytes: u64,
    /// The longest an owner holds a Reserve.
    pub max_wait_us: Micros,
    /// The longest a start waits for memory.
    pub max_memory_wait_us: Micros,
    /// The longest an activation waits before it is refused.
    pub max_queue_wait_us: Micros,
    /// Memory for containers on this node.
    pub memory_mb: u64,
    /// Engine calls of one sort at a time.
    pub parallel_starts: usize,
    /// Bodies up to this size travel with a reservation.
    pub small_body_bytes: u64,
    /// Answers that an owner keeps for one holder.
    pub answers_per_holder: usize,
    /// Holders whose answers an owner keeps; more than peers that may be live.
    pub holders: usize,
    /// Reserves of peers that wait for one action.
    pub waiting_per_action: usize,
    /// Actions whose adverts one peer may have here, and this node gossips.
    pub adverts_per_peer: usize,
    /// Least time between two adverts of one action.
    pub advert_interval_us: Micros,
    /// How often a backlog is looked at again.
    pub decide_interval_us: Micros,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ttl_us: 5 * SECOND,
            margin_us: 100 * MS,
            grace_us: 200 * MS,
            clock_rate_ppm: 10_000,
            max_lease_age_us: 30 * SECOND,
            window_us: SECOND,
            urgent_window_us: 100 * MS,
            max_hold_us: 30 * SECOND,
            pause_grace_us: 10 * SECOND,
            concurrent_grace_us: 60 * SECOND,
            idle_timeout_us: 600 * SECOND,
            gossip_interval_us: 250 * MS,
            queue_per_action: 1_000,
            queue_bytes: 100 << 20,
            max_wait_us: SECOND,
            max_memory_wait_us: 10 * SECOND,
            max_queue_wait_us: 60 * SECOND,
            memory_mb: 4096,
            parallel_starts: 4,
            small_body_bytes: 64 << 10,
            answers_per_holder: 4096,
            holders: 4096,
            waiting_per_action: 256,
            adverts_per_peer: 32,
            advert_interval_us: 500 * MS,
            decide_interval_us: 100 * MS,
        }
    }
}

/// The numbers contradict one another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "margin + grace is {have_us} µs, but a ttl of {ttl_us} µs with clock rates that differ by up to {ppm} ppm needs at least {need_us} µs: raise the grace or shorten the ttl"
    )]
    LeaseMargins { have_us: Micros, need_us: Micros, ttl_us: Micros, ppm: u64 },
    #[error("the margin ({margin_us} µs) must be shorter than the ttl ({ttl_us} µs)")]
    MarginOverTtl { margin_us: Micros, ttl_us: Micros },
    #[error(
        "the window ({window_us} µs) must be at least three gossip intervals ({need_us} µs), or peers hear of intents too late to veto"
    )]
    ShortWindow { window_us: Micros, need_us: Micros },
    #[error("{0} must be at least 1")]
    Zero(&'static str),
}

impl Config {
    /// margin + grace ≥ 2.1·ρ·ttl, and what else must hold between the numbers.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let need_us = 21 * self.clock_rate_ppm * self.ttl_us / 10_000_000;
        let have_us = self.margin_us + self.grace_us;
        if have_us < need_us {
            return Err(ConfigError::LeaseMargins { have_us, need_us, ttl_us: self.ttl_us, ppm: self.clock_rate_ppm });
        }
        if self.margin_us >= self.ttl_us {
            return Err(ConfigError::MarginOverTtl { margin_us: self.margin_us, ttl_us: self.ttl_us });
        }
        if self.window_us < 3 * self.gossip_interval_us {
            return Err(ConfigError::ShortWindow { window_us: self.window_us, need_us: 3 * self.gossip_interval_us });
        }
        for (value, name) in [
            (self.queue_per_action, "queue_per_action"),
            (self.parallel_starts, "parallel_starts"),
            (self.answers_per_holder, "answers_per_holder"),
            (self.holders, "holders"),
            (self.adverts_per_peer, "adverts_per_peer"),
        ] {
            if value == 0 {
                return Err(ConfigError::Zero(name));
            }
        }
        Ok(())
    }

    /// How long an idle container stays unpaused.
    pub fn pause_after_us(&self, slots: u32) -> Micros {
        if slots > 1 { self.concurrent_grace_us } else { self.pause_grace_us }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_defaults_are_consistent() {
        Config::default().validate().unwrap();
    }

    #[test]
    fn margins_too_small_for_the_promised_clock_rate_are_refused() {
        let config = Config { grace_us: 0, margin_us: 50 * MS, ..Config::default() };
        assert!(matches!(config.validate(), Err(ConfigError::LeaseMargins { .. })));
    }

    #[test]
    fn a_window_shorter_than_three_gossip_intervals_is_refused() {
        let config = Config { window_us: 500 * MS, ..Config::default() };
        assert!(matches!(config.validate(), Err(ConfigError::ShortWindow { .. })));
    }
}
