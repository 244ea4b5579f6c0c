//! The digest of a resolved policy: it proves that two hosts enforce the same one.
//!
//! A SHA-256 over SHA-256s, so that a policy of which little has changed needs little hashed anew. `docs/policy.md` says
//! how to form it by hand. Health, weights, the time and everything else that can differ between two hosts is not in it.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::resolved::{ResolvedPolicy, Rule};

/// Names the form, so that a digest of another form of the same policy cannot be taken for this one.
const FORM: &[u8] = b"enforcer.dev/v1 resolved policy, form 3\n";

/// SHA-256 of a resolved policy.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

/// Digests of one policy after another. What it keeps of the last one saves work, and changes no digest.
#[derive(Debug, Clone, Default)]
pub struct Digester {
    last: Option<(Arc<ResolvedPolicy>, Hashes)>,
}

type Hash = [u8; 32];

/// The hashes of the items of a policy's lists.
#[derive(Debug, Clone)]
struct Hashes {
    classes: Vec<Hash>,
    tenants: Vec<Hash>,
    services: Vec<Hash>,
    pools: Vec<Hash>,
    rules: Vec<Hash>,
    protected_networks: Vec<Hash>,
    constraints: Vec<Hash>,
}

// === impl ResolvedPolicy ===

impl ResolvedPolicy {
    /// Its digest, from nothing.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Hashes::of(self, None).digest(self)
    }
}

// === impl Digester ===

impl Digester {
    /// The digest of a policy.
    pub fn digest(&mut self, policy: &Arc<ResolvedPolicy>) -> Digest {
        let hashes = Hashes::of(policy, self.last.as_ref().map(|(last, hashes)| (&**last, hashes)));
        let digest = hashes.digest(policy);
        self.last = Some((Arc::clone(policy), hashes));
        digest
    }
}

// === impl Hashes ===

impl Hashes {
    /// Takes over those of the last policy where an item is the same.
    fn of(policy: &ResolvedPolicy, last: Option<(&ResolvedPolicy, &Self)>) -> Self {
        macro_rules! list {
            ($field:ident, $same:expr) => {
                hash_list(
                    &policy.$field,
                    last.map(|(last, hashes)| (last.$field.as_slice(), hashes.$field.as_slice())),
                    $same,
                )
            };
        }
        Self {
            classes: list!(classes, PartialEq::eq),
            tenants: list!(tenants, PartialEq::eq),
            services: list!(services, PartialEq::eq),
            pools: list!(pools, PartialEq::eq),
            rules: list!(rules, is_same_rule),
            protected_networks: list!(protected_networks, PartialEq::eq),
            constraints: list!(constraints, PartialEq::eq),
        }
    }

    /// The digest of the policy that these are of.
    fn digest(&self, policy: &ResolvedPolicy) -> Digest {
        // A further field stops this from compiling until it is in the digest.
        let ResolvedPolicy {
            name,
            defaults,
            classes: _,
            tenants: _,
            services: _,
            pools: _,
            rules: _,
            protected_networks: _,
            constraints: _,
        } = policy;
        let lists = [
            &self.classes,
            &self.tenants,
            &self.services,
            &self.pools,
            &self.rules,
            &self.protected_networks,
            &self.constraints,
        ];
        let mut hash = Sha256::new();
        hash.update(FORM);
        hash.update(hash_of(name, &mut Vec::new()));
        hash.update(hash_of(defaults, &mut Vec::new()));
        for list in lists {
            hash.update(Sha256::digest(list.as_flattened()));
        }
        Digest(hash.finalize().into())
    }
}

/// SHA-256 of JSON without white space: fields in the order of declaration, maps sorted by key.
fn hash_of(part: &impl Serialize, buffer: &mut Vec<u8>) -> Hash {
    buffer.clear();
    serde_json::to_writer(&mut *buffer, part).expect("plain structs with string keys always serialise");
    Sha256::digest(&buffer).into()
}

/// The hashes of a list. What it begins and ends with as the last one did has the same ones.
fn hash_list<T: Serialize>(
    items: &[T],
    last: Option<(&[T], &[Hash])>,
    same: fn(&T, &T) -> bool,
) -> Vec<Hash> {
    let (before, hashes) = last.unwrap_or_default();
    let is_same = |pair: &(&T, &T)| same(pair.0, pair.1);
    let front = items.iter().zip(before).take_while(is_same).count();
    let (rest, rest_before) = (&items[front..], &before[front..]);
    let back = rest
        .iter()
        .rev()
        .zip(rest_before.iter().rev())
        .take_while(is_same)
        .count();
    let mut buffer = Vec::new();
    let fresh = rest[..rest.len() - back]
        .iter()
        .map(|item| hash_of(item, &mut buffer));
    let mut all = Vec::with_capacity(items.len());
    all.extend_from_slice(&hashes[..front]);
    all.extend(fresh);
    all.extend_from_slice(&hashes[hashes.len() - back..]);
    all
}

