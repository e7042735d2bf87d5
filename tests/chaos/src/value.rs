//! What a record holds, made from its number alone: whoever reads it can tell every wrong byte.
//!
//! Not here: which numbers were sent.

use bytes::Bytes;

/// The header that carries a record's number, in 16 hexadecimal digits.
pub const NUMBER_HEADER: &str = "n";

/// Keys of a compacted topic: few, so that they come again soon.
const COMPACTED_KEYS: u64 = 40;
/// Keys of the other topics.
const KEYS: u64 = 500;
/// One record in so many is a tombstone in a compacted topic.
const TOMBSTONES: u64 = 12;
/// One record in so many is larger than a page.
const LARGE: u64 = 60;
/// The longest padding of the others.
const PADDING: u64 = 160;

/// A record's key, value and header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Always there: compacted topics ask for it.
    pub key: Bytes,
    /// Absent: a tombstone.
    pub value: Option<Bytes>,
    /// The value of [`NUMBER_HEADER`].
    pub number: Bytes,
}

/// Spreads a number over 64 bits (the finaliser of SplitMix64).
pub const fn mix(number: u64) -> u64 {
    let mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The key that a number has.
pub const fn key(number: u64, compacted: bool) -> u64 {
    mix(number) % if compacted { COMPACTED_KEYS } else { KEYS }
}

/// Whether a number stands for a tombstone.
pub const fn is_tombstone(number: u64, compacted: bool) -> bool {
    compacted && mix(number ^ 0x746f_6d62).is_multiple_of(TOMBSTONES)
}

/// The record of a number.
pub fn content(number: u64, compacted: bool) -> Content {
    let text = format!("{number:016x}");
    let value = (!is_tombstone(number, compacted)).then(|| {
        let spread = mix(number ^ 0x7061_6464);
        let padding = if spread.is_multiple_of(LARGE) { 4096 + spread % 2048 } else { spread % PADDING };
        let mut value = text.clone().into_bytes();
        let mut at = number;
        // Noise, which no compression makes small.
        while value.len() < 16 + padding as usize {
            at = mix(at);
            value.extend_from_slice(&at.to_be_bytes());
        }
        Bytes::from(value)
    });
    Content { key: Bytes::from(format!("k{}", key(number, compacted))), value, number: Bytes::from(text) }
}

/// The number of a record; `None` if a byte of it is not as it was sent.
pub fn recognise<'a>(
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    mut headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
    compacted: bool,
) -> Option<u64> {
    let (name, number) = headers.next()?;
    let text = std::str::from_utf8(number?).ok()?;
    let number = u64::from_str_radix(text, 16).ok()?;
    let sent = content(number, compacted);
    let same = name == NUMBER_HEADER.as_bytes()
        && headers.next().is_none()
        && sent.number == text.as_bytes()
        && key == Some(&sent.key[..])
        && value == sent.value.as_deref();
    same.then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_byte_is_seen() {
        for (number, compacted) in [(7, false), (8, true), (u64::MAX, false)] {
            let sent = content(number, compacted);
            let seen = |key: &[u8], value: Option<&[u8]>, text: &[u8]| {
                recognise(Some(key), value, [(NUMBER_HEADER.as_bytes(), Some(text))].into_iter(), compacted)
            };
            assert_eq!(seen(&sent.key, sent.value.as_deref(), &sent.number), Some(number));
            assert_eq!(seen(&sent.key, None, &sent.number), None);
            assert_eq!(seen(b"k", sent.value.as_deref(), &sent.number), None);
            let value = sent.value.expect("these are no tombstones");
            for at in 0..value.len() {
                let mut other = value.to_vec();
                other[at] ^= 1;
                assert_eq!(seen(&sent.key, Some(&other), &sent.number), None);
            }
            let mut other = sent.number.to_vec();
            other[15] ^= 1;
            assert_eq!(seen(&sent.key, Some(&value), &other), None);
        }
    }

    #[test]
    fn compacted_topics_get_tombstones_and_few_keys() {
        let tombstones = (0..1_000).filter(|number| is_tombstone(*number, true)).count();
        assert!((40..200).contains(&tombstones), "{tombstones}");
        assert!((0..1_000).all(|number| !is_tombstone(number, false) && key(number, true) < COMPACTED_KEYS));
    }
}
