//! The house has floors: arrows between crates go down only, and what belongs to one floor is named on no
//! other. Checked over `cargo metadata` and over the sources.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};
use regex::Regex;
use rimstone_tests::workspace_root;

/// Crate, and what it may name. Top to bottom; `types` may be named by everybody.
const ARROWS: &[(&str, &[&str])] = &[
    // `inspect` reads files through the log.
    ("rimstone", &["server", "client", "log", "record", "types"]),
    // It builds everything, so it names the store that it hands to the broker.
    ("server", &["grpc", "web", "broker", "store", "types"]),
    ("grpc", &["broker", "proto", "record", "types"]),
    ("web", &["broker", "types"]),
    ("client", &["proto", "record", "types"]),
    ("broker", &["state", "store", "record", "types"]),
    ("state", &["types"]),
    ("store", &["log", "record", "types"]),
    ("log", &["record", "types"]),
    ("record", &["types"]),
    ("proto", &[]),
    ("types", &[]),
];

/// Members that are no part of the house.
const OUTSIDE: &[&str] = &["tests", "benches", "chaos", "fuzz"];

/// Libraries of the doors, and the crates that may link them.
const DOOR_LIBRARIES: &[(&str, &[&str])] = &[
    ("tonic", &["proto", "grpc", "client", "server"]),
    ("tonic-types", &["grpc", "client"]),
    ("tonic-health", &["grpc"]),
    ("tonic-reflection", &["grpc"]),
    ("tonic-prost", &["grpc", "proto"]),
    ("prost", &["proto", "grpc", "client"]),
    ("prost-types", &["proto", "grpc"]),
    ("hyper", &[]),
    ("http", &[]),
    ("axum", &["web"]),
    ("toml", &["server"]),
    ("clap", &["rimstone"]),
];

/// Nothing below the store knows an executor.
const SYNC_CRATES: &[&str] = &["types", "record", "log"];

/// Calls of the standard library and of `rustix` that change what is on disk.
const CHANGES: &str = concat!(
    r"\bfs::(write|rename|hard_link|copy|set_permissions|remove_\w+|create_dir\w*)\(",
    r"|\bFile::(create\w*|options)\(|\bfs::OpenOptions\b|\bOpenOptions::new\(",
    r"|\.(set_len|set_times|sync_all|sync_data|write_all|write_at|write_all_at|write_vectored)\(",
    r"|\bwriteln?!\(|\bio::copy\(",
    r"|\brustix::io::p?write\w*\(",
    r"|\brustix::fs::(fsync|fdatasync|sync\w*|ftruncate|fallocate\w*|rename\w*|unlink\w*|link\w*|symlink\w*|mkdir\w*|copy_file_range|sendfile)\(",
);

/// Lines of code above which a file has grown out of its room, tests included.
const FILE_LINES_MAX: usize = 700;
/// Lines of code above which a file is reported.
const FILE_LINES_SMELL: usize = 500;

fn metadata() -> Metadata {
    MetadataCommand::new().current_dir(workspace_root()).no_deps().exec().unwrap()
}

fn short(package: &str) -> &str {
    package.strip_prefix("rimstone-").unwrap_or(package)
}