/// Whether two rules say the same. Where they stand in the text is no part of that.
fn is_same_rule(one: &Arc<Rule>, other: &Arc<Rule>) -> bool {
    let Rule {
        name,
        action,
        mode,
        priority,
        tenants,
        services,
        schedule,
        limits,
        line: _,
        file: _,
    } = &**one;
    Arc::ptr_eq(one, other)
        || *name == other.name
            && *action == other.action
            && *mode == other.mode
            && *priority == other.priority
            && *tenants == other.tenants
            && *services == other.services
            && *schedule == other.schedule
            && *limits == other.limits
}

// === impl Digest ===

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Digest({self})")
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::super::load;
    use super::*;

    const POLICY: &str = "apiVersion: enforcer.dev/v1\nkind: GovernancePolicy\nmetadata: {name: p}\nspec:\n  tenants:\n  \
        - {name: a, sources: [10.1.0.0/16]}\n  - {name: b, sources: [10.2.0.0/16], limits: {packetsPerSecond: 5}}\n  \
        - {name: c, sources: [10.3.0.0/16]}\n  services:\n  - {name: s, addresses: [192.0.2.1], port: 1, protocol: TCP, \
        pools: [p], forward: Nat}\n  pools: [{name: p, backends: [{name: g, address: 10.9.0.1, port: 1}]}]\n  rules:\n  \
        - {name: r, action: Allow}\n  - {name: t, action: Allow, mode: Shadow, tenants: {matchNames: [c]}}\n";

    #[test]
    fn a_digest_after_others_is_the_one_from_nothing() {
        let mut digester = Digester::default();
        let mut before = POLICY.to_owned();
        for (from, to) in [
            ("packetsPerSecond: 5", "packetsPerSecond: 6"),
            (
                "- {name: a,",
                "- {name: aa, sources: [10.4.0.0/16]}\n  - {name: a,",
            ),
            (
                "  - {name: c, sources: [10.3.0.0/16]}\n",
                "  - {name: c, sources: [10.5.0.0/16]}\n",
            ),
            (
                "  - {name: b, sources: [10.2.0.0/16], limits: {packetsPerSecond: 6}}\n",
                "",
            ),
            ("name: r, action: Allow", "name: r, action: Deny"),
            ("name: r,", "\n    name: r,"),
            ("name: t,", "name: u,"),
            ("metadata: {name: p}", "metadata: {name: q}"),
            ("  - {name: a, sources: [10.1.0.0/16]}\n", ""),
        ] {
            let after = before.replace(from, to);
            assert_ne!(after, before, "{from}");
            for text in [&before, &after, &before, &after] {
                let policy = load("p.yaml", text).policy.expect("it is right");
                let policy = Arc::new(policy);
                assert_eq!(digester.digest(&policy), policy.digest(), "{text}");
            }
            let digest = |text| load("p.yaml", text).policy.map(|policy| policy.digest());
            assert_eq!(
                digest(&before) == digest(&after),
                to.starts_with('\n'),
                "{from} to {to}"
            );
            before = after;
        }
    }

    #[test]
    fn what_differs_from_the_last_policy_is_hashed_and_nothing_else() {
        let old = load("p.yaml", POLICY).policy.expect("it is right");
        let marked = Hashes {
            tenants: vec![[1; 32], [2; 32], [3; 32]],
            rules: vec![[4; 32], [5; 32]],
            ..Hashes::of(&old, None)
        };
        // One line more, so that the rules stand elsewhere.
        let text = POLICY.replace("packetsPerSecond: 5", "packetsPerSecond:\n      6");
        let new = load("p.yaml", &text).policy.expect("it is right");
        let hashes = Hashes::of(&new, Some((&old, &marked)));
        let b = hash_of(&new.tenants[1], &mut Vec::new());
        assert_eq!(hashes.tenants, [[1; 32], b, [3; 32]]);
        assert_eq!(hashes.rules, marked.rules);
    }
}
