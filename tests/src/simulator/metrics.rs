//! The two metric texts, in the names, types and label sets of vLLM 0.10 and later and of dcgm-exporter 4.

use std::fmt::Write as _;

use super::engine::{Load, Totals};

/// Frame buffer of the pretended GPU, in MiB: an H100's 80 GB.
const FRAME_BUFFER_MIB: u64 = 81_559;
/// What weights alone take of it.
const WEIGHTS_MIB: u64 = 40_000;
/// NVML's `nvmlClocksEventReasonSwThermalSlowdown`.
const SOFTWARE_THERMAL_SLOWDOWN: u32 = 0x20;

/// vLLM's `/metrics`.
pub(super) fn vllm(model: &str, load: &Load, totals: &Totals) -> String {
    let labels = format!("engine=\"0\",model_name=\"{}\"", escaped(model));
    let mut text = String::with_capacity(2048);
    family(
        &mut text,
        "vllm:num_requests_running",
        "gauge",
        "Number of requests in model execution batches.",
    );
    sample(
        &mut text,
        "vllm:num_requests_running",
        &labels,
        f64::from(load.running),
    );
    family(
        &mut text,
        "vllm:num_requests_waiting",
        "gauge",
        "Number of requests waiting to be processed.",
    );
    sample(
        &mut text,
        "vllm:num_requests_waiting",
        &labels,
        f64::from(load.waiting),
    );
    family(
        &mut text,
        "vllm:kv_cache_usage_perc",
        "gauge",
        "KV-cache usage. 1 means 100 percent usage.",
    );
    sample(&mut text, "vllm:kv_cache_usage_perc", &labels, load.kv_cache);
    family(
        &mut text,
        "vllm:prompt_tokens",
        "counter",
        "Number of prefill tokens processed.",
    );
    sample(
        &mut text,
        "vllm:prompt_tokens_total",
        &labels,
        totals.prompt_tokens as f64,
    );
    family(
        &mut text,
        "vllm:generation_tokens",
        "counter",
        "Number of generation tokens processed.",
    );
    sample(
        &mut text,
        "vllm:generation_tokens_total",
        &labels,
        totals.generated_tokens as f64,
    );
    family(
        &mut text,
        "vllm:request_success",
        "counter",
        "Count of successfully processed requests.",
    );
    for (reason, count) in [("length", totals.finished), ("abort", totals.aborted)] {
        let labels = format!("{labels},finished_reason=\"{reason}\"");
        sample(&mut text, "vllm:request_success_total", &labels, count as f64);
    }
    text
}

/// dcgm-exporter's `/metrics` for one GPU.
pub(super) fn dcgm(host: &str, load: &Load) -> String {
    let labels = format!(
        "gpu=\"0\",UUID=\"GPU-00000000-0000-0000-0000-000000000000\",pci_bus_id=\"00000000:01:00.0\",\
         device=\"nvidia0\",modelName=\"NVIDIA H100 80GB HBM3\",Hostname=\"{}\"",
        escaped(host)
    );
    let cache_mib = ((FRAME_BUFFER_MIB - WEIGHTS_MIB) as f64 * load.kv_cache) as u64;
    let used_mib = WEIGHTS_MIB + cache_mib;
    let temperature_c = if load.thermal_brake {
        90
    } else {
        40 + load.gpu_utilization / 4
    };
    let clock_reasons = if load.thermal_brake {
        SOFTWARE_THERMAL_SLOWDOWN
    } else {
        0
    };
    let gauges: [(&str, &str, u64); 6] = [
        (
            "DCGM_FI_DEV_GPU_TEMP",
            "GPU temperature (in C).",
            u64::from(temperature_c),
        ),
        (
            "DCGM_FI_DEV_GPU_UTIL",
            "GPU utilization (in %).",
            u64::from(load.gpu_utilization),
        ),
        (
            "DCGM_FI_DEV_XID_ERRORS",
            "Value of the last XID error encountered.",
            u64::from(load.xid),
        ),
        (
            "DCGM_FI_DEV_FB_FREE",
            "Framebuffer memory free (in MiB).",
            FRAME_BUFFER_MIB - used_mib,
        ),
        (
            "DCGM_FI_DEV_FB_USED",
            "Framebuffer memory used (in MiB).",
            used_mib,
        ),
        (
            "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS",
            "Current clock throttle reasons (bitmask of DCGM_CLOCKS_THROTTLE_REASON_*).",
            u64::from(clock_reasons),
        ),
    ];
    let mut text = String::with_capacity(4096);
    for (name, help, value) in gauges {
        family(&mut text, name, "gauge", help);
        sample(&mut text, name, &labels, value as f64);
    }
    let name = "DCGM_FI_DEV_ROW_REMAP_FAILURE";
    family(&mut text, name, "gauge", "Whether remapping of rows has failed.");
    sample(&mut text, name, &labels, 0.0);
    text
}

fn family(text: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn sample(text: &mut String, name: &str, labels: &str, value: f64) {
    let _ = writeln!(text, "{name}{{{labels}}} {value}");
}

/// A label value in the exposition format: backslash, quote and line feed are escaped.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Load = Load {
        running: 3,
        waiting: 2,
        kv_cache: 0.5,
        gpu_utilization: 75,
        xid: 0,
        thermal_brake: false,
    };

    #[test]
    fn vllm_text_has_the_three_gauges_with_their_labels() {
        let totals = Totals {
            finished: 7,
            aborted: 1,
            prompt_tokens: 40,
            generated_tokens: 90,
        };
        let text = vllm("llama \"70b\"", &LOAD, &totals);
        for line in [
            r#"vllm:num_requests_running{engine="0",model_name="llama \"70b\""} 3"#,
            r#"vllm:num_requests_waiting{engine="0",model_name="llama \"70b\""} 2"#,
            r#"vllm:kv_cache_usage_perc{engine="0",model_name="llama \"70b\""} 0.5"#,
            r#"vllm:request_success_total{engine="0",model_name="llama \"70b\"",finished_reason="abort"} 1"#,
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "no line {line} in\n{text}"
            );
        }
    }

    #[test]
    fn dcgm_memory_adds_up_and_a_brake_shows() {
        let text = dcgm(
            "gpu-1",
            &Load {
                thermal_brake: true,
                ..LOAD
            },
        );
        let value = |name: &str| -> u64 {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.rsplit_once(' ').unwrap().1.parse().unwrap()
        };
        assert_eq!(
            value("DCGM_FI_DEV_FB_USED") + value("DCGM_FI_DEV_FB_FREE"),
            FRAME_BUFFER_MIB
        );
        assert_eq!(value("DCGM_FI_DEV_GPU_UTIL"), 75);
        assert_eq!(
            value("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS"),
            u64::from(SOFTWARE_THERMAL_SLOWDOWN)
        );
    }
}
