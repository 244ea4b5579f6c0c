//! The rigs that runs are played on, and how a run that shows a difference is cut down.

use std::time::{Duration, Instant};

use enforcer_tests::generate::{Op, Start};
use enforcer_tests::rig::{Rig, Way};

use super::{CRAMPED, Difference, ROOMY, Run, Stats};

/// Time for cutting a failing run down.
const SHRINK_LIMIT: Duration = Duration::from_secs(60);

/// The rigs: with room and without, by XDP and by TC.
pub(super) struct Rigs(Vec<(Way, u32, Rig)>);

impl Rigs {
    pub(super) fn new() -> Self {
        let rig = |way, entries| {
            let rig = Rig::new(entries).unwrap_or_else(|error| panic!("{error}"));
            (way, entries, rig.by(way))
        };
        let ways = Way::ALL.into_iter();
        Self(
            ways.flat_map(|way| [rig(way, ROOMY), rig(way, CRAMPED)])
                .collect(),
        )
    }

    pub(super) fn of(&mut self, way: Way, start: &Start) -> &mut Rig {
        let wanted = |(its_way, entries, _): &&mut (Way, u32, Rig)| {
            *its_way == way && (*entries == CRAMPED) == (start.flow_entries == CRAMPED)
        };
        let found = self.0.iter_mut().find(wanted).expect("a rig of each kind");
        &mut found.2
    }

    /// Plays operations again; the index of the one that shows a difference, and the difference.
    pub(super) fn play(&mut self, way: Way, start: &Start, ops: &[Op]) -> Result<(), (usize, Difference)> {
        let mut stats = Stats::default();
        let mut run =
            Run::begin(self.of(way, start), start, &mut stats).map_err(|difference| (0, difference))?;
        for (index, op) in ops.iter().enumerate() {
            run.step(op).map_err(|difference| (index, difference))?;
        }
        run.compare_all().map_err(|difference| (ops.len(), difference))
    }

    /// Leaves out what the difference does not need: ever smaller pieces, as long as there is time.
    pub(super) fn shrink(&mut self, way: Way, start: &Start, mut ops: Vec<Op>) -> (Vec<Op>, Difference) {
        let begun = Instant::now();
        let mut problem = String::from("the difference does not show when the run is played again");
        match self.play(way, start, &ops) {
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
                match self.play(way, start, &shorter) {
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
