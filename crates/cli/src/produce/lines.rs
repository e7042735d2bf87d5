//! Lines of a file or of standard input, read on a thread of their own and handed over with a bound.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read as _},
    path::Path,
    thread,
};

use tokio::sync::mpsc;

use crate::exit::{Exit, Failure};

/// Handfuls of lines between the reading thread and the producer.
const HANDFULS_QUEUED: usize = 8;
/// Lines in a handful: enough that handing over costs nothing beside reading.
const HANDFUL_LINES: usize = 256;
/// And bytes, so that long lines do not add up.
const HANDFUL_BYTES: usize = 1 << 20;
/// No line is gathered beyond this; records are far smaller.
const LINE_BYTES_MAX: usize = 64 << 20;

/// A line without its end, and its number from 1.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) number: u64,
    pub(crate) text: Vec<u8>,
}

/// Lines as they come.
#[derive(Debug)]
pub(crate) struct Lines {
    /// Bytes in all, where that is known.
    pub(crate) length: Option<u64>,
    pub(crate) handfuls: mpsc::Receiver<Result<Vec<Line>, Failure>>,
}

impl Lines {
    /// Opens a file; `-` or none is standard input.
    ///
    /// # Errors
    /// The file is not there or cannot be opened.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self, Failure> {
        let path = path.filter(|path| *path != Path::new("-"));
        let Some(path) = path else {
            return Ok(Self { length: None, handfuls: begin(BufReader::new(io::stdin()), "standard input") });
        };
        let name = path.display().to_string();
        let cannot = |error: io::Error| {
            let exit = if error.kind() == io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Failed };
            Failure::new(exit, format!("cannot read {name}: {error}"))
        };
        let file = File::open(path).map_err(cannot)?;
        let facts = file.metadata().map_err(cannot)?;
        let length = facts.is_file().then_some(facts.len());
        Ok(Self { length, handfuls: begin(BufReader::with_capacity(256 << 10, file), &name) })
    }
}

fn begin(
    mut input: impl BufReadAhead + Send + 'static,
    name: &str,
) -> mpsc::Receiver<Result<Vec<Line>, Failure>> {
    let (sender, receiver) = mpsc::channel(HANDFULS_QUEUED);
    let name = name.to_owned();
    thread::spawn(move || {
        let mut number = 0;
        loop {
            let (handful, ended) = handful(&mut input, &mut number, &name);
            if !handful.is_empty() && sender.blocking_send(Ok(handful)).is_err() {
                return;
            }
            match ended {
                None => {}
                Some(Ok(())) => return,
                Some(Err(failure)) => {
                    // Whoever reads has gone.
                    let _ = sender.blocking_send(Err(failure));
                    return;
                }
            }
        }
    });
    receiver
}

/// A reader that knows whether a read would wait.
trait BufReadAhead: BufRead {
    fn has_more_at_hand(&self) -> bool;
}

impl<R: io::Read> BufReadAhead for BufReader<R> {
    fn has_more_at_hand(&self) -> bool {
        !self.buffer().is_empty()
    }
}

/// Some lines: as many as are at hand, within bounds; and whether that was the end.
fn handful(
    input: &mut impl BufReadAhead,
    number: &mut u64,
    name: &str,
) -> (Vec<Line>, Option<Result<(), Failure>>) {
    let mut lines = Vec::new();
    let mut bytes = 0;
    loop {
        let mut text = Vec::new();
        match input.by_ref().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut text) {
            Ok(0) => return (lines, Some(Ok(()))),
            Ok(_) => {}
            Err(error) => {
                let failure = Failure::failed(format!("cannot read {name} after line {number}: {error}"));
                return (lines, Some(Err(failure)));
            }
        }
        *number += 1;
        if text.last() == Some(&b'\n') {
            text.pop();
        }
        if text.len() > LINE_BYTES_MAX {
            let failure =
                Failure::failed(format!("line {number} of {name} has more than {LINE_BYTES_MAX} bytes"));
            return (lines, Some(Err(failure)));
        }
        bytes += text.len();
        lines.push(Line { number: *number, text });
        if lines.len() >= HANDFUL_LINES || bytes >= HANDFUL_BYTES || !input.has_more_at_hand() {
            return (lines, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &'static [u8]) -> Vec<(u64, Vec<u8>)> {
        let mut input = BufReader::with_capacity(7, text);
        let mut number = 0;
        let mut lines = Vec::new();
        loop {
            let (handful, ended) = handful(&mut input, &mut number, "test");
            lines.extend(handful.into_iter().map(|line| (line.number, line.text)));
            match ended {
                None => {}
                Some(ended) => {
                    ended.unwrap();
                    return lines;
                }
            }
        }
    }

    #[test]
    fn every_line_once_without_its_end() {
        let lines = all(b"one\n\n three \r\nlast without an end");
        let expected: [(u64, &[u8]); 4] =
            [(1, b"one"), (2, b""), (3, b" three \r"), (4, b"last without an end")];
        assert_eq!(lines, expected.map(|(number, text)| (number, text.to_vec())));
        assert!(all(b"").is_empty());
        assert_eq!(all(b"\n"), [(1, Vec::new())]);
    }

    #[test]
    fn what_is_at_hand_comes_together() {
        let mut input = BufReader::new(&b"a\nb\nc\n"[..]);
        let (lines, ended) = handful(&mut input, &mut 0, "test");
        assert_eq!(lines.len(), 3);
        assert!(ended.is_none());
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let failure = Lines::open(Some(Path::new("/nowhere/at/all"))).unwrap_err();
        assert_eq!(failure.exit, Exit::NotFound);
        assert!(failure.message.contains("/nowhere/at/all"), "{failure}");
    }
}
