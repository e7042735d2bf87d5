//! Key and time out of a line of text: by the number of a field or by a regular expression.

use jiff::Zoned;
use regex::bytes::Regex;
use rimstone_types::Timestamp;

use crate::times::TimeFormat;

/// How to find a part of a line.
#[derive(Debug, Clone)]
pub(crate) enum Finder {
    /// The n-th field, from 1.
    Field {
        /// Which, from 1.
        number: usize,
        /// Between fields; `None`: white space, any amount of it.
        separator: Option<Vec<u8>>,
    },
    /// The first capture group that matched; without groups, all that matched.
    Regex(Regex),
}

impl Finder {
    /// From the flags of a command line: at most one of `field` and `regex`.
    ///
    /// # Errors
    /// A field number of 0, or an expression that is none.
    pub(crate) fn new(
        flag: &str,
        field: Option<usize>,
        separator: Option<&str>,
        regex: Option<&str>,
    ) -> Result<Option<Self>, String> {
        match (field, regex) {
            (Some(0), _) => Err(format!("--{flag}-field is 0; fields are counted from 1")),
            (Some(number), _) => {
                let separator = separator.map(unescape).transpose()?;
                Ok(Some(Self::Field { number, separator }))
            }
            (None, Some(text)) => {
                let regex = Regex::new(text).map_err(|error| {
                    let last = error.to_string().lines().last().unwrap_or_default().trim().to_owned();
                    format!("--{flag}-regex {text:?} is not a regular expression: {last}")
                })?;
                Ok(Some(Self::Regex(regex)))
            }
            (None, None) => Ok(None),
        }
    }

    /// The part of the line, if it is there.
    pub(crate) fn find<'a>(&self, line: &'a [u8]) -> Option<&'a [u8]> {
        match self {
            Self::Field { number, separator: None } => {
                line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty()).nth(number - 1)
            }
            Self::Field { number, separator: Some(separator) } => nth_between(line, separator, number - 1),
            Self::Regex(regex) => {
                let captures = regex.captures(line)?;
                let group = captures.iter().skip(1).flatten().next();
                if captures.len() > 1 {
                    group.map(|part| part.as_bytes())
                } else {
                    Some(captures.get_match().as_bytes())
                }
            }
        }
    }
}

fn nth_between<'a>(line: &'a [u8], separator: &[u8], skip: usize) -> Option<&'a [u8]> {
    let end_of = |rest: &[u8]| rest.windows(separator.len()).position(|part| part == separator);
    let mut rest = line;
    for _ in 0..skip {
        let end = end_of(rest)?;
        rest = &rest[end + separator.len()..];
    }
    Some(&rest[..end_of(rest).unwrap_or(rest.len())])
}

/// `\t`, `\n`, `\\` and `\0` as in a shell's `$'..'`.
fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        let char = if char == '\\' {
            match chars.next() {
                Some('t') => '\t',
                Some('n') => '\n',
                Some('0') => '\0',
                Some('\\') => '\\',
                other => {
                    let other = other.map(String::from).unwrap_or_default();
                    return Err(format!("\\{other} is not known; \\t, \\n, \\0 and \\\\ are"));
                }
            }
        } else {
            char
        };
        bytes.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
    }
    if bytes.is_empty() {
        return Err("--field-separator is empty; leave it out for white space".to_owned());
    }
    Ok(bytes)
}

/// How to find the time of a line.
#[derive(Debug, Clone)]
pub(crate) struct TimeFinder {
    pub(crate) finder: Finder,
    pub(crate) format: TimeFormat,
    /// For times without an offset, and relative ones.
    pub(crate) now: Zoned,
}

