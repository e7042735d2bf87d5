//! Variable-length integers: zigzag, seven bits a byte, the lowest first (Kafka's `ByteUtils`).

/// A varint that does not end within its type, or within the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VarintError {
    /// The bytes end before it does.
    Truncated,
    /// It has more bits than its type.
    TooLong,
}

/// Appends a 32-bit varint.
pub(crate) fn put_i32(out: &mut Vec<u8>, value: i32) {
    put_u64(out, u64::from(((value << 1) ^ (value >> 31)) as u32));
}

/// Appends a 64-bit varint.
pub(crate) fn put_i64(out: &mut Vec<u8>, value: i64) {
    put_u64(out, ((value << 1) ^ (value >> 63)) as u64);
}

fn put_u64(out: &mut Vec<u8>, mut rest: u64) {
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// How many bytes a 32-bit varint takes.
pub(crate) fn length_i32(value: i32) -> usize {
    length_u64(u64::from(((value << 1) ^ (value >> 31)) as u32))
}

/// How many bytes a 64-bit varint takes.
pub(crate) fn length_i64(value: i64) -> usize {
    length_u64(((value << 1) ^ (value >> 63)) as u64)
}

fn length_u64(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Reads a 32-bit varint from the front of `bytes` and moves it on.
pub(crate) fn take_i32(bytes: &mut &[u8]) -> Result<i32, VarintError> {
    let raw = take_u64(bytes, 32)? as u32;
    Ok((raw >> 1) as i32 ^ -((raw & 1) as i32))
}

/// Reads a 64-bit varint from the front of `bytes` and moves it on.
pub(crate) fn take_i64(bytes: &mut &[u8]) -> Result<i64, VarintError> {
    let raw = take_u64(bytes, 64)?;
    Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
}

fn take_u64(bytes: &mut &[u8], bits: u32) -> Result<u64, VarintError> {
    let mut value = 0u64;
    let mut shift = 0;
    for (index, &byte) in bytes.iter().enumerate() {
        let part = u64::from(byte & 0x7f);
        if shift >= bits || (bits - shift < 7 && part >> (bits - shift) != 0) {
            return Err(VarintError::TooLong);
        }
        value |= part << shift;
        if byte & 0x80 == 0 {
            *bytes = &bytes[index + 1..];
            return Ok(value);
        }
        shift += 7;
    }
    Err(VarintError::Truncated)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_encodings() {
        // From Kafka's ByteUtilsTest.
        for (value, expected) in [
            (0, &[0x00][..]),
            (-1, &[0x01]),
            (1, &[0x02]),
            (63, &[0x7e]),
            (-64, &[0x7f]),
            (64, &[0x80, 0x01]),
            (-8192, &[0xff, 0x7f]),
            (8192, &[0x80, 0x80, 0x01]),
            (i32::MAX, &[0xfe, 0xff, 0xff, 0xff, 0x0f]),
            (i32::MIN, &[0xff, 0xff, 0xff, 0xff, 0x0f]),
        ] {
            let mut out = Vec::new();
            put_i32(&mut out, value);
            assert_eq!(out, expected, "{value}");
        }
    }

    #[test]
    fn what_does_not_fit_or_end_is_refused() {
        let too_long = [0xff, 0xff, 0xff, 0xff, 0x10];
        assert_eq!(take_i32(&mut &too_long[..]), Err(VarintError::TooLong));
        assert_eq!(take_i32(&mut &[0x80; 6][..]), Err(VarintError::TooLong));
        assert_eq!(take_i64(&mut &[0xff; 11][..]), Err(VarintError::TooLong));
        assert_eq!(take_i32(&mut &[0x80, 0x80][..]), Err(VarintError::Truncated));
        assert_eq!(take_i64(&mut &[][..]), Err(VarintError::Truncated));
    }

    proptest! {
        #[test]
        fn round_trip(narrow: i32, wide: i64, tail: u8) {
            let mut out = Vec::new();
            put_i32(&mut out, narrow);
            prop_assert_eq!(out.len(), length_i32(narrow));
            put_i64(&mut out, wide);
            prop_assert_eq!(out.len(), length_i32(narrow) + length_i64(wide));
            out.push(tail);
            let mut bytes = &out[..];
            prop_assert_eq!(take_i32(&mut bytes), Ok(narrow));
            prop_assert_eq!(take_i64(&mut bytes), Ok(wide));
            prop_assert_eq!(bytes, &[tail][..]);
        }
    }
}
