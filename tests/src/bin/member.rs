//! A member of a consumer group in a process of its own; see `rimstone_tests::group::member`.
#![forbid(unsafe_code)]

use anyhow::Context as _;
use rimstone_tests::group::member::{Options, run};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let options = std::env::args().nth(1).context("usage: rimstone-member JSON")?;
    let options: Options = serde_json::from_str(&options).context("the options are no JSON of options")?;
    run(options).await
}
