//! Members of a consumer group that are real child processes, and the proof over what they recorded.
//!
//! | room | what |
//! |---|---|
//! | [`event`] | what a member writes down, one JSON line an event |
//! | [`member`] | a member with nothing but the generated stubs; `rimstone-member` runs it |
//! | [`crowd`] | its processes: join, stop, kill, freeze |
//! | [`check`] | what must be true of their histories |
//!
//! Not here: the project's own consumer, which has tests beside it; here it is told apart from the server.

pub mod check;
pub mod crowd;
pub mod event;
pub mod member;
