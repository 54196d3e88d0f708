//! Which routes cannot be served, and why.

use std::sync::Arc;

use kubenet_core::{
    datapath::{Capabilities, DatapathError, ErrorKind, FailedRoute},
    model::IpFamily,
    route::{Route, RouteTable},
};

/// Why a datapath of this name with these capabilities cannot serve a route, if it cannot.
pub(crate) fn refuse(name: &'static str, capabilities: &Capabilities, route: &Route) -> Option<FailedRoute> {
    let family = route.frontend.family();
    let (kind, message) = match capabilities.check(route) {
        Err(message) => (ErrorKind::Unsupported, message),
        Ok(()) => {
            let stranger = route.backends().find(|b| IpFamily::of(b.address) != family)?;
            let message =
                format!("backend {} is not of the frontend's family, {family}", stranger.socket_addr());
            (ErrorKind::InvalidInput, message)
        }
    };
    let message = format!("{} ({}): {message}", route.service_port, route.frontend);
    Some(FailedRoute {
        frontend: route.frontend,
        service_port: route.service_port.clone(),
        error: DatapathError::new(name, "apply", kind, message),
    })
}

/// The routes of a table that can be served, and those that cannot.
pub(crate) fn divide(
    name: &'static str,
    capabilities: &Capabilities,
    table: &RouteTable,
) -> (RouteTable, Vec<FailedRoute>) {
    let mut failed = Vec::new();
    let mut served = Vec::with_capacity(table.len());
    for route in table.routes() {
        match refuse(name, capabilities, route) {
            None => served.push(Arc::clone(route)),
            Some(refused) => failed.push(refused),
        }
    }
    (RouteTable::new(table.revision(), Arc::clone(table.node()), served), failed)
}
