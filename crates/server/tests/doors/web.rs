//! The web pages.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::support::{server, soon};

/// Status, head and body of a page.
pub(crate) async fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String, String)> {
    soon(async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
        Ok((status, head.to_lowercase(), body.to_owned()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_are_there() {
    let server = server().await;
    server.topic("t", 2).await;
    server.fill("t", &["a"]).await;
    let address = server.started.web_address();
    assert_eq!(get(address, "/livez").await.unwrap().0, 200);
    assert_eq!(get(address, "/readyz").await.unwrap().0, 200);
    let (status, _, index) = get(address, "/").await.unwrap();
    assert_eq!(status, 200);
    for page in ["/metrics", "/livez", "/readyz"] {
        assert!(index.contains(page), "{index}");
    }
    assert_eq!(get(address, "/nothing").await.unwrap().0, 404);

    let (status, head, metrics) = get(address, "/metrics").await.unwrap();
    assert_eq!(status, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4\r\n"), "{head}");
    assert!(metrics.lines().any(|line| line.starts_with("# TYPE rimstone_")), "{metrics}");
}
