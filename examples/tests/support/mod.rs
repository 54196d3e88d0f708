//! An API server for tests, and an agent against it.

pub(crate) mod api;
pub(crate) mod objects;
pub(crate) mod rig;
pub(crate) mod store;
