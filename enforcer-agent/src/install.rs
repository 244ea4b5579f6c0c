//! Puts compiled tables into force: write the bank that is not live, read it back, flip one word.
//!
//! Whatever fails on the way, the old generation stays in force and the half-written bank is remembered as unknown, so
//! that the next attempt writes it whole. Between changes the bank that is not live is brought in line with the one that
//! is, in small steps, so that a change writes no more than its own difference.

use std::sync::Arc;
use std::time::Duration;

use enforcer_common::schema::BANKS;

use crate::adapters::clock::SystemClock;
pub use crate::ports::Banks;
use crate::ports::Clock;
use crate::pure::plan;
use crate::pure::tables::{Tables, Write};

/// A packet that read the old generation just before a flip may still be reading its bank. The programs run for
/// microseconds with preemption off, so a bank that was left this long ago has no reader.
const GRACE: Duration = Duration::from_millis(10);

/// Why a change was not put into force. The old generation is still live.
#[derive(Debug, thiserror::Error)]
pub enum InstallError<E: std::error::Error + 'static> {
    /// A map operation failed.
    #[error("a map operation failed, generation {live} stays in force: {source}")]
    Map {
        /// The generation in force.
        live: u64,
        /// What the kernel said.
        source: E,
    },
    /// A record read back differs from what was written.
    #[error(
        "record {index} of bank {bank} of {map} does not hold what was written, generation {live} stays in force"
    )]
    ReadBack {
        /// The bank.
        bank: u32,
        /// The map.
        map: &'static str,
        /// The record, counted within the bank.
        index: u32,
        /// The generation in force.
        live: u64,
    },
}

/// Knows what each bank holds, so that only differences are written.
#[derive(Clone)]
pub struct Installer {
    clock: Arc<dyn Clock>,
    banks: [Option<Tables>; BANKS as usize],
    flipped_ns: u64,
    /// How the bank that is not live is brought in line with the other; its content counts as unknown meanwhile.
    catching_up: Option<CatchUp>,
}

/// A bank on its way to hold `target`.
#[derive(Clone)]
struct CatchUp {
    bank: u32,
    target: Tables,
    writes: Vec<Write>,
    /// How many of them are done.
    done: usize,
}

impl Default for Installer {
    fn default() -> Self {
        Self::new(Arc::new(SystemClock))
    }
}

/// What an installation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The generation that is now in force.
    pub generation: u64,
    /// Records written.
    pub writes: usize,
    /// Whether the live bank was changed in place, without a new generation.
    pub in_place: bool,
}

