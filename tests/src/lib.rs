//! Whole-server tests: a real child process, killed for real, and clients nobody here wrote
