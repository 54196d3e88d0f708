//! From a document to the objects in it.

use std::{collections::HashMap, path::Path};

use k8s_openapi::{
    api::{core::v1, discovery::v1 as discovery},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    serde::{Serialize, de::DeserializeOwned},
};
use serde_json::{Map, Value};

use super::{ManifestError, ManifestProblem, Manifests, Origin, Skipped, document::documents};
use crate::kubernetes::{
    Conversion, Converter, Notice, conversion::Problems, endpoint_slice, meta, node, service,
};

/// Collects the objects and the problems of several files.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    converter: &'a Converter,
    manifests: Manifests,
    problems: Vec<ManifestProblem>,
    /// Where each object of our kinds was seen first.
    seen: HashMap<(Kind, String), Origin>,
}

/// The kinds that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Service,
    EndpointSlice,
    Node,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Node => "Node",
        }
    }

    const fn api_version(self) -> &'static str {
        match self {
            Kind::Service | Kind::Node => "v1",
            Kind::EndpointSlice => "discovery.k8s.io/v1",
        }
    }
}

/// What `apiVersion` and `kind` say.
enum Class {
    Object(Kind),
    /// A list; of one kind, or of any.
    List(Option<Kind>),
    Foreign,
}

impl<'a> Reader<'a> {
    pub(super) fn new(converter: &'a Converter) -> Self {
        Self { converter, manifests: Manifests::default(), problems: Vec::new(), seen: HashMap::new() }
    }

    pub(super) fn fail(&mut self, problem: ManifestProblem) {
        self.problems.push(problem);
    }

    pub(super) fn read(&mut self, file: &Path, text: &str) {
        for (number, document) in documents(file, text) {
            let mut origin = Origin::of_document(file, number);
            match document {
                Ok(Value::Null) => {}
                Ok(value) => self.value(&origin, value, None),
                Err(error) => {
                    origin.line = error.line;
                    self.fail(ManifestProblem::new(&origin, "", "", error.rule));
                }
            }
        }
    }

    /// Everything that was read, or everything that was wrong.
    pub(super) fn end(self) -> Result<Manifests, ManifestError> {
        if self.problems.is_empty() {
            Ok(self.manifests)
        } else {
            Err(ManifestError::new(self.problems, self.manifests))
        }
    }

    /// Takes an object or a list. The items of a list of one kind need not say what they are.
    fn value(&mut self, origin: &Origin, value: Value, kind_of_list: Option<Kind>) {
        let Value::Object(mut object) = value else {
            let rule = format!("must be an object with apiVersion and kind, and is {}", describe(&value));
            return self.fail(ManifestProblem::new(origin, "", "", rule));
        };
        if let Some(kind) = kind_of_list {
            object.entry("apiVersion").or_insert_with(|| kind.api_version().into());
            object.entry("kind").or_insert_with(|| kind.name().into());
        }
        let title = title(&object);
        match self.classify(origin, &title, &object) {
            None => {}
            Some(Class::List(kind)) => self.list(origin, &title, object.remove("items"), kind),
            Some(Class::Foreign) => {
                let endpoints = title.starts_with("Endpoints ");
                let reason = if endpoints {
                    "Endpoints are not read; EndpointSlices are"
                } else {
                    "another kind of object"
                };
                self.skip(origin, title, reason.into());
            }
            Some(Class::Object(Kind::Service)) => self.service(origin, &title, object),
            Some(Class::Object(Kind::EndpointSlice)) => self.slice(origin, &title, object),
            Some(Class::Object(Kind::Node)) => self.node(origin, &title, object),
        }
    }

