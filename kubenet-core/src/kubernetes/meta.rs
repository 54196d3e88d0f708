//! What both kinds of objects read in the same way.

use std::{borrow::Cow, num::NonZeroU16};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::conversion::{Checks, Problems};
use crate::model::{Protocol, quoted, validate_label};

/// Namespace and name as written; an absent namespace is `default`, an absent name is empty.
pub(super) fn names(meta: &ObjectMeta) -> (&str, &str) {
    let namespace = meta.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or("default");
    (namespace, meta.name.as_deref().unwrap_or_default())
}

/// How messages call the object.
pub(super) fn title(kind: &str, namespace: &str, name: &str) -> String {
    let name = if name.is_empty() { "(no name)" } else { name };
    format!("{kind} {}/{}", readable(namespace), readable(name))
}

/// A name that cannot be must not break a line, nor fill a screen.
fn readable(name: &str) -> Cow<'_, str> {
    /// The longest name of the API.
    const LONGEST: usize = 253;
    if name.len() > LONGEST || name.contains(char::is_control) { quoted(name).into() } else { name.into() }
}

/// Checks both names; that of the object against `rule`.
pub(super) fn check_names(
    title: &str,
    namespace: &str,
    name: &str,
    rule: fn(&str) -> Result<(), String>,
) -> Result<(), Problems> {
    let mut checks = Checks::new(title);
    if let Err(broken) = validate_label(namespace) {
        checks.add("metadata.namespace", namespace, broken);
    }
    if let Err(broken) = rule(name) {
        checks.add("metadata.name", name, broken);
    }
    checks.end()
}

pub(super) fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(key).map(String::as_str)
}

/// An enumeration's text: absent and empty are the same to the API, and mean the default.
pub(super) fn text(value: Option<&String>) -> Option<&str> {
    value.map(String::as_str).filter(|text| !text.is_empty())
}

pub(super) fn protocol(value: Option<&String>, field: &str, checks: &mut Checks<'_>) -> Protocol {
    let Some(name) = text(value) else { return Protocol::Tcp };
    Protocol::ALL.into_iter().find(|p| p.as_str() == name).unwrap_or_else(|| {
        checks.add(format!("{field}.protocol"), name, "must be TCP, UDP or SCTP");
        Protocol::Tcp
    })
}

pub(super) fn port(number: i32, field: String, checks: &mut Checks<'_>) -> Option<NonZeroU16> {
    let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
    if port.is_none() {
        checks.add(field, number, "must be 1 to 65535");
    }
    port
}
