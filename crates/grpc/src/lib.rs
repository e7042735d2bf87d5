//! The gRPC doors: they translate and map errors, they decide nothing
