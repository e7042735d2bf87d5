//! How a command ends: exit codes, and errors as one clear line with hints. The table of codes is in `--help`.

use std::{error::Error, fmt, io};

use rimstone_client::{ClientError, Code, reason};

/// What `--help` says of exit codes.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
    0  done (also when the reader of a pipe has gone away)
    1  the operation failed
    2  the command line or the settings are wrong
    3  not found: topic, partition, producer, group, file
    4  the server cannot be reached (for what was under way when it went: 1)
    5  it exists already
    6  stored data is damaged
    7  a group is further behind than `lag --fail-above` allows
  130  interrupted";

/// A command's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The operation failed.
    Failed = 1,
    /// The command line or the settings are wrong.
    Usage = 2,
    /// Topic, partition, producer, group or file.
    NotFound = 3,
    /// The server cannot be reached.
    Unreachable = 4,
    /// It exists already.
    Exists = 5,
    /// Stored data is damaged.
    Damaged = 6,
    /// A group is further behind than is allowed.
    Behind = 7,
    /// By a signal.
    Interrupted = 130,
}

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// One line: what was wrong and what is allowed. Empty: everything has been said.
    pub(crate) message: String,
    /// What to do about it, a line each.
    pub(crate) hints: Vec<String>,
    /// The reader of our standard output has gone away, which is no failure.
    closed_pipe: bool,
}

pub(crate) type Outcome = Result<(), Failure>;

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hints: Vec::new(), closed_pipe: false }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// The same for somebody whom the usual hints do not help.
    pub(crate) fn without_hints(self) -> Self {
        Self { hints: Vec::new(), ..self }
    }

    /// The same with other words.
    pub(crate) fn saying(self, message: impl Into<String>) -> Self {
        Self { message: message.into(), ..self }
    }

    /// Prints it, and answers the process's exit code.
    pub(crate) fn report(self) -> u8 {
        use io::Write as _;
        if self.closed_pipe {
            return 0;
        }
        let mut lines = String::new();
        if !self.message.is_empty() {
            lines.push_str(&format!("\x1b[1;31merror:\x1b[0m {}\n", self.message));
        }
        for hint in &self.hints {
            lines.push_str(&format!("\x1b[1;36mhint:\x1b[0m {hint}\n"));
        }
        // Colours are taken out where they are not wanted. Nobody is left to be told if this fails.
        let _ = anstream::stderr().write_all(lines.as_bytes());
        self.exit as u8
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// For errors while writing to standard output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        let closed_pipe = error.kind() == io::ErrorKind::BrokenPipe;
        Self { closed_pipe, ..Self::failed(format!("cannot write the output: {error}")) }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match error.code {
            _ if error.is_unreachable() => Exit::Unreachable,
            Code::NotFound => Exit::NotFound,
            Code::AlreadyExists => Exit::Exists,
            Code::DataLoss => Exit::Damaged,
            _ if [reason::INVALID, "INVALID_NAME", "INVALID_SETTING"].contains(&error.reason.as_str()) => {
                Exit::Usage
            }
            _ => Exit::Failed,
        };
        let topic = error.metadata.get("topic").cloned().unwrap_or_else(|| "TOPIC".to_owned());
        let group = error.metadata.get("group").cloned().unwrap_or_else(|| "GROUP".to_owned());
        let failure = Self::new(exit, one_line(&error.message));
        match error.reason.as_str() {
            reason::UNREACHABLE => failure
                .saying(format!("no answer from the server: {}", error.message))
                .hint("start one with: rimstone serve")
                .hint("or name another with --server HOST:PORT or RIMSTONE_SERVER"),
            reason::TOPIC_NOT_FOUND if !failure.message.contains("topic create") => failure.hint(format!(
                "topics are not made by themselves: rimstone topic create {topic} --partitions 6"
            )),
            reason::PARTITION_NOT_FOUND => failure
                .hint(format!("see the partitions that there are with: rimstone topic describe {topic}")),
            reason::OFFSET_OUT_OF_RANGE => {
                failure.hint("--from earliest reads from the first record there is")
            }
            reason::GROUP_NOT_FOUND => {
                failure.hint("see the groups that there are with: rimstone group list")
            }
            reason::GROUP_NOT_EMPTY => failure
                .hint(format!("end its members first; see them with: rimstone group describe {group}"))
                .hint("or leave it alone and work on a copy: rimstone group clone, or replay --clone-to"),
            reason::START_POSITION_NEEDED => failure
                .hint("say where to begin with --start earliest or --start latest")
                .hint(format!("or commit a place: rimstone group commit {group} {topic} --at earliest")),
            reason::PLAN_CHANGED => failure.hint("plan again, and look at it"),
            "TIMESTAMP_TOO_FAR" if is_future(&error) => failure.hint(format!(
                "allow it with: rimstone topic alter {topic} --set message.timestamp.after.max.ms=..."
            )),
            reason::PRODUCER_FENCED => failure.hint("another producer of the same --name has begun"),
            _ => failure,
        }
    }
}

