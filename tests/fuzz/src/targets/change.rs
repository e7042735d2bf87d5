//! Every file of the golden directories cut to each shorter length (a large one near its ends), zeroed, taken away, exchanged with each other one:
//! seeds from 0 up to [`total`] are all of these, in an order that begins everywhere. Each is opened twice, with an append in
//! between.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    directory::{CASES, Case, place, places, temporary, write},
    recovery,
};
use crate::Random;

/// Records of a segment of the golden directories at most.
const SEGMENT_RECORDS: usize = 12;
/// No divisor of any number of changes there may be: a step that comes everywhere.
const STRIDE: u64 = 1_000_003;

/// How many changes there are.
pub fn total() -> u64 {
    let of_case = |case: &Case| case.files.keys().map(|name| changes(case, name)).sum::<u64>();
    CASES.iter().map(of_case).sum()
}

/// Of one file: each shorter length, zeros, nothing, each other file in its place.
fn changes(case: &Case, name: &str) -> u64 {
    places(&case.files[name]) + 2 + case.files.len() as u64 - 1
}

/// One change: detected or harmless, and what it costs at most is the segments that it changes.
pub fn run(random: &mut Random) -> bool {
    let mut number = random.seed().wrapping_mul(STRIDE) % total();
    for case in CASES.iter() {
        for name in case.files.keys() {
            if number < changes(case, name) {
                return one(random, case, name, number as usize);
            }
            number -= changes(case, name);
        }
    }
    unreachable!("a change below the total is of some file")
}

fn one(random: &mut Random, case: &Case, name: &str, number: usize) -> bool {
    let mut files = case.files.clone();
    let length = places(&files[name]) as usize;
    let mut changed = vec![name];
    let what = if number < length {
        let content = files.get_mut(name).expect("it is there");
        let to = place(content, number as u64);
        content.truncate(to);
        format!("cut to {to}")
    } else if number == length {
        files.get_mut(name).expect("it is there").fill(0);
        "zeroed".to_owned()
    } else if number == length + 1 {
        files.remove(name);
        "gone".to_owned()
    } else {
        let mut others = case.files.keys().filter(|other| *other != name);
        let other = others.nth(number - length - 2).expect("there are so many");
        files.insert(name.to_owned(), case.files[other].clone());
        files.insert(other.clone(), case.files[name].clone());
        changed.push(other);
        format!("exchanged with {other}")
    };
    let what = format!("{}: {name} {what}", case.name);
    let home = temporary();
    let path = home.path().join("data");
    write(&files, &path);
    let mut written: BTreeMap<u64, String> = case.expected.clone();
    let Some(served) = recovery::open(random, &path, &mut written, false, 0) else {
        assert!(changed.contains(&"rimstone.meta"), "{what}: not opened");
        return false;
    };
    let lost: BTreeSet<_> = case.stays.difference(&served).collect();
    let segments = changed.iter().filter(|name| name.ends_with(".log")).count();
    assert!(lost.len() <= segments * SEGMENT_RECORDS, "{what}: {lost:?} are lost");
    let again = recovery::open(random, &path, &mut written, false, 1);
    let again = again.unwrap_or_else(|| panic!("{what}: not opened again"));
    let lost: Vec<_> = served.difference(&again).collect();
    assert!(lost.is_empty(), "{what}: {lost:?} were served, and are not by the next start");
    true
}
