//! The GPUs of this very host, through NVIDIA's management library (NVML).
//!
//! The library is looked for at run time. That it is not there is the normal state of a load balancer without GPUs and
//! no error. NVML's calls block, for seconds if a driver is stuck, so a thread of their own makes them; readers get the
//! newest report and its number, and a stuck driver shows as a number that does not move.

use std::ffi::OsStr;
use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::event::EventSet;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper::sys_exports::field_id::NVML_FI_DEV_REMAPPED_FAILURE;
use nvml_wrapper::{Device, Nvml};
use thiserror::Error;
use tokio::sync::watch;

use crate::pure::telemetry::{
    GpuReading, GpuSample, MOST_GPUS, brakes_from_clock_reasons, combine_gpus, worse_xid,
};

/// XID 79, "GPU has fallen off the bus": what NVML's `GpuLost` means, also where no event told it.
const XID_FALLEN_OFF_THE_BUS: u32 = 79;

/// Most events that are taken from one GPU at one look; the rest follow at the next.
const MOST_EVENTS: usize = 32;

/// Whether this host's GPUs can be watched.
#[derive(Debug)]
pub enum NvmlState {
    /// They are being watched.
    Present(NvmlMonitor),
    /// There is nothing to watch.
    Absent {
        /// Why.
        reason: NvmlAbsence,
    },
}

/// Why no GPU of this host is watched.
#[derive(Debug, Error)]
pub enum NvmlAbsence {
    /// No NVIDIA driver is installed.
    #[error("libnvidia-ml.so.1 is not installed: this host has no NVIDIA driver")]
    NoLibrary,
    /// The library is there, the kernel module is not.
    #[error("the NVIDIA driver is installed but not loaded")]
    NoDriver,
    /// The driver runs and drives nothing.
    #[error("the NVIDIA driver knows no GPU")]
    NoGpu,
    /// Not allowed.
    #[error("the NVIDIA driver denies access; the agent needs the /dev/nvidia* devices")]
    NoPermission,
    /// The library is there and does not work.
    #[error("NVML does not work: {0}")]
    Broken(NvmlError),
    /// The thread could not be started.
    #[error("no thread for NVML: {0}")]
    NoThread(io::Error),
}

impl From<NvmlError> for NvmlAbsence {
    fn from(error: NvmlError) -> Self {
        match error {
            NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => Self::NoLibrary,
            NvmlError::DriverNotLoaded => Self::NoDriver,
            NvmlError::NoPermission => Self::NoPermission,
            NvmlError::NotFound => Self::NoGpu,
            error => Self::Broken(error),
        }
    }
}

/// One look at the GPUs.
#[derive(Debug, Clone, PartialEq)]
pub struct NvmlReport {
    /// 1 for the first look, one more for each.
    pub number: u64,
    /// When it was taken.
    pub taken_at: Instant,
    /// What was seen.
    pub sample: GpuSample,
}

/// A running watch over this host's GPUs. Dropping it ends the thread after the call that it is in.
#[derive(Debug)]
pub struct NvmlMonitor {
    reports: watch::Receiver<Option<NvmlReport>>,
    /// The thread ends when this is dropped.
    _stop: mpsc::Sender<()>,
}

impl NvmlMonitor {
    /// The newest report; `None` before the first.
    #[must_use]
    pub fn latest(&self) -> Option<NvmlReport> {
        self.reports.borrow().clone()
    }

    /// Waits for a report that this call has not yet returned. `None` if the thread is gone.
    pub async fn next(&mut self) -> Option<NvmlReport> {
        self.reports.changed().await.ok()?;
        self.reports.borrow_and_update().clone()
    }
}

/// Looks for NVML and begins to watch, with one look each `interval`. Blocks while the library is loaded and
/// initialised: up to some seconds on a host whose driver is not persistent.
#[must_use]
pub fn start(interval: Duration) -> NvmlState {
    start_with(None, interval)
}

/// As [`start`], with the library at `path` instead of the system's.
#[must_use]
pub fn start_with(path: Option<&OsStr>, interval: Duration) -> NvmlState {
    try_start(path, interval).map_or_else(|reason| NvmlState::Absent { reason }, NvmlState::Present)
}

fn try_start(path: Option<&OsStr>, interval: Duration) -> Result<NvmlMonitor, NvmlAbsence> {
    let nvml = match path {
        Some(path) => Nvml::builder().lib_path(path).init()?,
        None => Nvml::init()?,
    };
    if nvml.device_count()? == 0 {
        return Err(NvmlAbsence::NoGpu);
    }
    let (send_report, reports) = watch::channel(None);
    let (stop, stopped) = mpsc::channel();
    std::thread::Builder::new()
        .name("nvml".to_owned())
        .spawn(move || watch_gpus(&nvml, interval, &send_report, &stopped))
        .map_err(NvmlAbsence::NoThread)?;
    Ok(NvmlMonitor { reports, _stop: stop })
}

