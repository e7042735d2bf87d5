//! How `consume` prints a record: a format with percent letters, or one JSON object a line.

use std::io::{self, Write};

use bytes::Bytes;
use rimstone_client::{Header, Received};
use serde::{Serialize, Serializer, ser::SerializeMap as _};

use crate::times::rfc3339;

/// What `--help` says of the letters.
pub(crate) const LETTERS: &str = "\
  %t topic        %p partition     %o offset
  %k key          %v or %s value   %H headers as name=value, between commas
  %T create time, Unix ms          %D the same as RFC 3339
  %A append time, Unix ms          %a the same as RFC 3339
  %K length of the key             %S length of the value (-1 where there is none)
  %n newline      %% percent       \\n \\t \\r \\0 \\\\ as usual";

/// A format with percent letters, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Format {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Vec<u8>),
    Topic,
    Partition,
    Offset,
    Key,
    Value,
    Headers,
    CreateMillis,
    CreateTime,
    AppendMillis,
    AppendTime,
    KeyLength,
    ValueLength,
}

impl Format {
    /// Takes a format apart.
    ///
    /// # Errors
    /// A letter or an escape that is not known, naming those that are.
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut literal = Vec::new();
        let mut chars = text.chars();
        while let Some(char) = chars.next() {
            let part = match char {
                '%' => letter(chars.next())?,
                '\\' => Part::Text(vec![escape(chars.next())?]),
                other => Part::Text(other.to_string().into_bytes()),
            };
            match part {
                Part::Text(text) => literal.extend(text),
                part => {
                    if !literal.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut literal)));
                    }
                    parts.push(part);
                }
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        Ok(Self { parts })
    }

    /// Prints a record.
    ///
    /// # Errors
    /// Those of the writer.
    pub(crate) fn print(&self, out: &mut impl Write, topic: &str, record: &Received) -> io::Result<()> {
        let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(-1, |bytes| bytes.len() as i64);
        for part in &self.parts {
            match part {
                Part::Text(text) => out.write_all(text)?,
                Part::Topic => out.write_all(topic.as_bytes())?,
                Part::Partition => write!(out, "{}", record.partition)?,
                Part::Offset => write!(out, "{}", record.offset)?,
                Part::Key => out.write_all(record.key.as_deref().unwrap_or_default())?,
                Part::Value => out.write_all(record.value.as_deref().unwrap_or_default())?,
                Part::Headers => headers(out, &record.headers)?,
                Part::CreateMillis => write!(out, "{}", record.create_time.as_millis())?,
                Part::CreateTime => out.write_all(rfc3339(record.create_time).as_bytes())?,
                Part::AppendMillis => write!(out, "{}", record.append_time.as_millis())?,
                Part::AppendTime => out.write_all(rfc3339(record.append_time).as_bytes())?,
                Part::KeyLength => write!(out, "{}", length(&record.key))?,
                Part::ValueLength => write!(out, "{}", length(&record.value))?,
            }
        }
        Ok(())
    }
}

fn letter(letter: Option<char>) -> Result<Part, String> {
    Ok(match letter {
        Some('t') => Part::Topic,
        Some('p') => Part::Partition,
        Some('o') => Part::Offset,
        Some('k') => Part::Key,
        Some('v' | 's') => Part::Value,
        Some('H') => Part::Headers,
        Some('T') => Part::CreateMillis,
        Some('D') => Part::CreateTime,
        Some('A') => Part::AppendMillis,
        Some('a') => Part::AppendTime,
        Some('K') => Part::KeyLength,
        Some('S') => Part::ValueLength,
        Some('n') => Part::Text(b"\n".to_vec()),
        Some('%') => Part::Text(b"%".to_vec()),
        other => {
            let other = other.map(String::from).unwrap_or_default();
            return Err(format!("%{other} is not known; %t %p %o %k %v %s %H %T %D %A %a %K %S %n %% are"));
        }
    })
}

fn escape(letter: Option<char>) -> Result<u8, String> {
    Ok(match letter {
        Some('n') => b'\n',
        Some('t') => b'\t',
        Some('r') => b'\r',
        Some('0') => 0,
        Some('\\') => b'\\',
        other => {
            let other = other.map(String::from).unwrap_or_default();
            return Err(format!("\\{other} is not known; \\n \\t \\r \\0 \\\\ are"));
        }
    })
}

fn headers(out: &mut impl Write, headers: &[Header]) -> io::Result<()> {
    for (index, header) in headers.iter().enumerate() {
        if index > 0 {
            out.write_all(b",")?;
        }
        out.write_all(header.key.as_bytes())?;
        if let Some(value) = &header.value {
            out.write_all(b"=")?;
            out.write_all(value)?;
        }
    }
    Ok(())
}

