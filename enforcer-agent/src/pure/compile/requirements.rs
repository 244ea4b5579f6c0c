//! What a policy needs of the host that is to enforce it: addresses to send from.

use super::{CompileError, Family, Layout};
use crate::pure::policy::resolved::Forward;

/// Refuses a policy that this host could not forward by.
pub(super) fn check(layout: &Layout<'_>) -> Result<(), CompileError> {
    require_nat_addresses(layout)?;
    require_outer_sources(layout)
}

fn require_nat_addresses(layout: &Layout<'_>) -> Result<(), CompileError> {
    let mut services = layout.services.iter();
    let without = services.find(|service| {
        service.service.forward == Forward::Nat && !layout.inputs.host.has_nat_address(service.family)
    });
    match without {
        Some(service) => Err(CompileError::NoNatAddress {
            service: service.service.name.clone(),
            family: service.family.name(),
        }),
        None => Ok(()),
    }
}

fn require_outer_sources(layout: &Layout<'_>) -> Result<(), CompileError> {
    let encapsulated = layout.services.iter().map(|slotted| slotted.service);
    for service in encapsulated.filter(|service| service.forward.encapsulates()) {
        let pools = service
            .pools
            .iter()
            .map(|pool| &layout.inputs.policy.pools[*pool]);
        let mut families = pools
            .flat_map(|pool| &pool.backends)
            .map(|backend| Family::of(backend.address));
        if let Some(family) = families.find(|family| !layout.inputs.host.has_outer_source(*family)) {
            return Err(CompileError::NoOuterSource {
                service: service.name.clone(),
                forward: service.forward,
                family: family.name(),
            });
        }
    }
    Ok(())
}
