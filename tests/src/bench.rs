//! What things cost: cases that are measured over several runs, and how the figures are shown.
//!
//! A case answers one figure for each run, and where something else has to be taken off, that as its base in the same run.

pub mod driver;
mod packets;
mod policy;
mod traffic;

use serde::Serialize;

use crate::harness::HarnessError;
use crate::lab::LabError;

/// How much to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// One JSON object a line instead of a table.
    pub json: bool,
    /// Few runs of a small load: whether the cases work, not what they cost.
    pub quick: bool,
    /// Only cases that this matches: `*` stands for anything.
    pub case: String,
}

/// A case and its figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// Its name, in parts from the general to the particular.
    pub case: &'static str,
    /// What the figures are in.
    pub unit: &'static str,
    /// Half of the runs took at most this.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// What the harness itself takes, measured in the same run; zero if nothing is to be taken off.
    pub base: f64,
    /// `median` less `base`.
    pub net: f64,
}

/// What a case came to, in one unit.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    /// Figures.
    Measured(Measured),
    /// It did not run.
    Skipped {
        /// Its name.
        case: &'static str,
        /// The program that is not installed here.
        skipped_without: &'static str,
    },
    /// It ran, and did not do what it should.
    Failed {
        /// Its name.
        case: &'static str,
        /// What is wrong.
        failed: String,
    },
}

