//! Whose echo requests are answered.

use std::collections::BTreeSet;

use enforcer_common::Reason;

use super::{Oracle, Prediction};
use crate::packet::Echo;
use crate::plain::Service;

impl Oracle {
    /// What an echo request that comes in should get. How many answers a tenant has left it does not know: refusals and
    /// errors take from the same.
    #[must_use]
    pub fn predict_echo(&self, request: &Echo, now_ns: u64) -> Prediction {
        let mut prediction = Prediction::default();
        let mut services: Vec<&Service> = self
            .policy
            .services
            .iter()
            .filter(|service| service.echo && service.addresses.contains(&request.to))
            .collect();
        services.sort_by(|one, other| one.name.cmp(&other.name));
        let Some(first) = services.first().filter(|_| !request.has_options) else {
            let is_bypass = !self.is_vip(request.to) && self.is_protected(request.to);
            prediction.reasons.insert(if is_bypass {
                Reason::Bypass
            } else {
                Reason::NotService
            });
            return prediction;
        };
        prediction.service = Some(first.name.clone());
        let Some(tenant) = self.tenant_of(request.from) else {
            prediction.reasons.insert(Reason::UnknownTenant);
            return prediction;
        };
        // The first that the tenant may use has it answered; if there is none, the last one says why.
        for service in services {
            prediction.service = Some(service.name.clone());
            let standing = self.standing(tenant, service, request.to.is_ipv4(), now_ns, &mut prediction);
            if standing.is_some() {
                prediction.reasons = BTreeSet::from([Reason::Echo, Reason::EchoRate]);
            }
            let holds_for_all = [Reason::LeaseExpired, Reason::Quota];
            if standing.is_some()
                || holds_for_all
                    .iter()
                    .any(|reason| prediction.reasons.contains(reason))
            {
                break;
            }
        }
        prediction
    }
}
