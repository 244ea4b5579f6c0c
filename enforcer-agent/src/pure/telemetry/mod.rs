//! From the metrics that engines and GPU exporters publish to one sample per back end.
//!
//! It owns what each metric's name, unit and "not available" mean. It never invents a value: whatever a body does not
//! say, or says implausibly, is `None`, which later stages treat as unknown and never as zero.

mod engine;
mod gpu;
mod text;

pub use engine::{EngineKind, EngineSample, parse_engine};
pub use gpu::{
    Brakes, GpuReading, GpuSample, MOST_GPUS, brakes_from_clock_reasons, combine_gpus, is_fault_xid,
    parse_gpu, worse_xid,
};
pub use text::{Labels, LineFault, TextError, TextLimits, TextSample, read_samples};

use thiserror::Error;

/// Why a metrics body gave no sample.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TelemetryError {
    /// The body is not Prometheus text, or is too large.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The body reads well but holds no metric of an engine that is known here.
    #[error(
        "no metric of vLLM, SGLang, Triton or TensorRT-LLM in it; point `telemetry.engine` at the engine's own /metrics"
    )]
    NoEngineMetric,
    /// The body reads well but holds no GPU metric.
    #[error("no DCGM_FI_ metric in it; point `telemetry.dcgm` at dcgm-exporter's /metrics")]
    NoGpuMetric,
}

/// A share from 0 to 1. Rounding in an exporter may carry it a hair outside; anything further is implausible and thus
/// unknown.
fn ratio(value: f64) -> Option<f64> {
    const SLACK: f64 = 1e-6;
    (-SLACK..=1.0 + SLACK)
        .contains(&value)
        .then(|| value.clamp(0.0, 1.0))
}
