//! `cargo xtask setup`: finds or installs what the kernel programs need to be built, and what tests and demo run.
//!
//! Facts are gathered (`facts`), a pure function turns them into steps (`plan`), and one interpreter runs the steps
//! (`step`). Then the facts are gathered again, because a step brings new ones: which LLVM the compiler has is known only
//! when it is there. It ends when nothing is left to do, or when a step that has run once would have to run again.

mod facts;
mod plan;
mod step;

use std::collections::HashSet;

pub(crate) use self::plan::Blocked;
use self::{
    facts::{Facts, ListsAge},
    plan::{Plan, Ready, plan},
    step::Step,
};
use crate::{
    error::{Error, Result},
    exec,
};

/// Installs what is missing. Quick if nothing is.
pub(crate) fn run() -> Result<()> {
    let mut finished: HashSet<Step> = HashSet::new();
    let mut notes = Vec::new();
    loop {
        let lists = if finished.contains(&Step::RefreshPackageLists) {
            ListsAge::Fresh
        } else {
            ListsAge::Unknown
        };
        let mut facts = Facts::gather(lists);
        // A mount that the kernel refused is not tried again: a container may build without it.
        facts.bpffs_mounted |= finished.contains(&Step::MountBpffs);
        match plan(&facts) {
            Plan::Ready(ready) => {
                report(&ready, &notes);
                return Ok(());
            }
            Plan::Blocked(blocked) => return Err(blocked.into()),
            Plan::Run(steps) => {
                if let Some(repeated) = steps.iter().find(|step| finished.contains(step)) {
                    return Err(Blocked::NoProgress {
                        step: repeated.to_string(),
                    }
                    .into());
                }
                announce(&steps);
                for step in steps {
                    execute(&step, &mut notes)?;
                    finished.insert(step);
                }
            }
        }
    }
}

/// Says what is there and what `run` would do, and changes nothing.
pub(crate) fn check() -> Result<()> {
    let facts = Facts::gather(ListsAge::Unknown);
    eprint!("{facts}");
    match plan(&facts) {
        Plan::Ready(ready) => {
            report(&ready, &[]);
            Ok(())
        }
        Plan::Blocked(blocked) => Err(blocked.into()),
        Plan::Run(steps) => {
            eprintln!("setup: something is missing. `cargo xtask setup` would start with:");
            print_commands(&steps);
            Err(Error::Reported)
        }
    }
}

fn announce(steps: &[Step]) {
    eprintln!("setup: something is missing. About to run:");
    print_commands(steps);
}

fn print_commands(steps: &[Step]) {
    for step in steps {
        eprintln!("    {}    # {step}", step.command_line());
    }
}

fn execute(step: &Step, notes: &mut Vec<String>) -> Result<()> {
    match exec::run(&mut step.command()) {
        Err(error) if step.is_optional() => {
            notes.push(format!("{error}. Privileged tests and the demo need it"));
            Ok(())
        }
        outcome => outcome,
    }
}

fn report(ready: &Ready, notes: &[String]) {
    eprintln!("setup: ready: {ready}");
    for note in ready.notes.iter().chain(notes) {
        eprintln!("setup: note: {note}");
    }
}
