//! The loaded kernel programs on a bench: frames go in through `BPF_PROG_TEST_RUN`, verdicts and frames come out, and
//! the clock stands where the test put it.
//!
//! A rig pins its maps in a directory of its own, which goes away with the rig, also when the test is killed: it
//! belongs to a [`Lab`]. Nothing is attached to any interface.

use std::collections::BTreeMap;
use std::time::Duration;

use aya::programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions, Xdp};
use enforcer_agent::adapters::dataplane::{
    Dataplane, DataplaneError, FlowSweeper, Settings, Swept, Tally, Timeouts,
};
use enforcer_agent::install::{InstallError, Installed, Installer};
use enforcer_agent::pure::capacity::Capacity;
use enforcer_agent::pure::tables::Tables;
use enforcer_common::Reason;
use enforcer_common::abi::config::{HostRecord, LeaseRecord};
use enforcer_common::abi::event::EventRecord;
use enforcer_common::decide::limiter::Limiter;
use enforcer_common::schema::tenant_holder;

use crate::lab::{Lab, LabError};

/// Timeouts of the rig's sweeper.
pub const TIMEOUTS: Timeouts = Timeouts {
    tcp_opening: Duration::from_secs(10),
    tcp_established: Duration::from_secs(300),
    tcp_closing: Duration::from_secs(2),
    udp: Duration::from_secs(30),
};

/// Room for what a program puts before a frame.
const GROWTH: usize = 64;

/// The longest frame that fits one buffer of a test run: a page less headroom and what the kernel keeps at the end.
const LINEAR_BYTES: usize = 3400;

/// A new rig's clock, in nanoseconds: not zero, since a limiter that was never used holds zero.
pub const START_NS: u64 = 1_000_000_000_000;
/// Limit groups whose state is looked at: more than the policies of tests come to.
pub const GROUPS: u32 = 1024;

/// What a program answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// `XDP_ABORTED`: never.
    Aborted,
    /// `XDP_DROP`, or `TC_ACT_SHOT`.
    Drop,
    /// `XDP_PASS`, or `TC_ACT_OK`.
    Pass,
    /// `XDP_TX`: out by the interface it came in by.
    Transmit,
    /// `XDP_REDIRECT`: out by another interface.
    Redirect,
    /// A number that stands for nothing.
    Unknown(u32),
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// What the program answered.
    pub verdict: Verdict,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
}

/// Why the rig failed.
#[derive(Debug, thiserror::Error)]
pub enum RigError {
    /// No directory for pins.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A program or map refused.
    #[error(transparent)]
    Dataplane(Box<DataplaneError>),
    /// Tables could not be installed.
    #[error(transparent)]
    Install(Box<InstallError<DataplaneError>>),
    /// A test run was refused, not the packet in it.
    #[error("the kernel refused to run {program} on a frame of {frame_bytes} bytes: {source}")]
    Run {
        /// The program.
        program: &'static str,
        /// Length of the frame.
        frame_bytes: usize,
        /// Why.
        source: ProgramError,
    },
}

/// Through which program packets come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The XDP program.
    Xdp,
    /// The TC ingress program. It knows one way to send a packet out, whichever the interface.
    Tc,
}

/// Loaded programs, maps and a clock.
pub struct Rig {
    way: Way,
    dataplane: Dataplane,
    installer: Installer,
    host: HostRecord,
    sweeper: FlowSweeper,
    // Last, so that the pins go when nothing uses them any more.
    lab: Lab,
}

// === impl Way ===

impl Way {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Xdp, Self::Tc];

    /// What a packet gets that goes out by the interface that it came in by, or by another.
    #[must_use]
    pub fn way_out(self, verdict: Verdict) -> Verdict {
        match verdict {
            Verdict::Transmit if self == Self::Tc => Verdict::Redirect,
            other => other,
        }
    }

    /// What a frame that goes out has in itself. Where TC changes VLAN tags it leaves the outermost one beside the frame, and
    /// a test run does not show that.
    #[must_use]
    pub fn in_frame(self, sent: &[u8], mut out: Vec<u8>) -> Vec<u8> {
        let new = vlan_tags(&out);
        if self == Self::Tc && !new.is_empty() && vlan_tags(sent) != new {
            out.drain(12..16);
        }
        out
    }

    /// Whether the kernel runs a test on a frame of this length. Those of TC programs begin with a look at the network header,
    /// and make socket buffers of one page.
    #[must_use]
    pub fn takes(self, frame_bytes: usize) -> bool {
        match self {
            Self::Xdp => frame_bytes >= 14,
            Self::Tc => (14 + 40..=LINEAR_BYTES).contains(&frame_bytes),
        }
    }
}

// === impl RigError ===

impl From<DataplaneError> for RigError {
    fn from(error: DataplaneError) -> Self {
        Self::Dataplane(Box::new(error))
    }
}

