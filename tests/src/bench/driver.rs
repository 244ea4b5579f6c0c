//! The loaded driver, which makes the packets of a measurement in the kernel: see `enforcer-ebpf/src/driver.rs`.

use std::time::Duration;

use aya::maps::{Array, MapData, MapError, ProgramArray};
use aya::programs::{ProgramError, ProgramFd, TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfError, EbpfLoader};
use enforcer_common::abi::driver::{DriverPlan, SHORT_WORDS, TEMPLATE_WORDS};

use crate::packet::Segment;
use crate::rig::Verdict;

/// The object, which the agent's build script builds and the agent does not carry.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("DRIVER_OBJECT"));
/// The program that makes packets.
const DRIVER: &str = "driver";

/// The program that reads a line of memory.
const LINE: &str = "driver_line";

/// Bytes of a frame over IPv4, and of one over IPv6.
const SHORT_BYTES: usize = 8 * SHORT_WORDS;
const LONG_BYTES: usize = 8 * TEMPLATE_WORDS;

/// Frames that the kernel puts on a link at once.
const BATCH: u32 = 64;

/// Why the driver cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The object could not be loaded.
    #[error("the driver cannot be loaded: {0}")]
    Object(#[from] EbpfError),
    /// A program was refused, or a run of it.
    #[error("the driver: {0}")]
    Program(#[from] ProgramError),
    /// A map refused.
    #[error("the driver's maps: {0}")]
    Map(#[from] MapError),
    /// The object lacks something.
    #[error("the driver's object has no {0}")]
    Missing(&'static str),
}

/// What a run of many packets came to.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// For each packet.
    pub time: Duration,
    /// What became of the last one.
    pub verdict: Verdict,
}

/// A program that is run with packets.
#[derive(Clone, Copy)]
pub enum Measured<'a> {
    /// Nothing but a program that gives this answer at once.
    Nothing(Verdict),
    /// One that reads a line of memory and sends the packet back.
    Line,
    /// This one.
    Program(&'a ProgramFd),
}

/// The loaded driver.
pub struct Driver {
    ebpf: Ebpf,
    plan: Array<MapData, DriverPlan>,
    measured: ProgramArray<MapData>,
}

/// The program that gives an answer at once.
const fn answering(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "driver_pass",
        Verdict::Transmit => "driver_tx",
        Verdict::Redirect => "driver_redirect",
        Verdict::Drop | Verdict::Aborted | Verdict::Unknown(_) => "driver_drop",
    }
}

fn program<'e>(ebpf: &'e mut Ebpf, name: &'static str) -> Result<&'e mut Xdp, DriverError> {
    let program = ebpf.program_mut(name).ok_or(DriverError::Missing(name))?;
    Ok(program.try_into()?)
}

// === impl Driver ===

impl Driver {
    /// Loads it. What is redirected goes out by the interface of this number.
    ///
    /// # Errors
    /// Without privileges, or if the kernel refuses the object.
    pub fn load(out_ifindex: u32) -> Result<Self, DriverError> {
        Self::with_lines(out_ifindex, 1)
    }

    /// Loads it with so many lines of memory for [`Measured::Line`], a power of two.
    ///
    /// # Errors
    /// As [`Driver::load`].
    pub fn with_lines(out_ifindex: u32, lines: u32) -> Result<Self, DriverError> {
        let mut ebpf = EbpfLoader::new()
            .override_global("OUT_IFINDEX", &out_ifindex, true)
            .override_global("LINE_MASK", &(lines - 1), true)
            .map_max_entries("LINES", lines)
            .load(OBJECT)?;
        for name in [
            DRIVER,
            "driver_pass",
            "driver_drop",
            "driver_tx",
            LINE,
            "driver_redirect",
        ] {
            program(&mut ebpf, name)?.load()?;
        }
        let take = |ebpf: &mut Ebpf, name| ebpf.take_map(name).ok_or(DriverError::Missing(name));
        let plan = Array::try_from(take(&mut ebpf, "PLAN")?)?;
        let measured = ProgramArray::try_from(take(&mut ebpf, "MEASURED")?)?;
        Ok(Self { ebpf, plan, measured })
    }

    /// Runs a program with so many packets of a plan, from its first on.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn run(
        &mut self,
        plan: &DriverPlan,
        measured: Measured<'_>,
        packets: u32,
    ) -> Result<Run, DriverError> {
        self.set(plan, measured)?;
        self.test_run(plan, packets, TestRunAttrs::new())
    }

    /// The n-th frame of a plan, as it is made.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn frame(&mut self, plan: &DriverPlan, n: u64) -> Result<Vec<u8>, DriverError> {
        let plan = DriverPlan { made: n, ..*plan };
        self.set(&plan, Measured::Nothing(Verdict::Pass))?;
        let mut out = vec![0; LONG_BYTES];
        let result = program(&mut self.ebpf, DRIVER)?.test_run(TestRunOptions {
            data_in: Some(&vec![0; plan.frame_bytes as usize]),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        })?;
        out.truncate(result.data_size_out as usize);
        Ok(out)
    }

    /// Sends so many packets out by the interface that the driver was loaded for.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn send(&mut self, plan: &DriverPlan, packets: u32) -> Result<Run, DriverError> {
        self.set(plan, Measured::Nothing(Verdict::Redirect))?;
        self.test_run(plan, packets, TestRunAttrs::new().xdp_live_frames(BATCH))
    }

    /// The time of a trivial program by itself, with nothing that makes packets.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn run_alone(
        &mut self,
        plan: &DriverPlan,
        verdict: Verdict,
        packets: u32,
    ) -> Result<Run, DriverError> {
        let program = program(&mut self.ebpf, answering(verdict))?;
        run(program, plan, packets, TestRunAttrs::new())
    }

    /// Has an interface of the current namespace answer every frame so, in the driver of the device.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn attach(&mut self, device: &str, verdict: Verdict) -> Result<(), DriverError> {
        let program = program(&mut self.ebpf, answering(verdict))?;
        program.attach(device, XdpMode::Driver)?;
        Ok(())
    }

    fn set(&mut self, plan: &DriverPlan, measured: Measured<'_>) -> Result<(), DriverError> {
        self.plan.set(0, *plan, 0)?;
        let target = match measured {
            Measured::Program(target) => target,
            Measured::Nothing(verdict) => program(&mut self.ebpf, answering(verdict))?.fd()?,
            Measured::Line => program(&mut self.ebpf, LINE)?.fd()?,
        };
        Ok(self.measured.set(0, target, 0)?)
    }

    fn test_run(&mut self, plan: &DriverPlan, packets: u32, attrs: TestRunAttrs) -> Result<Run, DriverError> {
        run(program(&mut self.ebpf, DRIVER)?, plan, packets, attrs)
    }
}

