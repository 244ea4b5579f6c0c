//! One step of a back end's weight.

use super::pressure::{Known, Pressure, per_mille};
use super::{FULL_SHARE_PER_MILLE, Reading, Signals, Source, Tuning, WeightCause, weight_of};
use crate::pure::telemetry::{Brakes, EngineSample, GpuSample, is_fault_xid};

/// What the fold remembers of a back end from one step to the next. Start with [`BackendState::default`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BackendState {
    folded_at_ns: Option<u64>,
    /// Smoothed, 0 to 1.
    saturation: Option<f64>,
    engine: Held<EngineSample>,
    gpu: Held<GpuSample>,
    fault: Fault,
    brakes: Brakes,
    not_serving: bool,
    /// When a back end that was out came back.
    recovered_at_ns: Option<u64>,
    published_per_mille: Option<u16>,
}

/// The last word of a source, and for how long it has said nothing since.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Held<T> {
    sample: Option<T>,
    misses: u32,
    is_configured: bool,
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self {
            sample: None,
            misses: 0,
            is_configured: false,
        }
    }
}

/// A broken GPU. The XID that an exporter shows is the last one and stays there, so a fault is latched when seen, ends
/// when the exporter starts over at 0, and can be acknowledged while the exporter goes on showing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Fault {
    xid: Option<u32>,
    acknowledged_xid: Option<u32>,
    row_remap_failed: bool,
    since_ns: Option<u64>,
}

/// The result of one step.
#[derive(Debug, Clone, PartialEq)]
pub struct Folded {
    /// What to hand to the next step.
    pub state: BackendState,
    /// The weight to build tables from; the scale is described at [`weight_of`].
    pub weight: u32,
    /// What moved the weight, or which verdict began or ended; empty only if neither happened.
    pub causes: Vec<WeightCause>,
}

impl BackendState {
    /// The share that was last published, per mille of the capacity.
    #[must_use]
    pub fn share_per_mille(&self) -> u16 {
        self.published_per_mille.unwrap_or(FULL_SHARE_PER_MILLE)
    }

    /// The smoothed saturation, 0 to 1, or `None` before anything was known.
    #[must_use]
    pub fn saturation(&self) -> Option<f64> {
        self.saturation
    }

    /// Since when a GPU fault drains the back end, in ns of the clock that was folded with.
    #[must_use]
    pub fn fault_since_ns(&self) -> Option<u64> {
        self.fault.since_ns
    }

    /// The last sample of the engine, unless it has fallen silent.
    #[must_use]
    pub fn engine(&self, tuning: &Tuning) -> Option<&EngineSample> {
        self.engine.current(tuning)
    }

    /// The last sample of the GPUs, unless they have fallen silent.
    #[must_use]
    pub fn gpu(&self, tuning: &Tuning) -> Option<&GpuSample> {
        self.gpu.current(tuning)
    }

    /// Takes a latched GPU fault as dealt with (an operator says so, by undraining the back end). The same XID, still shown
    /// by the exporter, drains no more; another one does. A failed row remap is shown as long as it lasts and drains
    /// again.
    pub fn acknowledge_fault(&mut self) {
        self.fault.acknowledged_xid = self.fault.xid.take();
        self.fault.row_remap_failed = false;
        self.fault.since_ns = None;
    }
}

