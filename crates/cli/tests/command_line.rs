//! The binary as a shell sees it, without a server: exit codes, standard output against standard error,
//! closed pipes. What needs a server is in `tests/`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::{
    io::Read as _,
    process::{Command, Output, Stdio},
};

use tokio::net::TcpSocket;

fn rimstone(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rimstone"));
    command.args(arguments).stdin(Stdio::null()).env_remove("RIMSTONE_SERVER").env("NO_COLOR", "1");
    command
}

fn run(arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = rimstone(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().expect("no signal"), text(stdout), text(stderr))
}

/// An address where nobody listens: as long as the socket is kept, its port is nobody else's either.
fn nobody() -> (TcpSocket, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    (socket, address)
}

#[test]
fn help_and_version_are_data() {
    let (code, out, err) = run(&["--help"]);
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.contains("Exit codes:") && out.contains("produce") && out.contains("--server"), "{out}");
    let (code, out, _) = run(&["--version"]);
    assert_eq!((code, out), (0, format!("rimstone {}\n", env!("CARGO_PKG_VERSION"))));
    let (code, out, _) = run(&["consume", "--help"]);
    assert!(code == 0 && out.contains("%p partition"), "{out}");
}

#[test]
fn a_wrong_command_line_ends_with_2_and_prints_no_data() {
    for arguments in [
        &["produce"][..],
        &["fly"],
        &["consume", "visits", "--from", "somewhen"],
        &["consume", "visits", "--format", "%x"],
        &["consume", "visits", "--follow", "--until", "end"],
        &["consume"],
        &["consume", "visits", "orders"],
        &["consume", "visits", "--group", "a b"],
        &["consume", "visits", "--group", "g", "--from", "earliest"],
        &["consume", "visits", "--group", "g", "--follow", "--until-caught-up"],
        &["consume", "visits", "--start", "earliest"],
        &["consume", "visits", "--group", "g", "--start", "somewhere"],
        &["group", "commit", "g", "visits"],
        &["group", "commit", "g", "visits", "--at", "1", "--none"],
        &["lag", "--fail-above", "much"],
        &["lag", "--watch=often"],
        &["replay", "plan", "g"],
        &["replay", "run", "g", "--to-earliest", "--to-latest"],
        &["replay", "run", "g", "--to-earliest", "--plan", "abc"],
        &["replay", "plan", "g", "--to-offset", "0=1,2"],
        &["replay", "plan", "g", "--to-offset", "0=1"],
        &["produce", "visits", "--rate", "fast"],
        &["produce", "visits", "--key-field", "1", "--key-regex", "x"],
        &["produce", "visits", "--field-separator", ","],
        &["topic", "create", "visits", "--set", "retention"],
        &["topic", "create", "visits", "--partitions", "0"],
        &["topic", "list", "--server", "https://127.0.0.1:1"],
        &["topic", "list", "--server", "nonsense"],
        &["serve", "--listen", "here"],
        &["serve", "--set", "no.such=1"],
        &["config", "check", "--set", "no.such=1"],
    ] {
        let (code, out, err) = run(arguments);
        assert_eq!((code, out.as_str()), (2, ""), "{arguments:?}: {err}");
        assert!(err.starts_with("error: "), "{arguments:?}: {err}");
    }
}

#[test]
fn what_is_not_there_ends_with_3() {
    let (code, _, err) = run(&["produce", "visits", "/nowhere/access.log"]);
    assert_eq!(code, 3, "{err}");
    assert!(err.contains("/nowhere/access.log"), "{err}");
    let (code, _, err) = run(&["config", "check", "--config", "/nowhere/rimstone.toml"]);
    assert_eq!(code, 3, "{err}");
    assert!(!err.contains("config check"), "it is what was typed: {err}");
}

#[test]
fn a_server_that_cannot_listen_says_why_once() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = format!("localhost:{}", held.local_addr().unwrap().port());
    let serve = ["serve", "--data", data.to_str().unwrap(), "--listen", &busy, "--web", "127.0.0.1:0"];
    let (code, _, err) = run(&serve);
    assert_eq!(code, 1, "{err}");
    assert_eq!(err.matches("Address already in use").count(), 1, "{err}");
}

#[test]
fn a_server_that_is_not_there_ends_with_4_and_says_how_to_start_one() {
    let (_socket, address) = nobody();
    for arguments in [
        &["topic", "list"][..],
        &["topic", "create", "visits"],
        &["produce", "visits"],
        &["consume", "visits"],
        &["offsets", "visits"],
        &["producers", "list"],
        &["consume", "visits", "--group", "g"],
        &["consume", "--topic-prefix", "v", "--group", "g"],
        &["group", "list"],
        &["group", "describe", "g"],
        &["group", "commit", "g", "visits", "--at", "earliest"],
        &["group", "delete", "g"],
        &["group", "clone", "g", "h"],
        &["lag"],
        &["lag", "g", "--watch", "--fail-above", "1000"],
        &["replay", "plan", "g", "--shift", "-100"],
        &["replay", "run", "g", "--to-time", "2h ago", "--execute"],
    ] {
        let output = rimstone(arguments).env("RIMSTONE_SERVER", &address).output().unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(4), "{arguments:?}: {err}");
        assert!(output.stdout.is_empty());
        assert!(err.starts_with("error: no answer from the server: Connection refused"), "{err}");
        assert!(err.contains("hint: start one with: rimstone serve"), "{err}");
    }
}

#[test]
fn settings_are_data_and_the_verdict_is_not() {
    let (code, out, err) = run(&["config", "check"]);
    assert_eq!((code, err.as_str()), (0, "the settings are fine\n"));
    assert!(out.contains("[storage]") && out.contains("data_directory"), "{out}");
    let (code, _, err) = run(&["config", "check", "--set", "server.grpc_adress=1"]);
    assert_eq!(code, 2);
    assert!(err.contains("server.grpc_address"), "the nearest name is told: {err}");
}

#[test]
fn every_shell_has_a_completion_script() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, out, err) = run(&["completions", shell]);
        assert_eq!((code, err.as_str()), (0, ""), "{shell}");
        assert!(out.contains("rimstone") && out.contains("consume"), "{shell}");
    }
}

#[test]
fn a_closed_pipe_ends_quietly() {
    for arguments in [&["completions", "zsh"][..], &["config", "check"], &["--help"]] {
        let mut child = rimstone(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert!(!err.contains("panicked") && !err.contains("error"), "{arguments:?}: {err}");
        assert_eq!(child.wait().unwrap().code(), Some(0), "{arguments:?}: {err}");
    }
}
