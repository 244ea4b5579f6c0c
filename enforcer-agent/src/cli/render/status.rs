//! `status`.

use std::fmt::Write as _;

use super::{ABSENT, Render, bytes, clean, milliseconds, or_absent, policy_line, table};
use crate::api::reply::{
    AuditStatus, IngressMode, InterfaceStatus, NvmlStatus, ReasonCount, ScheduleStatus, StatusReply,
};

impl Render for StatusReply {
    fn render(&self) -> String {
        let mut text = String::new();
        for (name, value) in summary(self) {
            let _infallible = writeln!(text, "{name:<12}{value}");
        }
        text.push('\n');
        text += &table(
            &["INTERFACE", "#INDEX", "XDP", "WHY NOT NATIVE"],
            self.interfaces.iter().map(interface_row),
        );
        text.push('\n');
        text += &table(
            &["DIRECTION", "REASON", "#PACKETS", "#BYTES"],
            self.packets.iter().map(reason_row),
        );
        for warning in &self.warnings {
            let _infallible = writeln!(text, "\nwarning: {}", clean(warning));
        }
        text
    }
}

fn interface_row(interface: &InterfaceStatus) -> Vec<String> {
    let mode = match interface.mode {
        IngressMode::Native => "native",
        IngressMode::Generic => "generic",
        IngressMode::Tc => "tc",
    };
    vec![
        interface.name.clone(),
        interface.ifindex.to_string(),
        mode.to_owned(),
        or_absent(interface.why_not_native.as_deref()),
    ]
}

fn reason_row(count: &ReasonCount) -> Vec<String> {
    vec![
        count.direction.name().to_owned(),
        count.reason.clone(),
        count.packets.to_string(),
        bytes(count.bytes),
    ]
}

fn summary(status: &StatusReply) -> Vec<(&'static str, String)> {
    let uptime = milliseconds(status.uptime_seconds.saturating_mul(1000));
    let policy = status.policy.as_ref().map_or_else(
        || "none: everything to a service is refused".to_owned(),
        policy_line,
    );
    let gpus = match &status.nvml {
        NvmlStatus::Absent { reason } => format!("none watched here: {}", clean(reason)),
        NvmlStatus::Present { driver, gpus } if driver.is_empty() => format!("{gpus} on this host"),
        NvmlStatus::Present { driver, gpus } => format!("{gpus} on this host, driver {}", clean(driver)),
    };
    let schedules = status
        .schedules
        .as_ref()
        .map(|schedules| ("schedules", schedule_line(schedules)));
    let mut rows = vec![
        (
            "agent",
            format!(
                "version {}, instance {} on {}, process {}, up {uptime}",
                clean(&status.version),
                clean(&status.instance),
                clean(&status.host),
                status.pid,
            ),
        ),
        ("policy", policy),
        ("generation", status.generation.to_string()),
        (
            "schema",
            format!(
                "version {}, hash {}",
                status.schema.version,
                clean(&status.schema.hash)
            ),
        ),
        (
            "flows",
            format!("{} of {}", status.flows.open, status.flows.capacity),
        ),
        ("audit", audit_line(&status.audit)),
        ("gpus", gpus),
    ];
    rows.splice(2..2, schedules);
    rows
}

fn schedule_line(schedules: &ScheduleStatus) -> String {
    let ScheduleStatus {
        scheduled_rules,
        closed_rules,
        next_change,
    } = schedules;
    let next = next_change.map_or_else(
        || "none of them ever changes".to_owned(),
        |next| format!("next change {}", next.strftime("%Y-%m-%d %H:%M:%SZ")),
    );
    format!("{closed_rules} of {scheduled_rules} rules with one are closed; {next}")
}

fn audit_line(audit: &AuditStatus) -> String {
    let segment = if audit.segment.is_empty() {
        ABSENT
    } else {
        &audit.segment
    };
    let failing = audit
        .error
        .as_ref()
        .map_or_else(String::new, |error| format!("; NOT WRITING: {}", clean(error)));
    format!(
        "record {} in {}; decisions: {} recorded, {} aggregated, {} lost{failing}",
        audit.sequence,
        clean(segment),
        audit.recorded,
        audit.aggregated,
        audit.lost
    )
}
