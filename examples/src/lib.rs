//! Example programs that embed kubenet: see `src/bin`. Here is what they share.
#![forbid(unsafe_code)]

pub mod agent;
#[cfg(target_os = "linux")]
pub mod inspect;
pub mod manifests;
pub mod node;
pub mod trace;

/// The README's embedding example, compiled as it stands there.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
