//! Numbers with units: `200k`, `50Mi`, `2s`, `85%`.
//!
//! Counts are exact: the crates for byte sizes that were looked at go through floating point, saturate silently, or read
//! `k` as 1024. Durations are read by `humantime`.

use std::time::Duration;

use thiserror::Error;

/// Why a number is not one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum QuantityError {
    /// There are no digits at the front.
    #[error("it does not start with a digit")]
    NoNumber,
    /// Digits after the point that the unit does not make whole.
    #[error("it is not a whole number")]
    NotWhole,
    /// The letters behind the number are no unit.
    #[error("`{unit}` is no unit")]
    UnknownUnit {
        /// The letters.
        unit: String,
    },
    /// More than 64 bits.
    #[error("it is larger than a 64-bit number")]
    Overflow,
    /// A duration that cannot be read.
    #[error("{reason}")]
    Duration {
        /// What the reader of durations says.
        reason: String,
    },
    /// Not a percentage.
    #[error("it is no percentage from 0% to 100%")]
    Percentage,
}

/// Decimal and binary units, as Kubernetes writes them.
const UNITS: [(&str, u64); 10] = [
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("P", 1_000_000_000_000_000),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
];

/// How a count is written, for help texts.
pub const COUNT_FORM: &str =
    "a whole number, with k, M, G, T (thousands) or Ki, Mi, Gi, Ti (1024) behind it if wanted";
/// How a duration is written, for help texts.
pub const DURATION_FORM: &str = "a number with ms, s, m or h behind it, such as 500ms";

/// Reads a count: `200k`, `1.5M`, `50Mi`. The result must be whole.
///
/// # Errors
/// When it is no number, not whole, or needs more than 64 bits.
pub fn count(text: &str) -> Result<u64, QuantityError> {
    let digits_end = text.find(|character: char| !character.is_ascii_digit() && character != '.');
    let (number, unit) = text.split_at(digits_end.unwrap_or(text.len()));
    let factor = match unit {
        "" => 1,
        unit => UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .map(|(_, factor)| *factor)
            .ok_or_else(|| QuantityError::UnknownUnit {
                unit: unit.chars().take(16).collect(),
            })?,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.contains('.') {
        return Err(QuantityError::NoNumber);
    }
    let overflow = |_| QuantityError::Overflow;
    let fraction = fraction.trim_end_matches('0');
    // 17 decimals and the largest factor stay within 128 bits.
    if fraction.len() > 17 {
        return Err(QuantityError::NotWhole);
    }
    let scale = 10u128.pow(u32::try_from(fraction.len()).map_err(overflow)?);
    let parts = if fraction.is_empty() {
        0
    } else {
        fraction.parse::<u128>().map_err(|_| QuantityError::NoNumber)?
    };
    let scaled = parts * u128::from(factor);
    if scaled % scale != 0 {
        return Err(QuantityError::NotWhole);
    }
    let whole = u128::from(whole.parse::<u64>().map_err(|_| QuantityError::Overflow)?) * u128::from(factor);
    u64::try_from(whole + scaled / scale).map_err(overflow)
}

/// Reads a duration: `2s`, `500ms`, `1m 30s`.
///
/// # Errors
/// When it is no duration, or has no unit.
pub fn duration(text: &str) -> Result<Duration, QuantityError> {
    humantime::parse_duration(text).map_err(|error| QuantityError::Duration {
        reason: error.to_string(),
    })
}

/// Reads a percentage: `50%`.
///
/// # Errors
/// When it is no whole number from 0 to 100 with a percent sign.
pub fn percentage(text: &str) -> Result<u8, QuantityError> {
    text.strip_suffix('%')
        .filter(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|number| number.parse::<u8>().ok())
        .filter(|percent| *percent <= 100)
        .ok_or(QuantityError::Percentage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts() {
        let unknown = |unit: &str| Err(QuantityError::UnknownUnit { unit: unit.into() });
        for (text, expected) in [
            ("0", Ok(0)),
            ("50", Ok(50)),
            ("200k", Ok(200_000)),
            ("50Mi", Ok(52_428_800)),
            ("1.5M", Ok(1_500_000)),
            ("0.5Ki", Ok(512)),
            ("1.50", Err(QuantityError::NotWhole)),
            ("2.0", Ok(2)),
            ("18446744073709551615", Ok(u64::MAX)),
            ("18446744073709551616", Err(QuantityError::Overflow)),
            ("16384Pi", Err(QuantityError::Overflow)),
            ("0.0001k", Err(QuantityError::NotWhole)),
            ("0.000000000000000000000001k", Err(QuantityError::NotWhole)),
            ("", Err(QuantityError::NoNumber)),
            ("k", Err(QuantityError::NoNumber)),
            ("1.k", Err(QuantityError::NoNumber)),
            (".5k", Err(QuantityError::NoNumber)),
            ("1.2.3", Err(QuantityError::NoNumber)),
            ("-1", unknown("-1")),
            ("+1", unknown("+1")),
            ("1K", unknown("K")),
            ("1kb", unknown("kb")),
            ("1 k", unknown(" k")),
            ("1e3", unknown("e3")),
            ("१", unknown("१")),
        ] {
            assert_eq!(count(text), expected, "{text}");
        }
    }

    #[test]
    fn durations_and_percentages() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2s"), Ok(Duration::from_secs(2)));
        assert!(duration("2").is_err() && duration("-2s").is_err() && duration("").is_err());
        assert!(duration("99999999999999999999y").is_err());
        assert_eq!(percentage("85%"), Ok(85));
        assert_eq!(percentage("0%"), Ok(0));
        for text in ["101%", "85", "%", "-1%", "+1%", "8.5%", "85 %"] {
            assert_eq!(percentage(text), Err(QuantityError::Percentage), "{text}");
        }
    }
}
