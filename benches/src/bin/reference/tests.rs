use clap::Parser as _;
use serde_json::Value;
use tokio::net::TcpListener;

use super::*;

async fn server(store: Option<std::path::PathBuf>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move { serve::serve(listener, store).await.expect("it serves") });
    address
}

async fn call(server: &str, arguments: &str) -> Value {
    let arguments = ["reference"].into_iter().chain(arguments.split_whitespace());
    let arguments = Arguments::try_parse_from(arguments.chain(["--server", server])).expect("arguments");
    match arguments.command {
        Command::Call(call) => call.run().await.expect("it is answered"),
        Command::Read(read) => read.run().await.expect("it is answered"),
        _ => panic!("not a client"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_is_answered_once_bare_and_stored() {
    let directory = tempfile::tempdir().expect("a directory");
    for store in [None, Some(directory.path().to_path_buf())] {
        let server = server(store).await;
        for (arguments, records, bytes) in [
            ("call -n 50 --kind unary --in-flight 4 --connections 2 --records 1 --size 100", 50, 5000),
            ("call -n 50 --kind unary --in-flight 4 --records 10 --size 100", 500, 50_000),
            ("call -n 50 --kind bidi --in-flight 8 --streams 3 --records 1 --size 10", 50, 500),
            ("call -n 50 --kind bidi --in-flight 2 --connections 3 --size 70000", 50, 3_500_000),
            ("call -n 20 --kind bidi", 20, 20 << 10),
        ] {
            let phase = call(&server, arguments).await;
            assert_eq!((&phase["records"], &phase["bytes"]), (&records.into(), &bytes.into()), "{arguments}");
            assert_eq!(phase["latency"]["count"], phase["requests"]);
        }
    }
    // Each request was written with its frame: 64 bytes for every piece.
    let written = std::fs::metadata(directory.path().join("0")).expect("a file").len();
    let (pieces, bytes) = (50 + 500 + 50 + 50 + 20, 5000 + 50_000 + 500 + 3_500_000 + (20 << 10));
    assert_eq!(written, pieces * 64 + bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_as_long_as_asked_for_and_a_run_as_long_as_its_time() {
    let server = server(None).await;
    let phase = call(&server, "read --bytes 3000000 --piece-bytes 1000000").await;
    assert_eq!((&phase["requests"], &phase["bytes"]), (&3.into(), &3_000_000.into()));
    let phase = call(&server, "call --for 100ms --warm-up 20ms --in-flight 2").await;
    assert_eq!(phase["elapsed_s"], 0.1);
    assert!(phase["requests"].as_u64() > Some(0));
}
