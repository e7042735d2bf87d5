//! The resolved settings, by name and kind.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use rimstone_types::ByteCount;

use super::{layers::Resolved, value::Value};

/// Typed access; a name that is not in the table, or of another kind, is a mistake that every test start finds.
pub(crate) struct Values<'a>(pub(crate) &'a Resolved);

impl Values<'_> {
    fn get(&self, name: &str) -> &Value {
        &self.0.get(name).unwrap_or_else(|| panic!("{name} is not in the table of settings")).0
    }

    pub(crate) fn address(&self, name: &str) -> SocketAddr {
        match self.get(name) {
            Value::Address(address) => *address,
            other => panic!("{name} is no address but {other:?}"),
        }
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        match self.get(name) {
            Value::Flag(flag) => *flag,
            other => panic!("{name} is no flag but {other:?}"),
        }
    }

    pub(crate) fn choice(&self, name: &str) -> &'static str {
        match self.get(name) {
            Value::Choice(word) => word,
            other => panic!("{name} is no choice but {other:?}"),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        match self.get(name) {
            Value::Path(path) => path.clone(),
            other => panic!("{name} is no path but {other:?}"),
        }
    }

    pub(crate) fn text(&self, name: &str) -> String {
        match self.get(name) {
            Value::Text(text) => text.clone(),
            other => panic!("{name} is no text but {other:?}"),
        }
    }

    pub(crate) fn bytes(&self, name: &str) -> ByteCount {
        match self.get(name) {
            Value::Bytes(bytes) => *bytes,
            other => panic!("{name} is no size but {other:?}"),
        }
    }

    pub(crate) fn duration(&self, name: &str) -> Duration {
        match self.get(name) {
            Value::Duration(duration) => *duration,
            other => panic!("{name} is no duration but {other:?}"),
        }
    }

    pub(crate) fn count<T: TryFrom<u64>>(&self, name: &str) -> T {
        match self.get(name) {
            Value::Count(count) => T::try_from(*count)
                .unwrap_or_else(|_| panic!("the bound of {name} does not fit where it is used")),
            other => panic!("{name} is no number but {other:?}"),
        }
    }
}
