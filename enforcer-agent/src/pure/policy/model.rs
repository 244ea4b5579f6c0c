//! The shape of the YAML: what fields there are, and nothing about what they mean.
//!
//! The JSON Schema and `docs/policy-reference.md` are made from these records, so that every field says what it is, in
//! which unit, what holds if it is left out (`default`), an example where its type's own is not enough, and what it
//! compiles to. [`super::resolve`] gives the values their types.
//!
//! A field that is no `Option` must be there. No field may be null (`bytesPerSecond:` with nothing behind it): left out
//! means the default, and null could be read either way.

use super::kinds::{
    Address, ApiVersion, Count, DocumentKind, Duration, Flag, Name, Number, Path, Period, Port, Ports,
    Prefix, Share, TimeOfDay, TimeZone, True, Url,
};
pub use super::kinds::{Choice, Kind, LabelTexts, LabelValue};
use super::resolved::{
    Action, Forward, Ineligible, LeaseExpiry, Mode, Operator, Protocol, QuotaMetric, Refusal, TableFull,
};
use super::schedule::Day;
use super::shape::records;
pub use super::shape::{List, Scalar, Spanned, Text};

records! {
    /// A policy, or a part of one: who may use which service, how much, and on which back ends.
    pub struct Document {
        /// The version of the policy language.
        "apiVersion" => pub api_version: Scalar<ApiVersion>,
        /// What kind of document it is.
        "kind" => pub kind: Scalar<DocumentKind>,
        /// The policy's name.
        "metadata" => pub metadata: Metadata,
        /// What the policy says. The lists of several documents are joined.
        "spec" => pub spec: Spec,
    }

    /// The name of a policy.
    pub struct Metadata {
        /// For status, records and metrics; the same in all documents of a policy.
        #[schemars(extend("examples" = ["prod"]))]
        "name" => pub name: Scalar<Name>,
    }

    /// The body of a document.
    pub struct Spec {
        /// What holds for the policy as a whole; in one document of the policy only.
        "defaults" => pub defaults: Option<Spanned<Defaults>>,
        /// Service classes: how tenants stand to one another when there is not enough for all.
        "classes" => pub classes: Option<List<Class>>,
        /// Who may send.
        "tenants" => pub tenants: Option<List<Tenant>>,
        /// What may be reached.
        "services" => pub services: Option<List<Service>>,
        /// Groups of back ends that can stand in for one another.
        "pools" => pub pools: Option<List<Pool>>,
        /// Which tenant may use which service. What no rule allows is refused.
        "rules" => pub rules: Option<List<Rule>>,
        /// Networks that can be reached through a service only. A packet that comes in by an interface of the balancer
        /// to an address in one of them, and is neither to a service nor a reply on an open flow, is refused as
        /// `Bypass`.
        #[schemars(extend("x-compilesTo" = "entries of the destination trie"))]
        "protectedNetworks" => pub protected_networks: Option<List<Scalar<Prefix>>>,
        /// What back ends must be like, whichever rule allowed the traffic and whatever has failed.
        "constraints" => pub constraints: Option<List<Constraint>>,
    }

    /// What holds for the policy as a whole.
    pub struct Defaults {
        /// What happens to a source that no tenant claims, and where no rule decides. With `Allow` the sources are a tenant
        /// `(unknown)` without labels and limits, and a rule `(default)` behind all others allows everything; constraints and
        /// rules without a selector of tenants bind it as any tenant.
        #[schemars(extend("default" = "Deny"))]
        "action" => pub action: Option<Scalar<Action>>,
        /// What happens when the agent has not renewed its lease: it may have died, and the policy may be out of date.
        #[schemars(extend("default" = "Hold"))]
        "onLeaseExpiry" => pub on_lease_expiry: Option<Scalar<LeaseExpiry>>,
        /// How long the lease lasts after the agent has renewed it, from 1 to 86400. An agent that is restarted should not lose it.
        #[schemars(extend("default" = 30, "x-unit" = "s"))]
        "leaseSeconds" => pub lease_seconds: Option<Scalar<Number>>,
    }

    /// A service class: how its tenants stand to others when there is not enough for all.
    pub struct Class {
        /// Unique among classes.
        #[schemars(extend("examples" = ["gold"]))]
        "name" => pub name: Scalar<Name>,
        /// How much a tenant of the class counts beside those of others, 1 to 1000, where a pool is contended: used to more
        /// than 90%. What the pool can take in new connections beyond what is guaranteed is then shared out by weight.
        #[schemars(extend("default" = 1, "examples" = [8]))]
        "weight" => pub weight: Option<Scalar<Number>>,
        /// New connections of the class are refused (`Shed`) while the pool that would take them is used to more than
        /// this. Left out, it is never shed.
        #[schemars(extend("examples" = ["85%"], "x-unit" = "% of the pool's capacity"))]
        "shedAbove" => pub shed_above: Option<Scalar<Share>>,
    }

    /// Someone who sends traffic, known by its source addresses and by nothing else.
    #[schemars(extend("x-compilesTo" = "a `TENANTS` record, and entries of the source trie"))]
    pub struct Tenant {
        /// Unique among tenants. It is the tenant's identity: limits that are used up, counters and suspension go by it,
        /// and a new name starts afresh.
        "name" => pub name: Scalar<Name>,
        /// The longest prefix that holds a source address decides. No two tenants may have the same prefix; one may lie
        /// within another's.
        "sources" => pub sources: List<Scalar<Prefix>>,
        /// For selectors.
        "labels" => pub labels: Option<LabelTexts>,
        /// The name of its service class.
        #[schemars(extend("examples" = ["gold"]))]
        "class" => pub class: Option<Scalar<Name>>,
        /// What it may use at most, over all services together.
        "limits" => pub limits: Option<Limits>,
        /// What it gets even if others want more than there is, as long as its class is not shed.
        "guaranteed" => pub guaranteed: Option<Guaranteed>,
        /// What it may use at most in a period of the calendar, over all services together.
        "quotas" => pub quotas: Option<List<Quota>>,
    }

    /// Limits of a tenant, of each tenant on a service, or of a service. What is left out is unlimited. A packet over a limit is
    /// dropped, counted under the limit's reason, and takes nothing from any limit.
    #[schemars(extend("x-compilesTo" = "the limiters of the `TENANTS` record, or a `LIMITS` record: step and burst"))]
    pub struct Limits {
        /// New connections; for UDP, new flows.
        #[schemars(extend("x-unit" = "connections/s, 1 to 10^9", "examples" = [50]))]
        "newConnectionsPerSecond" => pub new_connections_per_second: Option<Scalar<Count>>,
        /// Packets to services.
        #[schemars(extend("x-unit" = "packets/s, 1 to 10^9", "examples" = ["200k"]))]
        "packetsPerSecond" => pub packets_per_second: Option<Scalar<Count>>,
        /// Bytes to services, from the IP header on.
        #[schemars(extend("x-unit" = "bytes/s, 4 to 10^12", "examples" = ["50Mi"]))]
        "bytesPerSecond" => pub bytes_per_second: Option<Scalar<Count>>,
        /// Bytes back to the client, from the IP header on. Not with `L2Dsr`, `Ipip` and `Gue`, whose answers do not come by.
        #[schemars(extend("x-unit" = "bytes/s, 4 to 10^12", "examples" = ["20Mi"]))]
        "responseBytesPerSecond" => pub response_bytes_per_second: Option<Scalar<Count>>,
        /// Connections open at the same time.
        #[schemars(extend("x-unit" = "connections, 1 to 2^32 - 1", "examples" = [400]))]
        "concurrentConnections" => pub concurrent_connections: Option<Scalar<Count>>,
        /// How much time's worth of every rate may come at once; at least one connection, one packet, or 65,535 bytes.
        #[schemars(extend("default" = "1s", "x-unit" = "duration, 1 ms to 1 h", "examples" = ["2s"]))]
        "burst" => pub burst: Option<Scalar<Duration>>,
    }

    /// What a tenant gets even if others want more than there is.
    pub struct Guaranteed {
        /// New connections; at most the tenant's limit.
        #[schemars(extend("x-unit" = "connections/s, 1 to 10^9", "examples" = [10]))]
        "newConnectionsPerSecond" => pub new_connections_per_second: Option<Scalar<Count>>,
    }

    /// What a tenant may use at most in a period of the calendar. Beyond it everything is refused (`Quota`) until the
    /// next period begins.
    pub struct Quota {
        /// What is counted.
        "metric" => pub metric: Scalar<QuotaMetric>,
        /// How much of it.
        #[schemars(extend("x-unit" = "connections or bytes, 1 to 2^63 - 1", "examples" = ["20Gi"]))]
        "limit" => pub limit: Scalar<Count>,
        /// After which it is counted from zero again.
        "per" => pub per: Scalar<Period>,
        /// The zone whose midnights and months count.
        #[schemars(extend("default" = "UTC"))]
        "timeZone" => pub time_zone: Option<Scalar<TimeZone>>,
    }

    /// Something that tenants reach.
    #[schemars(extend("x-compilesTo" = "a `SERVICES` record and entries of the destination trie, for each family"))]
    pub struct Service {
        /// Unique among services.
        #[schemars(extend("examples" = ["chat"]))]
        "name" => pub name: Scalar<Name>,
        /// The virtual addresses, at least one. No back end may have one of them, but for the proxies of a `Local` service. Packets to them must be routed to the
        /// balancer.
        "addresses" => pub addresses: List<Scalar<Address>>,
        /// The port, or several in a row. Address, port and protocol belong to one service. Connections to all ports of
        /// a range go to the back end's one port; with `L2Dsr`, `Ipip`, `Gue` and `Local` they keep theirs.
        "port" => pub port: Scalar<Ports>,
        /// TCP or UDP.
        "protocol" => pub protocol: Scalar<Protocol>,
        /// For selectors.
        "labels" => pub labels: Option<LabelTexts>,
        /// Names of pools in order of preference, at least one: all but the first are failover.
        #[schemars(extend("examples" = [["h100-eu", "h100-us"]]))]
        "pools" => pub pools: List<Scalar<Name>>,
        /// How packets get to the back end.
        "forward" => pub forward: Scalar<Forward>,
        /// What all tenants together may use at most. Whoever comes when it is used up is refused (`ServiceConnections`,
        /// `ServiceRate`), whatever is left of its own limits.
        "limits" => pub limits: Option<Limits>,
        /// What the sender of a refused packet is answered, for a reason that lies with the tenant, the rules or the pools. The
        /// agent's configuration bounds how often.
        #[schemars(extend("default" = "Drop"))]
        "onRefusal" => pub on_refusal: Option<Scalar<Refusal>>,
        /// What becomes of a new connection for which the flow table, or the tenant's share of it, has no room. `Forward` only
        /// with `L2Dsr`, `Ipip` and `Gue`, whose packets need no entry to be forwarded; tenants with a limit of concurrent
        /// connections are refused all the same, since nothing would count them.
        #[schemars(extend("default" = "Refuse"))]
        "onTableFull" => pub on_table_full: Option<Scalar<TableFull>>,
        /// What becomes of an open TCP connection whose back end is no longer eligible: ill, gone, or forbidden by a
        /// constraint. Moved, the new back end knows nothing of it; reset, the client can try again at once.
        #[schemars(extend("default" = "Move"))]
        "onIneligible" => pub on_ineligible: Option<Scalar<Ineligible>>,
        /// Whether ICMP echo requests (`ping`) to the service's addresses are answered, of tenants that may use the service.
        /// An address answers if one of its services says so; at most 8 may. Where none does, echo requests are left to the
        /// host's stack.
        #[schemars(extend("default" = false))]
        "answerEcho" => pub answer_echo: Option<Scalar<Flag>>,
    }

    /// A group of back ends that can stand in for one another.
    pub struct Pool {
        /// Unique among pools.
        #[schemars(extend("examples" = ["h100-eu"]))]
        "name" => pub name: Scalar<Name>,
        /// What all of its back ends have, unless they say otherwise.
        "labels" => pub labels: Option<LabelTexts>,
        /// The back ends, at least one.
        "backends" => pub backends: List<Backend>,
        /// How health is found out. Left out, by a TCP connection each second.
        "healthCheck" => pub health_check: Option<Spanned<HealthCheck>>,
        /// When the pool as a whole counts as failed. It returns after being fit for 5 s.
        "failover" => pub failover: Option<Spanned<Failover>>,
    }

    /// One inference server.
    #[schemars(extend("x-compilesTo" = "a `BACKENDS` record, bits in `SETS`, slots in `MAGLEV`"))]
    pub struct Backend {
        /// Unique over all pools: `backend drain` has nothing else.
        #[schemars(extend("examples" = ["gpu-1"]))]
        "name" => pub name: Scalar<Name>,
        /// Another host on an Ethernet link of this one, or behind a router.
        #[schemars(extend("examples" = ["10.9.1.10"]))]
        "address" => pub address: Scalar<Address>,
        /// Where it listens.
        "port" => pub port: Scalar<Port>,
        /// Its share of new connections relative to the others, 1 to 1,000,000; also the number of connections that is
        /// its full load.
        #[schemars(extend("default" = 100))]
        "capacity" => pub capacity: Option<Scalar<Number>>,
        /// For constraints; they win over the pool's.
        "labels" => pub labels: Option<LabelTexts>,
        /// Where to ask how loaded it is. Left out, the connections in flight over `capacity` say so.
        "telemetry" => pub telemetry: Option<Telemetry>,
    }

    /// Where a back end's load can be read, in Prometheus text format.
    pub struct Telemetry {
        /// dcgm-exporter; every GPU in it is taken to belong to this back end.
        "dcgm" => pub dcgm: Option<Scalar<Url>>,
        /// The engine's own metrics: vLLM, SGLang, Triton or TensorRT-LLM.
        #[schemars(extend("examples" = ["http://10.9.0.1:8000/metrics"]))]
        "engine" => pub engine: Option<Scalar<Url>>,
    }

    /// How a pool's back ends are probed: by `tcp` or by `http`.
    #[schemars(extend("oneOf" = [{"required": ["tcp"]}, {"required": ["http"]}]))]
    pub struct HealthCheck {
        /// A TCP connection to the back end's port that opens is enough.
        "tcp" => pub tcp: Option<Scalar<True>>,
        /// An answer 200 to 299 to `GET` of this path on the back end's port is wanted.
        "http" => pub http: Option<Scalar<Path>>,
        /// Time between two probes.
        #[schemars(extend("default" = "1s", "x-unit" = "duration, 10 ms to 1 h"))]
        "interval" => pub interval: Option<Scalar<Duration>>,
        /// Time after which a probe has failed, at most `interval`, which it is if that is less than the default.
        #[schemars(extend("default" = "500ms", "x-unit" = "duration, 10 ms to 1 h"))]
        "timeout" => pub timeout: Option<Scalar<Duration>>,
        /// Failed probes in a row that make a back end unhealthy, 1 to 1000.
        #[schemars(extend("default" = 3))]
        "unhealthyAfter" => pub unhealthy_after: Option<Scalar<Number>>,
        /// Good probes in a row that make it healthy again, 1 to 1000.
        #[schemars(extend("default" = 2))]
        "healthyAfter" => pub healthy_after: Option<Scalar<Number>>,
    }

    /// When a pool as a whole counts as failed, so that new connections go to the service's next pool. A pool without a
    /// healthy back end has failed in any case.
    pub struct Failover {
        /// With a smaller share of healthy back ends the pool has failed.
        #[schemars(extend("default" = "0%", "x-unit" = "% of the pool's back ends"))]
        "healthyBelow" => pub healthy_below: Option<Scalar<Share>>,
        /// While the pool is used to more than this, it counts as failed. Left out, its load never does that.
        #[schemars(extend("examples" = ["95%"], "x-unit" = "% of the pool's capacity"))]
        "utilizationAbove" => pub utilization_above: Option<Scalar<Share>>,
    }

    /// Which tenants may, or may not, use which services. For each tenant and service the first enforced rule that
    /// matches decides; if none does, the answer is no (`NoRule`).
    #[schemars(extend("x-compilesTo" = "the `PAIRS` record of every tenant row and service"))]
    pub struct Rule {
        /// Unique among rules; stands in audit records and `explain`.
        #[schemars(extend("examples" = ["acme-may-chat"]))]
        "name" => pub name: Scalar<Name>,
        /// What it does.
        "action" => pub action: Scalar<Action>,
        /// A shadow rule decides nothing. If it would have come first and decided otherwise, that is written into the
        /// record of the decision.
        #[schemars(extend("default" = "Enforce"))]
        "mode" => pub mode: Option<Scalar<Mode>>,
        /// The highest is asked first, 32 bits with a sign. At one priority `Deny` comes before `Allow`, and then the
        /// order of the text decides.
        #[schemars(extend("default" = 0, "examples" = [10]))]
        "priority" => pub priority: Option<Scalar<Number>>,
        /// Which tenants. Left out, all of them.
        "tenants" => pub tenants: Option<Spanned<Selector>>,
        /// Which services. Left out, all of them.
        "services" => pub services: Option<Spanned<Selector>>,
        /// When the rule exists. Left out, always.
        "schedule" => pub schedule: Option<Spanned<Schedule>>,
        /// What each of the tenants may use at most of each of the services, where this rule allows it: beside the
        /// tenant's own limits, and never more than these.
        "limits" => pub limits: Option<Spanned<Limits>>,
    }

    /// When a rule exists: a window that comes back on some days of every week. A rule that is closed is passed over;
    /// what only closed rules would allow is refused as `OutsideSchedule`.
    #[schemars(extend("minProperties" = 1))]
    pub struct Schedule {
        /// The days on which the window begins, at least one.
        #[schemars(extend("default" = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"],
            "examples" = [["Mon", "Tue", "Wed", "Thu", "Fri"]]))]
        "days" => pub days: Option<List<Scalar<Day>>>,
        /// When it begins.
        #[schemars(extend("default" = "00:00", "examples" = ["08:00"]))]
        "from" => pub from: Option<Scalar<TimeOfDay>>,
        /// When it ends: on the next day, if that is not after the beginning.
        #[schemars(extend("default" = "24:00", "examples" = ["20:00"]))]
        "to" => pub to: Option<Scalar<TimeOfDay>>,
        /// By whose clocks.
        #[schemars(extend("default" = "UTC"))]
        "timeZone" => pub time_zone: Option<Scalar<TimeZone>>,
    }

    /// What back ends must be like. All constraints on a tenant and service must hold; back ends that do not comply are
    /// taken out before any table is made, so that failover cannot lead there.
    #[schemars(extend("x-compilesTo" = "which back ends are in `SETS` and `MAGLEV`"))]
    pub struct Constraint {
        /// Unique among constraints.
        #[schemars(extend("examples" = ["eu-residency"]))]
        "name" => pub name: Scalar<Name>,
        /// Whose traffic it binds. Left out, everybody's.
        "tenants" => pub tenants: Option<Spanned<Selector>>,
        /// To which services. Left out, to all of them.
        "services" => pub services: Option<Spanned<Selector>>,
        /// What a back end's labels must be like: its own, or else its pool's.
        "requireBackend" => pub require_backend: Spanned<LabelSelector>,
    }

    /// Chooses by name, by label, or by both; all that is given must hold. An empty one is an error, since it could mean
    /// all or nothing.
    #[schemars(extend("minProperties" = 1))]
    pub struct Selector {
        /// One of these names.
        #[schemars(extend("examples" = [["acme", "globex"]]))]
        "matchNames" => pub match_names: Option<List<Scalar<Name>>>,
        /// All of these labels.
        "matchLabels" => pub match_labels: Option<LabelTexts>,
        /// All of these conditions.
        "matchExpressions" => pub match_expressions: Option<List<Expression>>,
    }

    /// Chooses by label; all that is given must hold.
    #[schemars(extend("minProperties" = 1))]
    pub struct LabelSelector {
        /// All of these labels.
        "matchLabels" => pub match_labels: Option<LabelTexts>,
        /// All of these conditions.
        "matchExpressions" => pub match_expressions: Option<List<Expression>>,
    }

    /// A condition on a label.
    pub struct Expression {
        /// The label's key.
        #[schemars(extend("examples" = ["region"]))]
        "key" => pub key: Scalar<Name>,
        /// What must hold of it. `NotIn` also holds where the label is not there.
        "operator" => pub operator: Scalar<Operator>,
        /// For `In` and `NotIn`, at least one value; for `Exists` and `DoesNotExist`, none.
        #[schemars(extend("examples" = [["eu", "uk"]]))]
        "values" => pub values: Option<List<Scalar<LabelValue>>>,
    }
}
