//! What is known about the GPUs behind a back end, from dcgm-exporter's metrics or from NVML.

use std::collections::BTreeMap;

use super::{TelemetryError, TextError, TextLimits, TextSample, ratio, read_samples};

/// Which brakes slow a GPU down. A software power cap is none of them: GPUs run at their power limit whenever they
/// are well used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Brakes {
    /// Hardware or software lowered the clocks because of heat.
    pub thermal: bool,
    /// The power supply or the board pulled the external power brake.
    pub power: bool,
    /// The hardware slowed down and did not say why.
    pub unspecified: bool,
}

impl Brakes {
    /// Whether any brake is on.
    #[must_use]
    pub fn any(self) -> bool {
        let Self {
            thermal,
            power,
            unspecified,
        } = self;
        thermal || power || unspecified
    }

    /// The brakes that are on in either.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self {
            thermal: self.thermal || other.thermal,
            power: self.power || other.power,
            unspecified: self.unspecified || other.unspecified,
        }
    }
}

/// One look at all GPUs of a back end. `None` is unknown, never zero.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct GpuSample {
    /// How many GPUs were seen.
    pub devices: u32,
    /// Utilization, 0 to 1, the mean over GPUs.
    pub utilization_ratio: Option<f64>,
    /// Memory in use, 0 to 1, over all GPUs together.
    pub memory_ratio: Option<f64>,
    /// The hottest GPU, in degrees Celsius.
    pub temperature_celsius: Option<f64>,
    /// The worst of the GPUs' *last* XIDs, see [`worse_xid`]; 0 says that none was recorded. The value stays after
    /// the event: only a change says when.
    pub xid: Option<u32>,
    /// A memory row could not be remapped on some GPU, which then needs to be replaced.
    pub row_remap_failed: Option<bool>,
    /// The brakes that are on, on any GPU.
    pub brakes: Option<Brakes>,
    /// Time spent slowed down by heat, in the exporter's unit, over all GPUs: a counter, of use only by its growth.
    pub thermal_violation: Option<f64>,
}

impl GpuSample {
    /// The same sample with every value that is no finite number made unknown.
    #[must_use]
    pub fn finite(self) -> Self {
        Self {
            utilization_ratio: self.utilization_ratio.filter(|value| value.is_finite()),
            memory_ratio: self.memory_ratio.filter(|value| value.is_finite()),
            temperature_celsius: self.temperature_celsius.filter(|value| value.is_finite()),
            thermal_violation: self.thermal_violation.filter(|value| value.is_finite()),
            ..self
        }
    }
}

/// One look at one GPU. `None` is unknown, never zero.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct GpuReading {
    /// Utilization, 0 to 1.
    pub utilization_ratio: Option<f64>,
    /// Memory in use and free, in the same unit.
    pub memory_used_and_free: Option<(f64, f64)>,
    /// Temperature of the chip, in degrees Celsius.
    pub temperature_celsius: Option<f64>,
    /// The last XID, 0 if there was none.
    pub xid: Option<u32>,
    /// A memory row could not be remapped.
    pub row_remap_failed: Option<bool>,
    /// The brakes that are on.
    pub brakes: Option<Brakes>,
    /// Time spent slowed down by heat, a counter.
    pub thermal_violation: Option<f64>,
}

/// XIDs that an application causes on a healthy GPU (a bad memory access, a killed process, a video fault).
/// Source: NVIDIA, XID Errors, the "user app error" column.
const APPLICATION_XIDS: [u32; 6] = [13, 31, 43, 45, 68, 109];

/// No XID is larger; what is, is a "not available" mark.
const LARGEST_XID: f64 = 9_999.0;

/// Most GPUs that are taken from one source. The largest nodes hold 16, and 72 form one NVLink domain.
pub const MOST_GPUS: usize = 128;

/// Whether an XID says that the GPU, its memory or its links are broken, and not merely that an application failed.
#[must_use]
pub fn is_fault_xid(xid: u32) -> bool {
    xid != 0 && !APPLICATION_XIDS.contains(&xid)
}

/// The XID that matters more: a fault before an application's error before none; the smaller code among equals,
/// so that the order of the GPUs does not matter.
#[must_use]
pub fn worse_xid(one: u32, other: u32) -> u32 {
    let rank = |xid: u32| (!is_fault_xid(xid), xid == 0, xid);
    if rank(one) <= rank(other) { one } else { other }
}

