//! What a test says when the machine cannot run it. Under `CI=true` nothing may be skipped.

/// Says that the running test is skipped, and why.
///
/// # Panics
/// Under `CI=true`: what CI does not run, nobody runs.
pub fn skip(test: &str, why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test} would be skipped under CI=true: {why}");
    // Past the capture of the test runner, which hides what a passing test prints.
    use std::io::Write as _;
    drop(writeln!(std::io::stderr(), "SKIPPED {test}: {why}"));
}

/// Why this process may not mount file systems; `None` if it may.
pub fn why_no_mounts() -> Option<&'static str> {
    if !cfg!(target_os = "linux") {
        return Some("file systems of a test's own need Linux");
    }
    (!rustix::process::geteuid().is_root()).then_some("mounting needs root")
}
