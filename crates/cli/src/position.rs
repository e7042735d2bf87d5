//! Places in a topic as people type them: `earliest`, `latest`, `end`, an offset, a time.

use jiff::Zoned;
use rimstone_types::{Offset, Timestamp};

use crate::times;

/// A place in a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Position {
    Earliest,
    /// Also `end`.
    Latest,
    Offset(Offset),
    Time(Timestamp),
}

impl Position {
    /// A place as somebody typed it.
    ///
    /// # Errors
    /// What was wrong and what is allowed.
    pub(crate) fn parse(text: &str, now: &Zoned) -> Result<Self, String> {
        match text.trim() {
            "earliest" | "beginning" => return Ok(Self::Earliest),
            "latest" | "end" => return Ok(Self::Latest),
            _ => {}
        }
        if let Ok(number) = text.trim().parse::<u64>() {
            return Offset::new(number).map(Self::Offset).map_err(|error| error.to_string());
        }
        times::parse(text, now).map(Self::Time).map_err(|_| {
            format!(
                "{text:?} is no place in a topic; write earliest, latest, an offset, or a time as {}",
                times::ALLOWED
            )
        })
    }
}

/// For clap: a place, with times seen from the machine's clock and zone.
pub(crate) fn position(text: &str) -> Result<Position, String> {
    Position::parse(text, &Zoned::now())
}

/// For clap: a time, seen from the machine's clock and zone.
pub(crate) fn time(text: &str) -> Result<Timestamp, String> {
    times::parse(text, &Zoned::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_offsets_and_never_times() {
        let now: Zoned = "2026-08-04T12:00:00Z[UTC]".parse().unwrap();
        let parse = |text| Position::parse(text, &now);
        assert_eq!(parse("earliest"), Ok(Position::Earliest));
        assert_eq!(parse("end"), Ok(Position::Latest));
        assert_eq!(parse("1431857103000"), Ok(Position::Offset(Offset::new(1_431_857_103_000).unwrap())));
        assert_eq!(parse("@1431857103000"), Ok(Position::Time(Timestamp(1_431_857_103_000))));
        assert_eq!(
            parse("1h ago"),
            Ok(Position::Time(Timestamp(now.timestamp().as_millisecond() - 3_600_000)))
        );
        assert!(parse("18446744073709551615").unwrap_err().contains("outside"));
        let refused = parse("-1").unwrap_err();
        assert!(refused.contains("earliest, latest, an offset, or a time as 2015-"), "{refused}");
    }
}
