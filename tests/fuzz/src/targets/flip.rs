//! Every bit of every file of the golden directories, one at a time: seeds from 0 up to [`total`] are all of them, in
//! an order that begins everywhere. Of a large file those where it begins and ends; what is between is padding.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    directory::{CASES, place, places, temporary, write},
    recovery,
};
use crate::Random;

/// Records of a segment of the golden directories at most, which a damaged header of it takes with it.
const SEGMENT_RECORDS: usize = 12;
/// Records of a batch.
const BATCH_RECORDS: usize = 2;
const SEGMENT_HEADER: usize = 72;
/// No divisor of any number of bits there may be: a step that comes everywhere.
const STRIDE: u64 = 1_000_003;

/// How many bits there are.
pub fn total() -> u64 {
    CASES.iter().flat_map(|case| case.files.values()).map(|content| 8 * places(content)).sum()
}

/// One flip: detected or harmless, and what it costs at most is the batch that it is in.
pub fn run(random: &mut Random) -> bool {
    let mut bit = random.seed().wrapping_mul(STRIDE) % total();
    for case in CASES.iter() {
        for (name, content) in &case.files {
            let bits = 8 * places(content);
            if bit >= bits {
                bit -= bits;
                continue;
            }
            let at = place(content, bit / 8);
            let mut files = case.files.clone();
            files.get_mut(name).expect("it is there")[at] ^= 1 << (bit % 8);
            let what = format!("{}: {name}, byte {at}, bit {}", case.name, bit % 8);
            let home = temporary();
            let path = home.path().join("data");
            write(&files, &path);
            let mut written: BTreeMap<u64, String> = case.expected.clone();
            let Some(served) = recovery::open(random, &path, &mut written, false, 0) else {
                assert_eq!(name, "rimstone.meta", "{what}: not opened");
                return false;
            };
            let lost: BTreeSet<_> = case.stays.difference(&served).collect();
            let most = match name.ends_with(".log") {
                true if at < SEGMENT_HEADER => SEGMENT_RECORDS,
                true => BATCH_RECORDS,
                false => 0,
            };
            assert!(lost.len() <= most, "{what}: {lost:?} are lost");
            return true;
        }
    }
    unreachable!("a bit below the total lies in some file")
}