    /// What an object is; reports what it cannot be.
    fn classify(&mut self, origin: &Origin, title: &str, object: &Map<String, Value>) -> Option<Class> {
        let mut texts = ["", ""];
        for (text, field) in texts.iter_mut().zip(["apiVersion", "kind"]) {
            match object.get(field) {
                Some(Value::String(found)) if !found.is_empty() => *text = found,
                None | Some(Value::Null | Value::String(_)) => {
                    self.fail(ManifestProblem::new(origin, title, field, "must be set"));
                    return None;
                }
                Some(other) => {
                    let rule = format!("must be a string, and is {}", describe(other));
                    self.fail(ManifestProblem::new(origin, title, field, rule));
                    return None;
                }
            }
        }
        let [api_version, kind] = texts;
        let known: [(&str, &str, Class); 7] = [
            ("Service", "v1", Class::Object(Kind::Service)),
            ("ServiceList", "v1", Class::List(Some(Kind::Service))),
            ("List", "v1", Class::List(None)),
            ("Node", "v1", Class::Object(Kind::Node)),
            ("NodeList", "v1", Class::List(Some(Kind::Node))),
            ("EndpointSlice", "discovery.k8s.io/v1", Class::Object(Kind::EndpointSlice)),
            ("EndpointSliceList", "discovery.k8s.io/v1", Class::List(Some(Kind::EndpointSlice))),
        ];
        let Some((known_kind, known_version, class)) =
            known.into_iter().find(|(name, ..)| name.eq_ignore_ascii_case(kind))
        else {
            return Some(Class::Foreign);
        };
        // Others define a kind Service of their own, in a group of their own: not in one of Kubernetes.
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        if group.contains('.') && !group.ends_with(".k8s.io") {
            return Some(Class::Foreign);
        }
        for (field, found, wanted) in [("kind", kind, known_kind), ("apiVersion", api_version, known_version)]
        {
            if found != wanted {
                let mut problem =
                    ManifestProblem::new(origin, title, field, format!("must be {wanted} for {known_kind}"));
                problem.value = found.into();
                self.fail(problem);
                return None;
            }
        }
        Some(class)
    }

    fn list(&mut self, origin: &Origin, title: &str, items: Option<Value>, kind: Option<Kind>) {
        match items {
            None | Some(Value::Null) => {}
            Some(Value::Array(items)) => {
                for (i, item) in items.into_iter().enumerate() {
                    self.value(&origin.item(i), item, kind);
                }
            }
            Some(other) => {
                let rule = format!("must be a sequence of objects, and is {}", describe(&other));
                self.fail(ManifestProblem::new(origin, title, "items", rule));
            }
        }
    }

    fn service(&mut self, origin: &Origin, title: &str, object: Map<String, Value>) {
        let Some((typed, mut notices)) = self.typed::<v1::Service>(origin, title, object) else { return };
        let first = self.claim(origin, Kind::Service, &typed.metadata);
        let conversion = service::convert(self.converter, &typed);
        if let Some(service) = self.outcome(origin, title, conversion, &mut notices).filter(|_| first) {
            self.manifests.services.push(service);
        }
    }

    fn slice(&mut self, origin: &Origin, title: &str, object: Map<String, Value>) {
        let Some((typed, mut notices)) = self.typed::<discovery::EndpointSlice>(origin, title, object) else {
            return;
        };
        let first = self.claim(origin, Kind::EndpointSlice, &typed.metadata);
        let conversion = endpoint_slice::convert(&typed);
        if let Some(slice) = self.outcome(origin, title, conversion, &mut notices).filter(|_| first) {
            self.manifests.slices.push(slice);
        }
    }

    fn node(&mut self, origin: &Origin, title: &str, object: Map<String, Value>) {
        let Some((typed, mut notices)) = self.typed::<v1::Node>(origin, title, object) else { return };
        let first = self.claim(origin, Kind::Node, &typed.metadata);
        let conversion = node::convert(&typed).map(|node| Conversion::Ours(node, Vec::new()));
        if let Some(node) = self.outcome(origin, title, conversion, &mut notices).filter(|_| first) {
            self.manifests.nodes.push(node);
        }
    }

    fn outcome<T>(
        &mut self,
        origin: &Origin,
        title: &str,
        conversion: Result<Conversion<T>, Problems>,
        notices: &mut Vec<Notice>,
    ) -> Option<T> {
        match conversion {
            Ok(Conversion::Ours(object, more)) => {
                self.manifests.notices.append(notices);
                self.manifests.notices.extend(more);
                return Some(object);
            }
            Ok(Conversion::NotOurs(reason)) => {
                // A field that the API does not have may be the reason, such as a misspelt `clusterIP`.
                self.manifests.notices.append(notices);
                self.skip(origin, title.into(), reason.to_string());
            }
            Err(problems) => {
                self.problems.extend(problems.into_iter().map(|p| ManifestProblem::invalid(origin, p)));
            }
        }
        None
    }

    fn skip(&mut self, origin: &Origin, object: String, reason: String) {
        self.manifests.skipped.push(Skipped { origin: origin.clone(), object, reason });
    }

