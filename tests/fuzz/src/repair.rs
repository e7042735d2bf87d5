//! Makes the checks over mutated bytes right again, each of them most of the time. Written from `docs/format.md`.

use crate::Random;

/// How many checks are left as they are: one in so many.
const LEFT_WRONG: usize = 12;
const SEGMENT_HEADER: usize = 72;
const FRAME_HEADER: usize = 60;
const BATCH_HEADER: usize = 61;
const FRAME_MAGIC: u32 = 0x5249_4d46;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// CRC-32 of everything before `at`, at `at`.
fn check_before(random: &mut Random, bytes: &mut [u8], at: usize) {
    if at + 4 <= bytes.len() && !random.once_in(LEFT_WRONG) {
        let check = crc32fast::hash(&bytes[..at]);
        put(bytes, at, check);
    }
}

/// A record batch: its length and its CRC-32C.
pub fn batch(random: &mut Random, bytes: &mut [u8]) {
    if bytes.len() < BATCH_HEADER {
        return;
    }
    if !random.once_in(LEFT_WRONG) {
        let length = (bytes.len() - 12) as u32;
        put(bytes, 8, length);
    }
    if !random.once_in(LEFT_WRONG) {
        bytes[16] = 2;
    }
    if !random.once_in(LEFT_WRONG) {
        let check = crc32c::crc32c(&bytes[21..]);
        put(bytes, 17, check);
    }
}

/// A segment: its header, and frames for as long as their lengths lead from one to the next.
pub fn segment(random: &mut Random, bytes: &mut [u8]) {
    check_before(random, bytes, 68);
    if bytes.len() < SEGMENT_HEADER {
        return;
    }
    let (salt, mut previous, mut at) = (u32_at(bytes, 12), u32_at(bytes, 68), SEGMENT_HEADER);
    while at + FRAME_HEADER <= bytes.len() {
        let length = u32_at(bytes, at + 16) as usize;
        let Some(end) = (at + FRAME_HEADER).checked_add(length).filter(|end| *end <= bytes.len()) else {
            return;
        };
        if !random.once_in(LEFT_WRONG) {
            let frame = &mut bytes[at..end];
            put(frame, 0, FRAME_MAGIC ^ salt);
            frame[8..16].copy_from_slice(&(at as u64).to_be_bytes());
            put(frame, 20, previous);
            if u32_at(frame, 4) == 1 {
                batch(random, &mut frame[FRAME_HEADER..]);
            }
            let mut hasher = crc32fast::Hasher::new();
            hasher.update(&frame[..56]);
            hasher.update(&frame[FRAME_HEADER..FRAME_HEADER + length.min(BATCH_HEADER)]);
            let check = hasher.finalize();
            put(frame, 56, check);
        }
        previous = u32_at(bytes, at + 56);
        at = end;
    }
}

/// An index: its number of entries, its header, each entry.
pub fn index(random: &mut Random, bytes: &mut [u8]) {
    const HEADER: usize = 96;
    const ENTRY: usize = 32;
    if bytes.len() < HEADER {
        return;
    }
    if !random.once_in(3) {
        let entries = ((bytes.len() - HEADER) / ENTRY) as u32;
        put(bytes, 36, entries);
    }
    check_before(random, bytes, 92);
    let salt = u32_at(bytes, 12);
    for entry in bytes[HEADER..].chunks_exact_mut(ENTRY) {
        if random.once_in(LEFT_WRONG) {
            continue;
        }
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&salt.to_be_bytes());
        hasher.update(&entry[..12]);
        hasher.update(&entry[16..]);
        let check = hasher.finalize();
        put(entry, 12, check);
    }
}

/// A producer snapshot: the length of its body, its check.
pub fn snapshot(random: &mut Random, bytes: &mut [u8]) {
    if bytes.len() < 28 {
        return;
    }
    if !random.once_in(LEFT_WRONG) {
        let length = (bytes.len() - 28) as u32;
        put(bytes, 12, length);
    }
    let at = bytes.len() - 4;
    check_before(random, bytes, at);
}

/// A witness: its header, each slot.
pub fn witness(random: &mut Random, bytes: &mut [u8]) {
    const SECTOR: usize = 512;
    check_before(random, bytes, 508);
    for slot in bytes.chunks_exact_mut(64).skip(SECTOR / 64) {
        if slot.iter().any(|byte| *byte != 0) {
            check_before(random, slot, 60);
        }
    }
}

/// Checkpoints: the header, and records for as long as their lengths lead on.
pub fn checkpoints(random: &mut Random, bytes: &mut [u8]) {
    check_before(random, bytes, 12);
    let mut at = 16;
    while at + 104 <= bytes.len() {
        let length = u32_at(bytes, at) as usize;
        if length < 104 || length > bytes.len() - at {
            return;
        }
        check_before(random, &mut bytes[at..at + length], length - 4);
        at += length;
    }
}

/// Any file of a data directory, by its name.
pub fn file(random: &mut Random, name: &str, bytes: &mut [u8]) {
    match name.rsplit(['.', '/']).next().unwrap_or_default() {
        "log" => segment(random, bytes),
        "idx" => index(random, bytes),
        "producers" => snapshot(random, bytes),
        "witness" => witness(random, bytes),
        "checkpoints" => checkpoints(random, bytes),
        "log-start" => check_before(random, bytes, 16),
        "meta" => check_before(random, bytes, 36),
        "clean" => check_before(random, bytes, 24),
        _ => {}
    }
}