/// Where it was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// What the processor calls itself.
    pub cpu: String,
    /// How many of it there are.
    pub cpus: usize,
    /// The kernel's release.
    pub kernel: String,
}

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// No case has such a name.
    #[error("no case matches `{0}`; `cargo xtask bench` without --case runs all of them")]
    NoCase(String),
    /// It needs namespaces and BPF programs.
    #[error("the case {0} needs root; others can be chosen with --case")]
    Privileges(&'static str),
    /// The lab.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The agent.
    #[error(transparent)]
    Harness(#[from] HarnessError),
    /// The agent refused.
    #[error("the agent: {0}")]
    Agent(#[from] enforcer_agent::api::client::ClientError),
    /// The rig that packets run through.
    #[error(transparent)]
    Rig(#[from] crate::rig::RigError),
    /// The policy that packets are judged by.
    #[error(transparent)]
    World(#[from] crate::world::WorldError),
    /// The program that makes packets.
    #[error(transparent)]
    Driver(#[from] driver::DriverError),
    /// Something could not be read or started.
    #[error("{what}: {source}")]
    Io {
        /// What.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A thread of the benchmark.
    #[error("a thread of the benchmark panicked; what it said stands above")]
    Panicked,
    /// Cases failed, as was shown.
    #[error("{0} cases failed, as is said above")]
    Failed(usize),
    /// What was measured did not do what it should.
    #[error("{case}: {what}")]
    Wrong {
        /// The case.
        case: &'static str,
        /// What is wrong.
        what: String,
    },
}

/// Something that can be measured.
struct Case {
    name: &'static str,
    work: Work,
}

/// How.
#[derive(Clone, Copy)]
enum Work {
    /// By itself: answers the figures of each run, by unit.
    Alone(fn(&Options) -> Result<Vec<Series>, BenchError>),
    /// By running packets through the loaded programs.
    Packets(packets::Spec),
    /// By sending packets over virtual links.
    Traffic(traffic::Spec),
    /// By requests over virtual links.
    Http(traffic::http::Proxy),
}

/// The figures of one case in one unit.
struct Series {
    case: &'static str,
    unit: &'static str,
    runs: Vec<f64>,
    /// What is to be taken off each run; empty if nothing is.
    bases: Vec<f64>,
}

/// What the cases of one run share.
#[derive(Default)]
struct Session {
    /// Loaded programs under a policy, for as long as the cases want the same ones.
    loaded: Option<packets::Loaded>,
}

/// Every case, in the order in which they run.
fn cases() -> impl Iterator<Item = Case> {
    let policy = policy::CASES.into_iter();
    policy.chain(packets::CASES).chain(traffic::CASES)
}

/// Runs the cases and hands over each result as it is there.
///
/// # Errors
/// [`BenchError`]: the first case that fails ends the run.
pub fn run(options: &Options, mut show: impl FnMut(&Outcome)) -> Result<(), BenchError> {
    let mut session = Session::default();
    let (mut any, mut failed) = (false, 0);
    for case in cases().filter(|case| matches(&options.case, case.name)) {
        any = true;
        if let Some(program) = case.work.missing() {
            show(&Outcome::Skipped {
                case: case.name,
                skipped_without: program,
            });
            continue;
        }
        match session.measure(&case, options) {
            Ok(series) => {
                for series in series {
                    show(&Outcome::Measured(Measured::of(series)));
                }
            }
            // The others may still be measured.
            Err(BenchError::Wrong { case, what }) => {
                failed += 1;
                show(&Outcome::Failed { case, failed: what });
            }
            Err(error) => return Err(error),
        }
    }
    match (any, failed) {
        (false, _) => Err(BenchError::NoCase(options.case.clone())),
        (true, 0) => Ok(()),
        (true, failed) => Err(BenchError::Failed(failed)),
    }
}

impl Session {
    fn measure(&mut self, case: &Case, options: &Options) -> Result<Vec<Series>, BenchError> {
        Ok(match case.work {
            Work::Alone(work) => work(options)?,
            Work::Packets(spec) => vec![packets::measure(&mut self.loaded, case.name, &spec, options)?],
            Work::Traffic(spec) => traffic::measure(case.name, &spec, options)?,
            Work::Http(by) => traffic::http::measure(case.name, by, options)?,
        })
    }
}

// === impl Machine ===

impl Machine {
    /// This one.
    #[must_use]
    pub fn here() -> Self {
        let about = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = about.lines().find_map(|line| line.strip_prefix("model name"));
        Self {
            cpu: cpu
                .map_or("?", |name| name.trim_start_matches([' ', '\t', ':']))
                .to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        }
    }
}

// === impl Work ===

impl Work {
    /// The first program that it needs and that is not on PATH.
    fn missing(&self) -> Option<&'static str> {
        let needs = match self {
            Self::Alone(_) | Self::Packets(_) => &[],
            Self::Traffic(spec) => spec.needs(),
            Self::Http(by) => by.needs(),
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        let is_there =
            |program: &str| std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
        needs.iter().copied().find(|program| !is_there(program))
    }
}

// === impl Series ===

impl Series {
    /// Figures from which nothing is to be taken off.
    const fn plain(case: &'static str, unit: &'static str, runs: Vec<f64>) -> Self {
        Self {
            case,
            unit,
            runs,
            bases: Vec::new(),
        }
    }
}

// === impl Measured ===

impl Measured {
    fn of(series: Series) -> Self {
        let Series {
            case,
            unit,
            mut runs,
            mut bases,
        } = series;
        runs.sort_by(f64::total_cmp);
        bases.sort_by(f64::total_cmp);
        let median = runs[runs.len() / 2];
        let base = bases.get(bases.len() / 2).copied().unwrap_or(0.0);
        Self {
            case,
            unit,
            median,
            min: runs[0],
            max: runs[runs.len() - 1],
            base,
            net: median - base,
        }
    }
}

/// Whether a pattern, in which `*` stands for any number of any characters, matches the whole of a name.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, name, expected) in [
            ("*", "policy/check", true),
            ("policy/*", "policy/check", true),
            ("*/check", "policy/check", true),
            ("p*y/c*k", "policy/check", true),
            ("policy/check", "policy/check", true),
            ("policy", "policy/check", false),
            ("*/apply", "policy/check", false),
            ("policy/check*k", "policy/check", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} and {name}");
        }
    }

    #[test]
    fn the_median_is_the_middle_one() {
        let runs = vec![9.0, 1.0, 5.0];
        let measured = Measured::of(Series {
            bases: vec![0.5, 3.0, 2.0],
            ..Series::plain("a", "ms", runs)
        });
        assert_eq!(
            [
                measured.min,
                measured.median,
                measured.max,
                measured.base,
                measured.net
            ],
            [1.0, 5.0, 9.0, 2.0, 3.0]
        );
        assert_eq!(Measured::of(Series::plain("a", "ms", vec![7.0])).net, 7.0);
    }
}
