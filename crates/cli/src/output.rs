//! Tables and JSON on standard output.

use std::io::{self, Write};

use serde::Serialize;

/// Rows under a head, in columns as wide as they need to be; the last one is not padded.
///
/// # Errors
/// Those of standard output.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(lay_out(head, rows).as_bytes())?;
    out.flush()
}

fn lay_out<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let width_of = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0).max(head[column].chars().count())
    };
    let widths: Vec<usize> = (0..N).map(width_of).collect();
    let mut text = String::new();
    for row in std::iter::once(&head.map(str::to_owned)).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// One JSON document, indented.
///
/// # Errors
/// Those of standard output.
pub(crate) fn json(document: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, document)?;
    out.write_all(b"\n")?;
    out.flush()
}

/// A line.
///
/// # Errors
/// Those of standard output.
pub(crate) fn line(text: impl AsRef<str>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.as_ref())?;
    out.flush()
}

/// A number of things: `1 topic`, `2 topics`.
pub(crate) fn count(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// Something for whoever watches, on standard error.
pub(crate) fn note(text: impl AsRef<str>) {
    // Nobody is left to be told if this fails.
    let _ = writeln!(io::stderr(), "{}", text.as_ref());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_not_many() {
        assert_eq!([0, 1, 2].map(|number| count(number, "topic")), ["0 topics", "1 topic", "2 topics"]);
    }

    #[test]
    fn columns_are_as_wide_as_they_need_to_be() {
        let rows = [["a".to_owned(), "1".to_owned()], ["überlang".to_owned(), String::new()]];
        assert_eq!(lay_out(["NAME", "N"], &rows), "NAME      N\na         1\nüberlang\n");
    }
}
