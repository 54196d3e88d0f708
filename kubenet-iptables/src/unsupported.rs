//! In place of `engine` and `start` where there is no Linux: says so.

use std::sync::Arc;

use kubenet_core::{
    datapath::{ApplyReport, Close, DatapathError, DrainStatus, ErrorKind},
    route::{RouteDelta, RouteTable},
};

use crate::{builder::Probe, config::Config, datapath::IptablesDatapath, preview::Preview};

pub(crate) enum Engine {}

fn unsupported<T>(operation: &'static str) -> Result<T, DatapathError> {
    let message = "iptables needs Linux: choose another datapath on this system";
    Err(DatapathError::new("iptables", operation, ErrorKind::Unsupported, message))
}

pub(crate) fn probe(_: &Config) -> Result<Probe, DatapathError> {
    unsupported("probe")
}

pub(crate) fn preview(_: &Config, _: &RouteTable, _: Option<&RouteTable>) -> Result<Preview, DatapathError> {
    unsupported("preview")
}

pub(crate) fn build(_: Config) -> Result<IptablesDatapath, DatapathError> {
    unsupported("build")
}

impl Engine {
    pub(crate) fn replace(&mut self, _: Arc<RouteTable>) -> Result<ApplyReport, DatapathError> {
        match *self {}
    }

    pub(crate) fn apply(&mut self, _: Arc<RouteDelta>) -> Result<ApplyReport, DatapathError> {
        match *self {}
    }

    pub(crate) fn read(&mut self) -> Result<RouteTable, DatapathError> {
        match *self {}
    }

    pub(crate) fn intact(&mut self) -> Result<bool, DatapathError> {
        match *self {}
    }

    pub(crate) fn drain(&mut self) -> Result<DrainStatus, DatapathError> {
        match *self {}
    }

    pub(crate) fn close(&mut self, _: Close) -> Result<(), DatapathError> {
        match *self {}
    }
}
