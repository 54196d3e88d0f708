//! The agent against an API server of the test's own: what it follows, survives and tells.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step fails the test")]

mod deploy;
mod follow;
mod health;
#[cfg(target_os = "linux")]
mod kernel;
mod metrics;
mod program;
mod recover;
mod reports;
mod shutdown;
#[path = "../support/mod.rs"]
mod support;
