use std::{fmt, sync::Arc};

use super::InvalidObject;

/// Namespace and name of a Kubernetes object. Displays as `namespace/name`. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    namespace: Arc<str>,
    name: Arc<str>,
}

impl ObjectName {
    /// Checks the namespace against [`validate_label`] and the name against [`validate_name`].
    ///
    /// # Errors
    /// [`InvalidObject`] with the field `metadata.namespace` or `metadata.name`.
    pub fn new(kind: &str, namespace: &str, name: &str) -> Result<Self, InvalidObject> {
        let object = || format!("{kind} {namespace}/{name}");
        validate_label(namespace)
            .map_err(|rule| InvalidObject::new(object(), "metadata.namespace", namespace, rule))?;
        validate_name(name).map_err(|rule| InvalidObject::new(object(), "metadata.name", name, rule))?;
        Ok(Self { namespace: namespace.into(), name: name.into() })
    }

    /// The namespace.
    pub fn namespace(&self) -> &Arc<str> {
        &self.namespace
    }

    /// The name inside the namespace.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Checks a name against the widest rule that Kubernetes has for the names used here: an RFC 1123 subdomain,
/// labels joined by dots.
///
/// # Errors
/// The rule, in words.
pub fn validate_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("must be set".into());
    }
    if name.len() > 253 {
        return Err("must have at most 253 characters".into());
    }
    if !name.split('.').all(is_label) {
        return Err(
            "must consist of lower-case letters, digits, '-' and '.', and every part between dots must begin \
             and end with a letter or digit (RFC 1123)"
                .into(),
        );
    }
    Ok(())
}

/// Checks a name against the rule for namespaces, Services and ports: an RFC 1123 label.
///
/// # Errors
/// The rule, in words.
pub fn validate_label(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("must be set".into());
    }
    if name.len() > 63 {
        return Err("must have at most 63 characters".into());
    }
    if !is_label(name) {
        return Err(
            "must consist of lower-case letters, digits and '-', and begin and end with a letter or \
                    digit (RFC 1123)"
                .into(),
        );
    }
    Ok(())
}

/// Checks a port's name: empty, or a label.
pub(super) fn validate_port_name(name: &str) -> Result<(), String> {
    if name.is_empty() { Ok(()) } else { validate_label(name) }
}

fn is_label(part: &str) -> bool {
    let edge = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    match part.as_bytes() {
        [] => false,
        [only] => edge(*only),
        [first, middle @ .., last] => {
            edge(*first) && edge(*last) && middle.iter().all(|&c| edge(c) || c == b'-')
        }
    }
}

#[cfg(test)]
mod tests;
