//! What `goals` and `compare` both take on the command line.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;

/// Enough that a row that falls short in all of them does so for a reason.
const PAIRS_DEFAULT: u32 = 5;

/// Which rows, how often, and where.
#[derive(Debug, Args)]
pub struct Options {
    /// Pairs of runs for each row [default: 5, or 1 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub pairs: Option<u32>,
    /// Only these: keys that --list shows, or how they begin, with commas between them
    #[arg(long, value_name = "KEY,...", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Shows the keys, and measures nothing
    #[arg(long)]
    pub list: bool,
    /// Tiny runs, to see that every row works. The figures mean nothing, and none falls short
    #[arg(long)]
    pub quick: bool,
    /// Writes the table to this file as well, as Markdown
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// The program under test
    #[arg(long, value_name = "FILE", default_value = "target/release/rimstone")]
    pub rimstone: PathBuf,
    /// Where data is written: on the disk under test
    #[arg(long, value_name = "DIRECTORY", default_value = "target")]
    pub directory: PathBuf,
}

impl Options {
    /// Pairs of runs for each row.
    pub fn pairs(&self) -> u32 {
        self.pairs.unwrap_or(if self.quick { 1 } else { PAIRS_DEFAULT })
    }
}

/// Those whose keys were asked for, in their order; all of them if none was.
///
/// # Errors
/// A key that is nobody's, with those that there are.
pub fn chosen<T>(only: &[String], all: Vec<T>, key: impl Fn(&T) -> String) -> anyhow::Result<Vec<T>> {
    for text in only {
        if text.is_empty() || !all.iter().any(|one| key(one).starts_with(text)) {
            let keys: Vec<_> = all.iter().map(key).collect();
            bail!("--only: nothing is called {text:?}; there are {}", keys.join(", "));
        }
    }
    let named = |one: &T| only.is_empty() || only.iter().any(|text| key(one).starts_with(text));
    Ok(all.into_iter().filter(named).collect())
}
