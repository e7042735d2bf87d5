//! Bytes to record batches and back: pure, bounded, verified