/// The brakes in a bit mask of clock event reasons. NVML and DCGM share the bits (`nvml.h`,
/// `nvmlClocksEventReason*`, formerly `nvmlClocksThrottleReason*`).
#[must_use]
pub fn brakes_from_clock_reasons(reasons: u64) -> Brakes {
    const HW_SLOWDOWN: u64 = 0x08;
    const SW_THERMAL: u64 = 0x20;
    const HW_THERMAL: u64 = 0x40;
    const HW_POWER_BRAKE: u64 = 0x80;
    let thermal = reasons & (SW_THERMAL | HW_THERMAL) != 0;
    let power = reasons & HW_POWER_BRAKE != 0;
    Brakes {
        thermal,
        power,
        unspecified: reasons & HW_SLOWDOWN != 0 && !thermal && !power,
    }
}

/// A metric of one GPU. With MIG the exporter repeats it for every instance, and with shared GPUs for every pod.
#[derive(Debug, Clone, Copy, Default)]
struct Repeated {
    /// What the whole device says, the largest of the repeats.
    device: Option<f64>,
    instances_total: f64,
    instances: u32,
}

impl Repeated {
    fn add(&mut self, value: f64, is_instance: bool) {
        if is_instance {
            self.instances_total += value;
            self.instances += 1;
        } else {
            self.device = Some(self.device.map_or(value, |known| known.max(value)));
        }
    }

    fn mean(&self) -> Option<f64> {
        let of_instances = || (self.instances > 0).then(|| self.instances_total / f64::from(self.instances));
        self.device.or_else(of_instances)
    }

    fn total(&self) -> Option<f64> {
        self.device
            .or_else(|| (self.instances > 0).then_some(self.instances_total))
    }
}

/// What was read of one GPU.
#[derive(Debug, Default)]
struct Device {
    utilization: Repeated,
    engine_active: Repeated,
    memory_used: Repeated,
    memory_free: Repeated,
    thermal_violation: Option<f64>,
    temperature_celsius: Option<f64>,
    xid: Option<u32>,
    row_remap_failed: Option<bool>,
    brakes: Option<Brakes>,
}

const METRICS: [&str; 10] = [
    "DCGM_FI_DEV_GPU_UTIL",
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
    "DCGM_FI_DEV_FB_USED",
    "DCGM_FI_DEV_FB_FREE",
    "DCGM_FI_DEV_GPU_TEMP",
    "DCGM_FI_DEV_XID_ERRORS",
    "DCGM_FI_DEV_ROW_REMAP_FAILURE",
    "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS",
    "DCGM_FI_DEV_CLOCKS_EVENT_REASONS",
    "DCGM_FI_DEV_THERMAL_VIOLATION",
];

/// Reads dcgm-exporter's `/metrics`. Every GPU in it is taken to belong to the back end.
///
/// # Errors
/// [`TelemetryError`] if the body cannot be read or holds no GPU metric. Fields that are left out are `None`.
pub fn parse_gpu(body: &[u8], limits: &TextLimits) -> Result<GpuSample, TelemetryError> {
    let mut devices: BTreeMap<String, Device> = BTreeMap::new();
    read_samples(
        body,
        limits,
        |name| METRICS.contains(&name),
        |sample| {
            let id = ["UUID", "uuid", "gpu"]
                .into_iter()
                .find_map(|label| sample.labels.get(label));
            let id = id.unwrap_or_default();
            if devices.len() == MOST_GPUS && !devices.contains_key(id) {
                return Err(TextError::TooManySeries {
                    metric: "DCGM_FI_DEV",
                    limit: MOST_GPUS,
                });
            }
            devices.entry(id.to_owned()).or_default().add(&sample);
            Ok(())
        },
    )?;
    if devices.is_empty() {
        return Err(TelemetryError::NoGpuMetric);
    }
    Ok(combine_gpus(
        &devices.values().map(Device::reading).collect::<Vec<_>>(),
    ))
}

impl Device {
    fn add(&mut self, sample: &TextSample<'_>) {
        let value = sample.value;
        if !value.is_finite() || value < 0.0 || is_not_available(value) {
            return;
        }
        let is_instance = sample.labels.get("GPU_I_ID").is_some_and(|id| !id.is_empty());
        match sample.name {
            "DCGM_FI_DEV_GPU_UTIL" => {
                if let Some(share) = ratio(value / 100.0) {
                    self.utilization.add(share, is_instance);
                }
            }
            "DCGM_FI_PROF_GR_ENGINE_ACTIVE" => {
                if let Some(share) = ratio(value) {
                    self.engine_active.add(share, is_instance);
                }
            }
            "DCGM_FI_DEV_FB_USED" => self.memory_used.add(value, is_instance),
            "DCGM_FI_DEV_FB_FREE" => self.memory_free.add(value, is_instance),
            "DCGM_FI_DEV_GPU_TEMP" => self.temperature_celsius = larger(self.temperature_celsius, value),
            "DCGM_FI_DEV_THERMAL_VIOLATION" => self.thermal_violation = larger(self.thermal_violation, value),
            "DCGM_FI_DEV_XID_ERRORS" if value <= LARGEST_XID => {
                // Finite, not negative and below 10,000: checked above.
                let xid = value as u32;
                self.xid = Some(self.xid.map_or(xid, |known| worse_xid(known, xid)));
            }
            "DCGM_FI_DEV_ROW_REMAP_FAILURE" => {
                self.row_remap_failed = Some(self.row_remap_failed.unwrap_or(false) || value != 0.0);
            }
            "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS" | "DCGM_FI_DEV_CLOCKS_EVENT_REASONS" => {
                let brakes = brakes_from_clock_reasons(value as u64);
                self.brakes = Some(self.brakes.unwrap_or_default().union(brakes));
            }
            _ => {}
        }
    }
}

