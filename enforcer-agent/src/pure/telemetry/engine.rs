//! What an inference engine says about itself.

use std::collections::BTreeMap;

use super::{TelemetryError, TextError, TextLimits, TextSample, ratio, read_samples};

/// The engines whose metric names are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EngineKind {
    /// vLLM.
    Vllm,
    /// SGLang.
    SgLang,
    /// TensorRT-LLM's own server, `trtllm-serve`.
    TensorRtLlm,
    /// Triton Inference Server, with or without the TensorRT-LLM back end.
    Triton,
}

/// One look at an engine. `None` is unknown, never zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EngineSample {
    /// Which engine the metrics are of.
    pub engine: EngineKind,
    /// Requests being decoded, over all of the engine's ranks and models.
    pub running: Option<f64>,
    /// Requests waiting for a place in the batch.
    pub waiting: Option<f64>,
    /// Share of the key-value cache in use, 0 to 1, the mean over data-parallel ranks.
    pub kv_cache_ratio: Option<f64>,
    /// GPU utilization, 0 to 1, the mean over GPUs, where the engine is who reports it (Triton).
    pub gpu_utilization_ratio: Option<f64>,
}

impl EngineSample {
    /// The same sample with every value that is no finite number made unknown.
    #[must_use]
    pub fn finite(self) -> Self {
        Self {
            engine: self.engine,
            running: self.running.filter(|value| value.is_finite()),
            waiting: self.waiting.filter(|value| value.is_finite()),
            kv_cache_ratio: self.kv_cache_ratio.filter(|value| value.is_finite()),
            gpu_utilization_ratio: self.gpu_utilization_ratio.filter(|value| value.is_finite()),
        }
    }
}

/// Most label sets of one metric that are taken from one engine.
const MOST_SERIES: usize = 256;

/// No engine queues more requests than this; a larger figure is a fault of the exporter.
const MOST_REQUESTS: f64 = 1e9;

/// The labels that tell engines, models, ranks and GPUs apart whose figures add up. Tensor- and pipeline-parallel ranks
/// are left out on purpose: they all work on the same requests, and each repeats the figure.
const PART_LABELS: [&str; 6] = ["model_name", "model", "version", "engine", "dp_rank", "gpu_uuid"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Running,
    Waiting,
    KvCache,
    GpuUtilization,
}

/// One metric of one engine. Where two rows fill the same field, the first that has samples counts.
struct Source {
    engine: EngineKind,
    metric: &'static str,
    only: Option<(&'static str, &'static str)>,
    field: Field,
}

const fn source(engine: EngineKind, metric: &'static str, field: Field) -> Source {
    Source {
        engine,
        metric,
        only: None,
        field,
    }
}

const fn source_only(metric: &'static str, only: (&'static str, &'static str), field: Field) -> Source {
    Source {
        engine: EngineKind::Triton,
        metric,
        only: Some(only),
        field,
    }
}

/// Names as published by vLLM 0.4 to 0.11, SGLang 0.4 and later, TensorRT-LLM 1.0 and Triton 23.11 and later.
const SOURCES: [Source; 15] = [
    source(EngineKind::Vllm, "vllm:num_requests_running", Field::Running),
    source(EngineKind::Vllm, "vllm:num_requests_waiting", Field::Waiting),
    source(EngineKind::Vllm, "vllm:kv_cache_usage_perc", Field::KvCache),
    source(EngineKind::Vllm, "vllm:gpu_cache_usage_perc", Field::KvCache),
    source(EngineKind::SgLang, "sglang:num_running_reqs", Field::Running),
    source(EngineKind::SgLang, "sglang:num_queue_reqs", Field::Waiting),
    source(EngineKind::SgLang, "sglang:token_usage", Field::KvCache),
    source(
        EngineKind::TensorRtLlm,
        "trtllm_num_requests_running",
        Field::Running,
    ),
    source(
        EngineKind::TensorRtLlm,
        "trtllm_num_requests_waiting",
        Field::Waiting,
    ),
    source(
        EngineKind::TensorRtLlm,
        "trtllm_kv_cache_utilization",
        Field::KvCache,
    ),
    source_only(
        "nv_trt_llm_request_metrics",
        ("request_type", "scheduled"),
        Field::Running,
    ),
    source_only(
        "nv_trt_llm_request_metrics",
        ("request_type", "waiting"),
        Field::Waiting,
    ),
    source(
        EngineKind::Triton,
        "nv_inference_pending_request_count",
        Field::Waiting,
    ),
    source_only(
        "nv_trt_llm_kv_cache_block_metrics",
        ("kv_cache_block_type", "fraction"),
        Field::KvCache,
    ),
    source(EngineKind::Triton, "nv_gpu_utilization", Field::GpuUtilization),
];

