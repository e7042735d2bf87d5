//! Builds the whole server from settings, runs it, and stops it