fn larger(known: Option<f64>, value: f64) -> Option<f64> {
    Some(known.map_or(value, |known| known.max(value)))
}

/// DCGM's marks for "blank", "not found", "not supported" and "not permitted", in their three widths
/// (`dcgm_structs.h`, `DCGM_INT32_BLANK`, `DCGM_INT64_BLANK`, `DCGM_FP64_BLANK`). As a double, the 64-bit ones all
/// become 2^63.
fn is_not_available(value: f64) -> bool {
    const INT32_BLANK: f64 = 2_147_483_632.0;
    const FP64_BLANK: f64 = 140_737_488_355_328.0;
    const INT64_BLANK: f64 = 9_223_372_036_854_775_792.0;
    let is_one_of_four = |blank: f64| (blank..=blank + 3.0).contains(&value);
    value >= INT64_BLANK || is_one_of_four(INT32_BLANK) || is_one_of_four(FP64_BLANK)
}

impl Device {
    fn reading(&self) -> GpuReading {
        GpuReading {
            // The profiling metric is the only one that MIG instances have.
            utilization_ratio: self.utilization.mean().or_else(|| self.engine_active.mean()),
            memory_used_and_free: self.memory_used.total().zip(self.memory_free.total()),
            temperature_celsius: self.temperature_celsius,
            xid: self.xid,
            row_remap_failed: self.row_remap_failed,
            brakes: self.brakes,
            thermal_violation: self.thermal_violation,
        }
    }
}

