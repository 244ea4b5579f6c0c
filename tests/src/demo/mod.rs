//! Governed traffic, end to end: three tenants, a balancer with the agent, three GPU servers, each in a network
//! namespace of its own, and real HTTP between them.
//!
//! Every step drives the product by its command line, measures what tenants get, and holds the figures against what the
//! policy promises. It needs root; it leaves nothing behind, also when it is killed (see [`crate::lab`]).

mod keep;
mod report;
mod steps;
mod world;

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::harness::HarnessError;
use crate::lab::namespaces_of;
use keep::{EndSignals, invite};
use report::{Console, Summary};
use steps::{DETACH_TITLE, STEPS, detach};
use world::World;

/// What the demo is asked for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// For programs: lines for people go to standard error, and standard output gets the summary as one line of JSON.
    pub check: bool,
    /// Leave everything running after the steps, until Ctrl-C or SIGTERM.
    pub keep: bool,
    /// Keep the policy, the agent's configuration, the audit log, the metrics and the summary here.
    pub out: Option<PathBuf>,
}

/// Runs the demo; answers whether every step ran and every check held.
///
/// # Errors
/// When the summary cannot be written. Whatever goes wrong in the demo itself is said in the summary.
pub fn run(options: &Options) -> Result<bool, io::Error> {
    let console = Console::new(options.check);
    let started = Instant::now();
    let mut summary = Summary::default();
    if let Err(error) = show(options, &console, &mut summary) {
        summary.error = Some(error.to_string());
    }
    summary.passed = summary.error.is_none() && summary.checks_failed == 0;
    summary.seconds += started.elapsed().as_secs_f64();
    console.verdict(&summary);
    if let Some(out) = &options.out {
        fs::create_dir_all(out)?;
        fs::write(
            out.join("summary.json"),
            serde_json::to_string_pretty(&summary)? + "\n",
        )?;
        console.line(format_args!("Files are in {}", out.display()));
    }
    if options.check {
        writeln!(io::stdout(), "{}", serde_json::to_string(&summary)?)?;
    }
    Ok(summary.passed)
}

fn show(options: &Options, console: &Console, summary: &mut Summary) -> Result<(), HarnessError> {
    let mut world = World::build()?;
    summary.run = world.lab.run().to_string();
    let result = run_steps(console, &mut world, summary);
    if result.is_err() {
        console.line(format_args!("The agent's last lines:\n{}", world.agent.tail()));
    }
    if options.keep {
        let signals = EndSignals::listen()?;
        invite(console, &world)?;
        let kept = Instant::now();
        signals.wait();
        // How long somebody looks around is no part of how long the demo takes.
        summary.seconds -= kept.elapsed().as_secs_f64();
    }
    let result = result.and_then(|()| {
        let mut step = console.step(STEPS.len() + 1, DETACH_TITLE);
        let result = detach(&mut world, &mut step);
        summary.add(step.end());
        result
    });
    if let Some(out) = &options.out {
        keep_files(&world, out)?;
    }
    result.and(remove(world))
}

fn run_steps(console: &Console, world: &mut World, summary: &mut Summary) -> Result<(), HarnessError> {
    for (index, (title, run)) in STEPS.iter().enumerate() {
        let mut step = console.step(index + 1, title);
        let result = run(world, &mut step);
        summary.add(step.end());
        result?;
    }
    Ok(())
}

/// Ends every process and removes every namespace; what is still there then is an error.
fn remove(world: World) -> Result<(), HarnessError> {
    let World {
        agent,
        simulators,
        lab,
        streams,
        ..
    } = world;
    drop((streams, simulators, agent));
    let (run, pins) = (lab.run().clone(), lab.pin_directory());
    lab.close()?;
    let namespaces = namespaces_of(&run)?;
    if namespaces.is_empty() && !pins.exists() {
        return Ok(());
    }
    Err(HarnessError::Late {
        awaited: format!("the removal of run {run}"),
        limit: std::time::Duration::ZERO,
        last: format!("{namespaces:?}, pins: {}", pins.exists()),
    })
}

/// Copies what is worth reading afterwards. A log of an earlier run in the same place is removed first: two logs in one
/// directory would look like one that does not hold together.
fn keep_files(world: &World, out: &Path) -> Result<(), HarnessError> {
    let audit = out.join("audit");
    match fs::remove_dir_all(&audit) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(HarnessError::io("remove", audit)(error));
        }
        _ => fs::create_dir_all(&audit).map_err(HarnessError::io("make", &audit))?,
    }
    let mut files = vec![
        (world.agent.config(), out.join("agent.yaml")),
        (world.agent.log(), out.join("agent.log")),
    ];
    for name in ["policy.yaml", "policy-changed.yaml", "metrics.txt"] {
        files.push((world.file(name), out.join(name)));
    }
    let source = world.agent.audit_directory();
    for entry in fs::read_dir(&source).map_err(HarnessError::io("read", &source))? {
        let entry = entry.map_err(HarnessError::io("read", &source))?;
        files.push((entry.path(), audit.join(entry.file_name())));
    }
    for (from, to) in files {
        match fs::copy(&from, &to) {
            // A run that ended early has not made them all.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => drop(result.map_err(HarnessError::io("copy to", to))?),
        }
    }
    Ok(())
}