impl Installer {
    /// One that knows nothing of either bank yet.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            // An earlier agent may have flipped a moment ago.
            flipped_ns: clock.monotonic_ns(),
            clock,
            banks: [None, None],
            catching_up: None,
        }
    }

    /// The same knowledge under another clock.
    #[cfg(test)]
    pub(crate) fn with_clock(&self, clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            ..self.clone()
        }
    }

    /// The tables in force; `None` if this process did not put them there, or if a change in place failed midway.
    #[must_use]
    pub fn live(&self, generation: u64) -> Option<&Tables> {
        self.banks[bank_of(generation) as usize].as_ref()
    }

    /// Puts `desired` into force: in place where nobody's rights change, as a new generation otherwise.
    ///
    /// # Errors
    /// [`InstallError`]; the old generation is then still in force.
    pub fn install<B: Banks + ?Sized>(
        &mut self,
        maps: &mut B,
        desired: Tables,
    ) -> Result<Installed, InstallError<B::Error>> {
        let live = maps
            .generation()
            .map_err(|source| InstallError::Map { live: 0, source })?;
        if live != 0
            && let Some(writes) = self
                .live(live)
                .and_then(|tables| plan::in_place(tables, &desired))
        {
            let bank = bank_of(live);
            // Its content is unknown until the last write has succeeded.
            self.banks[bank as usize] = None;
            write_all(maps, live, bank, &writes)?;
            self.banks[bank as usize] = Some(desired);
            return Ok(Installed {
                generation: live,
                writes: writes.len(),
                in_place: true,
            });
        }
        self.install_generation(maps, live, desired)
    }

    fn install_generation<B: Banks + ?Sized>(
        &mut self,
        maps: &mut B,
        live: u64,
        desired: Tables,
    ) -> Result<Installed, InstallError<B::Error>> {
        let generation = live + 1;
        let bank = bank_of(generation);
        if let Some(rest) = self.grace() {
            self.clock.pause(rest);
        }
        // Its content is unknown until all of it has been read back, whatever fails.
        let mut held = self.banks[bank as usize].take();
        if let Some(mut begun) = self.catching_up.take().filter(|begun| begun.bank == bank) {
            begun.step(maps, live, usize::MAX)?;
            held = Some(begun.target);
        }
        let writes = plan::plan(held.as_ref(), &desired);
        write_all(maps, live, bank, &writes)?;
        read_back(maps, live, bank, &writes)?;
        // Known from here on, also if it does not become live: the next plan must start from what is there.
        self.banks[bank as usize] = Some(desired);
        maps.set_generation(generation)
            .map_err(|source| InstallError::Map { live, source })?;
        self.flipped_ns = self.clock.monotonic_ns();
        Ok(Installed {
            generation,
            writes: writes.len(),
            in_place: false,
        })
    }

    /// How long the bank that was left last must still be left alone.
    fn grace(&self) -> Option<Duration> {
        let since_ns = self.clock.monotonic_ns().saturating_sub(self.flipped_ns);
        GRACE
            .checked_sub(Duration::from_nanos(since_ns))
            .filter(|rest| !rest.is_zero())
    }

    /// Brings the bank that is not live closer to the live one, by at most `limit` records; whether there is more to do.
    ///
    /// # Errors
    /// [`InstallError`]; that bank is then written whole by the next change, or by another call.
    pub fn catch_up<B: Banks + ?Sized>(
        &mut self,
        maps: &mut B,
        limit: usize,
    ) -> Result<bool, InstallError<B::Error>> {
        let live = maps
            .generation()
            .map_err(|source| InstallError::Map { live: 0, source })?;
        let spare = bank_of(live + 1);
        let begun = self.catching_up.take().filter(|begun| begun.bank == spare);
        let mut begun = match (begun, self.live(live)) {
            (Some(begun), _) => begun,
            (None, Some(target)) if self.banks[spare as usize].as_ref() != Some(target) => {
                if self.grace().is_some() {
                    return Ok(true);
                }
                let target = target.clone();
                let held = self.banks[spare as usize].take();
                CatchUp {
                    bank: spare,
                    writes: plan::plan(held.as_ref(), &target),
                    target,
                    done: 0,
                }
            }
            (None, _) => return Ok(false),
        };
        begun.step(maps, live, limit)?;
        if begun.done < begun.writes.len() {
            self.catching_up = Some(begun);
            return Ok(true);
        }
        self.banks[spare as usize] = Some(begun.target);
        Ok(self.banks[spare as usize].as_ref() != self.live(live))
    }
}

// === impl CatchUp ===

impl CatchUp {
    fn step<B: Banks + ?Sized>(
        &mut self,
        maps: &mut B,
        live: u64,
        limit: usize,
    ) -> Result<(), InstallError<B::Error>> {
        let rest = &self.writes[self.done..];
        let next = &rest[..rest.len().min(limit)];
        write_all(maps, live, self.bank, next)?;
        read_back(maps, live, self.bank, next)?;
        self.done += next.len();
        Ok(())
    }
}

fn read_back<B: Banks + ?Sized>(
    maps: &B,
    live: u64,
    bank: u32,
    writes: &[Write],
) -> Result<(), InstallError<B::Error>> {
    for write in writes {
        let holds = maps.holds(bank, write);
        if !holds.map_err(|source| InstallError::Map { live, source })? {
            let (map, index) = write.place();
            return Err(InstallError::ReadBack {
                bank,
                map,
                index,
                live,
            });
        }
    }
    Ok(())
}

fn write_all<B: Banks + ?Sized>(
    maps: &mut B,
    live: u64,
    bank: u32,
    writes: &[Write],
) -> Result<(), InstallError<B::Error>> {
    for write in writes {
        maps.write(bank, write)
            .map_err(|source| InstallError::Map { live, source })?;
    }
    Ok(())
}

