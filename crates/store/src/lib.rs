//! The seam between the broker and where the bytes are.
