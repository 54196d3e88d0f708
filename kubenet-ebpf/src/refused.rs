//! Why a route has no place in the maps.

use kubenet_core::{
    datapath::{DatapathError, ErrorKind},
    model::IpFamily,
};

use crate::{error::error, slots::NoSlots};

/// Why a route could not be staged.
#[derive(Clone, Debug)]
pub(crate) enum Refused {
    Slots(NoSlots),
    Backends(IpFamily, u32),
    Ids(u32),
    Sources(IpFamily, u32),
    Invalid(String),
}

impl Refused {
    /// Whether a grace period may make room.
    pub(crate) fn is_full(&self) -> bool {
        !matches!(self, Refused::Invalid(_))
    }

    /// The slots in one piece that would do, where there are as many in several.
    pub(crate) fn wants_room(&self) -> Option<u32> {
        match self {
            Refused::Slots(no) if no.free >= u64::from(no.wanted) => Some(no.wanted),
            _ => None,
        }
    }

    pub(crate) fn into_error(self, operation: &'static str) -> DatapathError {
        let message = match self {
            Refused::Invalid(message) => return error(operation, ErrorKind::InvalidInput, message),
            Refused::Slots(NoSlots { wanted, largest, free, size }) => format!(
                "map slots is full: {wanted} slots in one piece are needed, and of {size} there are {free} free, \
                 the largest piece {largest}: raise MapSizes::slots"
            ),
            Refused::Backends(family, size) => {
                let (map, setting) = match family {
                    IpFamily::V4 => ("backends4", "backends4"),
                    IpFamily::V6 => ("backends6", "backends6"),
                };
                format!("map {map} is full: it holds {size} entries: raise MapSizes::{setting}")
            }
            Refused::Sources(family, size) => {
                let map = if family == IpFamily::V4 { "source_ranges4" } else { "source_ranges6" };
                format!("map {map} is full: it holds {size} entries: raise MapSizes::source_ranges")
            }
            Refused::Ids(size) => {
                format!("map service_names is full: it holds {size} entries: raise MapSizes::services")
            }
        };
        error(operation, ErrorKind::Capacity, message)
    }
}