impl From<InstallError<DataplaneError>> for RigError {
    fn from(error: InstallError<DataplaneError>) -> Self {
        Self::Install(Box::new(error))
    }
}

// === impl Verdict ===

impl Verdict {
    /// Of the code that an XDP program answers.
    #[must_use]
    pub const fn of_xdp(code: u32) -> Self {
        match code {
            0 => Self::Aborted,
            1 => Self::Drop,
            2 => Self::Pass,
            3 => Self::Transmit,
            4 => Self::Redirect,
            other => Self::Unknown(other),
        }
    }

    fn of_classifier(code: u32) -> Self {
        match code {
            0 => Self::Pass,
            2 => Self::Drop,
            7 => Self::Redirect,
            other => Self::Unknown(other),
        }
    }

    /// Whether it sends the packet on.
    #[must_use]
    pub const fn forwards(self) -> bool {
        matches!(self, Self::Transmit | Self::Redirect)
    }
}

// === impl Rig ===

impl Rig {
    /// Loads programs and maps, with flow tables of this capacity. Nothing is installed: every table is empty.
    ///
    /// # Errors
    /// Without privileges, or if the kernel refuses the object.
    pub fn new(flow_entries: u32) -> Result<Self, RigError> {
        Self::sized(Capacity {
            flows: flow_entries,
            ..Capacity::default()
        })
    }

    /// Loads programs and maps of this capacity, likewise.
    ///
    /// # Errors
    /// As for [`Rig::new`].
    pub fn sized(capacity: Capacity) -> Result<Self, RigError> {
        let mut rig = Self::open(capacity, true)?;
        rig.set_now(START_NS)?;
        Ok(rig)
    }

    /// Loads programs and maps of this capacity as they go into production: with the kernel's clock, not the rig's.
    ///
    /// # Errors
    /// As for [`Rig::new`].
    pub fn production(capacity: Capacity) -> Result<Self, RigError> {
        Self::open(capacity, false)
    }

    fn open(capacity: Capacity, test_clock: bool) -> Result<Self, RigError> {
        let lab = Lab::new()?;
        let settings = Settings {
            pin_directory: lab.pin_directory(),
            capacity,
            test_clock,
        };
        let dataplane = Dataplane::open(&settings)?;
        let sweeper = FlowSweeper::open(&settings.pin_directory, TIMEOUTS)?;
        Ok(Self {
            way: Way::Xdp,
            dataplane,
            installer: Installer::default(),
            host: HostRecord::ZERO,
            sweeper,
            lab,
        })
    }

    /// Has packets come in another way from now on.
    #[must_use]
    pub fn by(mut self, way: Way) -> Self {
        self.way = way;
        self
    }

    /// Through which program packets come in.
    #[must_use]
    pub fn way(&self) -> Way {
        self.way
    }

    /// Programs and maps.
    pub fn dataplane(&mut self) -> &mut Dataplane {
        &mut self.dataplane
    }

    /// The directory and its guard.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Puts tables into force.
    ///
    /// # Errors
    /// If a map refuses.
    pub fn install(&mut self, tables: Tables) -> Result<Installed, RigError> {
        Ok(self.installer.install(&mut self.dataplane.maps, tables)?)
    }

    /// Sets what is particular to the host; the clock stays.
    ///
    /// # Errors
    /// If the map refuses.
    pub fn set_host(&mut self, host: &HostRecord) -> Result<(), RigError> {
        self.host = HostRecord {
            test_now_ns: self.host.test_now_ns,
            ..*host
        };
        Ok(self.dataplane.maps.set_host(&self.host)?)
    }

    /// Sets the MTUs of links in bytes, by index of the interface.
    ///
    /// # Errors
    /// If the map refuses.
    pub fn set_links(&mut self, links: &BTreeMap<u32, u32>) -> Result<(), RigError> {
        Ok(self.dataplane.maps.set_links(links)?)
    }

    /// What is particular to the host.
    #[must_use]
    pub fn host(&self) -> &HostRecord {
        &self.host
    }

    /// Where the clock stands, in nanoseconds.
    #[must_use]
    pub fn now_ns(&self) -> u64 {
        self.host.test_now_ns
    }

    /// Sets the clock.
    ///
    /// # Errors
    /// If the map refuses.
    pub fn set_now(&mut self, now_ns: u64) -> Result<(), RigError> {
        self.host.test_now_ns = now_ns;
        Ok(self.dataplane.maps.set_host(&self.host)?)
    }

    /// Sets the agent's lease.
    ///
    /// # Errors
    /// If the map refuses.
    pub fn set_lease(&mut self, lease: &LeaseRecord) -> Result<(), RigError> {
        Ok(self.dataplane.maps.set_lease(lease)?)
    }

