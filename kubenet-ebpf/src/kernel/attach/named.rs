//! The interfaces by their names.

use std::collections::BTreeSet;

use super::Attachments;

impl Attachments {
    /// All that have programs, or are to have them.
    pub(crate) fn interfaces(&self) -> BTreeSet<String> {
        self.external.iter().chain(&self.pods).chain(self.interfaces.keys()).cloned().collect()
    }

    /// Those of pods.
    pub(crate) fn pods(&self) -> impl Iterator<Item = &str> {
        self.pods.iter().map(String::as_str)
    }

    pub(crate) fn is_external(&self, name: &str) -> bool {
        self.external.iter().any(|external| external == name)
    }
}
