use std::fmt;

/// An object that breaks a rule of the Kubernetes API. Nothing of it was taken.
///
/// Displays as `Service demo/web: spec.ports[0].port: "0": must be 1 to 65535`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub struct InvalidObject {
    /// Kind and name of the object, such as `Service demo/web`.
    pub object: String,
    /// Path of the field inside the object, such as `spec.ports[0].port`.
    pub field: String,
    /// The value that was found, as the user wrote it; empty when the field is missing.
    pub value: String,
    /// The rule that was broken, in words.
    pub rule: String,
}

impl InvalidObject {
    /// Describes a broken rule.
    pub fn new(
        object: impl Into<String>,
        field: impl Into<String>,
        value: impl fmt::Display,
        rule: impl Into<String>,
    ) -> Self {
        Self { object: object.into(), field: field.into(), value: value.to_string(), rule: rule.into() }
    }
}

impl fmt::Display for InvalidObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: ", self.object, self.field)?;
        if !self.value.is_empty() {
            write!(f, "{}: ", quoted(&self.value))?;
        }
        f.write_str(&self.rule)
    }
}

/// A value in quotes, cut where it is too long for a message.
pub(crate) fn quoted(value: &str) -> String {
    const MAX_CHARS: usize = 100;
    match value.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{:?} (and {} bytes more)", &value[..end], value.len() - end),
        None => format!("{value:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_object_field_value_and_rule() {
        let error = InvalidObject::new("Service demo/web", "spec.type", "x", "must be y");
        assert_eq!(error.to_string(), "Service demo/web: spec.type: \"x\": must be y");
        let error = InvalidObject::new("Service demo/web", "spec.ports", "", "must be set");
        assert_eq!(error.to_string(), "Service demo/web: spec.ports: must be set");
    }

    #[test]
    fn a_long_value_is_cut() {
        let error = InvalidObject::new("Service demo/web", "spec.type", "é".repeat(1000), "must be y");
        let text = error.to_string();
        assert!(text.contains("\" (and 1800 bytes more): must be y"), "{text}");
        assert!(text.len() < 300);
    }
}
