//! What single values can be, for the schema: [`super::resolve`] reads and checks them.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::resolved::{
    Action, Forward, Ineligible, LeaseExpiry, Mode, Operator, Protocol, QuotaMetric, Refusal, TableFull,
};
use super::schedule::Day;
use super::shape::{FromNode, Movable, Reader, Scalar, Spanned, Text};
use super::source::Place;
use super::yaml::NodeId;

/// What a [`Scalar`] has to be.
pub trait Kind {
    /// Its name in the schema.
    const NAME: &'static str;

    /// Its JSON Schema.
    fn schema() -> Value;
}

/// A kind of value that is one of a few words.
pub trait Choice: Copy + 'static {
    /// What it is called in messages: `action`.
    const WHAT: &'static str;
    /// Its name in the schema.
    const NAME: &'static str;
    /// What it is, for the schema.
    const ABOUT: &'static str;
    /// The words and what they stand for.
    const WORDS: &'static [(&'static str, Self)];

    /// The words alone.
    #[must_use]
    fn words() -> Vec<&'static str> {
        Self::WORDS.iter().map(|(word, _)| *word).collect()
    }
}

impl<C: Choice> Kind for C {
    const NAME: &'static str = C::NAME;

    fn schema() -> Value {
        json!({"description": C::ABOUT, "type": "string", "enum": C::words()})
    }
}

/// Labels, as they were written.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LabelTexts {
    /// Keys and values; no key is there twice.
    pub entries: Vec<(Text, Scalar<LabelValue>)>,
}

macro_rules! choices {
    ($($name:ident: $what:literal, $about:literal, [$($word:ident),+];)+) => {$(
        impl Choice for $name {
            const WHAT: &'static str = $what;
            const NAME: &'static str = stringify!($name);
            const ABOUT: &'static str = $about;
            const WORDS: &'static [(&'static str, Self)] = &[$((stringify!($word), Self::$word)),+];
        }
    )+};
}
choices! {
    Action: "action", "What a rule does, or what is done where none decides.", [Allow, Deny];
    Mode: "mode", "Whether a rule decides, or is only recorded to have decided otherwise.", [Enforce, Shadow];
    Forward: "forward mode", "How a packet gets to the back end.", [Nat, Dnat, L2Dsr, Ipip, Gue, Local];
    Refusal: "answer to refused packets", "What the sender of a refused packet is answered: nothing; a TCP reset, and UDP as with the last; ICMP, administratively prohibited.",
        [Drop, Reset, Prohibited];
    TableFull: "way with a full table", "What becomes of a new connection for which the flow table has no room.", [Refuse, Forward];
    Ineligible: "way with connections whose back end is ineligible", "What becomes of an open TCP connection whose back end is no longer eligible: its packets go to another one, or it is reset.", [Move, Reset];
    LeaseExpiry: "lease expiry", "What happens when the agent has not renewed its lease.", [Hold, RefuseNew, RefuseAll];
    Operator: "operator", "What must hold of a label, as Kubernetes defines it: `NotIn` holds of a label that is not there.",
        [In, NotIn, Exists, DoesNotExist];
}

impl Choice for Protocol {
    const WHAT: &'static str = "protocol";
    const NAME: &'static str = "Protocol";
    const ABOUT: &'static str = "TCP or UDP.";
    const WORDS: &'static [(&'static str, Self)] = &[("TCP", Self::Tcp), ("UDP", Self::Udp)];
}

impl Choice for QuotaMetric {
    const WHAT: &'static str = "metric";
    const NAME: &'static str = "QuotaMetric";
    const ABOUT: &'static str = "What a quota counts.";
    const WORDS: &'static [(&'static str, Self)] = &[
        ("connections", Self::Connections),
        ("requestBytes", Self::RequestBytes),
        ("responseBytes", Self::ResponseBytes),
    ];
}

impl Choice for Day {
    const WHAT: &'static str = "day of the week";
    const NAME: &'static str = "Day";
    const ABOUT: &'static str = "A day of the week.";
    const WORDS: &'static [(&'static str, Self)] = &[
        (Self::Mon.name(), Self::Mon),
        (Self::Tue.name(), Self::Tue),
        (Self::Wed.name(), Self::Wed),
        (Self::Thu.name(), Self::Thu),
        (Self::Fri.name(), Self::Fri),
        (Self::Sat.name(), Self::Sat),
        (Self::Sun.name(), Self::Sun),
    ];
}

const NAME_PATTERN: &str = "^[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?$";
const COUNT_PATTERN: &str = "^[0-9]+(\\.[0-9]+)?(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$";
/// A part of a duration: a number and one of the units that `humantime` knows below a month.
const DURATION_PATTERN: &str = "^\\s*([0-9]+\\s*(nsec|ns|usec|us|msec|ms|seconds|second|sec|secs|s|minutes|minute|min|mins|m|hours|hour|hr|hrs|h)\\s*)+$";

