//! The Rust client: producer, reader, admin
