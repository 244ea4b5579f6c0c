//! The records of tenants, services and back ends.
//!
//! There is one for every slot that there can be: flows and replies name slots, and may outlive what had them, so that
//! nothing stale may stand there in a bank of which nothing is known.

use enforcer_common::abi::config::{
    BACKEND_PRESENT, BACKEND_REACHABLE, BackendRecord, FORWARD_DNAT, FORWARD_GUE, FORWARD_IPIP,
    FORWARD_L2DSR, FORWARD_LOCAL, FORWARD_NAT, LimitRecord, LimitsRecord, MAX_UNITS, SERVICE_PRESENT,
    SERVICE_PROHIBITS, SERVICE_RESETS, SERVICE_RESETS_INELIGIBLE, SERVICE_STATELESS, STEP_SHIFT,
    ServiceRecord, TENANT_FAIR_SHARE, TENANT_PRESENT, TENANT_QUOTA, TENANT_QUOTA_NEW, TENANT_SUSPENDED,
    TenantRecord,
};
use enforcer_common::parse::NO_TAGS;
use enforcer_common::schema::{MAX_BACKENDS, MAX_SERVICES};

use super::{Exhausted, Layout, NextHop, SlottedBackend, VlanTag, address_of, class_bit};
use crate::pure::policy::limits::{Unit, step_fp};
use crate::pure::policy::resolved::{Forward, Ineligible, Limits, Refusal, TableFull};

pub(super) fn tenant_records(layout: &Layout<'_>, row_of_tenant: &[u32]) -> Vec<TenantRecord> {
    let mut records = vec![TenantRecord::ZERO; layout.inputs.host.capacity.tenant_slots() as usize];
    for (index, tenant) in layout.inputs.policy.tenants.iter().enumerate() {
        let suspended = layout.inputs.suspended.contains(&tenant.name);
        let exhausted = match layout.inputs.exhausted.get(&tenant.name) {
            None => 0,
            Some(Exhausted::NewFlows) => TENANT_QUOTA_NEW,
            Some(Exhausted::Everything) => TENANT_QUOTA,
        };
        // A class that is never shed needs no bit, and costs no look-up.
        let shed_class = tenant
            .class
            .filter(|class| layout.inputs.policy.classes[*class].shed_above_percent.is_some())
            .map_or(0, class_bit);
        let share = layout.inputs.fair_rates.get(&tenant.name).copied();
        let limit = tenant.limits.new_connections_per_second;
        let held = share.filter(|share| limit.is_none_or(|limit| *share < limit));
        let record = TenantRecord {
            row: row_of_tenant[index],
            flags: TENANT_PRESENT
                | exhausted
                | if suspended { TENANT_SUSPENDED } else { 0 }
                | if held.is_some() { TENANT_FAIR_SHARE } else { 0 },
            shed_class,
            limits: limits_record(&tenant.limits, held),
        };
        records[layout.tenant_slots[index] as usize] = record;
    }
    records
}

/// Limits as the programs have them; `held`: new connections per second that count instead.
pub(super) fn limits_record(limits: &Limits, held: Option<u64>) -> LimitsRecord {
    let Limits {
        new_connections_per_second,
        packets_per_second,
        bytes_per_second,
        response_bytes_per_second,
        concurrent_connections,
        burst_ns,
    } = *limits;
    LimitsRecord {
        connections: limit_record(held.or(new_connections_per_second), burst_ns, Unit::Events),
        packets: limit_record(packets_per_second, burst_ns, Unit::Events),
        bytes: limit_record(bytes_per_second, burst_ns, Unit::Bytes),
        response_bytes: limit_record(response_bytes_per_second, burst_ns, Unit::Bytes),
        concurrent_limit: concurrent_connections.map_or(0, u64::from),
    }
}

/// The burst is at least what the largest packet, or one connection, costs: otherwise it could never pass.
pub(super) fn limit_record(rate_per_second: Option<u64>, burst_ns: u64, unit: Unit) -> LimitRecord {
    let Some(rate_per_second) = rate_per_second else {
        return LimitRecord::ZERO;
    };
    let step_fp = step_fp(rate_per_second, unit).expect("`resolve` refuses rates that cannot be kept");
    let largest = match unit {
        Unit::Events => 1,
        Unit::Bytes => MAX_UNITS,
    };
    // No overflow: that is what bounds the lowest rate.
    LimitRecord {
        step_fp,
        burst_ns: burst_ns.max((largest * step_fp) >> STEP_SHIFT),
    }
}

/// The number that stands for a forward mode.
const fn forward_code(forward: Forward) -> u32 {
    match forward {
        Forward::Nat => FORWARD_NAT,
        Forward::Dnat => FORWARD_DNAT,
        Forward::L2Dsr => FORWARD_L2DSR,
        Forward::Ipip => FORWARD_IPIP,
        Forward::Gue => FORWARD_GUE,
        Forward::Local => FORWARD_LOCAL,
    }
}

pub(super) fn service_records(layout: &Layout<'_>) -> Vec<ServiceRecord> {
    let mut records = vec![ServiceRecord::ZERO; MAX_SERVICES as usize];
    for service in &layout.services {
        records[service.slot as usize] = ServiceRecord {
            forward: forward_code(service.service.forward),
            flags: SERVICE_PRESENT
                | match service.service.on_refusal {
                    Refusal::Drop => 0,
                    Refusal::Reset => SERVICE_RESETS,
                    Refusal::Prohibited => SERVICE_PROHIBITS,
                }
                | match service.service.on_table_full {
                    TableFull::Refuse => 0,
                    TableFull::Forward => SERVICE_STATELESS,
                }
                | match service.service.on_ineligible {
                    Ineligible::Move => 0,
                    Ineligible::Reset => SERVICE_RESETS_INELIGIBLE,
                },
            limits: layout.groups.of_service(service.index),
            ..ServiceRecord::ZERO
        };
    }
    records
}

pub(super) fn backend_records(layout: &Layout<'_>) -> Vec<BackendRecord> {
    let mut records = vec![BackendRecord::ZERO; MAX_BACKENDS as usize];
    for SlottedBackend {
        slot,
        backend,
        status,
        ..
    } in layout.backends.iter().flatten()
    {
        let mut record = BackendRecord {
            address: address_of(backend.address),
            port_be: backend.port.to_be(),
            flags: BACKEND_PRESENT,
            ..BackendRecord::ZERO
        };
        if let Some(NextHop {
            ifindex,
            own_mac,
            next_hop_mac,
            mtu_bytes,
            vlan,
        }) = status.next_hop
        {
            record.flags |= BACKEND_REACHABLE;
            record = BackendRecord {
                ifindex,
                own_mac,
                next_hop_mac,
                mtu_bytes,
                tags: vlan.map_or(NO_TAGS, VlanTag::tags),
                ..record
            };
        }
        records[*slot as usize] = record;
    }
    records
}
