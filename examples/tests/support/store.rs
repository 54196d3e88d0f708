//! Objects with versions, and who watches them.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};
use tokio::sync::mpsc;

/// A line of a watch, or its end.
pub(crate) enum Line {
    Event(Value),
    /// The connection breaks in the middle.
    Cut,
    /// The server ends the watch in order.
    End,
}

/// Which objects are asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selector {
    /// Label selector: `!key` or `key=value`.
    pub(crate) labels: Option<String>,
    /// Field selector: `metadata.name=value`.
    pub(crate) fields: Option<String>,
}

impl Selector {
    fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        let label = self.labels.as_deref().is_none_or(|selector| match selector.strip_prefix('!') {
            Some(key) => labels[key].is_null(),
            None => selector.split_once('=').is_some_and(|(key, value)| labels[key] == value),
        });
        let field = self.fields.as_deref().is_none_or(|selector| {
            selector.strip_prefix("metadata.name=").is_some_and(|name| object["metadata"]["name"] == name)
        });
        label && field
    }
}

/// All objects of one resource.
#[derive(Default)]
pub(crate) struct Store {
    objects: BTreeMap<(String, String), Value>,
    /// Version, type, the object, and what it was before.
    log: Vec<(u64, &'static str, Value, Option<Value>)>,
    /// Versions below are forgotten.
    oldest: u64,
    watchers: Vec<(Selector, mpsc::UnboundedSender<Line>)>,
    pages: HashMap<String, Vec<Value>>,
}

impl Store {
    /// Creates or changes an object.
    pub(crate) fn put(&mut self, version: u64, mut object: Value) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &mut object["metadata"];
        let key = (text(&metadata["namespace"]), text(&metadata["name"]));
        metadata["resourceVersion"] = version.to_string().into();
        let before = self.objects.get(&key).cloned();
        metadata["uid"] = match &before {
            Some(before) => before["metadata"]["uid"].clone(),
            None => format!("uid-{version}").into(),
        };
        let kind = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.objects.insert(key, object.clone());
        self.record(version, kind, object, before);
    }

    pub(crate) fn delete(&mut self, version: u64, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        let before = self.objects.remove(&key).unwrap_or_else(|| panic!("{key:?} does not exist"));
        let mut last = before.clone();
        last["metadata"]["resourceVersion"] = version.to_string().into();
        self.record(version, "DELETED", last, Some(before));
    }

    /// Deletes an object without a trace.
    pub(crate) fn forget(&mut self, namespace: &str, name: &str) {
        self.objects.remove(&(namespace.to_owned(), name.to_owned()));
    }

    fn record(&mut self, version: u64, kind: &'static str, object: Value, before: Option<Value>) {
        self.watchers.retain(|(selector, watcher)| match seen(selector, kind, &object, before.as_ref()) {
            Some(event) => watcher.send(Line::Event(event)).is_ok(),
            None => !watcher.is_closed(),
        });
        self.log.push((version, kind, object, before));
    }

    pub(crate) fn objects(&self) -> impl Iterator<Item = &Value> {
        self.objects.values()
    }

    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<&Value> {
        self.objects.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// A page of all objects: with the rest of them under the token.
    pub(crate) fn page(
        &mut self,
        version: u64,
        selector: &Selector,
        limit: usize,
        token: Option<&str>,
    ) -> Option<(Vec<Value>, Option<String>)> {
        let mut items: Vec<Value> = match token {
            Some(token) => self.pages.remove(token)?,
            None => self.objects.values().filter(|object| selector.matches(object)).cloned().collect(),
        };
        if items.len() <= limit {
            return Some((items, None));
        }
        let rest = items.split_off(limit);
        let token = format!("{version}-{}", rest.len());
        self.pages.insert(token.clone(), rest);
        Some((items, Some(token)))
    }

    /// Begins a watch behind `from`, or with all objects; `None` when the version is forgotten.
    pub(crate) fn watch(
        &mut self,
        now: u64,
        selector: Selector,
        from: Option<u64>,
    ) -> Option<mpsc::UnboundedReceiver<Line>> {
        let (watcher, lines) = mpsc::unbounded_channel();
        let send = |event: Value| watcher.send(Line::Event(event)).unwrap();
        match from {
            Some(from) if from < self.oldest => return None,
            Some(from) => {
                for (version, kind, object, before) in &self.log {
                    if *version > from
                        && let Some(event) = seen(&selector, kind, object, before.as_ref())
                    {
                        send(event);
                    }
                }
            }
            None => {
                for object in self.objects.values().filter(|object| selector.matches(object)) {
                    send(json!({ "type": "ADDED", "object": object }));
                }
                send(bookmark(now, true));
            }
        }
        self.watchers.push((selector, watcher));
        Some(lines)
    }

    pub(crate) fn bookmark(&mut self, version: u64) {
        self.tell(|| Line::Event(bookmark(version, false)));
    }

    /// Sends a line to all who watch, and forgets them where it is their last.
    pub(crate) fn tell(&mut self, line: impl Fn() -> Line) {
        self.watchers.retain(|(_, watcher)| {
            let line = line();
            let is_last = !matches!(line, Line::Event(_));
            watcher.send(line).is_ok() && !is_last
        });
    }

    pub(crate) fn watchers(&mut self) -> usize {
        self.watchers.retain(|(_, watcher)| !watcher.is_closed());
        self.watchers.len()
    }

    /// Forgets all versions before this one.
    pub(crate) fn compact(&mut self, version: u64) {
        self.oldest = version;
        self.log.clear();
        self.pages.clear();
    }
}

/// What a watcher sees of a change: an object that it no longer selects is deleted for it.
fn seen(selector: &Selector, kind: &str, object: &Value, before: Option<&Value>) -> Option<Value> {
    let is = kind != "DELETED" && selector.matches(object);
    let was = before.is_some_and(|before| selector.matches(before));
    let kind = match (was, is) {
        (false, false) => return None,
        (false, true) => "ADDED",
        (true, true) => "MODIFIED",
        (true, false) => "DELETED",
    };
    Some(json!({ "type": kind, "object": object }))
}

fn bookmark(version: u64, ends_list: bool) -> Value {
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if ends_list {
        metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
    }
    json!({ "type": "BOOKMARK", "object": { "apiVersion": "v1", "kind": "Service", "metadata": metadata } })
}
