//! The HTTP doors: metrics, health
