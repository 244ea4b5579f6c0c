//! Why a weight changed, in the form that audit records carry.

use std::fmt;

use serde::Serialize;

use crate::pure::telemetry::Brakes;

/// A source of telemetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// The engine's metrics.
    Engine,
    /// The GPUs' metrics.
    Gpu,
}

/// One signal that moved a weight, with the value that it had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "signal", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum WeightCause {
    /// The engine's queue is what saturates the back end most.
    Queue {
        /// Requests that wait.
        waiting: u64,
    },
    /// The key-value cache is what saturates the back end most.
    KvCache {
        /// Its use, per mille.
        usage_per_mille: u16,
    },
    /// Connections in flight are what saturates the back end most.
    Connections {
        /// How many there are.
        in_flight: u64,
    },
    /// GPU utilization is what saturates the back end most; used only where the engine says nothing.
    GpuUtilization {
        /// The utilization, per mille.
        utilization_per_mille: u16,
    },
    /// A GPU slowed down because of heat or power: the share is halved.
    Brake {
        /// Because of heat.
        thermal: bool,
        /// Because of the power brake.
        power: bool,
    },
    /// No GPU is slowed down any more.
    BrakeReleased,
    /// A GPU reported an XID that means a broken GPU: drained.
    Xid {
        /// The XID.
        code: u32,
    },
    /// A GPU could not remap a memory row: drained.
    RowRemapFailure,
    /// The fault that drained the back end is gone or was acknowledged.
    FaultCleared,
    /// The back end may take no new connections: it is unhealthy or an operator drained it.
    NotServing,
    /// The back end may take new connections again.
    Recovered,
    /// A recovered back end is still regaining its share.
    SlowStart {
        /// Milliseconds since it recovered.
        elapsed_ms: u64,
        /// Milliseconds that regaining all of it takes.
        of_ms: u64,
    },
    /// The share rises towards what the present load allows, and is not there yet: the average of the load has to
    /// fall, or the share to rise step by step.
    Recovering {
        /// The share that the present load allows, per mille.
        towards_per_mille: u16,
        /// The average of the load, as saturation, per mille.
        load_per_mille: u16,
    },
    /// The average of the load moved the share: no signal is as strong at the moment.
    Average {
        /// The average of the load, as saturation, per mille.
        load_per_mille: u16,
    },
    /// A source has been silent for so long that its last word no longer counts.
    Silent {
        /// The source.
        source: Source,
        /// Misses in a row.
        misses: u32,
    },
    /// A source speaks again.
    Heard {
        /// The source.
        source: Source,
    },
}

impl WeightCause {
    pub(super) fn brake(brakes: Brakes) -> Self {
        Self::Brake {
            thermal: brakes.thermal,
            power: brakes.power,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Engine => "engine",
            Self::Gpu => "GPU",
        })
    }
}

impl fmt::Display for WeightCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Queue { waiting } => write!(f, "{waiting} requests wait in the engine"),
            Self::KvCache { usage_per_mille } => {
                write!(f, "key-value cache {} full", Percent(usage_per_mille))
            }
            Self::Connections { in_flight } => write!(f, "{in_flight} connections in flight"),
            Self::GpuUtilization {
                utilization_per_mille,
            } => {
                write!(f, "GPU {} busy", Percent(utilization_per_mille))
            }
            Self::Brake {
                thermal: true,
                power: true,
            } => f.write_str("GPU slowed down by heat and power brake"),
            Self::Brake {
                thermal: true,
                power: false,
            } => f.write_str("GPU slowed down by heat"),
            Self::Brake {
                thermal: false,
                power: true,
            } => f.write_str("GPU slowed down by the power brake"),
            Self::Brake {
                thermal: false,
                power: false,
            } => f.write_str("GPU slowed down by its hardware"),
            Self::BrakeReleased => f.write_str("GPU no longer slowed down"),
            Self::Xid { code } => write!(f, "GPU fault, XID {code}"),
            Self::RowRemapFailure => f.write_str("GPU memory row could not be remapped"),
            Self::FaultCleared => f.write_str("GPU fault cleared"),
            Self::NotServing => f.write_str("takes no new connections"),
            Self::Recovered => f.write_str("takes new connections again"),
            Self::SlowStart { elapsed_ms, of_ms } => {
                write!(f, "slow start, {} of {} s", Seconds(elapsed_ms), Seconds(of_ms))
            }
            Self::Recovering {
                towards_per_mille,
                load_per_mille,
            } => write!(
                f,
                "recovering towards {} of the full weight, load averages {}",
                Percent(towards_per_mille),
                Percent(load_per_mille)
            ),
            Self::Average { load_per_mille } => write!(f, "load averages {}", Percent(load_per_mille)),
            Self::Silent { source, misses } => write!(f, "{source} metrics silent, {misses} misses in a row"),
            Self::Heard { source } => write!(f, "{source} metrics are back"),
        }
    }
}

/// Milliseconds shown as seconds with one decimal, cut off.
struct Seconds(u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 100)
    }
}

/// Per mille shown as percent with one decimal.
struct Percent(u16);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}%", self.0 / 10, self.0 % 10)
    }
}
