#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod builder;
mod config;
mod datapath;
mod preview;

#[cfg(target_os = "linux")]
mod conntrack;
#[cfg(target_os = "linux")]
mod engine;
#[cfg(target_os = "linux")]
mod exec;
#[cfg(target_os = "linux")]
mod names;
#[cfg(target_os = "linux")]
mod netns;
#[cfg(target_os = "linux")]
mod plan;
#[cfg(target_os = "linux")]
mod probe;
#[cfg(target_os = "linux")]
mod read;
#[cfg(target_os = "linux")]
mod record;
#[cfg(target_os = "linux")]
mod refusal;
#[cfg(target_os = "linux")]
mod registry;
#[cfg(target_os = "linux")]
mod restore;
#[cfg(target_os = "linux")]
mod rule;
#[cfg(target_os = "linux")]
mod save;
#[cfg(target_os = "linux")]
mod stages;
#[cfg(target_os = "linux")]
mod start;
#[cfg(not(target_os = "linux"))]
mod unsupported;
#[cfg(target_os = "linux")]
mod work;

#[cfg(not(target_os = "linux"))]
use unsupported::{self as engine, self as start};

pub use self::{
    builder::{IptablesBuilder, Probe},
    config::Variant,
    datapath::IptablesDatapath,
    preview::Preview,
};