impl TimeFinder {
    /// The time of the line.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub(crate) fn find(&self, line: &[u8]) -> Result<Timestamp, String> {
        let text = self.finder.find(line).ok_or("no time was found")?;
        let text = std::str::from_utf8(text).map_err(|_| "the time is not UTF-8")?;
        self.format.read(text, &self.now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made up, in the combined format of web servers.
    const LINES: [&str; 3] = [
        r#"192.0.2.7 - - [17/May/2015:10:05:03 +0000] "GET /a.png HTTP/1.1" 200 2030 "http://example.org/" "Agent/1.0 (X; Y)""#,
        r#"2001:db8::1 - alice [18/May/2015:00:00:59 +0200] "POST /b HTTP/1.1" 404 - "-" "-""#,
        r#"host.example  -  -  [19/Dec/2015:23:59:59 -0500] "-" 408 0 "-" "-""#,
    ];

    fn field(number: usize, separator: Option<&str>) -> Finder {
        Finder::new("key", Some(number), separator, None).unwrap().unwrap()
    }

    fn regex(text: &str) -> Finder {
        Finder::new("key", None, None, Some(text)).unwrap().unwrap()
    }

    fn found(finder: &Finder, line: &str) -> Option<String> {
        finder.find(line.as_bytes()).map(|part| String::from_utf8(part.to_vec()).unwrap())
    }

    #[test]
    fn the_client_address_is_the_first_field() {
        let addresses = ["192.0.2.7", "2001:db8::1", "host.example"];
        for (line, address) in LINES.iter().zip(addresses) {
            assert_eq!(found(&field(1, None), line).as_deref(), Some(address));
            assert_eq!(found(&regex(r"^(\S+)"), line).as_deref(), Some(address));
            assert_eq!(found(&regex(r"^\S+"), line).as_deref(), Some(address), "without a group: the match");
        }
    }

    #[test]
    fn the_time_of_a_combined_log() {
        let time = TimeFinder {
            finder: regex(r"\[([^\]]+)\]"),
            format: TimeFormat::new("%d/%b/%Y:%H:%M:%S %z").unwrap(),
            now: "2026-08-04T12:00:00Z[UTC]".parse().unwrap(),
        };
        let times: Vec<_> =
            LINES.iter().map(|line| time.find(line.as_bytes()).unwrap().as_millis()).collect();
        assert_eq!(times, [1_431_857_103_000, 1_431_900_059_000, 1_450_587_599_000]);
        assert_eq!(time.find(b"no brackets").unwrap_err(), "no time was found");
        assert!(time.find(b"[17/Foo/2015]").unwrap_err().contains("17/Foo/2015"));
        let raw = TimeFinder { finder: field(1, None), ..time };
        assert_eq!(raw.find(b"\xff").unwrap_err(), "the time is not UTF-8");
    }

    #[test]
    fn fields_between_separators_may_be_empty() {
        let line = "a,,c";
        assert_eq!(found(&field(1, Some(",")), line).as_deref(), Some("a"));
        assert_eq!(found(&field(2, Some(",")), line).as_deref(), Some(""));
        assert_eq!(found(&field(3, Some(",")), line).as_deref(), Some("c"));
        assert_eq!(found(&field(4, Some(",")), line), None);
        assert_eq!(found(&field(2, Some(r"\t")), "a\tb c\td").as_deref(), Some("b c"));
        assert_eq!(found(&field(2, Some("--")), "a--b-c--d").as_deref(), Some("b-c"));
        assert_eq!(found(&field(2, None), "  a \t b  "), Some("b".to_owned()));
        assert_eq!(found(&field(3, None), "a b"), None);
    }

    #[test]
    fn the_first_group_that_took_part_is_the_key() {
        let either = regex(r"id=(\d+)|user=(\w+)");
        assert_eq!(found(&either, "x user=bob").as_deref(), Some("bob"));
        assert_eq!(found(&either, "x id=7 user=bob").as_deref(), Some("7"));
        assert_eq!(found(&either, "x"), None);
        // A group that did not take part is not there, which is not the same as the whole match.
        assert_eq!(found(&regex(r"a(b)?"), "ac"), None);
    }

    #[test]
    fn nonsense_is_refused_with_what_is_allowed() {
        assert!(Finder::new("key", Some(0), None, None).unwrap_err().contains("from 1"));
        assert!(Finder::new("time", None, None, Some("(")).unwrap_err().starts_with("--time-regex \"(\""));
        assert!(Finder::new("key", Some(1), Some(""), None).is_err());
        assert!(Finder::new("key", Some(1), Some(r"\x"), None).unwrap_err().contains(r"\t"));
        assert!(Finder::new("key", None, None, None).unwrap().is_none());
    }
}