/// The figures of one metric by the part of the engine that they belong to.
type Parts = BTreeMap<String, f64>;

/// Reads an engine's `/metrics`.
///
/// # Errors
/// [`TelemetryError`] if the body cannot be read or belongs to no known engine. A known engine that leaves fields out
/// is no error: those are `None`.
pub fn parse_engine(body: &[u8], limits: &TextLimits) -> Result<EngineSample, TelemetryError> {
    let mut found: [Parts; SOURCES.len()] = Default::default();
    let wanted = |name: &str| SOURCES.iter().any(|source| source.metric == name);
    read_samples(body, limits, wanted, |sample| {
        let matching = SOURCES
            .iter()
            .zip(&mut found)
            .find(|(source, _)| source.takes(&sample));
        matching.map_or(Ok(()), |(source, parts)| add(source, parts, &sample))
    })?;

    let with_samples = || SOURCES.iter().zip(&found).filter(|(_, parts)| !parts.is_empty());
    // A body with the names of two engines is one engine imitating another: the more specific names come first.
    let engine = with_samples()
        .map(|(source, _)| source.engine)
        .min()
        .ok_or(TelemetryError::NoEngineMetric)?;
    let fold = |field: Field| {
        with_samples()
            .find(|(source, _)| source.engine == engine && source.field == field)
            .and_then(|(source, parts)| source.combine(parts))
    };
    Ok(EngineSample {
        engine,
        running: fold(Field::Running),
        waiting: fold(Field::Waiting),
        kv_cache_ratio: fold(Field::KvCache),
        gpu_utilization_ratio: fold(Field::GpuUtilization),
    })
}

/// Notes one sample. Repeats of the same part (one for each tensor-parallel rank) keep the largest figure.
fn add(source: &Source, parts: &mut Parts, sample: &TextSample<'_>) -> Result<(), TextError> {
    let part = PART_LABELS
        .map(|label| sample.labels.get(label).unwrap_or_default())
        .join("\u{1f}");
    if parts.len() == MOST_SERIES && !parts.contains_key(&part) {
        return Err(TextError::TooManySeries {
            metric: source.metric,
            limit: MOST_SERIES,
        });
    }
    // An implausible figure is kept as NaN, so that the field as a whole is unknown: the sum of the other parts would
    // claim less load than there is.
    let value = source.plausible(sample.value).unwrap_or(f64::NAN);
    let kept = parts.entry(part).or_insert(value);
    if value.is_nan() || value > *kept {
        *kept = value;
    }
    Ok(())
}

impl Source {
    fn takes(&self, sample: &TextSample<'_>) -> bool {
        self.metric == sample.name
            && self
                .only
                .is_none_or(|(label, value)| sample.labels.get(label) == Some(value))
    }

    fn plausible(&self, value: f64) -> Option<f64> {
        match self.field {
            Field::Running | Field::Waiting => (0.0..=MOST_REQUESTS).contains(&value).then_some(value),
            Field::KvCache | Field::GpuUtilization => ratio(value),
        }
    }