fn watch_gpus(
    nvml: &Nvml,
    interval: Duration,
    reports: &watch::Sender<Option<NvmlReport>>,
    stopped: &mpsc::Receiver<()>,
) {
    let count = nvml
        .device_count()
        .unwrap_or(0)
        .min(u32::try_from(MOST_GPUS).unwrap_or(u32::MAX));
    let mut gpus: Vec<Gpu<'_>> = (0..count).map(|index| Gpu::open(nvml, index)).collect();
    let mut number = 0;
    loop {
        let readings: Vec<GpuReading> = gpus.iter_mut().map(Gpu::read).collect();
        number += 1;
        let report = NvmlReport {
            number,
            taken_at: Instant::now(),
            sample: combine_gpus(&readings),
        };
        if reports.send(Some(report)).is_err() {
            return;
        }
        // The sender never sends: it is either there (time runs out) or dropped.
        match stopped.recv_timeout(interval) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// One GPU, its events and the worst that it has told.
struct Gpu<'nvml> {
    /// An error if NVML has lost the GPU.
    device: Result<Device<'nvml>, NvmlError>,
    /// `None` where the GPU or its mode (MIG) tells no events.
    events: Option<EventSet<'nvml>>,
    /// 0 while events are watched and none came.
    last_xid: Option<u32>,
}

impl<'nvml> Gpu<'nvml> {
    fn open(nvml: &'nvml Nvml, index: u32) -> Self {
        let device = nvml.device_by_index(index);
        let events = device.as_ref().ok().and_then(|device| {
            // A set of its own for each GPU: a failed registration takes the whole set with it.
            let set = nvml.create_event_set().ok()?;
            device.register_events(EventTypes::CRITICAL_XID_ERROR, set).ok()
        });
        let last_xid = events.as_ref().map(|_| 0);
        Self {
            device,
            events,
            last_xid,
        }
    }

    /// Asks for everything; what this GPU, its mode or its driver does not support stays unknown.
    fn read(&mut self) -> GpuReading {
        self.take_events();
        let device = match &self.device {
            Ok(device) => device,
            Err(NvmlError::GpuLost) => return self.lost(),
            Err(_) => return GpuReading::default(),
        };
        let memory = device.memory_info();
        if matches!(memory, Err(NvmlError::GpuLost)) {
            return self.lost();
        }
        let utilization = device
            .utilization_rates()
            .ok()
            .map(|rates| f64::from(rates.gpu) / 100.0);
        GpuReading {
            utilization_ratio: utilization.filter(|ratio| (0.0..=1.0).contains(ratio)),
            // Exact below 2^53 bytes.
            memory_used_and_free: memory.ok().map(|memory| (memory.used as f64, memory.free as f64)),
            temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok().map(f64::from),
            xid: self.last_xid,
            row_remap_failed: row_remap_failed(device),
            brakes: device
                .current_throttle_reasons()
                .ok()
                .map(|reasons| brakes_from_clock_reasons(reasons.bits())),
            thermal_violation: None,
        }
    }

    fn lost(&self) -> GpuReading {
        let xid = worse_xid(self.last_xid.unwrap_or(0), XID_FALLEN_OFF_THE_BUS);
        GpuReading {
            xid: Some(xid),
            ..GpuReading::default()
        }
    }

    fn take_events(&mut self) {
        let Some(events) = &self.events else { return };
        for _ in 0..MOST_EVENTS {
            let Ok(event) = events.wait(0) else { return };
            let xid = match event.event_data {
                Some(XidError::Value(xid)) => u32::try_from(xid).ok(),
                // NVML knows that there was one and not which: as the driver documents it, 999.
                Some(XidError::Unknown) => Some(999),
                None => None,
            };
            self.last_xid = xid.or(self.last_xid);
        }
    }
}

fn row_remap_failed(device: &Device<'_>) -> Option<bool> {
    let values = device
        .field_values_for(&[FieldId(NVML_FI_DEV_REMAPPED_FAILURE)])
        .ok()?;
    match values.into_iter().next()?.ok()?.value.ok()? {
        SampleValue::U32(failed) => Some(failed != 0),
        SampleValue::U64(failed) => Some(failed != 0),
        SampleValue::I64(failed) => Some(failed != 0),
        SampleValue::F64(_) => None,
    }
}