    /// Runs a frame through the program by which packets come in, as if it came in by the loopback device.
    ///
    /// # Errors
    /// If the kernel refuses the run: frames shorter than a link-layer header.
    pub fn ingress(&mut self, frame: &[u8]) -> Result<Ran, RigError> {
        match self.way {
            Way::Xdp => run_xdp(self.dataplane.xdp()?, frame),
            Way::Tc => run_classifier("enforcer_ingress", self.dataplane.ingress()?, frame),
        }
    }

    /// Runs a frame through the TC egress program.
    ///
    /// # Errors
    /// If the kernel refuses the run: frames shorter than a link-layer header.
    pub fn egress(&mut self, frame: &[u8]) -> Result<Ran, RigError> {
        run_classifier("enforcer_egress", self.dataplane.egress()?, frame)
    }

    /// Tallies that are not zero, of the first `tenants` slots, by (tenant slot, reason).
    ///
    /// # Errors
    /// If a map refuses.
    pub fn tallies(&self, direction: u32, tenants: u32) -> Result<BTreeMap<(u32, Reason), Tally>, RigError> {
        let mut tallies = BTreeMap::new();
        for tenant in 0..tenants.min(self.dataplane.capacity.tenant_slots()) {
            let all = self.dataplane.maps.tallies(direction, tenant)?;
            for reason in Reason::ALL {
                let tally = all[*reason as usize];
                if tally != Tally::default() {
                    tallies.insert((tenant, *reason), tally);
                }
            }
        }
        Ok(tallies)
    }

    /// All limiter words of the first `tenants` slots, and of the first [`GROUPS`] limit groups.
    ///
    /// # Errors
    /// If a map refuses.
    pub fn limiters(&self, tenants: u32) -> Result<Vec<u64>, RigError> {
        let mut words = Vec::new();
        for holder in (0..tenants).map(tenant_holder).chain(0..GROUPS) {
            for limiter in Limiter::ALL {
                words.push(self.dataplane.maps.limiter(holder, limiter)?);
            }
        }
        Ok(words)
    }

    /// Everything that waits in the ring buffer.
    pub fn events(&mut self) -> Vec<EventRecord> {
        std::iter::from_fn(|| self.dataplane.maps.next_event()).collect()
    }

    /// Removes the flows that are idle for too long, by the rig's clock.
    ///
    /// # Errors
    /// If a map refuses.
    pub fn sweep(&mut self) -> Result<Swept, RigError> {
        Ok(self.sweeper.sweep(self.host.test_now_ns)?)
    }

    /// The sweeper.
    pub fn sweeper(&mut self) -> &mut FlowSweeper {
        &mut self.sweeper
    }

    /// Removes all flows and clears the limiters of the first `tenants` slots and of the first [`GROUPS`] limit groups.
    /// Configuration and counters stay.
    ///
    /// # Errors
    /// If a map refuses.
    pub fn forget_traffic(&mut self, tenants: u32) -> Result<(), RigError> {
        self.sweeper.sweep(u64::MAX)?;
        for holder in (0..tenants).map(tenant_holder).chain(0..GROUPS) {
            for limiter in Limiter::ALL {
                self.dataplane.maps.set_limiter(holder, limiter, 0)?;
            }
        }
        Ok(())
    }
}

/// The bytes of a frame's VLAN tags: two at most are told.
fn vlan_tags(frame: &[u8]) -> &[u8] {
    let is_tag = |at: usize| matches!(frame.get(at..at + 2), Some([0x81, 0] | [0x88, 0xa8]));
    let tags = (0..2).take_while(|tag| is_tag(12 + 4 * tag)).count();
    frame.get(12..12 + 4 * tags).unwrap_or_default()
}

/// Runs a frame through a loaded XDP program; for tests that have threads of their own.
///
/// # Errors
/// As for [`Rig::ingress`].
pub fn run_xdp(program: &Xdp, frame: &[u8]) -> Result<Ran, RigError> {
    let mut out = vec![0; frame.len() + GROWTH];
    let options = TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        ..TestRunOptions::default()
    };
    let result = program
        .test_run(options)
        .map_err(refused("enforcer_xdp", frame))?;
    out.truncate(result.data_size_out as usize);
    Ok(Ran {
        verdict: Verdict::of_xdp(result.return_value),
        frame: out,
    })
}

fn run_classifier(name: &'static str, program: &SchedClassifier, frame: &[u8]) -> Result<Ran, RigError> {
    let mut out = vec![0; frame.len() + GROWTH];
    let options = TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        ..TestRunOptions::default()
    };
    let result = program.test_run(options).map_err(refused(name, frame))?;
    out.truncate(result.data_size_out as usize);
    Ok(Ran {
        verdict: Verdict::of_classifier(result.return_value),
        frame: out,
    })
}

fn refused(program: &'static str, frame: &[u8]) -> impl FnOnce(ProgramError) -> RigError {
    let frame_bytes = frame.len();
    move |source| RigError::Run {
        program,
        frame_bytes,
        source,
    }
}
