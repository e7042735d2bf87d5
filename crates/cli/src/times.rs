//! Times as people type them.
//!
//! | form | example |
//! |---|---|
//! | RFC 3339 | `2015-05-17T10:05:03Z`, `2015-05-17 10:05:03.250+02:00` |
//! | the same without an offset, or a date: local time (`TZ`) | `2015-05-17T10:05`, `2015-05-17` |
//! | a while ago | `2h ago`, `1d 12h ago`, `90 minutes ago` |
//! | words | `now`, `today`, `yesterday` (midnight, local time) |
//! | Unix time | `1431857103000ms`, `@1431857103000` (milliseconds), `1431857103s` |
//!
//! A bare number is never a time: it would be taken for an offset, or an offset for it. Nor is `30s`, which would be half
//! a minute past the beginning of 1970 to us, and half a minute ago to whoever types it.

use jiff::{Span, Zoned, civil, fmt::strtime, tz::TimeZone};
use rimstone_types::Timestamp;

/// A smaller number of seconds is taken for a while and not for a time: April 1970, or 115 days.
const UNIX_SECONDS_MIN: i64 = 10_000_000;

/// What is said of a text that is no time.
pub(crate) const ALLOWED: &str =
    "2015-05-17T10:05:03Z, 2015-05-17, '2h ago', now, today, yesterday, 1431857103000ms or @1431857103000";

/// A time as somebody typed it, seen from `now`, whose zone holds for times without an offset.
///
/// # Errors
/// What was wrong and what is allowed.
pub(crate) fn parse(text: &str, now: &Zoned) -> Result<Timestamp, String> {
    let trimmed = text.trim();
    parse_inner(trimmed, now)
        .ok_or_else(|| format!("{text:?} is not a time; write {ALLOWED}"))
        .map(|time| Timestamp(time.as_millisecond()))
}

fn parse_inner(text: &str, now: &Zoned) -> Option<jiff::Timestamp> {
    let midnight = |days: i64| {
        let date = now.date().checked_sub(Span::new().days(days)).ok()?;
        Some(date.to_zoned(now.time_zone().clone()).ok()?.timestamp())
    };
    match text {
        "now" => return Some(now.timestamp()),
        "today" => return midnight(0),
        "yesterday" => return midnight(1),
        _ => {}
    }
    if let Some(unix) = unix(text) {
        return unix;
    }
    if text.ends_with("ago") {
        let span: Span = text.parse().ok()?;
        return Some(now.checked_add(span).ok()?.timestamp());
    }
    // Without a time or a separator it would be some other number.
    if !text.contains('-') {
        return None;
    }
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Some(time);
    }
    let civil: civil::DateTime = text.parse().ok()?;
    Some(civil.to_zoned(now.time_zone().clone()).ok()?.timestamp())
}

/// Unix time, if it looks like it; `Some(None)` if it does and is out of range, or rather a while than a time.
fn unix(text: &str) -> Option<Option<jiff::Timestamp>> {
    let number = |text: &str| text.parse::<i64>().ok();
    if let Some(millis) = text.strip_prefix('@').and_then(number) {
        return Some(jiff::Timestamp::from_millisecond(millis).ok());
    }
    if let Some(millis) = text.strip_suffix("ms").and_then(number) {
        let time = jiff::Timestamp::from_millisecond(millis).ok();
        return Some(time.filter(|_| millis.saturating_abs() >= UNIX_SECONDS_MIN * 1000));
    }
    let seconds = text.strip_suffix('s').and_then(number)?;
    Some(jiff::Timestamp::from_second(seconds).ok().filter(|_| seconds.saturating_abs() >= UNIX_SECONDS_MIN))
}

/// How times in lines of text are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TimeFormat {
    /// As [`parse`] takes them.
    Common,
    /// Seconds since 1970, with or without a fraction.
    Unix,
    /// Milliseconds since 1970.
    UnixMillis,
    /// By a pattern of `strptime`.
    Pattern(String),
}

impl TimeFormat {
    /// From a command line: `unix`, `unix-ms` or a pattern.
    ///
    /// # Errors
    /// If the pattern has no conversion at all.
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        match text {
            "unix" => Ok(Self::Unix),
            "unix-ms" => Ok(Self::UnixMillis),
            _ if text.contains('%') => Ok(Self::Pattern(text.to_owned())),
            _ => Err(format!(
                "{text:?} is not a time format; write unix, unix-ms or a pattern as of strptime, for example \
                 '%d/%b/%Y:%H:%M:%S %z'"
            )),
        }
    }

    /// The time that `text` says.
    ///
    /// # Errors
    /// What was wrong, with the text.
    pub(crate) fn read(&self, text: &str, now: &Zoned) -> Result<Timestamp, String> {
        let number = |wanted: &str| format!("{text:?} is not {wanted}");
        match self {
            Self::Common => parse(text, now),
            Self::Unix => {
                let seconds: f64 = text.parse().map_err(|_| number("a number of seconds"))?;
                if !seconds.is_finite() || seconds.abs() > 1e12 {
                    return Err(number("a number of seconds since 1970"));
                }
                Ok(Timestamp((seconds * 1000.0).round() as i64))
            }
            Self::UnixMillis => text.parse().map(Timestamp).map_err(|_| number("a number of milliseconds")),
            Self::Pattern(pattern) => by_pattern(pattern, text, now.time_zone())
                .map(|time| Timestamp(time.as_millisecond()))
                .map_err(|error| format!("{text:?} is not a time like {pattern:?}: {error}")),
        }
    }
}