fn run(program: &mut Xdp, plan: &DriverPlan, packets: u32, attrs: TestRunAttrs) -> Result<Run, DriverError> {
    let frame: Vec<u8> = plan.template.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let result = program.test_run(TestRunOptions {
        data_in: Some(&frame[..plan.frame_bytes as usize]),
        repeat: packets,
        attrs,
        ..TestRunOptions::default()
    })?;
    Ok(Run {
        time: result.duration,
        verdict: Verdict::of_xdp(result.return_value),
    })
}

/// Frames of this segment's flow and of those beside it: two to the power of `flow_bits`, of which `port_bits` choose the
/// port, and the others the address, `source_step` from one to the next.
#[must_use]
pub fn plan(segment: &Segment, flow_bits: u32, port_bits: u32, source_step: u32) -> DriverPlan {
    let v4 = segment.from.is_ipv4();
    let wanted = if v4 { SHORT_BYTES } else { LONG_BYTES };
    let bytes = framed(segment).bytes();
    assert_eq!(bytes.len(), wanted, "a frame without options or tags");
    let mut template = [0; TEMPLATE_WORDS];
    for (word, chunk) in template.iter_mut().zip(bytes.chunks_exact(8)) {
        let mut octets = [0; 8];
        octets.copy_from_slice(chunk);
        *word = u64::from_ne_bytes(octets);
    }
    let source_offset: usize = if v4 { 26 } else { 34 };
    let mut source = [0; 4];
    source.copy_from_slice(&bytes[source_offset..source_offset + 4]);
    DriverPlan {
        flow_bits,
        frame_bytes: wanted as u32,
        source_offset: source_offset as u32,
        port_offset: if v4 { 34 } else { 54 },
        header_checksum_offset: if v4 { 24 } else { 0 },
        checksum_offset: if v4 { 50 } else { 70 },
        port_bits: port_bits.min(flow_bits),
        first_source: u32::from_be_bytes(source),
        source_step,
        first_port: u32::from(segment.from.port()),
        template,
        ..DriverPlan::ZERO
    }
}

/// The segment with as much payload as a frame of the driver has.
#[must_use]
pub fn framed(segment: &Segment) -> Segment {
    let frame_bytes = if segment.from.is_ipv4() {
        SHORT_BYTES
    } else {
        LONG_BYTES
    };
    segment.clone().ip_bytes(frame_bytes - 14)
}