/// Bytes in JSON: a string if they are UTF-8, else `{"base64": "..."}`; absent ones are null.
struct Text<'a>(&'a Option<Bytes>);

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some(bytes) = self.0 else { return serializer.serialize_none() };
        match std::str::from_utf8(bytes) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("base64", &base64(bytes))?;
                map.end()
            }
        }
    }
}

#[derive(Serialize)]
struct JsonRecord<'a> {
    topic: &'a str,
    partition: u32,
    offset: u64,
    create_time: String,
    create_time_ms: i64,
    append_time_ms: i64,
    key: Text<'a>,
    value: Text<'a>,
    headers: Vec<JsonHeader<'a>>,
}

#[derive(Serialize)]
struct JsonHeader<'a> {
    key: &'a str,
    value: Text<'a>,
}

/// Prints a record as a JSON object on one line.
///
/// # Errors
/// Those of the writer.
pub(crate) fn print_json(out: &mut impl Write, topic: &str, record: &Received) -> io::Result<()> {
    let headers = record.headers.iter();
    let json = JsonRecord {
        topic,
        partition: record.partition.0,
        offset: record.offset.get(),
        create_time: rfc3339(record.create_time),
        create_time_ms: record.create_time.as_millis(),
        append_time_ms: record.append_time.as_millis(),
        key: Text(&record.key),
        value: Text(&record.value),
        headers: headers.map(|header| JsonHeader { key: &header.key, value: Text(&header.value) }).collect(),
    };
    serde_json::to_writer(&mut *out, &json)?;
    out.write_all(b"\n")
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |index: usize| chunk.get(index).copied().map_or(0, u32::from);
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for index in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * index)) as usize & 63];
            text.push(if index <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use rimstone_types::{Offset, PartitionIndex, Timestamp};

    use super::*;

    fn record() -> Received {
        Received {
            partition: PartitionIndex(3),
            offset: Offset::new(42).unwrap(),
            key: Some(Bytes::from_static(b"key")),
            value: Some(Bytes::from_static("wert é".as_bytes())),
            headers: vec![
                Header { key: "line".to_owned(), value: Some(Bytes::from_static(b"7")) },
                Header { key: "mark".to_owned(), value: None },
            ],
            create_time: Timestamp(1_431_857_103_250),
            append_time: Timestamp(1_500_000_000_000),
        }
    }

    fn printed(format: &str, record: &Received) -> String {
        let mut out = Vec::new();
        Format::new(format).unwrap().print(&mut out, "visits", record).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_letter() {
        assert_eq!(printed("%t/%p/%o", &record()), "visits/3/42");
        assert_eq!(printed("%k=%v|%s", &record()), "key=wert é|wert é");
        assert_eq!(printed("%T %D", &record()), "1431857103250 2015-05-17T10:05:03.250Z");
        assert_eq!(printed("%A %a", &record()), "1500000000000 2017-07-14T02:40:00.000Z");
        assert_eq!(printed("%H", &record()), "line=7,mark");
        assert_eq!(printed("%K %S", &record()), "3 7");
        assert_eq!(printed(r"100%%%n\t\\\n", &record()), "100%\n\t\\\n");
    }

    #[test]
    fn what_is_absent_prints_nothing_and_has_no_length() {
        let bare = Received { key: None, value: None, headers: Vec::new(), ..record() };
        assert_eq!(printed("[%k][%v][%H] %K %S", &bare), "[][][] -1 -1");
        let empty = Received { value: Some(Bytes::new()), ..bare };
        assert_eq!(printed("%S", &empty), "0");
    }

    #[test]
    fn bytes_pass_through_as_they_are() {
        let raw = Received { value: Some(Bytes::from_static(b"\xff\0\n")), ..record() };
        let mut out = Vec::new();
        Format::new("%v").unwrap().print(&mut out, "visits", &raw).unwrap();
        assert_eq!(out, b"\xff\0\n");
    }

    #[test]
    fn unknown_letters_are_named_with_those_that_are_known() {
        assert!(Format::new("%x").unwrap_err().starts_with("%x is not known; %t"));
        assert!(Format::new("100%").unwrap_err().starts_with("% is not known"));
        assert!(Format::new(r"\q").unwrap_err().starts_with(r"\q is not known"));
    }

    #[test]
    fn json_has_strings_where_it_can_and_marks_what_it_cannot() {
        let odd = Received { key: None, value: Some(Bytes::from_static(b"\xff\xfe")), ..record() };
        let mut out = Vec::new();
        print_json(&mut out, "visits", &odd).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"topic\":\"visits\",\"partition\":3,\"offset\":42,\"create_time\":\"2015-05-17T10:05:03.250Z\",\
             \"create_time_ms\":1431857103250,\"append_time_ms\":1500000000000,\"key\":null,\
             \"value\":{\"base64\":\"//4=\"},\"headers\":[{\"key\":\"line\",\"value\":\"7\"},\
             {\"key\":\"mark\",\"value\":null}]}\n"
        );
    }

    #[test]
    fn base64_by_the_vectors_of_rfc_4648() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
