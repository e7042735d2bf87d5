//! A whole server in this process, on free ports over the memory store (where it is about files, over the
//! local one), driven by generated clients.
#![allow(clippy::unwrap_used)] // all of this is test

mod admin;
mod arriving;
mod consume;
mod groups;
mod lag;
mod local;
mod newer;
mod produce;
mod produce_stream;
mod replay;
mod running;
mod sessions;
mod shutdown;
mod support;
mod web;
