//! When a pool counts as hot: a threshold with hysteresis, without a clock.
//!
//! It owns the switch that shedding and failover by utilization share. It turns on at once, since the utilization that
//! it is given is smoothed already, and off only after the pool has been well below the threshold for a while. So two
//! changes to hot lie at least [`COOLING_HOLD_NS`] apart, however the utilization moves.

/// How far below its threshold a pool has to be to cool down, in per mille.
pub const HYSTERESIS_PER_MILLE: u16 = 50;
/// How long it has to be there.
pub const COOLING_HOLD_NS: u64 = 5_000_000_000;

/// Whether something is hot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heat {
    is_hot: bool,
    /// Since when it has been well below its threshold.
    cool_since_ns: Option<u64>,
}

impl Heat {
    /// Whether it is hot.
    #[must_use]
    pub const fn is_hot(&self) -> bool {
        self.is_hot
    }

    /// Takes the utilization, in per mille, and says whether the switch turned. Nothing known turns nothing: silence is
    /// neither load nor ease.
    pub fn observe(&mut self, utilization_per_mille: Option<u16>, above_percent: u8, now_ns: u64) -> bool {
        let above_per_mille = u16::from(above_percent) * 10;
        let is_above = utilization_per_mille.is_some_and(|used| used > above_per_mille);
        let is_cool = utilization_per_mille
            .is_some_and(|used| used <= above_per_mille.saturating_sub(HYSTERESIS_PER_MILLE));
        if !self.is_hot {
            self.is_hot = is_above;
            return is_above;
        }
        if !is_cool {
            self.cool_since_ns = None;
            return false;
        }
        let since_ns = *self.cool_since_ns.get_or_insert(now_ns);
        if now_ns.saturating_sub(since_ns) < COOLING_HOLD_NS {
            return false;
        }
        *self = Self::default();
        true
    }
}

/// A utilization in words.
#[must_use]
pub fn percent(per_mille: u16) -> String {
    format!("{}.{}%", per_mille / 10, per_mille % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND_NS: u64 = 1_000_000_000;

    #[test]
    fn it_is_hot_at_once_and_cool_after_a_while_well_below() {
        let mut heat = Heat::default();
        // One look a second at a threshold of 80%.
        for (second, used, hot) in [
            (0, Some(800), false),
            (1, Some(801), true),
            (2, Some(751), true),
            (3, Some(750), true),
            (7, Some(750), true),
            // A relapse, or a look that sees nothing, starts the hold over.
            (8, Some(760), true),
            (9, Some(700), true),
            (13, Some(700), true),
            (14, None, true),
            (15, Some(0), true),
            (19, Some(0), true),
            (20, Some(0), false),
            (21, None, false),
            (22, Some(900), true),
        ] {
            let before = heat.is_hot();
            let turned = heat.observe(used, 80, second * SECOND_NS);
            assert_eq!(heat.is_hot(), hot, "second {second}");
            assert_eq!(turned, before != hot, "second {second}");
        }
    }

    #[test]
    fn a_threshold_below_the_hysteresis_can_still_be_left() {
        let mut heat = Heat::default();
        assert!(heat.observe(Some(40), 3, 0));
        assert!(!heat.observe(Some(0), 3, 0));
        assert!(heat.observe(Some(0), 3, COOLING_HOLD_NS));
    }

    proptest! {
        #[test]
        fn it_never_flaps_faster_than_the_hold(
            looks in proptest::collection::vec((0u64..3 * SECOND_NS, proptest::option::of(0u16..=1000)), 0..100),
            above_percent in 1u8..=100,
        ) {
            let (mut heat, mut now_ns, mut last_hot_ns) = (Heat::default(), 0, None);
            for (elapsed_ns, used) in looks {
                now_ns += elapsed_ns;
                if heat.observe(used, above_percent, now_ns) && heat.is_hot() {
                    prop_assert!(used.is_some_and(|used| used > u16::from(above_percent) * 10));
                    if let Some(last) = last_hot_ns.replace(now_ns) {
                        prop_assert!(now_ns - last >= COOLING_HOLD_NS);
                    }
                }
            }
        }
    }
}
