//! From the text of a file to its documents.

use std::path::Path;

use serde::de::DeserializeSeed;
use serde_json::Value;

use super::tree::{Allowance, Tree};

/// Why a document could not be read.
#[derive(Debug)]
pub(super) struct SyntaxError {
    pub(super) line: Option<u64>,
    pub(super) rule: String,
}

/// The documents of a text, each with its number from 1. Empty documents hold `Null`.
pub(super) fn documents(name: &Path, text: &str) -> Vec<(usize, Result<Value, SyntaxError>)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let extension = name.extension().unwrap_or_default();
    if extension == "json" {
        return json_documents(text);
    }
    // Like kubectl: what begins as an object of JSON is JSON, if it can be read as such. YAML knows flow
    // mappings that begin alike.
    if text.trim_start().starts_with('{') {
        let documents = json_documents(text);
        if documents.iter().all(|(_, document)| document.is_ok()) {
            return documents;
        }
    }
    let chunks = split(text).into_iter().enumerate();
    chunks.map(|(i, chunk)| (i + 1, yaml(chunk))).collect()
}

/// Documents of JSON may follow each other; after a syntax error the rest cannot be told apart.
fn json_documents(text: &str) -> Vec<(usize, Result<Value, SyntaxError>)> {
    let allowance = Allowance::for_text(text);
    let mut reader = serde_json::Deserializer::from_str(text);
    let mut documents = Vec::new();
    while reader.end().is_err() {
        let number = documents.len() + 1;
        match Tree::new(&allowance).deserialize(&mut reader) {
            Ok(value) => documents.push((number, Ok(value))),
            Err(error) => {
                documents.push((number, Err(syntax_error("JSON", &error, error.line() as u64))));
                break;
            }
        }
    }
    documents
}

fn yaml(chunk: Chunk<'_>) -> Result<Value, SyntaxError> {
    let allowance = Allowance::for_text(chunk.text);
    // The text bounds what it costs to read it; the library's budgets bound what aliases make of it.
    let size = chunk.text.len().saturating_add(1024);
    let options = serde_saphyr::options! {
        with_snippet: false,
        strict_booleans: true,
        emit_comments: false,
        budget: serde_saphyr::budget! {
            max_events: size,
            max_nodes: size,
            max_total_scalar_bytes: size,
            max_total_comment_bytes: size,
            max_buffered_comment_events: size,
        },
    };
    serde_saphyr::with_deserializer_from_str_with_options(chunk.text, options, |deserializer| {
        Tree::new(&allowance).deserialize(deserializer)
    })
    .or_else(|error| if chunk.is_blank() { Ok(Value::Null) } else { Err(error) })
    .map_err(|error| {
        let line = error.location().map_or(0, |at| at.line());
        syntax_error("YAML", &error, if line == 0 { 0 } else { chunk.line + line - 1 })
    })
}

fn syntax_error(format: &str, error: &dyn std::error::Error, line: u64) -> SyntaxError {
    let message = error.to_string();
    // The place stands in front of the message already.
    let message = match message.rsplit_once(" at line ") {
        Some((message, _)) => message,
        None => &message,
    };
    SyntaxError { line: (line > 0).then_some(line), rule: format!("must be {format}: {message}") }
}

/// A document of a YAML text.
#[derive(Clone, Copy, Debug)]
struct Chunk<'a> {
    text: &'a str,
    /// The line of the file that it begins on, from 1.
    line: u64,
}

impl Chunk<'_> {
    /// Whether it has comments and directives only.
    fn is_blank(&self) -> bool {
        self.text.lines().map(str::trim_start).all(|l| l.is_empty() || l.starts_with(['#', '%']))
    }
}

/// Cuts at the markers between documents. A line that begins with `---` is one wherever it stands, so that a
/// broken document does not hide the others.
fn split(text: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let mut chunk = Chunk { text: "", line: 1 };
    let (mut begin, mut offset, mut first) = (0, 0, true);
    for (i, line) in text.split_inclusive('\n').enumerate() {
        let marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker {
            chunk.text = &text[begin..offset];
            if !first || !chunk.is_blank() {
                chunks.push(chunk);
            }
            first = false;
            begin = offset + 3;
            chunk = Chunk { text: "", line: i as u64 + 1 };
        }
        offset += line.len();
    }
    chunk.text = &text[begin..];
    if !first || !chunk.is_blank() {
        chunks.push(chunk);
    }
    chunks
}
