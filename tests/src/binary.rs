//! Where the `rimstone` program is. It is built by the same cargo, for the same profile, into the same target
//! directory as the running test; `RIMSTONE_BINARY` names another one.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use crate::workspace_root;

static BINARY: OnceLock<PathBuf> = OnceLock::new();

/// The program under test, built the first time it is asked for.
///
/// # Panics
/// If it does not build.
pub fn rimstone() -> &'static Path {
    BINARY.get_or_init(|| match std::env::var_os("RIMSTONE_BINARY") {
        Some(path) => std::path::absolute(&path).expect("an absolute path can be made of any path"),
        None => build(),
    })
}

/// `target/debug/deps/all-0123` is where a test lies; the program goes beside `deps`, where other programs are.
fn build() -> PathBuf {
    let test = std::env::current_exe().expect("a running program has a path");
    let deps = test.ancestors().find(|folder| folder.ends_with("deps"));
    let output = deps.unwrap_or(&test).parent().expect("a program lies in the folder of a profile");
    let target = output.parent().expect("a profile lies in the target directory");
    let profile = match output.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--locked", "--package", "rimstone", "--bin", "rimstone", "--profile", profile])
        .arg("--target-dir")
        .arg(target)
        .current_dir(workspace_root())
        .stdin(Stdio::null())
        .output()
        .expect("cargo runs where a test runs");
    assert!(built.status.success(), "rimstone does not build:\n{}", String::from_utf8_lossy(&built.stderr));
    let binary = output.join("rimstone");
    assert!(binary.is_file(), "{} was not built", binary.display());
    binary
}
