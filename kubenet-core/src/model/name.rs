use std::{fmt, sync::Arc};

use super::InvalidObject;

/// Namespace and name of a Kubernetes object. Displays as `namespace/name`. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    namespace: Arc<str>,
    name: Arc<str>,
}

impl ObjectName {
    /// Checks both parts against [`validate_name`].
    ///
    /// # Errors
    /// [`InvalidObject`] with the field `metadata.namespace` or `metadata.name`.
    pub fn new(kind: &str, namespace: &str, name: &str) -> Result<Self, InvalidObject> {
        let object = || format!("{kind} {namespace}/{name}");
        validate_name(namespace)
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

/// Checks a name against the widest rule that Kubernetes has for the names used here: an RFC 1123 subdomain.
///
/// # Errors
/// The rule, in words.
pub fn validate_name(name: &str) -> Result<(), String> {
    let edge = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    if name.is_empty() {
        return Err("must be set".into());
    }
    if name.len() > 253 {
        return Err("must have at most 253 characters".into());
    }
    let bytes = name.as_bytes();
    if !bytes.iter().all(|&c| edge(c) || c == b'-' || c == b'.')
        || !edge(bytes[0])
        || !edge(bytes[bytes.len() - 1])
    {
        return Err(
            "must consist of lower-case letters, digits, '-' and '.', and begin and end with a letter \
                    or digit (RFC 1123)"
                .into(),
        );
    }
    Ok(())
}

/// Checks a port's name: empty, or an RFC 1123 label of at most 63 characters.
pub(super) fn validate_port_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Ok(());
    }
    if name.len() > 63 || name.contains('.') {
        return Err("must be empty or a label of at most 63 characters without dots".into());
    }
    validate_name(name)
}
