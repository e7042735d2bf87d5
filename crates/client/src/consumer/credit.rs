//! How much the server may send: bounded prefetch in bytes and in records. Pure.

use rimstone_proto::v1;

/// Bytes and records. Signed: one message of records may go below zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Amount {
    pub(crate) bytes: i64,
    pub(crate) records: i64,
}

impl Amount {
    fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            records: self.records.saturating_add(other.records),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            records: self.records.saturating_sub(other.records),
        }
    }

    fn message(self) -> v1::ConsumeCredit {
        let unsigned = |value: i64| u64::try_from(value).unwrap_or(0);
        v1::ConsumeCredit { bytes: unsigned(self.bytes), records: unsigned(self.records) }
    }
}

impl From<v1::ConsumeCredit> for Amount {
    fn from(credit: v1::ConsumeCredit) -> Self {
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        Self { bytes: signed(credit.bytes), records: signed(credit.records) }
    }
}

/// The window, and where it went.
#[derive(Debug)]
pub(crate) struct Credit {
    window: Amount,
    /// Given to the server and not used.
    given: Amount,
    /// Of messages that are here and not read to their end.
    held: Amount,
}

impl Credit {
    pub(crate) fn new(bytes: u64, records: u64) -> Self {
        let window = v1::ConsumeCredit { bytes, records }.into();
        Self { window, given: Amount::default(), held: Amount::default() }
    }

    /// On a new stream the server knows of nothing: what it may send at once. At least one of each, so that
    /// what is held cannot keep everything else away for ever.
    pub(crate) fn begin(&mut self) -> v1::ConsumeCredit {
        let free = self.window.minus(self.held);
        self.given = Amount { bytes: free.bytes.max(1), records: free.records.max(1) };
        self.given.message()
    }

    /// A message has come, and is held (or thrown away at once).
    pub(crate) fn came(&mut self, used: Amount, held: bool) {
        self.given = self.given.minus(used);
        if held {
            self.held = self.held.plus(used);
        }
    }

    /// A message is read to its end, or thrown away.
    pub(crate) fn freed(&mut self, used: Amount) {
        self.held = self.held.minus(used);
    }

    fn free(&self) -> Amount {
        self.window.minus(self.held).minus(self.given)
    }

    /// Whether so much is free that it is worth a message.
    pub(crate) fn is_due(&self) -> bool {
        let free = self.free();
        free.bytes > self.window.bytes / 4 || free.records > self.window.records / 4
    }

    /// What is free, for the server, if it is worth a message.
    pub(crate) fn next_message(&mut self) -> Option<v1::ConsumeCredit> {
        if !self.is_due() {
            return None;
        }
        let free = self.free();
        let free = Amount { bytes: free.bytes.max(0), records: free.records.max(0) };
        self.given = self.given.plus(free);
        Some(free.message())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(bytes: i64, records: i64) -> Amount {
        Amount { bytes, records }
    }

    #[test]
    fn never_more_than_the_window_and_one_message_is_here_or_on_its_way() {
        let mut credit = Credit::new(100, 10);
        assert_eq!(credit.begin(), v1::ConsumeCredit { bytes: 100, records: 10 });
        credit.came(amount(150, 3), true);
        assert!(credit.next_message().is_none(), "nothing was read");
        credit.freed(amount(150, 3));
        assert_eq!(credit.next_message(), Some(v1::ConsumeCredit { bytes: 150, records: 3 }));
        assert_eq!((credit.given, credit.held), (amount(100, 10), amount(0, 0)));
    }

    #[test]
    fn a_small_amount_is_not_worth_a_message() {
        let mut credit = Credit::new(100, 10);
        credit.begin();
        credit.came(amount(25, 1), false);
        assert!(!credit.is_due());
        credit.came(amount(1, 1), false);
        assert_eq!(credit.next_message(), Some(v1::ConsumeCredit { bytes: 26, records: 2 }));
        assert!(!credit.is_due());
    }

    #[test]
    fn what_is_held_is_not_given_again_after_a_reconnect() {
        let mut credit = Credit::new(100, 10);
        credit.begin();
        credit.came(amount(60, 4), true);
        assert_eq!(credit.begin(), v1::ConsumeCredit { bytes: 40, records: 6 });
        credit.came(amount(60, 4), true);
        assert_eq!(credit.begin(), v1::ConsumeCredit { bytes: 1, records: 2 });
        credit.freed(amount(120, 8));
        credit.next_message().unwrap();
        assert_eq!((credit.given, credit.held), (amount(100, 10), amount(0, 0)));
    }

    #[test]
    fn the_smallest_window_moves_on() {
        let mut credit = Credit::new(1, 1);
        credit.begin();
        credit.came(amount(9, 9), true);
        assert!(!credit.is_due());
        credit.freed(amount(9, 9));
        assert!(credit.is_due());
    }
}
