//! The HTTP side of the API server.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::Arc,
};

use futures::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use kube::Client;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet};

use super::store::{Line, Selector, Store};

/// The resources that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Service,
    Slice,
    Node,
}

impl Kind {
    pub(crate) const ALL: [Kind; 3] = [Kind::Service, Kind::Slice, Kind::Node];

    fn path(self) -> &'static str {
        match self {
            Kind::Service => "/api/v1/services",
            Kind::Slice => "/apis/discovery.k8s.io/v1/endpointslices",
            Kind::Node => "/api/v1/nodes",
        }
    }
}

/// How a version that is forgotten is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gone {
    /// HTTP status 410.
    Status,
    /// Status 200, and an event of type `ERROR`.
    Event,
}

/// A request in RBAC's words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Access {
    pub(crate) verb: &'static str,
    pub(crate) group: String,
    pub(crate) resource: String,
}

struct State {
    version: u64,
    stores: BTreeMap<Kind, Store>,
    streams_lists: bool,
    gone: Gone,
    /// Streamed lists end before they are complete.
    breaks_streams: bool,
    /// Watches end as soon as they begin.
    ends_watches: bool,
    /// Requests whose path or query contains the text fail so many times, with this status.
    faults: Vec<(&'static str, usize, u16)>,
    /// Kinds whose lists and watches are not answered for now.
    held: BTreeSet<Kind>,
    events: Vec<Value>,
    accesses: BTreeSet<Access>,
    /// Path and query of lists and watches.
    requests: Vec<String>,
}

/// An API server with Services, EndpointSlices and Nodes, in this process.
pub(crate) struct ApiServer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _tasks: JoinSet<()>,
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

impl ApiServer {
    pub(crate) async fn start() -> Self {
        Self::start_on(std::net::TcpListener::bind("127.0.0.1:0").unwrap()).await
    }

    /// The same on a listener that was made elsewhere, such as in another network namespace.
    pub(crate) async fn start_on(listener: std::net::TcpListener) -> Self {
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State {
            version: 100,
            stores: Kind::ALL.into_iter().map(|kind| (kind, Store::default())).collect(),
            streams_lists: true,
            gone: Gone::Event,
            breaks_streams: false,
            ends_watches: false,
            faults: Vec::new(),
            held: BTreeSet::new(),
            events: Vec::new(),
            accesses: BTreeSet::new(),
            requests: Vec::new(),
        }));
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, Arc::clone(&state)));
        Self { address, state, _tasks: tasks }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn client(&self) -> Client {
        kubenet_examples::agent::client(kube::Config::new(self.url().parse().unwrap())).unwrap()
    }

    fn with<R>(&self, job: impl FnOnce(&mut State) -> R) -> R {
        job(&mut self.state.lock())
    }

    pub(crate) fn put(&self, kind: Kind, object: Value) {
        self.with(|state| {
            let version = state.next();
            state.store(kind).put(version, object);
        });
    }

    pub(crate) fn delete(&self, kind: Kind, namespace: &str, name: &str) {
        self.with(|state| {
            let version = state.next();
            state.store(kind).delete(version, namespace, name);
        });
    }

    /// Deletes an object, and tells nobody who watches.
    pub(crate) fn delete_unheard(&self, kind: Kind, namespace: &str, name: &str) {
        self.with(|state| state.store(kind).forget(namespace, name));
    }

    /// From now on it does not stream lists.
    pub(crate) fn list_by_pages(&self) {
        self.with(|state| state.streams_lists = false);
    }

    /// Streamed lists end before they are complete.
    pub(crate) fn break_streamed_lists(&self) {
        self.with(|state| state.breaks_streams = true);
    }

    /// Watches that are resumed end at once.
    pub(crate) fn end_watches_at_once(&self, end: bool) {
        self.with(|state| state.ends_watches = end);
    }

    pub(crate) fn gone(&self, gone: Gone) {
        self.with(|state| state.gone = gone);
    }

    /// Breaks all watches of a kind in the middle.
    pub(crate) fn cut(&self, kind: Kind) {
        self.with(|state| state.store(kind).tell(|| Line::Cut));
    }

    /// Ends all watches of a kind in order.
    pub(crate) fn end_watches(&self, kind: Kind) {
        self.with(|state| state.store(kind).tell(|| Line::End));
    }

    /// Sends a line to all who watch a kind, whatever it is.
    pub(crate) fn send(&self, kind: Kind, event: &Value) {
        self.with(|state| state.store(kind).tell(|| Line::Event(event.clone())));
    }

    pub(crate) fn bookmark(&self, kind: Kind) {
        self.with(|state| {
            let version = state.version;
            state.store(kind).bookmark(version);
        });
    }

    /// Forgets all earlier versions of a kind.
    pub(crate) fn compact(&self, kind: Kind) {
        self.with(|state| {
            let version = state.next();
            state.store(kind).compact(version);
        });
    }

    /// Requests whose path or query contains the text fail so many times.
    pub(crate) fn fail_next(&self, part: &'static str, times: usize, status: u16) {
        self.with(|state| state.faults.push((part, times, status)));
    }

    /// Lists and watches of a kind are not answered until [`ApiServer::release`].
    pub(crate) fn hold(&self, kind: Kind) {
        self.with(|state| state.held.insert(kind));
    }

    pub(crate) fn release(&self, kind: Kind) {
        self.with(|state| state.held.remove(&kind));
    }

    /// How many watches of a kind there are.
    pub(crate) fn watchers(&self, kind: Kind) -> usize {
        self.with(|state| state.store(kind).watchers())
    }

    /// Events that were posted and patched.
    pub(crate) fn events(&self) -> Vec<Value> {
        self.with(|state| state.events.clone())
    }

    /// All that was ever asked for.
    pub(crate) fn accesses(&self) -> BTreeSet<Access> {
        self.with(|state| state.accesses.clone())
    }

    /// Path and query of each list and watch.
    pub(crate) fn requests(&self, kind: Kind) -> Vec<String> {
        let prefix = format!("{}?", kind.path());
        self.with(|state| state.requests.iter().filter(|r| r.starts_with(&prefix)).cloned().collect())
    }
}