/// One sample out of the readings of all GPUs. What some GPUs do not say is taken from those that do.
#[must_use]
pub fn combine_gpus(readings: &[GpuReading]) -> GpuSample {
    let known = |field: fn(&GpuReading) -> Option<f64>| readings.iter().filter_map(field);
    let mean = |values: &mut dyn Iterator<Item = f64>| {
        let (total, count) = values.fold((0.0, 0_u32), |(total, count), value| (total + value, count + 1));
        (count > 0).then(|| total / f64::from(count))
    };
    let (used, free) = readings
        .iter()
        .filter_map(|reading| reading.memory_used_and_free)
        .fold((0.0, 0.0), |(used, free), (more_used, more_free)| {
            (used + more_used, free + more_free)
        });
    GpuSample {
        devices: u32::try_from(readings.len()).unwrap_or(u32::MAX),
        utilization_ratio: mean(&mut known(|reading| reading.utilization_ratio)),
        memory_ratio: (used + free > 0.0).then(|| used / (used + free)),
        temperature_celsius: known(|reading| reading.temperature_celsius).reduce(f64::max),
        xid: readings
            .iter()
            .filter_map(|reading| reading.xid)
            .reduce(worse_xid),
        row_remap_failed: readings
            .iter()
            .filter_map(|reading| reading.row_remap_failed)
            .reduce(|a, b| a || b),
        brakes: readings
            .iter()
            .filter_map(|reading| reading.brakes)
            .reduce(Brakes::union),
        thermal_violation: known(|reading| reading.thermal_violation).reduce(|total, value| total + value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> GpuSample {
        parse_gpu(body.as_bytes(), &TextLimits::default()).unwrap()
    }

    #[test]
    fn dcgm_utilization_is_percent() {
        assert_eq!(
            parse("DCGM_FI_DEV_GPU_UTIL{gpu=\"0\"} 37").utilization_ratio,
            Some(0.37)
        );
        assert_eq!(
            parse("DCGM_FI_DEV_GPU_UTIL{gpu=\"0\"} 137").utilization_ratio,
            None
        );
    }

    #[test]
    fn every_not_available_mark_is_unknown() {
        let marks = [
            "9223372036854775792",
            "9223372036854775793",
            "9223372036854775794",
            "9223372036854775795",
            "2147483632",
            "2147483634",
            "140737488355328",
            "140737488355330",
            "NaN",
            "-1",
        ];
        for mark in marks {
            for metric in METRICS {
                let sample = parse(&format!("{metric}{{gpu=\"0\"}} {mark}"));
                assert_eq!(
                    sample,
                    GpuSample {
                        devices: 1,
                        ..GpuSample::default()
                    },
                    "{metric} {mark}"
                );
            }
        }
    }

    #[test]
    fn mig_instances_are_no_further_gpus() {
        let sample = parse(
            "DCGM_FI_PROF_GR_ENGINE_ACTIVE{gpu=\"0\",UUID=\"GPU-a\",GPU_I_ID=\"1\"} 0.2\n\
             DCGM_FI_PROF_GR_ENGINE_ACTIVE{gpu=\"0\",UUID=\"GPU-a\",GPU_I_ID=\"2\"} 0.6\n\
             DCGM_FI_DEV_XID_ERRORS{gpu=\"0\",UUID=\"GPU-a\",GPU_I_ID=\"1\"} 0\n\
             DCGM_FI_DEV_XID_ERRORS{gpu=\"0\",UUID=\"GPU-a\",GPU_I_ID=\"2\"} 79\n\
             DCGM_FI_DEV_FB_USED{gpu=\"0\",UUID=\"GPU-a\",GPU_I_ID=\"1\"} 10\n\
             DCGM_FI_DEV_FB_USED{gpu=\"0\",UUID=\"GPU-a\",GPU_I_ID=\"2\"} 20\n\
             DCGM_FI_DEV_FB_FREE{gpu=\"0\",UUID=\"GPU-a\",GPU_I_ID=\"1\"} 30\n\
             DCGM_FI_DEV_FB_FREE{gpu=\"0\",UUID=\"GPU-a\",GPU_I_ID=\"2\"} 60\n",
        );
        assert_eq!((sample.devices, sample.xid), (1, Some(79)));
        assert_eq!(
            (sample.utilization_ratio, sample.memory_ratio),
            (Some(0.4), Some(0.25))
        );
    }

    #[test]
    fn the_device_itself_counts_before_its_instances() {
        let sample = parse(
            "DCGM_FI_DEV_FB_USED{gpu=\"0\"} 40\nDCGM_FI_DEV_FB_USED{gpu=\"0\",GPU_I_ID=\"1\"} 30\n\
             DCGM_FI_DEV_FB_FREE{gpu=\"0\"} 60\nDCGM_FI_DEV_FB_FREE{gpu=\"0\",GPU_I_ID=\"1\"} 1\n",
        );
        assert_eq!(sample.memory_ratio, Some(0.4));
    }

    #[test]
    fn a_fault_outranks_an_application_error_in_any_order() {
        for (one, other, worst) in [(0, 31, 31), (31, 79, 79), (48, 79, 48), (13, 31, 13), (0, 0, 0)] {
            assert_eq!(worse_xid(one, other), worst);
            assert_eq!(worse_xid(other, one), worst);
        }
        for xid in APPLICATION_XIDS {
            assert!(!is_fault_xid(xid));
        }
        assert!(is_fault_xid(48) && is_fault_xid(79) && !is_fault_xid(0));
    }

    #[test]
    fn clock_reasons_tell_brakes_from_normal_operation() {
        let none = Brakes::default();
        // Idle, application clocks, software power cap, sync boost.
        assert_eq!(brakes_from_clock_reasons(0x01 | 0x02 | 0x04 | 0x10), none);
        assert_eq!(
            brakes_from_clock_reasons(0x48),
            Brakes {
                thermal: true,
                ..none
            }
        );
        assert_eq!(
            brakes_from_clock_reasons(0x20),
            Brakes {
                thermal: true,
                ..none
            }
        );
        assert_eq!(brakes_from_clock_reasons(0x88), Brakes { power: true, ..none });
        assert_eq!(
            brakes_from_clock_reasons(0x08),
            Brakes {
                unspecified: true,
                ..none
            }
        );
        assert_eq!(
            parse("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS{gpu=\"0\"} 4").brakes,
            Some(none)
        );
    }

    #[test]
    fn one_failed_remap_among_many_gpus_is_seen() {
        let sample =
            parse("DCGM_FI_DEV_ROW_REMAP_FAILURE{gpu=\"0\"} 0\nDCGM_FI_DEV_ROW_REMAP_FAILURE{gpu=\"1\"} 1");
        assert_eq!((sample.devices, sample.row_remap_failed), (2, Some(true)));
    }

    #[test]
    fn a_body_of_something_else_is_refused() {
        let error = parse_gpu(b"node_load1 0.2\n", &TextLimits::default()).unwrap_err();
        assert_eq!(error, TelemetryError::NoGpuMetric);
    }
}