    /// Reads the object as its type of the API. Fields that the type does not have become notices.
    fn typed<T: DeserializeOwned + Serialize>(
        &mut self,
        origin: &Origin,
        title: &str,
        object: Map<String, Value>,
    ) -> Option<(T, Vec<Notice>)> {
        let object = Value::Object(object);
        match serde_path_to_error::deserialize::<_, T>(&object) {
            Ok(typed) => {
                let mut notices = Vec::new();
                if let Ok(known) = serde_json::to_value(&typed) {
                    unknown_fields(title, &object, &known, &mut String::new(), &mut notices);
                }
                Some((typed, notices))
            }
            Err(error) => {
                let path = error.path().to_string();
                let field = if path == "." { "" } else { &path };
                self.fail(ManifestProblem::new(
                    origin,
                    title,
                    field,
                    type_rule(&error.into_inner().to_string()),
                ));
                None
            }
        }
    }

    /// Notes that an object stands here, and whether it is the first of its name; reports one that is not.
    fn claim(&mut self, origin: &Origin, kind: Kind, meta: &ObjectMeta) -> bool {
        let (namespace, name) = match meta::names(meta) {
            // Nodes have no namespace.
            (_, name) if kind == Kind::Node => ("", name),
            names => names,
        };
        if name.is_empty() {
            return true;
        }
        match self.seen.entry((kind, format!("{namespace}/{name}"))) {
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(origin.clone());
                true
            }
            std::collections::hash_map::Entry::Occupied(entry) => {
                let rule = format!("must not be defined twice: it is in {} already", entry.get());
                let title = match kind {
                    Kind::Node => format!("Node {name}"),
                    _ => meta::title(kind.name(), namespace, name),
                };
                self.problems.push(ManifestProblem::new(origin, &title, "", rule));
                false
            }
        }
    }
}

/// Kind, namespace and name as far as they are there.
fn title(object: &Map<String, Value>) -> String {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let kind = text(object.get("kind"));
    let kind = if kind.is_empty() { "object".to_owned() } else { kind };
    let meta = object.get("metadata");
    let name = text(meta.and_then(|m| m.get("name")));
    if kind == Kind::Node.name() && !name.is_empty() {
        return format!("{kind} {name}");
    }
    let namespace = text(meta.and_then(|m| m.get("namespace")));
    if name.is_empty() && namespace.is_empty() {
        return kind;
    }
    meta::title(&kind, if namespace.is_empty() { "default" } else { &namespace }, &name)
}

fn describe(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a sequence",
        Value::Object(_) => "an object",
    }
}

/// Says serde's message in the words of the other rules.
pub(in crate::kubernetes) fn type_rule(message: &str) -> String {
    let Some((found, wanted)) =
        message.strip_prefix("invalid type: ").and_then(|rest| rest.split_once(", expected "))
    else {
        return cut(message);
    };
    let wanted = match wanted {
        "i32" | "i64" => "a whole number",
        "map" | "a map" => "an object",
        other if other.starts_with("struct ") || other.starts_with(|c: char| c.is_ascii_uppercase()) => {
            "an object"
        }
        other => other,
    };
    format!("must be {wanted}, and is {}", cut(found))
}

/// A message may quote what was found, however long it is.
fn cut(text: &str) -> String {
    match text.char_indices().nth(120) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Compares what was written with what its type kept of it.
fn unknown_fields(title: &str, written: &Value, known: &Value, path: &mut String, notices: &mut Vec<Notice>) {
    let length = path.len();
    match (written, known) {
        (Value::Object(written), Value::Object(known)) => {
            for (key, value) in written {
                if length > 0 {
                    path.push('.');
                }
                path.push_str(key);
                match known.get(key) {
                    Some(known) => unknown_fields(title, value, known, path, notices),
                    // The types leave out what is null or, in metadata, empty.
                    None if value.is_null() || *value == Value::Object(Map::new()) => {}
                    None => notices.push(Notice::new(title, path.clone(), "not a field of the API: ignored")),
                }
                path.truncate(length);
            }
        }
        (Value::Array(written), Value::Array(known)) => {
            for (i, (written, known)) in written.iter().zip(known).enumerate() {
                path.push_str(&format!("[{i}]"));
                unknown_fields(title, written, known, path, notices);
                path.truncate(length);
            }
        }
        _ => {}
    }
}
