//! The rigs that runs are played on, and how a run that shows a difference is cut down.

use std::time::{Duration, Instant};

use enforcer_tests::generate::{Op, Start};
use enforcer_tests::rig::Rig;

use super::{CRAMPED, Difference, ROOMY, Run, Stats};

/// Time for cutting a failing run down.
const SHRINK_LIMIT: Duration = Duration::from_secs(60);

/// The rigs: one with room, one without.
pub(super) struct Rigs {
    roomy: Rig,
    cramped: Rig,
}

impl Rigs {
    pub(super) fn new() -> Self {
        let rig = |entries| Rig::new(entries).unwrap_or_else(|error| panic!("{error}"));
        Self {
            roomy: rig(ROOMY),
            cramped: rig(CRAMPED),
        }
    }

    pub(super) fn of(&mut self, start: &Start) -> &mut Rig {
        if start.flow_entries == CRAMPED {
            &mut self.cramped
        } else {
            &mut self.roomy
        }
    }

    /// Plays operations again; the index of the one that shows a difference, and the difference.
    pub(super) fn play(&mut self, start: &Start, ops: &[Op]) -> Result<(), (usize, Difference)> {
        let mut stats = Stats::default();
        let mut run = Run::begin(self.of(start), start, &mut stats).map_err(|difference| (0, difference))?;
        for (index, op) in ops.iter().enumerate() {
            run.step(op).map_err(|difference| (index, difference))?;
        }
        run.compare_all().map_err(|difference| (ops.len(), difference))
    }

    /// Leaves out what the difference does not need: ever smaller pieces, as long as there is time.
    pub(super) fn shrink(&mut self, start: &Start, mut ops: Vec<Op>) -> (Vec<Op>, Difference) {
        let begun = Instant::now();
        let mut problem = String::from("the difference does not show when the run is played again");
        match self.play(start, &ops) {
            Err((index, difference)) => {
                ops.truncate(index + 1);
                problem = difference;
            }
            Ok(()) => return (ops, problem),
        }
        let mut piece = ops.len() / 2;
        while piece > 0 && begun.elapsed() < SHRINK_LIMIT {
            let mut at = 0;
            while at < ops.len() && begun.elapsed() < SHRINK_LIMIT {
                let end = (at + piece).min(ops.len());
                let shorter = [&ops[..at], &ops[end..]].concat();
                match self.play(start, &shorter) {
                    Err((index, difference)) => {
                        ops = shorter;
                        ops.truncate(index + 1);
                        problem = difference;
                    }
                    Ok(()) => at = end,
                }
            }
            piece /= 2;
        }
        (ops, problem)
    }
}