#[test]
fn arrows_go_down_only() {
    let arrows: BTreeMap<_, BTreeSet<_>> =
        ARROWS.iter().map(|(name, below)| (*name, below.iter().copied().collect())).collect();
    let floor = |name: &str| ARROWS.iter().position(|(known, _)| *known == name);
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for package in metadata().packages {
        let name = short(&package.name).to_owned();
        if OUTSIDE.contains(&name.as_str()) {
            continue;
        }
        let Some(allowed) = arrows.get(name.as_str()) else {
            wrong.push(format!("{name} has no floor"));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|dependency| dependency.path.is_some()) {
            let below = short(&dependency.name);
            // A test may use what lies further down, never what lies above.
            let fine = match dependency.kind {
                DependencyKind::Development => floor(below) > floor(&name),
                _ => allowed.contains(below),
            };
            if !fine {
                wrong.push(format!("{name} -> {below} ({:?})", dependency.kind));
            }
        }
        seen.insert(name);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let floors: BTreeSet<_> = ARROWS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(seen, floors, "the table of floors names crates that are not there");
}

/// What the server is compared with must not get better or worse with it. Criterion benches, which link rooms of
/// the server, do so as development dependencies.
#[test]
fn references_share_no_code_with_the_server() {
    let benches =
        metadata().packages.into_iter().find(|package| *package.name == "rimstone-benches").unwrap();
    let normal =
        benches.dependencies.iter().filter(|dependency| dependency.kind != DependencyKind::Development);
    let shared: Vec<_> = normal.filter(|dependency| dependency.path.is_some()).collect();
    assert!(shared.is_empty(), "{shared:#?}");
}

#[test]
fn protocols_stay_at_the_doors_and_executors_above_the_log() {
    let mut wrong = Vec::new();
    for package in metadata().packages {
        let name = short(&package.name).to_owned();
        if OUTSIDE.contains(&name.as_str()) {
            continue;
        }
        for dependency in package.dependencies.iter().filter(|dependency| dependency.path.is_none()) {
            if dependency.kind == DependencyKind::Normal {
                let door = DOOR_LIBRARIES.iter().find(|(library, _)| *library == dependency.name);
                if door.is_some_and(|(_, allowed)| !allowed.contains(&name.as_str())) {
                    wrong.push(format!("{name} links {}", dependency.name));
                }
            }
            if SYNC_CRATES.contains(&name.as_str())
                && (dependency.name.starts_with("tokio") || dependency.name == "futures")
            {
                wrong.push(format!("{name} links {}", dependency.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Recorders and planted bugs are in builds that ask for them by name, and in development builds of tests.
#[test]
fn what_is_for_tests_is_in_no_build_that_is_shipped() {
    let for_tests = |feature: &str| {
        let feature = feature.rsplit('/').next().unwrap_or_default();
        ["planted", "recording"].contains(&feature)
    };
    let mut there = BTreeSet::new();
    let mut wrong = Vec::new();
    for package in metadata().packages {
        for (name, activates) in &package.features {
            if for_tests(name) {
                there.insert(format!("{} {name}", package.name));
            } else if activates.iter().any(|feature| for_tests(feature)) {
                wrong.push(format!("{}: feature {name} = {activates:?}", package.name));
            }
        }
        let shipped = package.dependencies.iter().filter(|other| other.kind != DependencyKind::Development);
        for dependency in shipped.filter(|other| other.features.iter().any(|feature| for_tests(feature))) {
            wrong.push(format!("{} -> {} {:?}", package.name, dependency.name, dependency.features));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(there.contains("rimstone planted") && there.contains("rimstone-log planted"), "{there:?}");
}

/// A source file of a crate, comments and strings taken out, tests cut off.
struct Source {
    /// Short name of the crate.
    house: String,
    path: PathBuf,
    lines: Vec<String>,
}

fn sources() -> Vec<Source> {
    let root = workspace_root();
    let mut sources = Vec::new();
    for entry in std::fs::read_dir(root.join("crates")).unwrap() {
        let folder = entry.unwrap().path();
        let house = match folder.file_name().unwrap().to_str().unwrap() {
            "cli" => "rimstone".to_owned(),
            name => name.to_owned(),
        };
        for path in rust_files(&folder.join("src")) {
            let inside = path.strip_prefix(&folder).unwrap();
            if inside.iter().any(|part| part == "tests" || part == "tests.rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let text = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
            let lines = text.lines().map(code_of).collect();
            let path = path.strip_prefix(&root).unwrap().to_path_buf();
            sources.push(Source { house: house.clone(), path, lines });
        }
    }
    assert!(sources.len() > 50, "only {} sources found", sources.len());
    sources
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// A line without what is said in strings and comments. Rough: strings over several lines stay.
fn code_of(line: &str) -> String {
    let mut code = String::new();
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' => {
                while let Some(inside) = characters.next() {
                    match inside {
                        '\\' => drop(characters.next()),
                        '"' => break,
                        _ => {}
                    }
                }
            }
            '/' if characters.peek() == Some(&'/') => break,
            _ => code.push(character),
        }
    }
    code
}

/// Every line of code of these crates that matches.
fn found(pattern: &str, looked_at: impl Fn(&Source) -> bool) -> Vec<String> {
    let pattern = Regex::new(pattern).unwrap();
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| looked_at(source)) {
        for (number, line) in source.lines.iter().enumerate() {
            if pattern.is_match(line) {
                found.push(format!("{}:{}: {}", source.path.display(), number + 1, line.trim()));
            }
        }
    }
    found
}

#[test]
fn no_grpc_status_outside_its_door() {
    let allowed = ["grpc", "client", "proto"];
    let lines =
        found(r"\btonic\b.*\bStatus\b|\bStatus::(new|with_|unavailable|internal|not_found)", |source| {
            !allowed.contains(&source.house.as_str())
        });
    assert!(lines.is_empty(), "{lines:#?}");
    let lines = found(r"\b(tonic|prost)\b", |source| {
        !["grpc", "client", "proto", "server"].contains(&source.house.as_str())
    });
    assert!(lines.is_empty(), "{lines:#?}");
}

#[test]
fn the_environment_is_read_by_the_server_and_the_command_line_only() {
    let lines = found(r"\benv::", |source| !["server", "rimstone"].contains(&source.house.as_str()));
    assert!(lines.is_empty(), "{lines:#?}");
}

#[test]
fn unsafe_code_lives_in_one_file() {
    let lines = found(r"\bunsafe\b", |source| source.path != Path::new("crates/log/src/map.rs"));
    assert!(lines.is_empty(), "{lines:#?}");
    for source in sources() {
        let name = source.path.file_name().unwrap();
        if name == "lib.rs" || name == "main.rs" {
            let rule =
                if source.house == "log" { "#![deny(unsafe_code)]" } else { "#![forbid(unsafe_code)]" };
            let has = source.lines.iter().any(|line| line == rule);
            assert!(has, "{} must say {rule}", source.path.display());
        }
    }
}

/// What a crash leaves is tested by what goes through that room (`files::change`): nothing else of the two crates may
/// change the disk.
#[test]
fn log_and_store_change_the_disk_in_one_room() {
    let room = Path::new("crates/log/src/files/change.rs");
    // What records and draws images is there in tests only.
    let tests = ["crates/log/src/recording", "crates/store/src/sectors"];
    let lines = found(CHANGES, |source| {
        let tested = tests.iter().any(|room| source.path.with_extension("").starts_with(room));
        ["log", "store"].contains(&source.house.as_str()) && source.path != room && !tested
    });
    assert!(lines.is_empty(), "{lines:#?}");
    let inside = found(CHANGES, |source| source.path == room);
    assert!(inside.len() >= 10, "the pattern finds no more than {inside:#?}");
}

#[test]
fn time_is_passed_in_below_the_broker() {
    let below = ["types", "record", "log", "state", "store"];
    let lines = found(r"SystemTime::now|\bjiff\b|\brand::", |source| below.contains(&source.house.as_str()));
    assert!(lines.is_empty(), "{lines:#?}");
}

#[test]
fn files_fit_their_rooms() {
    let root = workspace_root();
    let mut large = Vec::new();
    for folder in ["crates", "tests", "benches"] {
        for path in rust_files(&root.join(folder)) {
            let text = std::fs::read_to_string(&path).unwrap();
            let lines = text.lines().filter(|line| !code_of(line).trim().is_empty()).count();
            if lines > FILE_LINES_SMELL {
                large.push((lines, path.strip_prefix(&root).unwrap().to_path_buf()));
            }
        }
    }
    large.sort();
    for (lines, path) in &large {
        println!("{lines} lines of code: {}", path.display());
    }
    large.retain(|(lines, _)| *lines > FILE_LINES_MAX);
    assert!(large.is_empty(), "{large:#?}");
}