const fn bank_of(generation: u64) -> u32 {
    (generation % BANKS as u64) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use enforcer_common::abi::config::{DecisionRecord, LimitsRecord, TenantRecord};

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("made to fail")]
    struct Failure;

    /// Two banks and a generation in memory; operation number `fail_at` fails.
    #[derive(Clone, Default)]
    struct Fake {
        generation: u64,
        banks: [BTreeMap<(&'static str, u32), Write>; 2],
        operations: std::cell::Cell<usize>,
        fail_at: Option<usize>,
    }

    impl Fake {
        fn operate(&self) -> Result<(), Failure> {
            self.operations.set(self.operations.get() + 1);
            if self.fail_at == Some(self.operations.get()) {
                Err(Failure)
            } else {
                Ok(())
            }
        }

        fn live(&self) -> &BTreeMap<(&'static str, u32), Write> {
            &self.banks[bank_of(self.generation) as usize]
        }
    }

    impl Banks for Fake {
        type Error = Failure;

        fn generation(&self) -> Result<u64, Failure> {
            self.operate().map(|()| self.generation)
        }

        fn set_generation(&mut self, generation: u64) -> Result<(), Failure> {
            self.operate()?;
            self.generation = generation;
            Ok(())
        }

        fn write(&mut self, bank: u32, write: &Write) -> Result<(), Failure> {
            self.operate()?;
            self.banks[bank as usize].insert(write.place(), write.clone());
            Ok(())
        }

        fn holds(&self, bank: u32, write: &Write) -> Result<bool, Failure> {
            self.operate()?;
            Ok(self.banks[bank as usize].get(&write.place()) == Some(write))
        }
    }

    fn tables(limit: u64) -> Tables {
        Tables {
            tenants: vec![
                TenantRecord {
                    limits: LimitsRecord {
                        concurrent_limit: limit,
                        ..LimitsRecord::ZERO
                    },
                    ..TenantRecord::ZERO
                };
                3
            ]
            .into(),
            decisions: vec![DecisionRecord {
                rule: limit as u32,
                ..DecisionRecord::ZERO
            }]
            .into(),
            ..Tables::default()
        }
    }

    /// Tenants as in `tables(1)`, decisions as in `tables(limit)`.
    fn half(limit: u64) -> Tables {
        Tables {
            tenants: tables(1).tenants,
            ..tables(limit)
        }
    }

    /// Both banks are known, so that the next installation writes differences only; `tables(1)` are live.
    fn running() -> (Fake, Installer) {
        let (mut maps, mut installer) = (Fake::default(), Installer::default());
        for limit in [3, 1] {
            let installed = installer.install(&mut maps, tables(limit));
            installed.expect("nothing fails yet");
        }
        (maps, installer)
    }

    /// What the live bank holds after an installation without a failure.
    fn whole(tables: Tables) -> BTreeMap<(&'static str, u32), Write> {
        let mut maps = Fake::default();
        Installer::default()
            .install(&mut maps, tables)
            .expect("nothing fails");
        maps.live().clone()
    }

    #[test]
    fn every_operation_fails_once_and_the_old_or_the_new_generation_is_whole() {
        let (mut clean, mut installer) = running();
        let old = clean.live().clone();
        let before = clean.operations.get();
        installer.install(&mut clean, tables(2)).expect("nothing fails");
        let new = clean.live().clone();
        let operations = clean.operations.get() - before;
        assert!(operations > 8, "the test would not reach far enough");

        for nth in 1..=operations {
            let (mut maps, mut installer) = running();
            maps.fail_at = Some(maps.operations.get() + nth);
            installer
                .install(&mut maps, tables(2))
                .expect_err("one operation failed");
            assert_eq!(maps.live(), &old, "operation {nth}: the old generation is whole");
            assert_eq!(maps.generation, 2);
            maps.fail_at = None;
            let mut other = (maps.clone(), installer.clone());
            let installed = installer
                .install(&mut maps, tables(2))
                .expect("the second try succeeds");
            assert_eq!(maps.live(), &new, "operation {nth}: the new generation is whole");
            assert_eq!(installed.generation, 3);

            other.1.install(&mut other.0, half(2)).expect("nothing fails");
            assert_eq!(
                other.0.live(),
                &whole(half(2)),
                "operation {nth}: nothing of what failed is left in another change"
            );
        }
    }

    /// `tables(1)` with another limit for the last tenant alone.
    fn edited() -> Tables {
        let mut tables = tables(1);
        tables.tenants.make_mut()[2].limits.concurrent_limit = 9;
        tables
    }

    /// A second passes from one look to the next: no bank needs to be left alone.
    #[derive(Default)]
    struct Leaping(std::sync::atomic::AtomicU64);

    impl Clock for Leaping {
        fn monotonic_ns(&self) -> u64 {
            self.0
                .fetch_add(1_000_000_000, std::sync::atomic::Ordering::Relaxed)
        }

        fn wall(&self) -> jiff::Timestamp {
            jiff::Timestamp::UNIX_EPOCH
        }

        fn pause(&self, _duration: Duration) {
            panic!("there is nothing to wait for");
        }
    }

    fn leaping() -> Installer {
        Installer::new(Arc::new(Leaping::default()))
    }

    fn catch_up(installer: &mut Installer, maps: &mut Fake) {
        while installer.catch_up(maps, 1).expect("nothing fails") {}
    }

    #[test]
    fn a_bank_that_caught_up_needs_only_the_difference() {
        let mut maps = Fake::default();
        let mut installer = leaping();
        installer.install(&mut maps, tables(1)).expect("nothing fails");
        assert!(maps.banks[0].is_empty(), "generation 1 is in bank 1");
        catch_up(&mut installer, &mut maps);
        assert_eq!(&maps.banks[0], maps.live());
        assert_eq!(maps.generation, 1, "nothing was put into force");
        let installed = installer.install(&mut maps, edited()).expect("nothing fails");
        assert_eq!(installed.writes, 1, "one tenant");
        assert_eq!(maps.live(), &whole(edited()));
        catch_up(&mut installer, &mut maps);
        assert_eq!(&maps.banks[1], maps.live());
    }

    #[test]
    fn a_change_amid_catching_up_is_whole_whatever_failed() {
        let mut begun = (Fake::default(), leaping());
        begun.1.install(&mut begun.0, tables(1)).expect("nothing fails");
        let before = begun.0.operations.get();
        let mut clean = begun.clone();
        catch_up(&mut clean.1, &mut clean.0);
        let operations = clean.0.operations.get() - before;
        for nth in 1..=operations {
            let (mut maps, mut installer) = begun.clone();
            maps.fail_at = Some(before + nth);
            while installer.catch_up(&mut maps, 1).is_ok_and(|more| more) {}
            maps.fail_at = None;
            assert_eq!(maps.live(), &whole(tables(1)), "operation {nth}");
            let mut at_once = (maps.clone(), installer.clone());
            at_once
                .1
                .install(&mut at_once.0, edited())
                .expect("nothing fails");
            assert_eq!(at_once.0.live(), &whole(edited()), "operation {nth}");
            catch_up(&mut installer, &mut maps);
            installer.install(&mut maps, edited()).expect("nothing fails");
            assert_eq!(maps.live(), &whole(edited()), "operation {nth}");
        }
        for steps in 0..operations {
            let (mut maps, mut installer) = begun.clone();
            for _ in 0..steps {
                installer.catch_up(&mut maps, 1).expect("nothing fails");
            }
            installer.install(&mut maps, edited()).expect("nothing fails");
            assert_eq!(maps.live(), &whole(edited()), "after {steps} steps");
        }
    }

    #[test]
    fn a_bank_that_forgets_is_noticed_before_the_flip() {
        struct Forgetful(Fake);
        impl Banks for Forgetful {
            type Error = Failure;
            fn generation(&self) -> Result<u64, Failure> {
                self.0.generation()
            }
            fn set_generation(&mut self, generation: u64) -> Result<(), Failure> {
                self.0.set_generation(generation)
            }
            fn write(&mut self, bank: u32, write: &Write) -> Result<(), Failure> {
                if matches!(write, Write::Decision(..)) {
                    Ok(())
                } else {
                    self.0.write(bank, write)
                }
            }
            fn holds(&self, bank: u32, write: &Write) -> Result<bool, Failure> {
                self.0.holds(bank, write)
            }
        }
        let mut maps = Forgetful(Fake::default());
        let error = Installer::default()
            .install(&mut maps, tables(1))
            .expect_err("a record is missing");
        assert!(
            matches!(error, InstallError::ReadBack { bank: 1, live: 0, .. }),
            "{error}"
        );
        assert_eq!(maps.0.generation, 0);
    }
}
