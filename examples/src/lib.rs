//! Example programs that embed kubenet: see `src/bin`.
#![forbid(unsafe_code)]

pub mod agent;

/// The README's embedding example, compiled as it stands there.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
