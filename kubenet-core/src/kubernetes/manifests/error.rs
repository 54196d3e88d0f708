use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::Manifests;
use crate::model::{InvalidObject, quoted};

/// Where an object stands.
///
/// Displays as `web.yaml: document 2: items[3]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Origin {
    /// The file, or the name that the text was given.
    pub file: PathBuf,
    /// The document in the file, from 1; `None` where the file as a whole is meant.
    pub document: Option<usize>,
    /// The line of the file, from 1, where it is known.
    pub line: Option<u64>,
    /// The path to the object inside a `List`, such as `items[3]`; else empty.
    pub item: String,
}

impl Origin {
    pub(super) fn of_file(file: &Path) -> Self {
        Self { file: file.to_owned(), document: None, line: None, item: String::new() }
    }

    pub(super) fn of_document(file: &Path, document: usize) -> Self {
        Self { document: Some(document), ..Self::of_file(file) }
    }

    pub(super) fn item(&self, index: usize) -> Self {
        let dot = if self.item.is_empty() { "" } else { "." };
        Self { item: format!("{}{dot}items[{index}]", self.item), ..self.clone() }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(document) = self.document {
            write!(f, ": document {document}")?;
        }
        if let Some(line) = self.line {
            write!(f, ": line {line}")?;
        }
        if !self.item.is_empty() {
            write!(f, ": {}", self.item)?;
        }
        Ok(())
    }
}

/// One thing that is wrong with a manifest.
///
/// Displays as `web.yaml: document 2: Service demo/web: spec.ports[0].port: "0": must be 1 to 65535`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ManifestProblem {
    /// Where it stands.
    pub origin: Origin,
    /// Kind and name of the object as far as they are known; else empty.
    pub object: String,
    /// Path of the field inside the object; empty where the object or the document as a whole is meant.
    pub field: String,
    /// The value that was found; empty where it is missing or not one.
    pub value: String,
    /// The rule that was broken, in words.
    pub rule: String,
}

impl ManifestProblem {
    pub(super) fn new(origin: &Origin, object: &str, field: &str, rule: impl Into<String>) -> Self {
        Self {
            origin: origin.clone(),
            object: object.into(),
            field: field.into(),
            value: String::new(),
            rule: rule.into(),
        }
    }

    pub(super) fn of_file(file: &Path, rule: impl Into<String>) -> Self {
        Self::new(&Origin::of_file(file), "", "", rule)
    }

    pub(super) fn invalid(origin: &Origin, invalid: InvalidObject) -> Self {
        let InvalidObject { object, field, value, rule } = invalid;
        Self { origin: origin.clone(), object, field, value, rule }
    }
}

impl fmt::Display for ManifestProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        for part in [&self.object, &self.field].into_iter().filter(|part| !part.is_empty()) {
            write!(f, "{part}: ")?;
        }
        if !self.value.is_empty() {
            write!(f, "{}: ", quoted(&self.value))?;
        }
        f.write_str(&self.rule)
    }
}

/// What is wrong with manifests, and the objects with which nothing is wrong.
///
/// Displays one [`ManifestProblem`] per line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestError {
    problems: Vec<ManifestProblem>,
    usable: Box<Manifests>,
}

impl ManifestError {
    pub(super) fn new(problems: Vec<ManifestProblem>, usable: Manifests) -> Self {
        Self { problems, usable: Box::new(usable) }
    }

    /// What is wrong, in the order of the files: at least one thing.
    pub fn problems(&self) -> &[ManifestProblem] {
        &self.problems
    }

    /// The objects with which nothing is wrong, for those who would rather go on with them: one bad object
    /// need not hide the others. Of an object that is defined twice, the first definition counts.
    pub fn into_usable(self) -> Manifests {
        *self.usable
    }
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ManifestError {}