impl State {
    fn next(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    fn store(&mut self, kind: Kind) -> &mut Store {
        self.stores.entry(kind).or_default()
    }
}

async fn serve(listener: TcpListener, state: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let _ = stream.set_nodelay(true);
        let state = Arc::clone(&state);
        connections.spawn(async move {
            let service = service_fn(move |request| answer(Arc::clone(&state), request));
            // A connection that a test cuts ends with an error.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(state: Arc<Mutex<State>>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let parameters: HashMap<String, String> =
        form(&query).map(|(key, value)| (key.to_owned(), value)).collect();
    let watches = parameters.get("watch").is_some_and(|watch| watch == "true");
    {
        let mut state = state.lock();
        state.accesses.insert(access(&parts.method, &path, watches));
        let target = format!("{path}?{query}");
        let fault = state.faults.iter_mut().find(|(part, times, _)| *times > 0 && target.contains(part));
        if let Some((_, times, code)) = fault {
            *times -= 1;
            let code = *code;
            state.requests.push(target);
            return Ok(failure(code, "wanted by the test"));
        }
        state.requests.push(target);
    }
    let kind = Kind::ALL.into_iter().find(|kind| kind.path() == path);
    if let Some(kind) = kind {
        while state.lock().held.contains(&kind) {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }
    let mut state = state.lock();
    Ok(match (&parts.method, kind) {
        (&Method::GET, Some(kind)) if watches => watch(&mut state, kind, &parameters),
        (&Method::GET, Some(kind)) => list(&mut state, kind, &parameters),
        (&Method::GET, None) => get(&mut state, &path),
        (&Method::POST | &Method::PATCH, None) if path.starts_with("/apis/events.k8s.io/v1/namespaces/") => {
            let event: Value = serde_json::from_slice(&body).unwrap();
            state.events.push(event.clone());
            let status = if parts.method == Method::POST { 201 } else { 200 };
            whole(status, &event)
        }
        _ => failure(404, "no such resource"),
    })
}

fn form(query: &str) -> impl Iterator<Item = (&str, String)> {
    query.split('&').filter_map(|pair| pair.split_once('=')).map(|(key, value)| (key, decode(value)))
}

/// `%XX` and `+`.
fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).unwrap()
}

/// What RBAC would be asked.
fn access(method: &Method, path: &str, watches: bool) -> Access {
    let parts: Vec<_> = path.trim_matches('/').split('/').collect();
    let (group, rest) = match parts.as_slice() {
        ["api", _, rest @ ..] => ("", rest),
        ["apis", group, _, rest @ ..] => (*group, rest),
        _ => ("", &parts[..]),
    };
    let rest = match rest {
        ["namespaces", _, rest @ ..] => rest,
        rest => rest,
    };
    let verb = match (method, rest.len()) {
        (&Method::GET, 1) if watches => "watch",
        (&Method::GET, 1) => "list",
        (&Method::GET, _) => "get",
        (&Method::POST, _) => "create",
        (&Method::PATCH, _) => "patch",
        _ => "other",
    };
    let resource = rest.first().copied().unwrap_or_default();
    Access { verb, group: group.to_owned(), resource: resource.to_owned() }
}

fn selector(parameters: &HashMap<String, String>) -> Selector {
    let get = |key: &str| parameters.get(key).cloned();
    Selector { labels: get("labelSelector"), fields: get("fieldSelector") }
}

fn list(state: &mut State, kind: Kind, parameters: &HashMap<String, String>) -> Response<Body> {
    let version = state.version;
    let limit = parameters.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
    let token = parameters.get("continue").map(String::as_str);
    let Some((items, token)) = state.store(kind).page(version, &selector(parameters), limit, token) else {
        return failure(410, "the continue token is too old");
    };
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if let Some(token) = token {
        metadata["continue"] = token.into();
    }
    whole(200, &json!({ "apiVersion": "v1", "kind": "List", "metadata": metadata, "items": items }))
}

fn watch(state: &mut State, kind: Kind, parameters: &HashMap<String, String>) -> Response<Body> {
    let streams = parameters.get("sendInitialEvents").is_some_and(|send| send == "true");
    if streams && !state.streams_lists {
        return failure(422, "sendInitialEvents is forbidden for watch");
    }
    if streams && state.breaks_streams {
        let (sender, lines) = mpsc::unbounded_channel();
        for object in state.store(kind).objects() {
            sender.send(Line::Event(json!({ "type": "ADDED", "object": object }))).ok();
        }
        sender.send(Line::End).ok();
        return stream_lines(lines);
    }
    let from = if streams { None } else { Some(parameters["resourceVersion"].parse().unwrap()) };
    let (now, gone) = (state.version, state.gone);
    if state.ends_watches && !streams {
        let (_, lines) = mpsc::unbounded_channel();
        return stream_lines(lines);
    }
    match state.store(kind).watch(now, selector(parameters), from) {
        Some(lines) => stream_lines(lines),
        None if gone == Gone::Status => failure(410, "too old resource version"),
        None => {
            let status = status(410, "too old resource version");
            let (sender, lines) = mpsc::unbounded_channel();
            sender.send(Line::Event(json!({ "type": "ERROR", "object": status }))).ok();
            sender.send(Line::End).ok();
            stream_lines(lines)
        }
    }
}

fn get(state: &mut State, path: &str) -> Response<Body> {
    let parts: Vec<_> = path.split('/').collect();
    let found = match parts.as_slice() {
        ["", "api", "v1", "namespaces", namespace, "services", name] => {
            state.store(Kind::Service).get(namespace, name).cloned()
        }
        _ => None,
    };
    found.map_or_else(|| failure(404, "not found"), |object| whole(200, &object))
}

fn stream_lines(lines: mpsc::UnboundedReceiver<Line>) -> Response<Body> {
    let frames = stream::unfold(lines, |mut lines| async move {
        match lines.recv().await? {
            Line::Event(event) => {
                let mut line = event.to_string();
                line.push('\n');
                Some((Ok(Frame::data(Bytes::from(line))), lines))
            }
            Line::Cut => Some((Err(io::Error::other("wanted by the test")), lines)),
            Line::End => None,
        }
    });
    Response::new(StreamBody::new(frames.boxed()).boxed_unsync())
}

fn whole(status: u16, body: &Value) -> Response<Body> {
    let frame = Ok(Frame::data(Bytes::from(body.to_string())));
    let mut response = Response::new(StreamBody::new(stream::iter([frame])).boxed_unsync());
    *response.status_mut() = status.try_into().unwrap();
    response.headers_mut().insert("content-type", "application/json".parse().unwrap());
    response
}

fn status(code: u16, message: &str) -> Value {
    let reason = if code == 410 { "Expired" } else { "Failed" };
    json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

fn failure(code: u16, message: &str) -> Response<Body> {
    whole(code, &status(code, message))
}