    /// Requests add up over the parts; shares are averaged, because each part takes its share of new requests.
    fn combine(&self, parts: &Parts) -> Option<f64> {
        let total: f64 = parts.values().sum();
        let value = match self.field {
            Field::Running | Field::Waiting => total,
            Field::KvCache | Field::GpuUtilization => total / parts.len() as f64,
        };
        value.is_finite().then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(body: &str, expected: (EngineKind, [Option<f64>; 4])) {
        let sample = parse_engine(body.as_bytes(), &TextLimits::default()).unwrap();
        let fields = [
            sample.running,
            sample.waiting,
            sample.kv_cache_ratio,
            sample.gpu_utilization_ratio,
        ];
        assert_eq!((sample.engine, fields), expected, "{body}");
    }

    #[test]
    fn absent_is_unknown_and_zero_is_zero() {
        check(
            "vllm:num_requests_waiting 0",
            (EngineKind::Vllm, [None, Some(0.0), None, None]),
        );
        check(
            "nv_gpu_utilization{gpu_uuid=\"a\"} 0.5",
            (EngineKind::Triton, [None, None, None, Some(0.5)]),
        );
    }

    #[test]
    fn both_names_of_the_cache_usage_count_once_and_the_newer_wins() {
        check(
            "vllm:gpu_cache_usage_perc 0.9\nvllm:kv_cache_usage_perc 0.4",
            (EngineKind::Vllm, [None, None, Some(0.4), None]),
        );
        check(
            "vllm:gpu_cache_usage_perc 0.9",
            (EngineKind::Vllm, [None, None, Some(0.9), None]),
        );
    }

    #[test]
    fn data_parallel_ranks_add_up_and_tensor_parallel_ranks_do_not() {
        check(
            "sglang:num_queue_reqs{tp_rank=\"0\",dp_rank=\"0\"} 3\n\
             sglang:num_queue_reqs{tp_rank=\"1\",dp_rank=\"0\"} 11\n\
             sglang:num_queue_reqs{tp_rank=\"0\",dp_rank=\"1\"} 2\n\
             sglang:token_usage{tp_rank=\"0\",dp_rank=\"0\"} 0.5\n\
             sglang:token_usage{tp_rank=\"0\",dp_rank=\"1\"} 0.7",
            (EngineKind::SgLang, [None, Some(13.0), Some(0.6), None]),
        );
    }

    #[test]
    fn an_implausible_part_makes_the_field_unknown() {
        for bad in ["NaN", "-1", "+Inf", "1e12"] {
            let body = format!(
                "vllm:num_requests_waiting{{engine=\"0\"}} 4\nvllm:num_requests_waiting{{engine=\"1\"}} {bad}"
            );
            check(&body, (EngineKind::Vllm, [None; 4]));
        }
        // A percentage where a share belongs.
        check("vllm:kv_cache_usage_perc 40", (EngineKind::Vllm, [None; 4]));
    }

    #[test]
    fn the_request_kinds_of_tensorrt_llm_behind_triton_are_told_apart() {
        check(
            "nv_trt_llm_request_metrics{model=\"m\",request_type=\"waiting\",version=\"1\"} 3\n\
             nv_trt_llm_request_metrics{model=\"m\",request_type=\"max\",version=\"1\"} 512\n\
             nv_trt_llm_request_metrics{model=\"m\",request_type=\"scheduled\",version=\"1\"} 4\n\
             nv_inference_pending_request_count{model=\"m\",version=\"1\"} 9\n\
             nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"used\",model=\"m\",version=\"1\"} 2000\n\
             nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=\"fraction\",model=\"m\",version=\"1\"} 0.6",
            (EngineKind::Triton, [Some(4.0), Some(3.0), Some(0.6), None]),
        );
    }

    #[test]
    fn a_body_of_something_else_is_refused() {
        let error = parse_engine(b"go_goroutines 12\n", &TextLimits::default()).unwrap_err();
        assert_eq!(error, TelemetryError::NoEngineMetric);
    }

    #[test]
    fn the_number_of_series_is_bounded() {
        let body: String = (0..=MOST_SERIES)
            .map(|rank| format!("sglang:token_usage{{dp_rank=\"{rank}\"}} 0\n"))
            .collect();
        let error = parse_engine(body.as_bytes(), &TextLimits::default()).unwrap_err();
        let expected = TextError::TooManySeries {
            metric: "sglang:token_usage",
            limit: MOST_SERIES,
        };
        assert_eq!(error, TelemetryError::Text(expected));
    }
}