/// Folds one look at a back end into its weight. `now_ns` is any monotonic clock, and must be the same one at each
/// step; a time before the last one counts as no time passed.
#[must_use]
pub fn fold(
    previous: &BackendState,
    signals: &Signals,
    capacity: u32,
    now_ns: u64,
    tuning: &Tuning,
) -> Folded {
    let mut state = previous.clone();
    let elapsed_ns = previous.folded_at_ns.map(|then| now_ns.saturating_sub(then));
    state.folded_at_ns = Some(now_ns.max(previous.folded_at_ns.unwrap_or(0)));
    // A NaN would outlive its sample in the averages.
    let (engine, gpu) = (
        signals.engine.map(EngineSample::finite),
        signals.gpu.map(GpuSample::finite),
    );
    state.engine.take(engine, tuning);
    state.gpu.take(gpu, tuning);
    state.brakes = brakes(previous, &gpu, &state, tuning);
    if let Reading::Fresh(gpu) = gpu {
        state.fault.take(&gpu, now_ns);
    }
    state.not_serving = !signals.serving;
    if previous.is_out() && !state.is_out() {
        state.recovered_at_ns = Some(now_ns);
    } else if state.is_out() {
        state.recovered_at_ns = None;
    }

    let strongest = state.known(signals, capacity, tuning).strongest(tuning);
    state.saturation = smooth(previous.saturation, strongest, elapsed_ns, tuning);
    state.end_slow_start(now_ns, tuning);
    let target = state.target_share(now_ns, tuning);
    let share = approach(previous.published_per_mille, target, elapsed_ns, tuning);
    state.published_per_mille = Some(share);

    let causes = causes(previous, &state, strongest, now_ns, tuning);
    Folded {
        weight: weight_of(capacity, share),
        causes,
        state,
    }
}

impl<T: Copy> Held<T> {
    fn take(&mut self, reading: Reading<T>, tuning: &Tuning) {
        match reading {
            Reading::NotConfigured => *self = Self::default(),
            Reading::Unchanged => {}
            Reading::Missed => {
                self.is_configured = true;
                self.misses = self.misses.saturating_add(1);
                if self.is_silent(tuning) {
                    self.sample = None;
                }
            }
            Reading::Fresh(sample) => {
                *self = Self {
                    sample: Some(sample),
                    misses: 0,
                    is_configured: true,
                }
            }
        }
    }
}

impl<T> Held<T> {
    fn is_silent(&self, tuning: &Tuning) -> bool {
        self.is_configured && self.misses >= tuning.misses_before_verdict.max(1)
    }

    fn current(&self, tuning: &Tuning) -> Option<&T> {
        self.sample.as_ref().filter(|_| !self.is_silent(tuning))
    }
}

impl Fault {
    fn take(&mut self, gpu: &GpuSample, now_ns: u64) {
        match gpu.xid {
            Some(0) => (self.xid, self.acknowledged_xid) = (None, None),
            Some(xid) if is_fault_xid(xid) && self.acknowledged_xid != Some(xid) => {
                self.xid = Some(xid);
                self.acknowledged_xid = None;
            }
            // An application's error overwrites the last XID and repairs nothing; an absent one says nothing.
            _ => {}
        }
        self.row_remap_failed = gpu.row_remap_failed.unwrap_or(self.row_remap_failed);
        self.since_ns = self.is_present().then(|| self.since_ns.unwrap_or(now_ns));
    }

    fn is_present(&self) -> bool {
        self.xid.is_some() || self.row_remap_failed
    }

    fn cause(&self) -> Option<WeightCause> {
        let row_remap = self.row_remap_failed.then_some(WeightCause::RowRemapFailure);
        self.xid.map(|code| WeightCause::Xid { code }).or(row_remap)
    }
}

/// The brakes that are on now. The counter of time spent slowed down by heat tells them where the exporter does not
/// publish the reasons: it grew since the last sample of the same GPUs.
fn brakes(
    previous: &BackendState,
    reading: &Reading<GpuSample>,
    state: &BackendState,
    tuning: &Tuning,
) -> Brakes {
    let Reading::Fresh(gpu) = reading else {
        return state
            .gpu
            .current(tuning)
            .map_or(Brakes::default(), |_| previous.brakes);
    };
    let from_counter = || {
        let before = previous
            .gpu
            .sample
            .filter(|before| before.devices == gpu.devices)?;
        let (earlier, later) = before.thermal_violation.zip(gpu.thermal_violation)?;
        Some(Brakes {
            thermal: later > earlier,
            ..Brakes::default()
        })
    };
    gpu.brakes.or_else(from_counter).unwrap_or_default()
}

