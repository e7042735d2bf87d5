//! The partition log on local disk: synchronous, one writer, memory-mapped readers