macro_rules! kinds {
    ($($(#[doc = $about:literal])+ $name:ident: $schema:tt;)+) => {$(
        $(#[doc = $about])+
        #[derive(Debug, Clone, Copy)]
        pub enum $name {}

        impl Kind for $name {
            const NAME: &'static str = stringify!($name);

            fn schema() -> Value {
                let mut schema = json!($schema);
                schema["description"] = json!(concat!($($about),+).trim());
                schema
            }
        }
    )+};
}
kinds! {
    /// The version of the policy language.
    ApiVersion: {"const": "enforcer.dev/v1"};
    /// What kind of document it is.
    DocumentKind: {"const": "GovernancePolicy"};
    /// 1 to 63 letters, digits, `-`, `_` and `.`, with a letter or a digit at both ends.
    Name: {"type": ["string", "integer"], "pattern": NAME_PATTERN, "minimum": 0, "examples": ["acme", "llama-70b"]};
    /// The value of a label: 1 to 63 letters, digits, `-`, `_` and `.`, with a letter or a digit at both ends.
    LabelValue: {"type": ["string", "integer", "number", "boolean"], "pattern": NAME_PATTERN,
        "examples": ["eu", "h100"]};
    /// An address and a length, without bits set beyond the length.
    Prefix: {"type": "string", "pattern": "^[0-9A-Fa-f:.]+/[0-9]{1,3}$",
        "examples": ["10.1.0.0/16", "2001:db8:1::/48"]};
    /// An IPv4 or IPv6 address of one host. IPv6 addresses need quotes inside `[ ]` and `{ }`.
    Address: {"type": "string", "pattern": "^[0-9A-Fa-f:.]+$", "examples": ["192.0.2.10", "2001:db8::10"]};
    /// A port.
    Port: {"type": ["integer", "string"], "minimum": 1, "maximum": 65535, "pattern": "^[0-9]{1,5}$", "examples": [8000]};
    /// A port, or several in a row: the first one, `-`, the last one.
    Ports: {"type": ["integer", "string"], "minimum": 1, "maximum": 65535, "pattern": "^[0-9]{1,5}(-[0-9]{1,5})?$",
        "examples": [8000, "8000-8010"]};
    /// A whole number, with `k`, `M`, `G`, `T`, `P` (thousands) or `Ki`, `Mi`, `Gi`, `Ti`, `Pi` (1024) behind it if
    /// wanted.
    Count: {"type": ["integer", "string"], "minimum": 1, "pattern": COUNT_PATTERN, "examples": [50, "200k", "50Mi"]};
    /// A whole number.
    Number: {"type": ["integer", "string"], "pattern": "^-?[0-9]+$", "examples": [100]};
    /// A number with a unit (`ms`, `s`, `m`, `h`), or several of them.
    Duration: {"type": "string", "pattern": DURATION_PATTERN, "examples": ["500ms", "2s", "1m 30s"]};
    /// A whole number from 0 to 100 with `%`.
    Share: {"type": "string", "pattern": "^(100|[0-9]{1,2}|0[0-9]{2})%$", "examples": ["50%"]};
    /// A period of the calendar: `1h`, `2h`, `3h`, `4h`, `6h`, `8h`, `12h` or `24h`, counted from midnight; a number of days
    /// from `1d` to `366d`, counted from Monday, 5 January 1970, so that `7d` is a week from Monday to Sunday; `month`.
    Period: {"type": "string", "pattern": "^((1|2|3|4|6|8|12|24)h|[1-9][0-9]{0,2}d|month)$",
        "examples": ["1h", "1d", "7d", "month"]};
    /// Hours and minutes, from `00:00` to `24:00`.
    TimeOfDay: {"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$|^24:00$", "examples": ["08:30"]};
    /// The name of a time zone in the IANA database.
    TimeZone: {"type": "string", "pattern": "^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*$",
        "examples": ["UTC", "Europe/Berlin"]};
    /// A URL that is asked for metrics: plain HTTP, without user and password.
    Url: {"type": "string", "pattern": "^[Hh][Tt][Tt][Pp]://[^/@]+(/.*)?$", "maxLength": 2048,
        "examples": ["http://10.9.0.1:9400/metrics"]};
    /// The path of a URL, with its query if it has one.
    Path: {"type": "string", "pattern": "^/", "maxLength": 2048, "examples": ["/health"]};
    /// `true`.
    True: {"enum": [true, "true"]};
    /// `true` or `false`.
    Flag: {"enum": [true, false, "true", "false"]};
}

// === impl Scalar ===

impl<K: Kind> JsonSchema for Scalar<K> {
    fn schema_name() -> Cow<'static, str> {
        K::NAME.into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // What is no object means nothing to say, which none of the kinds is.
        Schema::try_from(K::schema()).unwrap_or_default()
    }
}

// === impl Spanned ===

impl<T: JsonSchema> JsonSchema for Spanned<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

// === impl LabelTexts ===

impl FromNode for LabelTexts {
    fn from_node(reader: &mut Reader<'_, '_>, node: NodeId) -> Self {
        Self {
            entries: reader.pairs(node),
        }
    }
}

impl Movable for LabelTexts {
    fn move_lines(&mut self, from: u32, lines: i64) {
        for (key, value) in &mut self.entries {
            key.move_lines(from, lines);
            value.move_lines(from, lines);
        }
    }
}

impl JsonSchema for LabelTexts {
    fn schema_name() -> Cow<'static, str> {
        "Labels".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let value = generator.subschema_for::<Scalar<LabelValue>>();
        json_schema!({
            "description": "Labels: keys and values are written as names are.",
            "type": "object",
            "propertyNames": {"pattern": NAME_PATTERN},
            "additionalProperties": value,
            "examples": [{"region": "eu"}],
        })
    }
}

/// Where the label stands.
impl From<&(Text, Scalar<LabelValue>)> for Place {
    fn from((key, _): &(Text, Scalar<LabelValue>)) -> Self {
        key.into()
    }
}