impl BackendState {
    fn is_out(&self) -> bool {
        self.not_serving || self.fault.is_present()
    }

    fn known(&self, signals: &Signals, capacity: u32, tuning: &Tuning) -> Known<'_> {
        Known {
            engine: self.engine.current(tuning),
            gpu: self.gpu.current(tuning),
            silent: self.engine.is_silent(tuning) || self.gpu.is_silent(tuning),
            connections_in_flight: signals.connections_in_flight,
            capacity,
        }
    }

    fn end_slow_start(&mut self, now_ns: u64, tuning: &Tuning) {
        self.recovered_at_ns = self
            .recovered_at_ns
            .filter(|since| now_ns.saturating_sub(*since) < tuning.slow_start_ns);
    }

    /// The share that the back end deserves now, before dead band and step limit.
    fn target_share(&self, now_ns: u64, tuning: &Tuning) -> u16 {
        self.share_at(self.saturation.unwrap_or(0.0), now_ns, tuning)
    }

    /// The share that it would deserve now at this saturation.
    fn share_at(&self, saturation: f64, now_ns: u64, tuning: &Tuning) -> u16 {
        if self.is_out() {
            return 0;
        }
        let full = u32::from(FULL_SHARE_PER_MILLE);
        let floor = u32::from(tuning.floor_per_mille).min(full);
        let taken = (saturation.clamp(0.0, 1.0) * f64::from(full - floor)).round() as u32;
        let mut share = full - taken.min(full - floor);
        if self.brakes.any() {
            share /= 2;
        }
        if let Some(since_ns) = self.recovered_at_ns {
            share = share * slow_start_share(now_ns.saturating_sub(since_ns), tuning) / full;
        }
        // Only a fault or the operator takes a back end out.
        u16::try_from(share.clamp(1, full)).unwrap_or(FULL_SHARE_PER_MILLE)
    }
}

/// How much of its share a recovered back end has regained, per mille.
fn slow_start_share(elapsed_ns: u64, tuning: &Tuning) -> u32 {
    let full = u32::from(FULL_SHARE_PER_MILLE);
    let from = u32::from(tuning.slow_start_from_per_mille).min(full);
    let progress = (elapsed_ns as f64 / tuning.slow_start_ns.max(1) as f64).clamp(0.0, 1.0);
    from + (progress * f64::from(full - from)) as u32
}

/// Moves the smoothed saturation towards what is known now; nothing known leaves it where it is.
///
/// The step is `elapsed / (elapsed + time constant)`, the implicit form of an exponential average: it stays within
/// 0 and 1 for samples at any distance, and uses only operations that every machine rounds alike.
fn smooth(
    previous: Option<f64>,
    strongest: Option<Pressure>,
    elapsed_ns: Option<u64>,
    tuning: &Tuning,
) -> Option<f64> {
    let Some(Pressure { saturation, .. }) = strongest else {
        return previous;
    };
    let (Some(previous), Some(elapsed_ns)) = (previous, elapsed_ns) else {
        return Some(saturation);
    };
    let rises = saturation > previous;
    let time_constant_ns = if rises {
        tuning.rise_time_constant_ns
    } else {
        tuning.fall_time_constant_ns
    };
    let elapsed = elapsed_ns as f64;
    let step = elapsed / (elapsed + time_constant_ns.max(1) as f64);
    Some((previous + step * (saturation - previous)).clamp(0.0, 1.0))
}

/// The share to publish next: within the dead band the old one, else one limited step towards the target. Going
/// to zero and the very first share are not limited, and a back end never stays at zero because of the dead band.
fn approach(published: Option<u16>, target: u16, elapsed_ns: Option<u64>, tuning: &Tuning) -> u16 {
    let (Some(published), Some(elapsed_ns)) = (published, elapsed_ns) else {
        return target;
    };
    let distance = published.abs_diff(target);
    if target == 0 || (published != 0 && distance < tuning.dead_band_per_mille) {
        return if target == 0 { 0 } else { published };
    }
    let rate = u64::from(tuning.step_per_second_per_mille);
    let allowed = (elapsed_ns / 1_000_000).saturating_mul(rate) / 1000;
    // At least one, so that frequent steps add up to movement.
    let step = distance.min(u16::try_from(allowed.max(1)).unwrap_or(u16::MAX));
    if target > published {
        published + step
    } else {
        published - step
    }
}

