//! A set of indices, such as the tenants that a rule is about.
//!
//! A bit for each index: 5,000 rules that each choose all of 10,000 tenants take 6 MB rather than 400 MB, and what two
//! sets have in common is found 64 indices at a time.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

/// Indices that fit one word.
const WORD_BITS: usize = u64::BITS as usize;
/// Hexadecimal digits of one word.
const WORD_DIGITS: usize = WORD_BITS / 4;
const HEXADECIMAL: &[u8; 16] = b"0123456789abcdef";

/// A set of indices. Copies share their memory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selection {
    /// Index `i` is bit `i % 64` of word `i / 64`. The last word is not zero, so that equal sets have equal words.
    words: Arc<[u64]>,
}

// === impl Selection ===

impl Selection {
    /// Everything below a count.
    #[must_use]
    pub fn all(count: usize) -> Self {
        (0..count).collect()
    }

    /// Whether an index is in it.
    #[must_use]
    pub fn contains(&self, index: usize) -> bool {
        self.word(index / WORD_BITS) >> (index % WORD_BITS) & 1 == 1
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// How many indices are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The lowest index.
    #[must_use]
    pub fn first(&self) -> Option<usize> {
        self.iter().next()
    }

    /// The indices, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.words
            .iter()
            .enumerate()
            .flat_map(|(number, word)| ones(*word).map(move |bit| number * WORD_BITS + bit))
    }

    /// Indices `64 * number` to `64 * number + 63`, the lowest in the lowest bit.
    #[must_use]
    pub fn word(&self, number: usize) -> u64 {
        self.words.get(number).copied().unwrap_or(0)
    }

    /// All words up to the last one that is not zero.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.combine(other, |word, other| word & other)
    }

    /// What is in this one and not in the other.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        self.combine(other, |word, other| word & !other)
    }

    /// Whether something is in both.
    #[must_use]
    pub fn intersects(&self, other: &Self) -> bool {
        self.words
            .iter()
            .zip(&*other.words)
            .any(|(word, other)| word & other != 0)
    }

    fn combine(&self, other: &Self, combine: impl Fn(u64, u64) -> u64) -> Self {
        let words = self.words.iter().enumerate();
        Self::from_words(
            words
                .map(|(number, word)| combine(*word, other.word(number)))
                .collect(),
        )
    }

    /// The set whose words these are.
    pub(super) fn from_words(mut words: Vec<u64>) -> Self {
        let used = words
            .iter()
            .rposition(|word| *word != 0)
            .map_or(0, |last| last + 1);
        words.truncate(used);
        Self { words: words.into() }
    }
}

impl Default for Selection {
    fn default() -> Self {
        Self::from_words(Vec::new())
    }
}

impl FromIterator<usize> for Selection {
    fn from_iter<I: IntoIterator<Item = usize>>(indices: I) -> Self {
        let mut words = Vec::new();
        for index in indices {
            let number = index / WORD_BITS;
            if words.len() <= number {
                words.resize(number + 1, 0);
            }
            words[number] |= 1 << (index % WORD_BITS);
        }
        Self::from_words(words)
    }
}

impl fmt::Debug for Selection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.iter()).finish()
    }
}

/// The words in hexadecimal, lowest first, 16 digits each: a function of what is chosen, and no longer than a quarter of
/// a byte for each index that there is.
impl Serialize for Selection {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let nibbles = |word: &u64| {
            let word = *word;
            (0..WORD_DIGITS)
                .rev()
                .map(move |digit| (word >> (4 * digit)) as usize & 15)
        };
        let digits = self.words.iter().flat_map(nibbles);
        let digits: Vec<u8> = digits.map(|nibble| HEXADECIMAL[nibble]).collect();
        let text = str::from_utf8(&digits).map_err(ser::Error::custom)?;
        serializer.serialize_str(text)
    }
}

impl<'de> Deserialize<'de> for Selection {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let malformed = || de::Error::custom("a selection is a multiple of 16 hexadecimal digits");
        if !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(malformed());
        }
        let words: Result<Vec<u64>, D::Error> = text
            .as_bytes()
            .chunks(WORD_DIGITS)
            .map(|digits| {
                let digits = std::str::from_utf8(digits).map_err(|_| malformed())?;
                (digits.len() == WORD_DIGITS)
                    .then(|| u64::from_str_radix(digits, 16).ok())
                    .flatten()
                    .ok_or_else(malformed)
            })
            .collect();
        words.map(Self::from_words)
    }
}

/// The bits of a word that are one, ascending.
pub fn ones(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros() as usize);
        // Clears the lowest one.
        word &= word.wrapping_sub(1);
        bit
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_text_form_is_pinned() {
        let form = |indices: &[usize]| {
            serde_json::to_string(&indices.iter().copied().collect::<Selection>()).unwrap()
        };
        assert_eq!(form(&[]), r#""""#);
        assert_eq!(form(&[0, 4]), r#""0000000000000011""#);
        assert_eq!(form(&[63]), r#""8000000000000000""#);
        assert_eq!(form(&[64]), r#""00000000000000000000000000000001""#);
    }

    #[test]
    fn what_is_no_selection_is_not_read_as_one() {
        for text in [
            r#""1""#,
            r#""000000000000001g""#,
            r#""+000000000000001""#,
            "[0]",
            r#""é0000000000000""#,
        ] {
            assert!(serde_json::from_str::<Selection>(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn it_is_the_set_that_it_was_made_of(
            indices in proptest::collection::vec(0usize..300, 0..40),
            other in proptest::collection::vec(0usize..300, 0..3),
        ) {
            let set: BTreeSet<usize> = indices.iter().copied().collect();
            let selection: Selection = indices.into_iter().collect();
            prop_assert!((0..400).all(|index| selection.contains(index) == set.contains(&index)));
            prop_assert!(selection.iter().eq(set.iter().copied()));
            prop_assert_eq!(selection.len(), set.len());
            prop_assert_eq!(selection.is_empty(), set.is_empty());
            prop_assert_eq!(selection.first(), set.first().copied());
            let other_set: BTreeSet<usize> = other.iter().copied().collect();
            let other: Selection = other.into_iter().collect();
            prop_assert_eq!(selection == other, set == other_set);
            prop_assert!(selection.intersection(&other).iter().eq(set.intersection(&other_set).copied()));
            prop_assert!(selection.difference(&other).iter().eq(set.difference(&other_set).copied()));
            prop_assert_eq!(selection.intersects(&other), !set.is_disjoint(&other_set));
            let text = serde_json::to_string(&selection).unwrap();
            prop_assert_eq!(serde_json::from_str::<Selection>(&text).unwrap(), selection);
        }

        #[test]
        fn all_is_everything_below_the_count(count in 0usize..300) {
            prop_assert!(Selection::all(count).iter().eq(0..count));
        }
    }
}