fn by_pattern(pattern: &str, text: &str, zone: &TimeZone) -> Result<jiff::Timestamp, jiff::Error> {
    let parts = strtime::parse(pattern, text)?;
    match parts.to_timestamp() {
        Ok(time) => Ok(time),
        // Without an offset it is local time.
        Err(_) => Ok(parts.to_datetime()?.to_zoned(zone.clone())?.timestamp()),
    }
}

/// A time for people: RFC 3339 in UTC, with milliseconds.
pub(crate) fn rfc3339(time: Timestamp) -> String {
    match jiff::Timestamp::from_millisecond(time.as_millis()) {
        Ok(time) => format!("{time:.3}"),
        // Outside the years -9999 to 9999.
        Err(_) => time.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Zoned {
        "2026-08-04T12:00:00+02:00[Europe/Berlin]".parse().unwrap()
    }

    fn millis(text: &str) -> i64 {
        parse(text, &now()).unwrap().as_millis()
    }

    #[test]
    fn the_same_moment_in_every_form() {
        for text in [
            "2015-05-17T10:05:03Z",
            "2015-05-17t10:05:03z",
            "2015-05-17 10:05:03Z",
            "2015-05-17T12:05:03+02:00",
            "2015-05-17T12:05:03",
            "2015-05-17 12:05:03",
            " 2015-05-17T10:05:03.000Z ",
            "1431857103000ms",
            "@1431857103000",
            "1431857103s",
        ] {
            assert_eq!(millis(text), 1_431_857_103_000, "{text}");
        }
        assert_eq!(millis("2015-05-17T10:05:03.250Z"), 1_431_857_103_250);
        assert_eq!(millis("@-1"), -1);
    }

    #[test]
    fn dates_are_midnight_in_local_time() {
        assert_eq!(millis("2026-08-04"), millis("2026-08-03T22:00:00Z"));
        assert_eq!(millis("today"), millis("2026-08-04"));
        assert_eq!(millis("yesterday"), millis("2026-08-03"));
        // In winter the offset is another.
        assert_eq!(millis("2026-01-15"), millis("2026-01-14T23:00:00Z"));
    }

    #[test]
    fn a_while_ago() {
        let now = millis("now");
        assert_eq!(now, millis("2026-08-04T10:00:00Z"));
        assert_eq!(millis("2h ago"), now - 2 * 3_600_000);
        assert_eq!(millis("90 minutes ago"), now - 90 * 60_000);
        assert_eq!(millis("1h30m ago"), now - 90 * 60_000);
        assert_eq!(millis("1d 12h ago"), now - 36 * 3_600_000);
        assert_eq!(millis("500ms ago"), now - 500);
        assert_eq!(millis("2 weeks ago"), now - 14 * 24 * 3_600_000);
    }

    #[test]
    fn what_is_no_time_is_refused_with_what_is_allowed() {
        for text in [
            "",
            "17",
            "1431857103",
            "ago",
            "2h",
            "-2h",
            "tomorrow",
            "2015-13-01",
            "2015-05-17T25:00",
            "xms",
            "@",
            "s",
            "99999999999999999999ms",
            "9223372036854775807ms",
            "30s",
            "-5s",
            "500ms",
        ] {
            let error = parse(text, &now()).unwrap_err();
            assert!(error.contains("2h ago") && error.starts_with(&format!("{text:?}")), "{text}: {error}");
        }
    }

    #[test]
    fn times_of_logs_by_pattern() {
        let read = |format: &str, text: &str| TimeFormat::new(format).unwrap().read(text, &now());
        let combined = "%d/%b/%Y:%H:%M:%S %z";
        assert_eq!(read(combined, "17/May/2015:10:05:03 +0000").unwrap().as_millis(), 1_431_857_103_000);
        assert_eq!(read(combined, "17/May/2015:12:05:03 +0200").unwrap().as_millis(), 1_431_857_103_000);
        // Without an offset: local time.
        assert_eq!(read("%Y-%m-%d %H:%M:%S", "2015-05-17 12:05:03").unwrap().as_millis(), 1_431_857_103_000);
        assert_eq!(read("unix", "1431857103.25").unwrap().as_millis(), 1_431_857_103_250);
        assert_eq!(read("unix-ms", "1431857103250").unwrap().as_millis(), 1_431_857_103_250);
        assert!(read(combined, "yesterday").unwrap_err().contains("yesterday"));
        assert!(read("unix", "NaN").is_err());
        assert!(read("unix", "1e300").is_err());
        assert!(TimeFormat::new("iso").unwrap_err().contains("unix-ms"));
    }

    #[test]
    fn times_are_shown_in_utc() {
        assert_eq!(rfc3339(Timestamp(1_431_857_103_250)), "2015-05-17T10:05:03.250Z");
        assert_eq!(rfc3339(Timestamp(i64::MAX)), "9223372036854775807 ms");
    }
}
