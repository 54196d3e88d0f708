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
            write!(f, "{:?}: ", self.value)?;
        }
        f.write_str(&self.rule)
    }
}
