//! Beside what released versions wrote and what the other reader says of it.

use std::fs;

use rimstone_tests::workspace_root;

use super::{partitions, read};

#[test]
fn golden_directories_are_read_and_their_damage_is_told() {
    let mut seen = 0;
    for version in fs::read_dir(workspace_root().join("tests/golden")).expect("they are there") {
        let version = version.expect("they can be listed").path();
        if !version.is_dir() {
            continue;
        }
        for case in fs::read_dir(version).expect("a version has cases") {
            let case = case.expect("they can be listed").path();
            if !case.is_dir() {
                continue;
            }
            let name = case.file_name().expect("a case has a name").to_string_lossy().into_owned();
            let data = case.join("data");
            let expected = fs::read_to_string(case.join("expected.txt")).expect("what a case holds is said");
            let offsets: Vec<u64> = expected
                .lines()
                .map(|line| line.split(' ').next().expect("a line has words").parse().expect("an offset"))
                .collect();
            for (topic, partition, _) in partitions(&data).expect("a data directory has partitions") {
                let compacted = name == "passed-by" || case.to_string_lossy().contains("compact");
                let log = read(&data, &topic, partition, compacted).expect("released files are readable");
                let found: Vec<_> = log.records.iter().map(|record| record.offset).collect();
                assert_eq!(found, offsets, "{}", case.display());
                // Nobody here sent these.
                assert!(log.records.iter().all(|record| record.value.is_none()));
                let rotten = ["rotten", "passed-by"].contains(&name.as_str());
                assert_eq!(log.damaged.is_empty(), !rotten, "{}: {:?}", case.display(), log.damaged);
                assert_eq!(log.torn.is_empty(), name != "torn", "{}: {:?}", case.display(), log.torn);
                seen += 1;
            }
        }
    }
    assert!(seen >= 11, "only {seen} golden directories");
}