/// Whether a create time was refused for lying in the future, which a topic can allow.
fn is_future(error: &ClientError) -> bool {
    let millis = |key: &str| error.metadata.get(key)?.parse::<i64>().ok();
    millis("create_time_ms").zip(millis("latest_ms")).is_some_and(|(given, latest)| given > latest)
}

/// An error with its causes, each said once: some say their cause themselves.
pub(crate) fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

/// A message on one line, however it was laid out.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: Code, reason: &str) -> ClientError {
        ClientError {
            code,
            reason: reason.to_owned(),
            message: "topic visits is not there".to_owned(),
            metadata: [("topic".to_owned(), "visits".to_owned())].into(),
            retry_after: None,
        }
    }

    #[test]
    fn errors_of_the_server_have_exit_codes() {
        for (code, reason, exit) in [
            (Code::NotFound, reason::TOPIC_NOT_FOUND, Exit::NotFound),
            (Code::NotFound, reason::PRODUCER_NOT_FOUND, Exit::NotFound),
            (Code::AlreadyExists, "TOPIC_EXISTS", Exit::Exists),
            (Code::Unavailable, reason::UNREACHABLE, Exit::Unreachable),
            (Code::Unavailable, reason::SHUTTING_DOWN, Exit::Failed),
            (Code::InvalidArgument, "INVALID_SETTING", Exit::Usage),
            (Code::InvalidArgument, "TIMESTAMP_TOO_FAR", Exit::Failed),
            (Code::InvalidArgument, "INVALID_NAME", Exit::Usage),
            (Code::DataLoss, reason::DATA_DAMAGED, Exit::Damaged),
            (Code::NotFound, reason::GROUP_NOT_FOUND, Exit::NotFound),
            (Code::AlreadyExists, reason::GROUP_EXISTS, Exit::Exists),
            (Code::FailedPrecondition, reason::GROUP_NOT_EMPTY, Exit::Failed),
            (Code::FailedPrecondition, reason::START_POSITION_NEEDED, Exit::Failed),
        ] {
            assert_eq!(Failure::from(error(code, reason)).exit, exit, "{reason}");
        }
    }

    #[test]
    fn a_missing_topic_names_the_command_that_makes_one() {
        let failure = Failure::from(error(Code::NotFound, reason::TOPIC_NOT_FOUND));
        assert!(
            failure.hints[0].ends_with("rimstone topic create visits --partitions 6"),
            "{:?}",
            failure.hints
        );
    }

    #[test]
    fn every_cause_is_said_once() {
        #[derive(Debug)]
        struct Outer(&'static str, io::Error);
        impl fmt::Display for Outer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.0)
            }
        }
        impl Error for Outer {
            fn source(&self) -> Option<&(dyn Error + 'static)> {
                Some(&self.1)
            }
        }
        for (outer, said) in [
            ("cannot listen", "cannot listen: permission denied"),
            ("cannot listen: permission denied; low port", "cannot listen: permission denied; low port"),
        ] {
            assert_eq!(with_causes(&Outer(outer, io::Error::other("permission denied"))), said);
        }
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let gone = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(gone.report(), 0);
        let full = Failure::from(io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(full.report(), 1);
    }
}
