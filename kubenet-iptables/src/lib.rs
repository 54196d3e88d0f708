#![doc = include_str!("../README.md")]
#![cfg(target_os = "linux")]
#![forbid(unsafe_code)]

mod builder;
mod conntrack;
mod datapath;
mod engine;
mod exec;
mod names;
mod netns;
mod plan;
mod probe;
mod read;
mod record;
mod registry;
mod restore;
mod rule;
mod save;
mod work;

pub use self::{
    builder::{IptablesBuilder, Probe},
    datapath::IptablesDatapath,
    exec::Variant,
};