/// What to tell the audit log about the step from `previous` to `state`.
fn causes(
    previous: &BackendState,
    state: &BackendState,
    strongest: Option<Pressure>,
    now_ns: u64,
    tuning: &Tuning,
) -> Vec<WeightCause> {
    let mut causes = Vec::new();
    // A first share that is not the full one has moved too.
    let moved = previous.share_per_mille() != state.share_per_mille();
    let began = |was: bool, is: bool| is && (moved || !was);
    let ended = |was: bool, is: bool| was && !is;

    if let Some(cause) = state
        .fault
        .cause()
        .filter(|cause| moved || previous.fault.cause() != Some(*cause))
    {
        causes.push(cause);
    }
    if ended(previous.fault.is_present(), state.fault.is_present()) {
        causes.push(WeightCause::FaultCleared);
    }
    if began(previous.not_serving, state.not_serving) {
        causes.push(WeightCause::NotServing);
    }
    if ended(previous.not_serving, state.not_serving) {
        causes.push(WeightCause::Recovered);
    }
    if state.brakes.any() && (moved || previous.brakes != state.brakes) {
        causes.push(WeightCause::brake(state.brakes));
    }
    if ended(previous.brakes.any(), state.brakes.any()) {
        causes.push(WeightCause::BrakeReleased);
    }
    let sources = [
        (
            Source::Engine,
            previous.engine.is_silent(tuning),
            state.engine.is_silent(tuning),
            state.engine.misses,
        ),
        (
            Source::Gpu,
            previous.gpu.is_silent(tuning),
            state.gpu.is_silent(tuning),
            state.gpu.misses,
        ),
    ];
    for (source, was, is, misses) in sources {
        if began(was, is) {
            causes.push(WeightCause::Silent { source, misses });
        }
        if ended(was, is) {
            causes.push(WeightCause::Heard { source });
        }
    }
    if moved && !state.is_out() {
        let elapsed_ms = |since_ns: u64| now_ns.saturating_sub(since_ns) / 1_000_000;
        causes.extend(state.recovered_at_ns.map(|since| WeightCause::SlowStart {
            elapsed_ms: elapsed_ms(since),
            of_ms: tuning.slow_start_ns / 1_000_000,
        }));
        causes.extend(load_cause(previous, state, strongest, now_ns, tuning));
    }
    causes
}

/// What the load has to do with a share that moved. A signal is named while it presses the share down; afterwards the
/// average does, which follows it slowly.
fn load_cause(
    previous: &BackendState,
    state: &BackendState,
    strongest: Option<Pressure>,
    now_ns: u64,
    tuning: &Tuning,
) -> Option<WeightCause> {
    let load = strongest.map_or(0.0, |pressure| pressure.saturation);
    let average = state.saturation.unwrap_or(0.0);
    let share = state.share_per_mille();
    let of_average = WeightCause::Average {
        load_per_mille: per_mille(average),
    };
    if share < previous.share_per_mille() {
        return if load < average {
            Some(of_average)
        } else {
            strongest
                .filter(|_| load > 0.0)
                .and_then(|pressure| pressure.cause)
        };
    }
    if state.recovered_at_ns.is_some() {
        // A slow start says so itself.
        return None;
    }
    let towards_per_mille = state.share_at(load, now_ns, tuning);
    if towards_per_mille.saturating_sub(share) < tuning.dead_band_per_mille.max(1) {
        return Some(of_average);
    }
    Some(WeightCause::Recovering {
        towards_per_mille,
        load_per_mille: per_mille(average),
    })
}
